"""Reads reflogs: what HEAD and the branches of this clone pointed at, one after the other.

Rules that this module keeps:

- The files are read as git writes them (git-update-ref(1), "Logging Updates"); git itself would not
  show an entry whose commit is gone, and that is just what an audit asks about.
- They may hold anything: a line that does not parse is left out, links are not followed, sizes are
  bounded.
- No reflog is no finding: clones begin with none, and git drops entries after 90 days.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.nested import walk
from sealrun.regular import end

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sealrun.git import Repository

#: Bytes of one reflog that are read, its end.
SIZE_LIMIT = 64 << 20
_LINE = re.compile(
    rb"([0-9a-f]{40,64}) ([0-9a-f]{40,64}) [^\n]*?> (\d{1,15}) [-+]\d{4}(?:\t([^\n]*))?"
)


@dataclass(frozen=True)
class Move:
    """One entry of a reflog.

    Attributes:
        old: full id before.
        new: full id after.
        at: seconds since 1970.
        message: what git wrote, e.g. ``reset: moving to HEAD~1``.
    """

    old: str
    new: str
    at: int
    message: str


def moves(repository: Repository) -> list[Move]:
    """Return the moves of every HEAD and branch of a clone, each once, in time."""
    found: set[Move] = set()
    for file in _files(repository.common_dir):
        found.update(_parse(end(file, SIZE_LIMIT) or b""))
    return sorted(found, key=lambda move: (move.at, move.message, move.old, move.new))


def _files(common: Path) -> Iterator[Path]:
    for root in (common / "logs", *sorted(common.glob("worktrees/*/logs"))):
        for folder, _, names in walk(root):
            yield from (Path(folder, name) for name in sorted(names))


def _parse(content: bytes) -> Iterator[Move]:
    for line in content.split(b"\n"):
        match = _LINE.fullmatch(line)
        if match is not None:
            old, new, at, message = match.groups()
            yield Move(
                old.decode(), new.decode(), int(at), (message or b"").decode("utf-8", "replace")
            )
