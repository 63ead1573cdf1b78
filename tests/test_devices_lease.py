"""Turns for a GPU: real processes, a real directory that everybody shares."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sealrun import state
from sealrun.devices.assign import standing
from sealrun.devices.lease import Holder, Place, held, holders
from sealrun.errors import EnvironmentFault, StorageFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: A stranger's uid.
NOBODY = 65534
RUNNER = Path(__file__).parents[1] / "runner"
#: Holds the devices that it is told, says so, and lets go when its input ends.
_HOLDER = """
import os, sys
from pathlib import Path
from sealrun.devices.lease import Holder, held
directory, run, *keys = sys.argv[1:]
uid = int(os.environ.get("AS", "0"))
if uid:
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
def waiting(place):
    print("waiting", place.key, place.position, place.holder, flush=True)
with held(keys, Path(directory), Holder(os.getpid(), run), waiting):
    print("held", flush=True)
    sys.stdin.read()
print("over", flush=True)
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory as ``/run/lock`` is one; not below pytest's, which strangers cannot enter."""
    directory = Path(tempfile.mkdtemp(prefix="sealrun-"))
    directory.chmod(0o1777)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that a test starts; none outlives it."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def start(
    processes: list[subprocess.Popen[str]],
    directory: Path,
    run: str,
    *keys: str,
    **environ: str,
) -> subprocess.Popen[str]:
    """Start a process that wants devices."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(directory), run, *keys],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(RUNNER)} | environ,
    )
    processes.append(process)
    return process


def until(process: subprocess.Popen[str], pattern: str) -> str:
    """Read what a process says until a line fits, and return that line."""
    assert process.stdout is not None
    for line in process.stdout:
        if re.fullmatch(pattern, line.strip()):
            return line.strip()
    raise AssertionError(f"ended without {pattern!r}")


def let_go(process: subprocess.Popen[str]) -> None:
    """Make a holder let go, and wait until it has."""
    assert process.stdin is not None
    process.stdin.close()
    until(process, "over")


def test_a_second_run_waits_for_the_first(
    shared: Path, started: list[subprocess.Popen[str]]
) -> None:
    """One holder at a time; who waits is told by whom it is held and where in the line it stands."""
    one = start(started, shared, "01ONE", "GPU-a")
    until(one, "held")
    two = start(started, shared, "02TWO", "GPU-a")
    assert until(two, "waiting .*") == f"waiting GPU-a 1 pid {one.pid}, run 01ONE"
    three = start(started, shared, "03THREE", "GPU-a")
    assert until(three, "waiting .*") == f"waiting GPU-a 2 pid {one.pid}, run 01ONE"
    assert holders(["GPU-a", "GPU-b"], shared) == {"GPU-a": Holder(one.pid, "01ONE")}
    let_go(one)
    until(two, "held")
    assert until(three, f"waiting GPU-a 1 pid {two.pid}, run 02TWO")
    let_go(two)
    until(three, "held")
    let_go(three)
    assert not list(shared.glob("*.ticket"))
    assert holders(["GPU-a"], shared) == {}


def test_another_device_is_not_waited_for(
    shared: Path, started: list[subprocess.Popen[str]]
) -> None:
    """Runs on different devices run beside each other."""
    for key in ("GPU-a", "GPU-b"):
        until(start(started, shared, "01", key), "held")


def test_a_killed_holder_lets_go(shared: Path, started: list[subprocess.Popen[str]]) -> None:
    """SIGKILL leaves its ticket behind, which counts for nothing and is swept."""
    one = start(started, shared, "01", "GPU-a")
    until(one, "held")
    two = start(started, shared, "02", "GPU-a")
    until(two, "waiting .*")
    one.send_signal(signal.SIGKILL)
    until(two, "held")
    assert len(list(shared.glob("*.ticket"))) == 1


def test_a_killed_waiter_leaves_the_line(
    shared: Path, started: list[subprocess.Popen[str]]
) -> None:
    """Who is killed while waiting keeps nobody behind it."""
    one, two, three = (start(started, shared, f"0{n}", "GPU-a") for n in (1, 2, 3))
    # Who came first is not known; all three are there when two of them wait.
    first = next(p for p in (one, two, three) if until(p, "held|waiting .*") == "held")
    second, third = (p for p in (one, two, three) if p is not first)
    order = sorted((second, third), key=lambda p: int(until(p, "waiting .*").split()[2]))
    order[0].send_signal(signal.SIGKILL)
    let_go(first)
    until(order[1], "held")


def test_twenty_waiters_get_their_turn_in_order(
    shared: Path, started: list[subprocess.Popen[str]]
) -> None:
    """First come, first served, and never two at once."""
    holder = start(started, shared, "00", "GPU-a")
    until(holder, "held")
    line: list[subprocess.Popen[str]] = []
    for number in range(20):
        waiter = start(started, shared, f"{number:02}", "GPU-a")
        assert until(waiter, "waiting .*").split()[2] == str(number + 1)
        line.append(waiter)
    for before, after in zip([holder, *line], line, strict=False):
        let_go(before)
        until(after, "held")
        assert holders(["GPU-a"], shared)["GPU-a"].pid == after.pid
    let_go(line[-1])


def test_several_devices_make_no_deadlock(
    shared: Path, started: list[subprocess.Popen[str]]
) -> None:
    """Asked for in any order, they are taken in one: everybody's turn comes."""
    wanted = [("GPU-a", "GPU-b"), ("GPU-b", "GPU-a"), ("GPU-b",), ("GPU-a",), ("GPU-b", "GPU-a")]
    for number, keys in enumerate(wanted):
        process = start(started, shared, f"0{number}", *keys)
        assert process.stdin is not None
        process.stdin.close()
    for process in started:
        until(process, "over")


