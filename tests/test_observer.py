"""The observer and the pure parts under it, without a guard process."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from watchdog.observers.inotify_c import InotifyFD

from _guard import Listed
from sealrun.errors import GuardError
from sealrun.guard import core, messages
from sealrun.guard.content import Looker, RootGone
from sealrun.guard.core import Guard
from sealrun.guard.coverage import Coverage, Gap, Loss, Moment, gaps
from sealrun.guard.filesystem import mount_of, mounts_below, now, parse_mounts, read_mounts
from sealrun.guard.gitstate import GitPlaces
from sealrun.guard.manifest import Manifest, read_manifest, write_manifest
from sealrun.guard.mutations import EvidenceStore, Mutation
from sealrun.guard.observer import OVERFLOW, Event, Observer, Raw, check_watchdog
from sealrun.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

START = Moment(100.0, 1.0, "boot")
END = Moment(200.0, 2.0, "boot")
PLAIN = Manifest("raw-sha256", ())


class Stream:
    """An observer and the events that come out of it."""

    def __init__(self, directory: Path) -> None:
        self.queue: SimpleQueue[Raw] = SimpleQueue()
        self.observer = Observer(directory / "cookie", self.queue.put)
        self.observer.start()

    def until_cookie(self) -> list[Event]:
        """Return all events up to a fresh cookie."""
        self.observer.touch_cookie()
        found: list[Event] = []
        while True:
            raw = self.queue.get(timeout=10)
            for event in self.observer.events(raw):
                if self.observer.is_cookie(event):
                    return found
                found.append(event)
            self.observer.reader.consumed(raw)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    """An observer over nothing yet, its cookie apart from what tests watch."""
    private = tmp_path / "private"
    private.mkdir()
    made = Stream(private)
    yield made
    made.observer.stop()


def test_the_installed_watchdog_is_the_one_we_build_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reader uses of watchdog is there; a watchdog built differently is refused."""
    check_watchdog()
    monkeypatch.setattr(InotifyFD, "_read_event_buffer", lambda _self: b"")
    with pytest.raises(GuardError, match="_read_event_buffer"):
        check_watchdog()
    monkeypatch.undo()
    monkeypatch.delattr(InotifyFD, "_get_or_create_watch")
    with pytest.raises(GuardError, match="_get_or_create_watch"):
        check_watchdog()


def test_events_come_before_the_cookie(stream: Stream, tmp_path: Path) -> None:
    """Everything written before the cookie comes out before it, moves at once and unpaired."""
    times: list[float] = []
    # A busy machine takes its time too, but not each time.
    while len(times) < 5 and min(times, default=1) >= 0.4:
        work = tmp_path / f"work{len(times)}"
        work.mkdir()
        root = os.fsencode(work)
        assert stream.observer.cover(root)
        (work / "a").write_text("1")
        (work / "a").rename(work / "b")
        begin = time.monotonic()
        events = stream.until_cookie()
        times.append(time.monotonic() - begin)
        assert [(e.name, e.words) for e in events] == [
            (b"a", ("create",)),
            (b"a", ("modify",)),
            (b"a", ("close-write",)),
            (b"a", ("moved-from",)),
            (b"b", ("moved-to",)),
        ]
        assert {e.directories for e in events} == {(root,)}
    assert min(times) < 0.4, "watchdog's delay of 0.5 s is not in the way"


