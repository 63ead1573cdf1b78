"""``sealrun gc`` as a whole: look, take turns, look again, remove.

Rules that this module keeps:

- What is removed was found while nobody else could make or take into use anything: under the lock
  that everybody holds who does (``keeping``).
- A directory is first renamed to a name that nobody looks for and then emptied; a file goes at once.
  So a death at any line leaves nothing half there, and the next ``gc`` goes on.
- One thing that cannot be removed is told and keeps no other from going.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from sealrun import nested
from sealrun.errors import EngineError, EngineUnavailable
from sealrun.gc import keeping
from sealrun.gc.findings import GONE, Search
from sealrun.gc.model import Collected, Finding, Kind, Left
from sealrun.gc.needed import read_needed
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sealrun.gc.images import EngineSearch
    from sealrun.progress import Progress
    from sealrun.state import Places

#: Seconds that we wait until nobody is sealing, warming or importing.
PATIENCE = 10.0


class Collection:
    """One ``gc``.

    Args:
        places: of the calling user; nothing else is looked at.
        progress: told of bytes as they go.
        unused: seconds that what was prepared and never used by a run stays.
        recent: seconds after its last use that an image stays in the engine.
        connect: opens the engine; None: images are not asked for.
        now: seconds since the epoch; None: the clock's.
    """

    def __init__(
        self,
        places: Places,
        progress: Progress,
        *,
        unused: float,
        recent: float,
        connect: Callable[[], EngineSearch] | None,
        now: float | None = None,
    ) -> None:
        self._places = places
        self._progress = progress
        self._unused = unused
        self._recent = recent
        self._connect = connect
        self._now = now
        self._left: list[Left] = []
        self._engine: EngineSearch | None = None

    def look(self) -> Collected:
        """Return what would be removed now; changes nothing.

        Raises:
            StorageFault: a record cannot be read, so that nothing may be removed.
        """
        self._left = []
        return Collected(tuple(self._find()), tuple(self._left))

    def collect(self) -> Collected:
        """Remove what can go; return what was removed.

        Raises:
            StorageFault: a record cannot be read; nothing was removed.
        """
        self._left = []
        with keeping.taking_turns(self._places):
            if not self._find():
                return Collected((), tuple(self._left))
            self._left = []
            with keeping.nobody_keeping(self._places, PATIENCE) as alone:
                if not alone:
                    why = "a run, a warm or an import is making or loading an image; try again"
                    return Collected((), (Left("everything", why),))
                found = self._find()
                removed = self._remove(found)
        return Collected(tuple(removed), tuple(self._left))

    def _find(self) -> list[Finding]:
        with self._progress.task("reading what runs need") as task:
            needed = read_needed(self._places)
            task.describe("looking for what can go")
            own = Search(self._places, needed, self._unused, self._now).everything()
            images: list[Finding] = []
            if self._connect is not None:
                try:
                    self._engine = self._engine or self._connect()
                    images, kept = self._engine.search(self._places, needed, self._recent)
                    self._left += kept
                except (EngineError, EngineUnavailable) as error:
                    self._left.append(Left(Kind.IMAGE, error.message))
        return images + own

    def _remove(self, found: list[Finding]) -> list[Finding]:
        removed: list[Finding] = []
        total = sum(one.size for one in found)
        with self._progress.task("removing", total) as task:
            for one in found:
                task.describe(f"{one.kind} {one.name}")
                try:
                    if one.kind is Kind.IMAGE and self._engine is not None:
                        self._engine.remove(one.name)
                    for path in one.paths:
                        remove(path, self._places)
                except (OSError, EngineError) as error:
                    words = error.message if isinstance(error, EngineError) else error.strerror
                    self._left.append(Left(f"{one.kind} {one.name}", f"it cannot go: {words}"))
                    continue
                removed.append(one)
                task.advance(one.size)
        return removed


def remove(path: Path, places: Places) -> None:
    """Remove a file or a directory of ours, never half of it; missing is fine.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    # Beside it, not in the scratch: a rename must not cross a file system.
    root = places.data if path.is_relative_to(places.data) else places.cache
    if path.is_relative_to(places.state):
        root = places.state
    aside = private(root / GONE) / secrets.token_hex(8)
    if path.parent.name == GONE:
        aside = path
    else:
        path.rename(aside)
    nested.remove(aside)