def test_an_interrupt_ends_the_wait(shared: Path, started: list[subprocess.Popen[str]]) -> None:
    """Ctrl-C leaves the line; nothing stays behind."""
    one = start(started, shared, "01", "GPU-a")
    until(one, "held")
    two = start(started, shared, "02", "GPU-a")
    until(two, "waiting .*")
    two.send_signal(signal.SIGINT)
    assert two.wait()
    assert len(list(shared.glob("*.ticket"))) == 1


def test_users_take_turns_with_each_other(
    shared: Path, started: list[subprocess.Popen[str]]
) -> None:
    """A file that one user made is another one's lock too, in either order."""
    stranger = start(started, shared, "01", "GPU-a", AS=str(NOBODY))
    until(stranger, "held")
    assert {path.stat().st_uid for path in shared.iterdir()} == {NOBODY}
    root = start(started, shared, "02", "GPU-a")
    until(root, "waiting .*")
    stranger.send_signal(signal.SIGKILL)
    until(root, "held")
    again = start(started, shared, "03", "GPU-a", AS=str(NOBODY))
    assert until(again, "waiting .*").endswith(f"pid {root.pid}, run 02")
    let_go(root)
    until(again, "held")


def take(directory: Path) -> None:
    """Take a device, which must not take long."""
    begun = time.monotonic()

    def waiting(place: Place) -> None:
        raise AssertionError(f"waited: {place}")

    with held(["GPU-a"], directory, Holder(os.getpid(), "01"), waiting):
        assert time.monotonic() - begun < 60


def lock_of(directory: Path) -> Path:
    """Return the path of a device's lock, made by taking it once."""
    take(directory)
    (found,) = directory.glob("*.lock")
    return found


def test_a_lock_that_is_a_link_is_refused(shared: Path, tmp_path: Path) -> None:
    """Nothing is opened through a link; the file behind it stays as it was."""
    lock = lock_of(shared)
    precious = tmp_path / "precious"
    precious.write_text("untouched")
    lock.unlink()
    lock.symlink_to(precious)
    with pytest.raises(StorageFault, match="it is a link"):
        take(shared)
    assert precious.read_text() == "untouched"
    lock.unlink()
    lock.symlink_to("/nonexistent/made-through-a-link")
    with pytest.raises(StorageFault, match="it is a link"):
        take(shared)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_a_lock_that_is_no_file_is_refused(shared: Path, make: Callable[[Path], None]) -> None:
    """A pipe without a writer is not waited for, a directory is no lock."""
    lock = lock_of(shared)
    lock.unlink()
    make(lock)
    with pytest.raises(EnvironmentFault, match="not a plain file"):
        take(shared)


def test_a_strangers_directory_is_not_trusted(tmp_path: Path) -> None:
    """Who owns the directory can remove what keeps runs apart: only root and oneself may."""
    directory = tmp_path / "theirs"
    directory.mkdir()
    directory.chmod(0o1777)
    os.chown(directory, NOBODY, NOBODY)
    with pytest.raises(EnvironmentFault, match=f"uid {NOBODY}") as caught:
        take(directory)
    assert "install -d -m 1777 -o root" in (caught.value.hint or "")


def test_a_directory_without_the_sticky_bit_is_not_trusted(tmp_path: Path) -> None:
    """Where everybody can remove everybody's files, a lock keeps nobody out."""
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(EnvironmentFault, match="mode 777"):
        take(directory)


def test_a_linked_or_missing_directory(tmp_path: Path) -> None:
    """A link is refused; a directory that is not there is made for everybody."""
    real = tmp_path / "real"
    take(real)
    assert real.stat().st_mode & 0o7777 == 0o1777
    (tmp_path / "linked").symlink_to(real)
    with pytest.raises(StorageFault, match="cannot be used"):
        take(tmp_path / "linked")