def test_reading_makes_no_events(stream: Stream, tmp_path: Path) -> None:
    """Opening, reading, listing and closing a file leaves the queue empty."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "a").write_text("1")
    stream.observer.cover(os.fsencode(work))
    for _ in range(100):
        (work / "a").read_text()
        assert len(list(work.iterdir())) == 1
    assert stream.until_cookie() == []


def test_books_agree_with_the_kernel(stream: Stream, tmp_path: Path) -> None:
    """A watch that the kernel dropped behind our back is noticed and renewed."""
    (tmp_path / "d").mkdir()
    directory = os.fsencode(tmp_path / "d")
    stream.observer.cover(directory)
    stream.until_cookie()
    assert stream.observer.verify() == 1
    for wd in stream.observer.reader.kernel_watches():
        if wd != stream.observer._cookie_watch:
            stream.observer.reader.unwatch(wd)
    stream.observer.verify()
    assert stream.observer.has(directory)
    (tmp_path / "d" / "x").write_text("1")
    assert any(e.name == b"x" for e in stream.until_cookie())


def test_a_moved_directory_keeps_its_watch(stream: Stream, tmp_path: Path) -> None:
    """After a rename, events carry the new path; without a new place the watch ends."""
    for name in ("d", "d/e"):
        (tmp_path / name).mkdir()
        stream.observer.cover(os.fsencode(tmp_path / name))
    (tmp_path / "d").rename(tmp_path / "f")
    stream.observer.leave(os.fsencode(tmp_path / "d"))
    stream.observer.cover(os.fsencode(tmp_path / "f"))
    stream.until_cookie()
    (tmp_path / "f" / "x").write_text("1")
    assert {e.directories for e in stream.until_cookie()} == {(os.fsencode(tmp_path / "f"),)}
    before = len(stream.observer.reader.kernel_watches())
    stream.observer.reap()
    assert len(stream.observer.reader.kernel_watches()) == before - 1


def test_what_is_not_there_is_not_missing(stream: Stream, tmp_path: Path) -> None:
    """An absent directory, a file and a link need no watch of their own: their parent's tells."""
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("absent", "file", "link"):
        assert not stream.observer.cover(os.fsencode(tmp_path / name))
    assert stream.observer.missing == {}


def test_what_we_drop_ourselves_is_an_overflow(stream: Stream) -> None:
    """A read that was dropped because nobody kept up comes out as an overflow."""
    (event,) = stream.observer.events(Raw(0.0, b""))
    assert event.mask & OVERFLOW


@pytest.mark.parametrize(
    ("loss", "touching"),
    [
        ((10.0, 99.0), False),
        ((10.0, 100.0), True),
        ((150.0, 160.0), True),
        ((10.0, None), True),
        ((200.0, 300.0), True),
        ((201.0, None), False),
    ],
)
def test_only_losses_within_the_interval_count(
    loss: tuple[float, float | None], *, touching: bool
) -> None:
    """A loss makes an interval incomplete exactly when both have a moment in common."""
    found = gaps(START, END, START, [Loss(Reason.EVENTS_LOST, "x", *loss)])
    assert [gap.reason for gap in found] == [Reason.EVENTS_LOST] * touching


def test_watching_must_have_begun_before() -> None:
    """Who began to watch later, or in another boot, has not watched the interval."""
    assert gaps(START, END, START, []) == ()
    for late in (replace(START, monotonic=100.5), replace(START, monotonic=1, boot="other")):
        (gap,) = gaps(START, END, late, [])
        assert gap.reason is Reason.NOT_WATCHED


@given(st.lists(st.tuples(st.floats(0, 300), st.one_of(st.none(), st.floats(0, 300))), max_size=6))
def test_complete_means_that_no_loss_touches(losses: list[tuple[float, float | None]]) -> None:
    """No combination of losses leaves an interval complete that one of them touches."""
    made = [Loss(Reason.WATCHES_MISSING, "x", *loss) for loss in losses]
    touched = any(s <= 200 and (u is None or u >= 100) for s, u in losses)
    assert bool(gaps(START, END, START, made)) == touched


def test_mounts_are_parsed() -> None:
    """Spaces, other ends of lines, optional fields and network types are understood; no junk."""
    text = (
        b"36 35 98:0 /mnt1 /mnt/with\\040space rw,noatime master:1 - ext3 /dev/root rw\n"
        b"37 35 0:50 / /mnt/n rw shared:7 master:2 - nfs4 host:/x rw\n"
        b"38 35 0:51 / /mnt/n/deep rw - fuse.sshfs me@host: rw\n"
        b"39 35 0:52 / /mnt/nn rw - fuseblk /dev/sdb1 rw\n"
        b"junk\n"
        b"40 35 0:53 / /mnt/a\rb\x0c\xc2\x85c rw - tmpfs none rw\n"
    )
    mounts = parse_mounts(text)
    assert [(m.point, m.type, m.remote) for m in mounts] == [
        (b"/mnt/with space", "ext3", False),
        (b"/mnt/n", "nfs4", True),
        (b"/mnt/n/deep", "fuse.sshfs", True),
        (b"/mnt/nn", "fuseblk", False),
        (b"/mnt/a\rb\x0c\xc2\x85c", "tmpfs", False),
    ]
    assert [m.point for m in mounts_below(mounts, b"/mnt/n")] == [b"/mnt/n/deep"]


