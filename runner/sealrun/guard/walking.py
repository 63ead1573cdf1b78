"""Directories of any depth, from the top down.

Rules that this module keeps:

- Nothing calls itself: before Python 3.12 ``os.walk`` does, and whoever nests a thousand directories
  would end the guard with it.
- Links are named and never followed; what cannot be listed is passed over, as ``os.walk`` does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def walk(top: bytes) -> Iterator[tuple[bytes, list[bytes], list[bytes]]]:
    """Yield each directory with the names of the directories and of the other files in it.

    Args:
        top: where to begin.

    Yields:
        Path, names of directories (those that are taken out of the list are not entered), names of
        files.
    """
    waiting = [top]
    while waiting:
        at = waiting.pop()
        names: list[bytes] = []
        files: list[bytes] = []
        links: set[bytes] = set()
        try:
            with os.scandir(at) as entries:
                for entry in entries:
                    (names if _is_directory(entry) else files).append(entry.name)
                    if entry.is_symlink():
                        links.add(entry.name)
        except OSError:
            continue
        yield at, names, files
        waiting += [at + b"/" + name for name in reversed(names) if name not in links]


def _is_directory(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
