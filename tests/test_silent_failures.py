"""Losses that watchers keep to themselves: here each is on record, and none ends ``clean``.

Beside what the guard's own tests prove at its interface (too few watches, a killed guard, a killed,
stopped or overrun witness), these go to the end: a queue that really runs over under 400,000 events,
and the verdicts of real runs and watches.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from _cli import SEALRUN, Cli
from _guard import Listed, eventually, kill
from sealrun.guard.core import Guard
from sealrun.guard.manifest import read_manifest, write_manifest
from sealrun.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from _git import Repo

EVENTS = 400_000
#: Two events of two names in turns, so that the kernel cannot merge them (inotify(7)).
STORM = f"""
import os
for n in range({EVENTS} // 4):
    os.close(os.open("a%d" % (n % 2), os.O_CREAT | os.O_WRONLY))
    os.unlink("a%d" % (n % 2))
"""
TRAIN = """\
import pathlib, time
SCALAR_LR = 0.5
print("started", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end and not pathlib.Path("/out/stop").exists():
    time.sleep(0.02)
print(f"val_bpb: {SCALAR_LR * 2}")
"""


@pytest.fixture
def cli(repo: Repo) -> Iterator[Cli]:
    """A warm command line in a repository whose HEAD holds ``train.py``."""
    files = {f"lib/d{number}/m.py": "X = 1\n" for number in range(10)}
    repo.commit({"train.py": TRAIN, ".gitignore": "a0\na1\n", **files}, "base")
    cli = Cli(repo.path, repo.path.parent / "home").with_base()
    yield cli
    cli.stop_guard()


def _storm(directory: Path) -> None:
    subprocess.run([sys.executable, "-Ic", STORM], cwd=directory, check=True)


def _strike(directory: Path, old: str = "0.5", new: str = "0.3") -> None:
    subprocess.run(["sed", "-i", f"s/{old}/{new}/", "train.py"], cwd=directory, check=True)


def _codes(result: dict[str, Any]) -> set[str]:
    return {reason["code"] for reason in result["reasons"]}


def _guard(cli: Cli) -> int:
    return int(cli.json("guard", "status")["guard"]["pid"])


def _witness(parent: int) -> int:
    """Return the process that names writers for a guard."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            line = (entry / "cmdline").read_bytes().split(b"\0")
            above = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if b"sealrun.guard.witness" in line and above == parent:
                found.append(int(entry.name))
    (witness,) = found
    return witness


@contextmanager
def _stopped(pid: int) -> Generator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Running:
    """A run whose experiment has started; ``end`` lets it end and returns its result."""

    def __init__(self, cli: Cli, *options: str) -> None:
        self._cli = cli
        self._file = cli.home / "result.json"
        self._process = cli.start(
            "run", "--result-file", str(self._file), *options, "--", "python3", "train.py"
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"started\n", self._process.communicate()

    def end(self) -> dict[str, Any]:
        """Let the experiment end, if nobody ended it; return the result file."""
        for out in (self._cli.home / "state").rglob("outputs/out"):
            (out / "stop").touch()
        return self.ended()

    def ended(self) -> dict[str, Any]:
        """Wait for the end; return the result file."""
        _, errors = self._process.communicate(timeout=120)
        assert b"Traceback" not in errors, errors
        result: dict[str, Any] = json.loads(self._file.read_text())
        return result


# -- the kernel's queue runs over ---------------------------------------------------------------


@pytest.fixture
def guard(repo: Repo, tmp_path: Path) -> Iterator[Guard]:
    """A guard in this interpreter, armed over ``train.py``."""
    repo.commit({"train.py": TRAIN})
    content = TRAIN.encode()
    oid = repo.git("rev-parse", "HEAD:train.py")
    write_manifest(
        tmp_path / "manifest", "sha1", [Listed(b"train.py", 0o100644, oid, len(content))]
    )
    private = tmp_path / "private"
    private.mkdir()
    made = Guard(repo.path, private, idle_after=600)
    made.start()
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    manifest = read_manifest(tmp_path / "manifest")
    made.call(lambda: made.arm("run", manifest, tmp_path / "evidence", ())).result(30)
    yield made
    made.end("test")
    thread.join(30)


@pytest.mark.soak(sample=True)
def test_400_000_events_while_the_interpreter_is_busy(guard: Guard, repo: Repo) -> None:
    """A C call keeps the interpreter to itself while others write: lost events are told, and made good.

    The last state is found by content; what happens afterwards is covered again.
    """
    script = f"{STORM}\nimport pathlib\np = pathlib.Path('train.py')\np.write_text(p.read_text().replace('0.5', '0.3'))"
    with subprocess.Popen(
        [sys.executable, "-Ic", script], cwd=repo.path, stdout=subprocess.PIPE
    ) as storm:
        assert storm.stdout is not None
        # PyDLL keeps the lock that every thread of Python needs; the end of the storm is the end
        # of its output.
        ctypes.PyDLL(None).read(storm.stdout.fileno(), ctypes.create_string_buffer(1), 1)
    report = guard.drained(lambda: guard.report("run")).result(120)
    assert report.coverage.reasons == (Reason.EVENTS_LOST,)
    (mutation,) = report.mutations
    assert (mutation.path, mutation.final) == (b"train.py", True)


@pytest.mark.engine
@pytest.mark.soak(sample=True)
def test_a_run_whose_guard_could_not_keep_up_is_flagged(cli: Cli, repo: Repo) -> None:
    """400,000 events while the guard gets no turn: the verdict names the loss, also of what is back."""
    run = Running(cli)
    with _stopped(_guard(cli)):
        _storm(repo.path)
        _strike(repo.path)
        _strike(repo.path, "0.3", "0.5")
    result = run.end()
    assert (result["outcome"], result["verdict"], result["harmless"]) == (
        "succeeded",
        "flagged",
        False,
    )
    assert "events-lost" in _codes(result)


@pytest.mark.soak(sample=True)
def test_a_watch_that_could_not_keep_up_is_not_clean(cli: Cli, repo: Repo) -> None:
    """The same for the stand-alone watch: its verdict says that events were lost."""
    with _watch(cli) as (process, verdict):
        with _stopped(process.pid):
            _storm(repo.path)
        said = verdict()
    assert said["verdict"] == "flagged"
    assert "events-lost" in {reason["reason"] for reason in said["reasons"]}
    assert said["coverage"]["complete"] is False


@contextmanager
def _watch(
    cli: Cli,
) -> Generator[tuple[subprocess.Popen[bytes], Callable[[], dict[str, Any]]]]:
    with cli.start("watch", "--jsonl", str(cli.directory), stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"ready" in process.stdout.readline()

        def verdict() -> dict[str, Any]:
            said, _ = process.communicate(timeout=120)
            assert process.returncode == 120, said
            last: dict[str, Any] = json.loads(said.splitlines()[-1])
            return last

        try:
            yield process, verdict
        finally:
            process.kill()


# -- too few watches ----------------------------------------------------------------------------


@pytest.mark.engine
def test_a_run_with_five_watches_is_flagged(cli: Cli) -> None:
    """A guard that may have five watches for a dozen directories: the verdict says what it lacked."""
    subprocess.run(
        [
            *("unshare", "-Ur", "sh", "-ec"),
            'echo 5 > /proc/sys/user/max_inotify_watches; exec "$@"',
            *("sh", SEALRUN, "guard", "start"),
        ],
        cwd=cli.directory,
        env=cli.environment,
        check=True,
        capture_output=True,
    )
    first = _guard(cli)
    result, done = cli.run("true")
    assert _guard(cli) == first
    assert (result["verdict"], result["harmless"]) == ("flagged", False)
    assert "watches-missing" in _codes(result)
    assert "watches-missing" in done.stderr


# -- the guard is killed ------------------------------------------------------------------------


@pytest.mark.engine
def test_another_guard_does_not_hide_the_death_of_the_first(cli: Cli) -> None:
    """Whoever kills the guard and starts a new one during a run gets no clean verdict for it."""
    run = Running(cli)
    kill(_guard(cli), cli.directory, cli.places)
    cli("guard", "start")
    assert not cli.json("guard", "status")["guard"]["coverage"]["gaps"]
    result = run.end()
    assert (result["outcome"], result["verdict"], result["harmless"]) == (
        "succeeded",
        "flagged",
        False,
    )
    assert "guard-died" in _codes(result)


@pytest.mark.engine
def test_under_strict_the_death_of_the_guard_ends_the_run(cli: Cli) -> None:
    """Where the policy wants it, an experiment does not go on unwatched."""
    run = Running(cli, "--policy", "strict")
    os.kill(_guard(cli), signal.SIGKILL)
    result = run.ended()
    assert result["verdict"] == "aborted"
    assert "guard-died" in _codes(result)


def test_a_killed_watch_gives_no_verdict(cli: Cli) -> None:
    """A stand-alone watch that is killed says nothing that could be taken for clean."""
    with _watch(cli) as (process, _):
        process.kill()
        said, _ = process.communicate(timeout=60)
        assert said == b""
        assert process.returncode == -signal.SIGKILL


# -- the helper that names writers --------------------------------------------------------------

HELPERS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


@contextmanager
def _helper(guard: int, number: signal.Signals) -> Generator[None]:
    """Take a guard's witness away; let a stopped one go on at the end."""
    witness = _witness(guard)
    os.kill(witness, number)
    if number is signal.SIGKILL:
        eventually(lambda: not Path(f"/proc/{witness}/exe").exists())
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(witness, signal.SIGCONT)


@pytest.mark.engine
@pytest.mark.parametrize("how", HELPERS)
def test_an_edit_in_a_run_without_its_helper_is_flagged(cli: Cli, repo: Repo, how: str) -> None:
    """Nobody can name the writer: the edit is found all the same, and counts as nobody's."""
    run = Running(cli)
    with _helper(_guard(cli), HELPERS[how]):
        _strike(repo.path)
        result = run.end()
    assert (result["verdict"], result["harmless"]) == ("flagged", False)
    assert {"edit-unattributed", "writers-lost"} <= _codes(result)


@pytest.mark.engine
@pytest.mark.parametrize("how", HELPERS)
def test_a_run_that_lost_its_helper_is_not_clean(cli: Cli, how: str) -> None:
    """Nothing was found, and whoever takes the helper away knows why: it is on record."""
    run = Running(cli)
    with _helper(_guard(cli), HELPERS[how]):
        result = run.end()
    assert (result["verdict"], result["harmless"]) == ("flagged", False)
    assert "writers-lost" in _codes(result)
    result, _ = cli.run("true")
    assert result["verdict"] == "clean", "the next run has another helper"


@pytest.mark.engine
@pytest.mark.parametrize("how", HELPERS)
def test_a_line_laundered_without_the_helper_is_not_clean(cli: Cli, repo: Repo, how: str) -> None:
    """In a session, between two runs, a foreign line gets into the commit while nobody can be named."""
    result, _ = cli.run("true")
    assert result["verdict"] == "clean"
    with subprocess.Popen(
        [SEALRUN, "session", "--", "bash", "-e"],
        cwd=repo.path,
        env=cli.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        with _helper(_guard(cli), HELPERS[how]):
            _strike(repo.path)
            agent.stdin.write(
                "echo '# mine' >> train.py; git -c user.name=A -c user.email=a@example.invalid"
                " commit -qam idea; echo done\n"
            )
            agent.stdin.flush()
            assert agent.stdout.readline() == "done\n"
            result, _ = cli.run("true")
        agent.stdin.close()
    assert (result["verdict"], result["harmless"]) == ("flagged", False)
    assert "writers-lost" in _codes(result)


@pytest.mark.parametrize("how", HELPERS)
def test_a_watch_without_its_helper_is_not_clean(cli: Cli, repo: Repo, how: str) -> None:
    """The stand-alone watch finds the change without a name, and its verdict is not clean."""
    with _watch(cli) as (process, verdict), _helper(process.pid, HELPERS[how]):
        _strike(repo.path)
        said = verdict()
    assert said["verdict"] == "flagged"
    assert "writers-lost" in {reason["reason"] for reason in said["reasons"]}