def test_the_mount_of_a_path(tmp_path: Path) -> None:
    """The kernel names the mount that a path is on; of a path that is not there it has none."""
    proc = mount_of(b"/proc/self", read_mounts())
    assert proc is not None
    assert (proc.point, proc.type) == (b"/proc", "proc")
    assert mount_of(os.fsencode(tmp_path / "absent"), read_mounts()) is None


def test_looking_is_never_led_astray(tmp_path: Path) -> None:
    """A parent that became a link is found as such; what it leads to is not read."""
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d" / "f").write_text("inside")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "f").write_text("outside")
    (root / "l").symlink_to(secret)
    (root / "pipe").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    with Looker(os.fsencode(root)) as looker:
        found = {
            name: looker.look(name, PLAIN, None)
            for name in (b"d/f", b"l/f", b"l", b"pipe", b"fifo", b"d", b"no/f", b"d/f/x")
        }
    assert {name: one.kind for name, one in found.items()} == {
        b"d/f": "file",
        b"l/f": "detoured",
        b"l": "link",
        b"pipe": "link",
        b"fifo": "special",
        b"d": "directory",
        b"no/f": "missing",
        b"d/f/x": "detoured",
    }
    assert found[b"l"].head == os.fsencode(secret)
    with pytest.raises(RootGone):
        Looker(os.fsencode(root / "l"))


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_more_directories_than_descriptors(tmp_path: Path) -> None:
    """Looking into hundreds of directories in one batch holds a bounded number open."""
    for number in range(300):
        (tmp_path / f"d{number}" / "e").mkdir(parents=True)
        (tmp_path / f"d{number}" / "e" / "f").write_text(str(number))
    before = _descriptors()
    with Looker(os.fsencode(tmp_path)) as looker:
        for number in range(300):
            assert looker.look(b"d%d/e/f" % number, PLAIN, None).head == b"%d" % number
        assert _descriptors() < before + 100
    assert _descriptors() == before


@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=20).filter(
            lambda p: b"\0" not in p and not {b"", b".", b".."} & set(p.split(b"/"))
        ),
        st.tuples(st.sampled_from([0o100644, 0o100755, 0o120000]), st.integers(0, 1 << 40)),
    )
)
def test_manifests_survive_the_way(files: dict[bytes, tuple[int, int]]) -> None:
    """Any set of paths, modes and sizes that git can hold comes out as it went in."""
    listed = [Listed(path, mode, "0" * 40, size) for path, (mode, size) in files.items()]
    with tempfile.NamedTemporaryFile() as file:
        write_manifest(Path(file.name), "sha1", listed)
        manifest = read_manifest(Path(file.name))
    assert manifest.algorithm == "git-sha1"
    assert {g.path: (g.mode, g.size) for g in manifest.files} == files


def test_messages_survive_the_way() -> None:
    """A record with a path of any bytes and every field set comes out of a message as it went in."""
    store = EvidenceStore(Path("/dev/null/evidence"))
    evidence = store.keep("00" * 32, 5, b"bytes")
    assert (evidence.kept, evidence.file) == (0, None), "no disk costs evidence, nothing else"
    assert not store.note("{}")
    mutation = Mutation(
        *(7, b'a\xff\n"b', "tracked", "modified", "git-sha1:00", None, 0o100755, ("modify",)),
        *(START, END, 3, True, True, True, evidence),
    )
    line = messages.encode({"mutation": mutation})
    assert line.count(b"\n") == 1
    assert messages.mutation(messages.decode(line)["mutation"]) == mutation
    coverage = Coverage(
        START, END, START, 9, 8, 1, (Gap(Reason.WATCHES_MISSING, "x", {"missing": 1}),)
    )
    again = messages.coverage(messages.decode(messages.encode({"c": coverage}))["c"])
    assert (again, again.complete, again.reasons) == (coverage, False, (Reason.WATCHES_MISSING,))


