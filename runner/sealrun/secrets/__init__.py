"""Keys where none should be: in the commit, in what is passed to a container, in what it leaves.

``shapes`` says what keys look like, ``detect`` finds them in bytes, ``look`` reads the places, and
remembers what it has read. What is found is a note: it says where, never what, and judges nothing.
"""

from __future__ import annotations

from sealrun.secrets.detect import Key, keys, variable
from sealrun.secrets.look import (
    SEEN,
    Found,
    Looked,
    Seen,
    after_run,
    before_run,
    in_commit,
    in_files,
    in_variables,
)

__all__ = [
    "SEEN",
    "Found",
    "Key",
    "Looked",
    "Seen",
    "after_run",
    "before_run",
    "in_commit",
    "in_files",
    "in_variables",
    "keys",
    "variable",
]
