"""Where a file of a record stands now: records name absolute paths, and may have been restored.

Rules that this module keeps:

- A recorded path that exists is what it is. One that does not, and that led below a repository's
  state then, leads to the same place below the caller's state now.
- Paths are other machines' words: only names without ``..`` below a run or the time between runs
  are followed. Whoever reads hashes what is found.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sealrun.state import Places

_STATE = re.compile(r"(?s)/.*/repositories/([0-9a-f]{32})/((?:runs|between)/.+)")


def below_state(file: str) -> tuple[str, str] | None:
    """Return repository and path below its state that an absolute path led to; None for others."""
    found = _STATE.fullmatch(file)
    if found is None or any(part in ("", ".", "..") for part in found[2].split("/")):
        return None
    return found[1], found[2]


def found_at(file: str) -> str:
    """Return where a recorded file is to be read.

    Args:
        file: its absolute path on the machine of the record.
    """
    if os.path.lexists(file):
        return file
    below = below_state(file)
    if below is None:
        return file
    repository, rest = below
    return os.fspath(Path(Places.of_user().state, "repositories", repository, rest))
