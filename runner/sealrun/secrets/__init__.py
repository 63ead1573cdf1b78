"""Keys where none should be: in the commit, in what is passed to a container, in what it leaves.

``shapes`` and ``names`` say what keys and their files look like, ``detect`` finds them in bytes, ``look``
reads the places and remembers what it has read, ``withheld`` keeps them off the record. What is found is a note: it says where, never what, and judges nothing.
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
    in_names,
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
    "in_names",
    "in_variables",
    "keys",
    "variable",
]