def test_strange_files_in_the_directory_decide_nothing(
    shared: Path, started: list[subprocess.Popen[str]]
) -> None:
    """Tickets that are links, pipes or nonsense, or that no living process locks, hold nobody up."""
    name = lock_of(shared).name.removesuffix(".lock")
    ticket = f"{name}.{'0' * 20}-1-0000000{{}}.ticket"
    (shared / ticket.format(1)).symlink_to("/dev/zero")
    os.mkfifo(shared / ticket.format(2))
    (shared / ticket.format(3)).write_bytes(b"\xff" * 10_000)
    (shared / ticket.format(4)).mkdir()
    (shared / f"{name}.other").write_text("x")
    take(shared)
    one = start(started, shared, "01", "GPU-a")
    until(one, "held")
    (mine,) = [p for p in shared.glob("*.ticket") if f"-{one.pid}-" in p.name]
    for content in (
        b"",
        b"[1]",
        b'{"pid": "x", "run": 1}',
        b'{"pid": 1, "run": "\x1b[2J"}',
        b"[" * 5000,
    ):
        mine.write_bytes(content)
        assert holders(["GPU-a"], shared) == {}
    two = start(started, shared, "02", "GPU-a")
    assert until(two, "waiting .*") == "waiting GPU-a 1 None"


def test_a_lock_that_was_removed_keeps_its_holder_alone(
    shared: Path, started: list[subprocess.Popen[str]]
) -> None:
    """A sweeper of old files makes no second holder."""
    one = start(started, shared, "01", "GPU-a")
    until(one, "held")
    (lock,) = shared.glob("*.lock")
    lock.unlink()
    two = start(started, shared, "02", "GPU-a")
    until(two, "waiting .*")
    let_go(one)
    until(two, "held")


def test_places_in_the_line_are_told_in_words() -> None:
    """1st, 2nd, 3rd, 4th, 11th, 22nd; and who has the device, where it is known."""
    numbers = [standing(Place("k", n))[1].split()[0] for n in (1, 2, 3, 4, 11, 12, 13, 22, 111)]
    assert numbers == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "22nd", "111th"]
    assert standing(Place("k", 1, Holder(7, "01AB")))[0] == "pid 7, run 01AB"
    assert standing(Place("k", 1))[0] == "held by another process"


def test_homes_share_one_place_for_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another home is the same host; only a variable of its own moves the leases."""
    monkeypatch.delenv("SEALRUN_LEASES", raising=False)
    before = state.leases()
    monkeypatch.setenv("SEALRUN_HOME", "/somewhere")
    assert state.leases() == before
    assert before.stat().st_mode & 0o1000
    monkeypatch.setenv("SEALRUN_LEASES", "/elsewhere")
    assert state.leases() == Path("/elsewhere")


def test_a_late_ticket_goes_to_the_end_of_the_line(
    shared: Path, started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time that was taken before the holder's does not lead past it, without its lock either."""

    class Waited(Exception):
        pass

    def waiting(place: Place) -> None:
        raise Waited(place.position)

    early = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    one = start(started, shared, "01ONE", "GPU-a")
    until(one, "held")
    (lock,) = shared.glob("*.lock")
    lock.unlink()
    real, times = time.clock_gettime_ns, [early]
    monkeypatch.setattr(
        "time.clock_gettime_ns", lambda clock: times.pop() if times else real(clock)
    )
    with (
        pytest.raises(Waited, match="1"),
        held(["GPU-a"], shared, Holder(os.getpid(), "02TWO"), waiting),
    ):
        pytest.fail("two have it")
    assert not times
    assert len(list(shared.glob("*.ticket"))) == 1


@pytest.mark.soak(sample=True)
def test_under_a_crowd_no_two_hold_one_device(
    shared: Path, started: list[subprocess.Popen[str]]
) -> None:
    """Processes that come, go and are killed at random never hold a device together."""
    script = """
import fcntl, os, random, sys
from pathlib import Path
from sealrun.devices.lease import Holder, held
directory = Path(sys.argv[1])
for turn in range(12):
    keys = random.sample(["GPU-a", "GPU-b"], random.choice([1, 1, 2]))
    with held(keys, directory, Holder(os.getpid(), str(turn)), lambda place: None):
        alone = [open(directory / f"proof-{key}", "w") for key in keys]
        for file in alone:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # First, because the kernel lets go of a killed process's files one after the other.
        for file in alone:
            file.close()
        if random.random() < 0.03:
            os.kill(os.getpid(), 9)
    for path in directory.glob("*.lock"):
        if random.random() < 0.3:
            path.unlink(missing_ok=True)
"""
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(RUNNER)},
        )
        started.append(process)
    # A second holder of a proof would have ended with an error of Python's: 1.
    assert {process.wait() for process in started} <= {0, -signal.SIGKILL}
