"""Which directories writers are seen in, and where each of them stands and stood.

Rules that this module keeps:

- No IO: a directory is its key, which the file system gives it (``fanotify.mark``); where one
  stands by now is said by whoever asked.
- One that leaves is remembered for a moment: it may arrive elsewhere, or come back, and what was
  done in it is told late.
- Nothing is certain of what was done in a directory before it was marked, nor of who was in it
  before it came, unless it was marked where it came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

UNHEARD = "its directory came at that time, and nobody was seen in it before"


@dataclass(frozen=True)
class Level:
    """One directory above a path, and what is known of who was in it.

    Attributes:
        name: of the entry in it that leads to the path.
        keys: of the directories that stand there, or stood there not long ago.
        came: why somebody unseen may have been in it since it came here; None where nobody was.
        unheard: why what is known of it may not be the last that was done at this place.
    """

    name: bytes
    keys: tuple[bytes, ...]
    came: str | None
    unheard: str | None


@dataclass
class _Marked:
    """Since when, where at first, and where by now as far as was heard."""

    since: int
    first: bytes
    at: set[bytes]


class Directories:
    """Every marked directory, by key and by path."""

    def __init__(self) -> None:
        self._marked: dict[bytes, _Marked] = {}
        self._keys: dict[bytes, bytes] = {}
        self._left: dict[bytes, tuple[bytes, float]] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._marked

    def since(self, key: bytes) -> int:
        """Return the position at which a directory was marked; -1 where it is not."""
        marked = self._marked.get(key)
        return -1 if marked is None else marked.since

    def cover(self, directory: bytes, key: bytes, position: int, clock: float) -> None:
        """A directory was marked at a path; ``position`` and ``clock`` (monotonic seconds) are now."""
        if self._keys.get(directory) != key:
            self.leave(directory, clock)
        self._keys[directory] = key
        self._marked.setdefault(key, _Marked(position, directory, set())).at.add(directory)
        self._left.pop(key, None)

    def leave(self, directory: bytes, clock: float) -> bytes | None:
        """Forget what stands at a path.

        Returns:
            Its key, if it stands nowhere else.
        """
        key = self._keys.pop(directory, None)
        if key is None:
            return None
        at = self._marked[key].at
        at.discard(directory)
        if at:
            return None
        self._left[key] = directory, clock
        return key

    def forget(self, key: bytes) -> None:
        """Forget a directory that left."""
        del self._left[key], self._marked[key]

    def left(self, before: float) -> list[tuple[bytes, bytes]]:
        """Return key and last place of those that left before a time."""
        return [(key, at) for key, (at, clock) in self._left.items() if clock < before]

    def levels(
        self,
        path: bytes,
        standing: Mapping[bytes, bytes],
        since: int,
        *,
        surely: bool,
        why: Mapping[bytes, str],
    ) -> list[Level]:
        """Say where to look for who changed a path.

        Args:
            path: absolute.
            standing: key of each directory above it that stands there; empty where it has none.
            since: position up to which everything is explained.
            surely: what stood there when it was looked at stands there now.
            why: what kept directories from being marked.

        Returns:
            Its own directory first. Nothing is certain of what comes from outside of all that is
            marked, so those above the topmost are left out.
        """
        found: list[Level] = []
        floor = -inf
        for directory, name in reversed(list(_above(path))):
            key = standing.get(directory)
            here = self._here(directory)
            if not found and not here and key not in self._marked:
                continue
            came = unheard = None
            marked = self._marked.get(key) if key is not None else None
            if marked is not None:
                if floor != -inf and (marked.first != directory or marked.since < floor):
                    unheard = UNHEARD  # it was moved into one that nobody saw
                if marked.since > since and (marked.first == directory or len(marked.at) > 1):
                    came = UNHEARD
                    floor = max(floor, marked.since)
            elif key is not None:
                came = unheard = why.get(directory, UNHEARD)
                floor = inf
            keys = (key,) if key is not None and marked is not None else ()
            if not surely or not keys:
                keys = tuple(dict.fromkeys((*keys, *here)))
            found.append(Level(name, keys, came or unheard, unheard))
        return found[::-1]

    def _here(self, directory: bytes) -> tuple[bytes, ...]:
        """Return what stands at a path as far as was heard, and what stood there last."""
        key = self._keys.get(directory)
        now = () if key is None else (key,)
        return (*now, *(key for key, (at, _) in self._left.items() if at == directory))


def _above(path: bytes) -> Iterator[tuple[bytes, bytes]]:
    while path:
        path, _, name = path.rpartition(b"/")
        yield path, name
