"""Brings the git objects that segments carry into a repository of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sealrun.git import Git
from sealrun.mirror.format import Damaged
from sealrun.mirror.line import contents, folder_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sealrun.mirror.format import Blob
    from sealrun.mirror.line import Readable


def index_packs(line: Readable, repository: Path, packs: Sequence[tuple[int, Blob]]) -> None:
    """Bring the packs of segments into a bare repository of ours, each object checked by git.

    Args:
        line: that carries them.
        repository: that gets them.
        packs: by the number of their segment.

    Raises:
        Damaged: git does not take them, or their bytes are others.
        Unreachable: nobody answers.
    """
    git = Git(repository)
    for number, pack in packs:
        what = f"the git objects of segment {number}"
        chunks = contents(line, folder_of(number), pack, what)
        words = git.fed("index-pack", "--stdin", "--strict", "--fix-thin", chunks=chunks)
        if words is not None:
            raise Damaged(f"{what} are none that git takes: {words.splitlines()[-1]}")
