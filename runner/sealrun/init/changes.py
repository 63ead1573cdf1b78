"""What would be written, as one diff.

Rules that this module keeps:

- Pure: bytes come in, text goes out.
- Every byte that changes is in the diff. What a terminal would obey is shown escaped, and a line's
  carriage return is not shown as a difference of the whole line.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True)
class Change:
    """One file that is made or rewritten.

    Attributes:
        path: relative to the top of the workspace.
        before: what it holds; None where it does not exist.
        after: what it will hold.
    """

    path: str
    before: bytes | None
    after: bytes


def diff(changes: Iterable[Change]) -> tuple[str, ...]:
    """Return the lines of one unified diff over all changes, without line ends."""
    return tuple(line for change in changes for line in _of(change))


def _of(change: Change) -> Iterator[str]:
    before = _lines(change.before or b"")
    old = "/dev/null" if change.before is None else f"a/{change.path}"
    for line in difflib.unified_diff(before, _lines(change.after), old, f"b/{change.path}"):
        yield line.removesuffix("\n").removesuffix("\r")
        if not line.endswith("\n"):
            yield "\\ No newline at end of file"


def _lines(content: bytes) -> list[str]:
    # Not splitlines: for git a form feed ends no line.
    *ended, last = content.decode("utf-8", "backslashreplace").split("\n")
    return [f"{line}\n" for line in ended] + ([last] if last else [])
