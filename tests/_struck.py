"""A guard in this interpreter, and writers that strike at moments that are brought about.

A writer strikes right before the guard reads a file, or right after it has listed a directory. Both
happen in the guard's own thread, so that nothing comes between.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from _guard import COMMITTED
from sealrun.guard.content import Looker
from sealrun.guard.core import Guard
from sealrun.watch.expected import of
from sealrun.watch.tree import RUN, WatchedTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from _guard import Site
    from sealrun.guard import Mutation, Report
    from sealrun.guard.content import Found
    from sealrun.guard.manifest import Guarded, Manifest

#: Untracked, imported by the tracked ones, and there from the start.
EXTRA = "settings.py"
#: A directory of nothing that is tracked, there before the guard is.
SCRATCH = "scratch"
COMMITTED_HERE = {**COMMITTED, EXTRA.encode(): b"RATE = 1\n"}


@dataclass
class Struck:
    """A workspace to be guarded, and what a writer does when the guard reads or lists next.

    Attributes:
        before_look: by a file's path in the workspace; taken out as the writer begins.
        after_list: by a directory's absolute path; taken out when the writer is done.
        heard: what the guard told of while it watched.
        closed: whoever wrote first has closed the file; no two have it open at once.
        filled: what was emptied has its bytes again.
    """

    guard: Guard
    tree: WatchedTree
    root: Path
    heard: list[Mutation] = field(default_factory=list["Mutation"])
    closed: threading.Event = field(default_factory=threading.Event)
    filled: threading.Event = field(default_factory=threading.Event)
    before_look: dict[bytes, Callable[[], None]] = field(
        default_factory=dict[bytes, "Callable[[], None]"]
    )
    after_list: dict[str, Callable[[], None]] = field(
        default_factory=dict[str, "Callable[[], None]"]
    )

    def report(self) -> Report:
        """Drain and compare everything."""
        return self.guard.drained(lambda: self.guard.report(RUN)).result(30)

    def refill(self, name: str, after: float) -> Callable[[], None]:
        """Return what empties a file now, and writes its bytes and closes it seconds later."""
        path = self.root / name

        def strike() -> None:
            assert self.closed.wait(20)
            file = path.open("wb")

            def fill() -> None:
                time.sleep(after)
                file.write(COMMITTED_HERE[name.encode()])
                file.close()
                self.filled.set()

            threading.Thread(target=fill).start()

        return strike

    def watch(self) -> None:
        """Begin to watch."""
        self.guard.call(lambda: self.guard.admit(self.tree)).result(30)
        assert self.guard.drained(lambda: self.guard.armed(RUN)).result(30).complete


@pytest.fixture
def unwatched(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Struck]:
    """A guard in this interpreter that is about to watch tracked and extra files."""
    (site.root / EXTRA).write_bytes(COMMITTED_HERE[EXTRA.encode()])
    (site.root / SCRATCH).mkdir()
    private = tmp_path / "private"
    (private / "start").mkdir(parents=True)
    guard = Guard(site.root, private, idle_after=600)
    guard.start()
    thread = threading.Thread(target=guard.run, daemon=True)
    thread.start()
    tree = WatchedTree(of(site.root, private / "start"), tmp_path / "found")
    made = Struck(guard, tree, site.root)
    tree.subscribers.append(made.heard.append)
    real_look, real_list = Looker.look, os.scandir

    def look(self: Looker, path: bytes, manifest: Manifest, expected: Guarded | None) -> Found:
        strike = made.before_look.pop(path, None)
        if strike is not None:
            strike()
        return real_look(self, path, manifest, expected)

    def listed(path: bytes | int) -> AbstractContextManager[Iterator[os.DirEntry[Any]]]:
        if isinstance(path, int):
            return real_list(path)
        strike = made.after_list.get(os.fsdecode(path))
        if strike is None:
            return real_list(path)
        with real_list(path) as entries:
            found = list(entries)
        strike()
        del made.after_list[os.fsdecode(path)]  # last: tests wait for it
        return nullcontext(iter(found))

    monkeypatch.setattr(Looker, "look", look)
    monkeypatch.setattr(os, "scandir", listed)
    yield made
    tree.close()
    guard.end("test")
    thread.join(30)


@pytest.fixture
def struck(unwatched: Struck) -> Struck:
    """A guard in this interpreter that watches tracked and extra files."""
    unwatched.watch()
    return unwatched