def test_evidence_in_all_is_bounded(tmp_path: Path) -> None:
    """Beyond a run's bound nothing more is kept, and each record says what was."""
    store = EvidenceStore(tmp_path / "e", per_file=10, per_run=25)
    kept = [store.keep(f"{n:064d}", 20, b"x" * 20).kept for n in range(4)]
    assert kept == [10, 10, 5, 0]
    assert store.keep(f"{0:064d}", 20, b"x" * 20).kept == 10, "the same bytes cost nothing again"
    store.drop(f"{0:064d}")
    store.drop(f"{0:064d}")
    assert store.keep("f" * 64, 3, b"abc").kept == 3


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("HEAD", "head"),
        ("refs/heads/main", "refs"),
        ("refs/replace/00", "replace"),
        ("refs/sealrun/runs/01", None),
        ("packed-refs", "refs"),
        ("index", "index"),
        ("index.lock", None),
        ("hooks/pre-commit", "hooks"),
        ("info/attributes", "info"),
        ("info/grafts", "replace"),
        ("config", "configuration"),
        ("objects/ab/cd", None),
        ("logs/HEAD", None),
        ("sealrun/id", None),
        ("COMMIT_EDITMSG", None),
    ],
)
def test_noise_in_git_directories_is_left_out(name: str, area: str | None) -> None:
    """Each file below a git directory has its area, or is noise."""
    assert GitPlaces(b"/w/.git", b"/w/.git").area(b"/w/.git/" + name.encode()) == area


def test_moments_are_of_this_boot() -> None:
    """A moment names the boot, without which monotonic times cannot be compared."""
    first, second = now(), now()
    assert first.monotonic <= second.monotonic
    assert first.boot == second.boot
    assert len(first.boot) == 36


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Guard]:
    """A guard in a thread of ours, so that a test can take things away from it."""
    work, private = tmp_path / "work", tmp_path / "private"
    subprocess.run(["git", "init", "-q", str(work)], check=True)
    private.mkdir()
    made = Guard(work, private, idle_after=60)
    made.start()
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    yield made
    made.end("test")
    thread.join(10)


def test_network_file_systems_are_never_complete(
    guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that other machines write to, coverage says so as long as it lasts."""
    real = read_mounts()
    remote = tuple(replace(mount, type="nfs4") for mount in real)
    monkeypatch.setattr(core, "read_mounts", lambda: remote)
    guard.call(lambda: guard.arm("run", PLAIN, tmp_path / "e", ())).result(10)
    coverage = guard.drained(lambda: guard.armed("run")).result(10)
    assert coverage.reasons == (Reason.REMOTE_FILE_SYSTEM,)
    assert "nfs4" in coverage.gaps[0].text


def test_a_stream_that_falls_silent_is_a_loss(
    guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the reader is gone the cookie never comes out: the drain answers, and says so."""
    guard.call(lambda: guard.arm("run", PLAIN, tmp_path / "e", ())).result(10)
    assert guard.drained(lambda: guard.armed("run")).result(10).complete
    monkeypatch.setattr(core, "SILENCE", 1)
    guard._observer.reader.stop()
    guard._observer.reader.join(10)
    monkeypatch.setattr(guard._observer, "touch_cookie", lambda: None)
    monkeypatch.setattr(guard._observer, "verify", lambda: 0)
    report = guard.drained(lambda: guard.report("run")).result(20)
    assert Reason.EVENTS_LOST in report.coverage.reasons


def test_too_many_states_are_admitted(guard: Guard, tmp_path: Path) -> None:
    """Where more foreign states appear than records are kept for, coverage says how many."""
    guard.call(lambda: guard.arm("run", PLAIN, tmp_path / "e", ())).result(10)
    guard._runs["run"].dropped = 3
    report = guard.drained(lambda: guard.report("run")).result(10)
    assert [(g.reason, g.numbers) for g in report.coverage.gaps] == [
        (Reason.EVENTS_LOST, {"dropped": 3})
    ]
