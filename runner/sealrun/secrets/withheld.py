"""Keys that the caller passes to a container stay off the record.

Rules that this module keeps:

- What is on record in a key's place says what was there, never the key or a digest of it: a short
  password could be found from one.
- Running again takes the key from whoever runs again; without one the variable is not set.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sealrun.secrets.detect import variable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_WITHHELD = "(withheld: "


def withheld(variables: Mapping[str, str], passed: Collection[str]) -> dict[str, str]:
    """Return variables as they go on record.

    Args:
        variables: of a container.
        passed: names of those that came from the caller; the others stand in the commit anyway.
    """
    kept = dict(variables)
    for name in passed:
        key = variable(name, kept.get(name, ""))
        if key is not None:
            kept[name] = f"{_WITHHELD}{key.words()})"
    return kept


def given_back(variables: Mapping[str, str]) -> dict[str, str]:
    """Return recorded variables with the caller's own keys where some were withheld."""
    return {
        name: os.environ[name] if value.startswith(_WITHHELD) else value
        for name, value in variables.items()
        if not value.startswith(_WITHHELD) or name in os.environ
    }
