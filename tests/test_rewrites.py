"""A file that is emptied and filled again is the same file, at whatever moment the guard looks.

The moments are brought about: the guard runs in this interpreter, and a writer strikes right before
the guard reads, after everything that was told until then has been dealt with.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Literal

import pytest

from _guard import eventually, site
from _struck import COMMITTED_HERE, EXTRA, struck, unwatched
from sealrun.guard import armed, core

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from _struck import Struck

__all__ = ["site", "struck", "unwatched"]


def _touched(path: Path) -> None:
    os.utime(path)


def _saved(path: Path) -> None:
    path.write_bytes(COMMITTED_HERE[path.name.encode()])


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's time runs out because the machine stands still; it is long enough as it is."""
    assert (armed.SETTLE, armed.FILL) == (0.1, 1.0)
    monkeypatch.setattr(armed, "SETTLE", 600.0)
    for module in (armed, core):
        monkeypatch.setattr(module, "FILL", 600.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("name", ["train.py", EXTRA])
@pytest.mark.parametrize("first", [_touched, _saved], ids=["touched", "saved"])
def test_emptied_between_the_news_and_the_look(
    struck: Struck, name: str, first: Callable[[Path], None]
) -> None:
    """A writer that begins while the guard goes to see about an earlier event gets its time too."""
    struck.before_look[name.encode()] = struck.refill(name, 0.3)
    first(struck.root / name)
    struck.closed.set()
    assert struck.filled.wait(20)
    time.sleep(0.1)
    assert struck.heard == []
    report = struck.report()
    assert report.mutations == ()
    assert any(r.path.endswith(name.encode()) and r.content for r in report.rewrites)


@pytest.mark.usefixtures("patient")
def test_replaced_between_the_news_and_the_look(struck: Struck) -> None:
    """The same for a file that is removed and made anew, as git does it."""
    path = struck.root / "train.py"

    def strike() -> None:
        assert struck.closed.wait(20)
        path.unlink()
        threading.Timer(0.02, refill).start()

    def refill() -> None:
        _saved(path)
        struck.filled.set()

    struck.before_look[b"train.py"] = strike
    _saved(path)
    struck.closed.set()
    assert struck.filled.wait(20)
    time.sleep(0.1)
    assert struck.heard == []
    assert struck.report().mutations == ()


@pytest.mark.usefixtures("patient")
def test_saved_and_begun_again_before_the_guard_hears(struck: Struck) -> None:
    """One save and the beginning of the next, told in one go, are no file that was closed empty."""
    path = struck.root / "train.py"

    def both() -> None:
        _saved(path)
        struck.closed.set()
        struck.refill("train.py", 0.3)()
        time.sleep(0.05)

    # In the guard's own thread, so that it hears of it afterwards.
    struck.guard.call(both).result(30)
    assert struck.filled.wait(20)
    time.sleep(0.1)
    assert struck.heard == []
    assert struck.report().mutations == ()


def test_a_rewrite_that_halts_is_no_mutation(
    struck: Struck, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is emptied, and filled again by a program that is slow to start, is the same file.

    It takes longer than a file may be gone. Held open and empty for longer than anybody would, it is
    a mutation like any other.
    """
    script = "{ read; git show HEAD:train.py; } > train.py"
    with monkeypatch.context() as patch:
        for module in (armed, core):
            patch.setattr(module, "FILL", 600.0)
        with subprocess.Popen(
            ["bash", "-ec", script], cwd=struck.root, stdin=subprocess.PIPE
        ) as writer:
            assert writer.stdin is not None
            eventually(lambda: (struck.root / "train.py").stat().st_size == 0)
            # Removed later and told of: the empty one had as long, and more.
            (struck.root / "prepare.py").unlink()
            eventually(lambda: struck.heard != [])
            writer.communicate(b"\n")
        report = struck.report()
    assert [m.path for m in report.mutations] == [b"prepare.py"]
    assert {(r.path, r.content) for r in report.rewrites} == {(b"train.py", True)}
    assert [m.path for m in struck.heard] == [b"prepare.py"]
    with (struck.root / "train.py").open("wb"):
        eventually(lambda: [m.path for m in struck.heard] == [b"prepare.py", b"train.py"])


@pytest.mark.parametrize("name", ["train.py", EXTRA])
def test_what_stays_empty_is_told(
    struck: Struck, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed and empty is soon a mutation: nobody has to ask, and it has no time to be filled."""
    for module in (armed, core):
        monkeypatch.setattr(module, "FILL", 600.0)
    with (struck.root / name).open("wb"):
        pass
    eventually(lambda: [m.path for m in struck.heard] != [])
    assert {m.kind for m in struck.heard} == {"modified"}


@pytest.mark.parametrize("name", ["train.py", EXTRA])
def test_foreign_bytes_have_no_time_to_be_put_back(
    struck: Struck, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shorter file that holds bytes is told of while its writer goes on, and they are kept."""
    for module in (armed, core):
        monkeypatch.setattr(module, "FILL", 600.0)
    with (struck.root / name).open("wb", buffering=0) as file:
        file.write(b"R = 0\n")
        eventually(lambda: [m.path for m in struck.heard] != [])
        file.truncate(0)
        file.seek(0)
        file.write(COMMITTED_HERE[name.encode()])
    (mutation,) = struck.report().mutations
    assert mutation.restored
    assert mutation.evidence is not None
    assert mutation.evidence.size == len(b"R = 0\n")


@pytest.mark.parametrize("how", ["closed", "open"])
def test_who_begins_again_and_again_gains_no_time(
    struck: Struck, how: Literal["closed", "open"]
) -> None:
    """A file that is emptied for ever is told of while it goes on, closed each time or never."""
    path = struck.root / "train.py"
    end = threading.Event()

    def write() -> None:
        if how == "closed":
            while not end.wait(0.005):
                path.write_bytes(b"")
        else:
            with path.open("wb") as file:
                while not end.wait(0.005):
                    file.truncate(0)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        eventually(lambda: [m.path for m in struck.heard] == [b"train.py"])
    finally:
        end.set()
        writer.join()
