"""Keys that the caller passes to a container stay off the record.

Rules that this module keeps:

- What is on record in a key's place says what was there, never the key or a digest of it: a short
  password could be found from one.
- A note may be missing, a key on record cannot be taken back: so the name alone is enough here, whatever
  the value looks like, and so is a password in an address.
- Running again takes the key from whoever runs again, as far as they let it; without one the variable is
  not set.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from sealrun.secrets.detect import variable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sealrun.ledger import RunRecord

_WITHHELD = "(withheld: "
#: The end of names of variables that hold what nobody else may know.
_NAMED = re.compile(
    r"(?i)(?:KEY|TOKEN|SECRET|PASS|PASSWD|PASSWORD|PASSPHRASE|_PWD|CREDENTIAL|_AUTH|COOKIE)S?$"
)
#: A user's password in an address (RFC 3986, section 3.2.1).
_IN_ADDRESS = re.compile(r"://[^/?#\s@]*:[^/?#\s]+@")


def withheld(variables: Mapping[str, str], passed: Collection[str]) -> dict[str, str]:
    """Return variables as they go on record.

    Args:
        variables: of a container.
        passed: names of those that came from the caller; the others stand in the commit anyway.
    """
    kept = dict(variables)
    for name in passed:
        value = kept.get(name, "")
        key = variable(name, value)
        if key is not None:
            kept[name] = f"{_WITHHELD}{key.words()})"
        elif value and (_NAMED.search(name) or _IN_ADDRESS.search(value)):
            # No length: the shorter a password is, the more that would say.
            kept[name] = f"{_WITHHELD}a variable of the caller's)"
    return kept


def asked_back(record: RunRecord) -> tuple[str, ...]:
    """Return the names of the variables of its caller's whose values a run's record withholds.

    Those that did not come from the caller are none, whatever their values on record look like.
    """
    policy, variables = record.opened.policy, record.progress.variables or {}
    passed = policy.values.get("sandbox.pass_variables") if policy else None
    names = {str(name) for name in passed} if isinstance(passed, list | tuple) else set[str]()
    return tuple(name for name in marked(variables) if name in names)


def marked(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of recorded variables that say that their values are withheld, in order."""
    return tuple(sorted(name for name, text in variables.items() if text.startswith(_WITHHELD)))


def given_back(
    variables: Mapping[str, str], withheld: Collection[str], taken: Collection[str]
) -> dict[str, str]:
    """Return recorded variables with the caller's own keys where some were withheld.

    Args:
        variables: as they are on record.
        withheld: names of those whose values are not on record.
        taken: of them, those that may come from the caller; the others are not set.
    """
    return {
        name: os.environ[name] if name in withheld else value
        for name, value in variables.items()
        if name not in withheld or (name in taken and name in os.environ)
    }
