"""The commands that read the ledger: log, show, ps and logs, as a user and a hostile run meet them."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from _ledger import COMMIT, HOSTILE, alert, ended, hostile_run, ledger_at, opened, ready, write_run
from sealrun import cli
from sealrun.cli.reading import duration, since, size
from sealrun.cli.show import writer_in_words
from sealrun.errors import UsageError
from sealrun.ledger import (
    Because,
    Controller,
    Coverage,
    EngineFacts,
    HostFacts,
    Judgement,
    LayerFacts,
    Ledger,
    LoadingFacts,
    MetricFacts,
    OutputFile,
    Pin,
    PolicyFacts,
    Process,
    RunProgress,
    WriterFacts,
    new_ulid,
)
from sealrun.state import Places, repository_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MAIN = "from sealrun.cli import main; main()"


@dataclass(frozen=True)
class Answer:
    """What a command answered."""

    status: int
    out: str
    err: str

    def json(self) -> Any:  # noqa: ANN401 - any document
        """Return the document on stdout; it must be JSON for strict readers too."""
        self.out.encode("ascii")
        document = json.loads(self.out, parse_constant=pytest.fail)
        json.dumps(document, ensure_ascii=False).encode("utf-8")
        assert document["schema"] == 1
        return document


@dataclass(frozen=True)
class Workspace:
    """A git repository with one commit and state of its own."""

    path: Path
    places: Places

    @property
    def repository(self) -> str:
        """Its id, made when first needed."""
        identity = repository_id(self.path / ".git")
        assert identity is not None
        return identity

    def ledger(self) -> Ledger:
        """Open its ledger for writing."""
        return ledger_at(self.places.ledger(self.repository), self.repository)

    def git(self, *arguments: str) -> None:
        """Run git in it."""
        subprocess.run(["git", "-C", self.path, *arguments], check=True, capture_output=True)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Give a repository with one commit, and stand in it."""
    monkeypatch.setenv("SEALRUN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TZ", "UTC")
    path = tmp_path / "repository"
    path.mkdir()
    place = Workspace(path, Places.of_user())
    place.git("init", "-q")
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    place.git(*identity, "commit", "-q", "--allow-empty", "-m", "first")
    monkeypatch.chdir(path)
    return place


@pytest.fixture
def sealrun(
    workspace: Workspace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Answer]:
    """Give a function that runs a command in the workspace, in this process."""
    del workspace

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["sealrun", *arguments])
        capfd.readouterr()
        status = cli._guarded()
        answer = Answer(status, *capfd.readouterr())
        assert "Traceback" not in answer.err
        assert all(line.startswith("[sealrun] ") for line in answer.err.splitlines())
        return answer

    return run


def whole_run(ledger: Ledger) -> str:
    """Write a run of which everything is on record; return its id."""
    run = new_ulid()
    opening = opened(
        run,
        idea="halve the rate",
        ref="refs/heads/autoresearch/mar8",
        workspace="/home/ada/repo",
        command=("uv", "run", "train.py", "--name", "two words"),
        policy=PolicyFacts(
            digest="feed" * 16,
            values={"limits.deadline": 600, "sandbox.network": "none"},
            origins={"limits.deadline": "sealrun.toml:4", "sandbox.network": "standard (shipped)"},
            loosened=("the engine's own seccomp profile is used",),
        ),
        host=HostFacts(hostname="box", cpus=2, cpu_model="Model 7", memory=8 << 30, user="ada"),
        engine=EngineFacts(name="docker", version="20.10.24", details={"storage driver": "btrfs"}),
        protection="same-user",
        tier="container",
        controller=Controller(pid=4711),
        version="0.1.0",
    )
    writer = WriterFacts(
        how="live",
        category="foreign",
        process=Process(pid=99, cmdline=("ruff", "format", "a b.py"), user="ada"),
        parents=(Process(pid=98, exe="/usr/bin/code"),),
    )
    mutation = alert(
        run,
        diff="-SCALAR_LR = 0.5\n+SCALAR_LR = 0.3\n",
        writer=writer,
        count=9,
        evidence="/state/evidence/ab12",
        restored=False,
        first_at="2026-03-08T21:00:00.000000Z",
        last_at="2026-03-08T21:30:00.000000Z",
    )
    with ledger.transaction() as tx:
        tx.append(opening)
        tx.append(Pin(run=run, ref=f"refs/sealrun/runs/{run}", commit=COMMIT))
        tx.append(
            RunProgress(
                run=run,
                image_id="sha256:1111",
                base="recipe:debian-python",
                environment_source="uv.lock",
                layers=(LayerFacts(role="tree", diff_id="sha256:2222", size=10240),),
                loading=LoadingFacts(way="hybrid", sent=1536, manifest_digest="sha256:3333"),
                timings={"seal": 0.08},
            )
        )
        tx.append(mutation)
        tx.append(
            ended(
                run,
                exit_status=3,
                outcome="failed",
                verdict=Judgement(
                    kind="flagged",
                    reasons=(Because(code="edit-foreign", detail="ruff did it", paths=("x.py",)),),
                ),
                metric=MetricFacts(
                    name="val_bpb", value=0.9979, direction="minimize", source="output"
                ),
                seconds=303.2,
                peak_memory=3 << 30,
                cpu_seconds=500.0,
                coverage=Coverage(
                    complete=False,
                    verified=("412 files equal the commit",),
                    observed=("12 directories watched",),
                    missing=("base files were not re-verified",),
                ),
                timings={"run": 303.2},
                limits={"memory": None, "pids": 4096},
                devices=("0", "1"),
                outputs_path="/state/outputs",
                outputs=(OutputFile(path="ckpt.pt", size=2048),),
                log="/state/log",
            )
        )
    return run


def visible(text: str) -> bool:
    """Tell whether a terminal shows a text and obeys nothing in it but the line feed."""
    return all(c == "\n" or unicodedata.category(c) not in {"Cc", "Cf", "Cs"} for c in text)


# -- nothing there, or not what should be --------------------------------------------------------


@pytest.mark.parametrize("command", ["log", "ps"])
def test_no_runs_yet(workspace: Workspace, sealrun: Callable[..., Answer], command: str) -> None:
    """Where nothing ever ran, reading is no error, prints no data and begins no ledger."""
    answer = sealrun(command)
    assert (answer.status, answer.out) == (0, "")
    assert sealrun(command, "--json").json()["runs"] == []
    assert not (workspace.path / ".git" / "sealrun").exists()
    assert not list(workspace.places.state.rglob("*.sqlite"))


@pytest.mark.parametrize("command", ["show", "logs"])
def test_no_such_run(workspace: Workspace, sealrun: Callable[..., Answer], command: str) -> None:
    """A run that is not there is a usage error, with a ledger and without."""
    assert sealrun(command, "01ABC").status == 2
    with workspace.ledger() as ledger:
        write_run(ledger)
    answer = sealrun(command, "7\x1b[2J")
    assert answer.status == 2
    assert visible(answer.err)


@pytest.mark.parametrize("has_id", [True, False])
@pytest.mark.parametrize("command", [["log"], ["ps"], ["show", "01"], ["logs", "01"]])
def test_a_missing_ledger_is_refused(
    workspace: Workspace, sealrun: Callable[..., Answer], command: list[str], *, has_id: bool
) -> None:
    """Pinned runs without their ledger are refused by every reading command."""
    workspace.git("update-ref", f"refs/sealrun/runs/{new_ulid()}", "HEAD")
    if has_id:
        assert workspace.repository
    answer = sealrun(*command)
    assert answer.status == 121
    assert "[sealrun] hint: " in answer.err


def test_a_damaged_ledger_is_trouble_of_ours(
    workspace: Workspace, sealrun: Callable[..., Answer]
) -> None:
    """A damaged ledger is 125 with what to do, and stays as it is."""
    file = workspace.places.ledger(workspace.repository)
    file.write_bytes(b"no database at all" * 100)
    answer = sealrun("log")
    assert answer.status == 125
    assert "damaged" in answer.err
    assert file.read_bytes() == b"no database at all" * 100


def test_outside_a_repository(
    sealrun: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside a repository, and in a directory that is gone, reading is a usage error."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert sealrun("log").status == 2
    gone.rmdir()
    assert sealrun("log").status == 2
    monkeypatch.chdir(tmp_path)


def test_any_directory_and_worktree(
    workspace: Workspace, sealrun: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs are found from every directory of the workspace and from its other worktrees."""
    with workspace.ledger() as ledger:
        run = write_run(ledger)
    (workspace.path / "deep" / "er").mkdir(parents=True)
    workspace.git("worktree", "add", "-q", "--detach", "../second")
    for directory in ("deep/er", "../../../second"):
        monkeypatch.chdir(directory)
        assert sealrun("log", "--json").json()["runs"][0]["run"] == run


# -- log -----------------------------------------------------------------------------------------


def test_log(workspace: Workspace, sealrun: Callable[..., Answer]) -> None:
    """The log lists runs, the newest first, with what a reader asks first; the best is marked."""
    with workspace.ledger() as ledger:
        first = write_run(
            ledger, metric=MetricFacts(name="val_bpb", value=0.9, direction="minimize")
        )
        second = whole_run(ledger)
        ledger.append(opened())
        shortest = ledger.shortest(second)
    answer = sealrun("log")
    assert answer.status == 0
    header, lost, failed, best, caption = answer.out.splitlines()
    assert header.split() == [
        "run",
        "when",
        "commit",
        "verdict",
        "outcome",
        "metric",
        "time",
        "alerts",
        "idea",
    ]
    assert "lost" in lost
    for word in (shortest, "c0ffee000", "flagged", "failed", "0.9979", "5 min 3 s", "halve"):
        assert word in failed
    assert "0.9 *" in best
    assert "*" not in failed
    assert "best" in caption
    assert [one["run"] for one in sealrun("log", "--json").json()["runs"]][1:] == [second, first]
    assert len(sealrun("log", "-n", "1").out.splitlines()) == 2


def test_log_on_a_narrow_terminal(workspace: Workspace) -> None:
    """On 80 columns ids, verdicts and metrics stay whole; the idea gives way."""
    with workspace.ledger() as ledger:
        write_run(ledger)
        run = whole_run(ledger)
        shortest = ledger.shortest(run)
    _, row, _ = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal("log").decode()).splitlines()
    assert len(row) <= 80
    assert row.split()[0] == shortest
    for word in ("flagged", "failed", "0.9979"):
        assert word in row.split()


def test_log_filters(workspace: Workspace, sealrun: Callable[..., Answer]) -> None:
    """Runs are chosen by verdict, outcome, commit and time; a wrong word names the right ones."""
    with workspace.ledger() as ledger:
        clean = write_run(ledger)
        flagged = whole_run(ledger)

    def runs(*options: str) -> list[str]:
        return [one["run"] for one in sealrun("log", "--json", *options).json()["runs"]]

    assert runs("--verdict", "clean") == [clean]
    assert runs("--verdict", "clean", "--verdict", "flagged") == [flagged, clean]
    assert runs("--outcome", "failed") == [flagged]
    assert runs("--commit", "C0FFEE") == [flagged, clean]
    assert runs("--since", "1h") == [flagged, clean]
    assert runs("--since", "2999-01-01") == []
    assert "no run matches" in sealrun("log", "--since", "2999-01-01").err
    for wrong in (
        ["--verdict", "good"],
        ["--outcome", "good"],
        ["--since", "soon"],
        ["--since", "99999999999w"],
        ["--commit", "HEAD"],
        ["-n", "0"],
    ):
        assert sealrun("log", *wrong).status == 2, wrong
    assert "clean, flagged, aborted, refused" in sealrun("log", "--verdict", "good").err


# -- show ----------------------------------------------------------------------------------------


def test_show(workspace: Workspace, sealrun: Callable[..., Answer]) -> None:
    """Everything on record about a run is shown, with what its reasons mean and who wrote."""
    with workspace.ledger() as ledger:
        run = whole_run(ledger)
    answer = sealrun("show", run[:14].lower())
    assert answer.status == 0
    text = " ".join(answer.out.split())
    for words in (
        f"run {run}",
        "flagged",
        "edit-foreign (flag-harmless): a foreign writer changed the workspace during the run",
        "ruff did it",
        "idea halve the rate",
        COMMIT,
        "branch refs/heads/autoresearch/mar8",
        f"refs/sealrun/runs/{run}",
        "uv run train.py --name 'two words'",
        "outcome failed",
        "exit status 3",
        "process 5 min 3 s",
        "peak memory 3 GiB",
        "val_bpb 0.9979 (self-reported)",
        "NOT complete",
        "verified 412 files equal the commit",
        "observed 12 directories watched",
        "not covered base files were not re-verified",
        "train.py: modified, during-run",
        "seen 9 times",
        "still there",
        "foreign: pid 99, ruff format 'a b.py', of ada (live)",
        "started by pid 98, /usr/bin/code",
        "| -SCALAR_LR = 0.5",
        "| +SCALAR_LR = 0.3",
        "/state/evidence/ab12",
        "image sha256:1111",
        "base recipe:debian-python",
        "tree layer sha256:2222 (10 KiB)",
        "loaded hybrid, 1.5 KiB sent",
        "limits.deadline = 600 (from sealrun.toml:4)",
        "loosened the engine's own seccomp profile is used",
        "memory as the caller",
        "devices 0, 1",
        "protection same-user",
        "sandbox container",
        "engine docker 20.10.24",
        "storage driver btrfs",
        "CPUs 2 x Model 7",
        "controller pid 4711",
        "seal 0.08 s",
        "log /state/log",
        "ckpt.pt (2 KiB)",
    ):
        assert words in text, words
    assert "sandbox.network" not in text


def test_show_as_json(workspace: Workspace, sealrun: Callable[..., Answer]) -> None:
    """The JSON of a run holds the fields of its events side by side, and nothing is lost."""
    with workspace.ledger() as ledger:
        run = whole_run(ledger)
    document = sealrun("show", run, "--json").json()["run"]
    assert document["run"] == run
    assert document["state"] == "ended"
    assert document["commit"] == COMMIT
    assert document["verdict"]["reasons"][0]["code"] == "edit-foreign"
    assert document["metric"]["trust"] == "self-reported"
    assert document["loading"]["way"] == "hybrid"
    assert document["timings"] == {"seal": 0.08, "run": 303.2}
    assert document["alerts"][0]["writer"]["process"]["cmdline"] == ["ruff", "format", "a b.py"]
    assert document["policy"]["origins"]["limits.deadline"] == "sealrun.toml:4"


def test_show_a_commit(workspace: Workspace, sealrun: Callable[..., Answer]) -> None:
    """A commit's beginning lists its runs, or shows the one that there is."""
    with workspace.ledger() as ledger:
        first = write_run(ledger)
        assert f"run {first}" in sealrun("show", "c0ffee").out
        second = write_run(ledger)
    assert len(sealrun("show", "C0FFEE0").out.splitlines()) == 3
    runs = sealrun("show", "c0ffee", "--json").json()["runs"]
    assert [one["run"] for one in runs] == [second, first]
    answer = sealrun("show", "0")
    assert answer.status == 2
    assert first in answer.err
    assert second in answer.err


def test_show_without_a_verdict(workspace: Workspace, sealrun: Callable[..., Answer]) -> None:
    """A run that was never judged says so: our own trouble, a lost controller."""
    with workspace.ledger() as ledger:
        fault = write_run(ledger, None, outcome="not-started", fault="the engine went away")
        lost = new_ulid()
        ledger.append(opened(lost))
    text = sealrun("show", fault).out
    assert "none: nothing was judged" in text
    assert "the engine went away" in text
    assert "the controller died" in sealrun("show", lost).out


def test_a_writer_is_never_guessed() -> None:
    """An unknown writer is unavailable, with the reason where one is known."""
    assert writer_in_words(WriterFacts()) == "unavailable"
    assert writer_in_words(WriterFacts(why="no privilege")) == "unavailable (no privilege)"
    gone = WriterFacts(how="partial", why="gone", process=Process(pid=7))
    assert writer_in_words(gone) == "unknown: pid 7, unknown program (partial: gone)"


# -- hostile records -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_shown_and_not_obeyed(
    workspace: Workspace, sealrun: Callable[..., Answer], name: str
) -> None:
    """No text on record reaches the terminal as anything but visible characters."""
    with workspace.ledger() as ledger:
        run = hostile_run(ledger, HOSTILE[name])
        ledger.append(opened(command=(HOSTILE[name][:500],), idea=HOSTILE[name]))
    for command in (["log"], ["show", run], ["ps"], ["show", "c0ffee"]):
        answer = sealrun(*command)
        assert answer.status == 0, answer.err
        assert visible(answer.out), command
        assert len(answer.out) < 2 << 20
        assert sealrun(*command, "--json").status == 0
    shown = sealrun("show", run, "--json").json()["run"]
    if name == "ten megabytes":
        assert shown["truncated"]["idea"] == 10 << 20
        assert "too long to keep whole: it had 10485760" in sealrun("show", run).out
    if name == "markup":
        assert "[bold red]not markup[/]" in sealrun("log").out


# -- ps ------------------------------------------------------------------------------------------

_CONTROLLER = """
import fcntl, os, sys, time
descriptor = os.open(sys.argv[1] + "/lock", os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
log = os.open(sys.argv[1] + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
print("ready", flush=True)
for line in sys.stdin:
    os.write(log, line.encode())
"""


def test_ps(workspace: Workspace, sealrun: Callable[..., Answer]) -> None:
    """Runs under way are shown as alive, those whose controller died as lost, ended ones not."""
    with workspace.ledger() as ledger:
        write_run(ledger)
        alive, lost = new_ulid(), new_ulid()
        ledger.append(opened(alive, command=("sleep", "1 h")))
        ledger.append(RunProgress(run=alive, step="gate-opened"))
        ledger.append(opened(lost))
    directory = workspace.places.run(workspace.repository, alive)
    with ready(_CONTROLLER, str(directory)):
        states = {one["run"]: one["state"] for one in sealrun("ps", "--json").json()["runs"]}
        assert states == {alive: "alive", lost: "lost"}
        _, first, second = sealrun("ps").out.splitlines()
        assert first.split()[1:3] == ["lost", "opened"]
        assert second.split()[1:3] == ["alive", "gate-opened"]
        assert second.endswith("sleep '1 h'")
        assert "running" in sealrun("log").out
        assert "under way" in sealrun("show", alive).out


# -- logs ----------------------------------------------------------------------------------------

_OUTPUT = b"step 1\r\x1b[31mred\x1b[0m\tcaf\xc3\xa9 \xff\xe2\x80\xae\0end\n"


def run_with_log(workspace: Workspace, content: bytes | None) -> str:
    """Write an ended run whose log holds some bytes; return its id."""
    with workspace.ledger() as ledger:
        run = new_ulid()
        file = workspace.places.run(workspace.repository, run) / "log"
        if content is not None:
            file.write_bytes(content)
        ledger.append(opened(run))
        ledger.append(ended(run, log=str(file)))
    return run


def on_terminal(*arguments: str) -> bytes:
    """Run a command whose stdout is a terminal; return what the terminal got."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    command = [sys.executable, "-c", _MAIN, *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    with subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        env=environment | {"NO_COLOR": "1", "TERM": "xterm"},
    ) as process:
        os.close(terminal)
        output = b""
        while True:
            try:
                chunk = os.read(controller, 65536)
            except OSError:  # EIO: the other side is closed (pty(7))
                break
            output += chunk
        os.close(controller)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    return output


def test_logs_pass_bytes(workspace: Workspace, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Where stdout is no terminal, a log's bytes pass untouched."""
    run = run_with_log(workspace, _OUTPUT * 5000)
    done = subprocess.run(
        [sys.executable, "-c", _MAIN, "logs", run], stdout=subprocess.PIPE, check=True
    )
    assert done.stdout == _OUTPUT * 5000
    capfdbinary.readouterr()


def test_logs_on_a_terminal(workspace: Workspace) -> None:
    """A terminal gets control characters as text, unless the bytes are asked for."""
    run = run_with_log(workspace, _OUTPUT)
    shown = on_terminal("logs", run)
    expected = r"\x1b[31mred\x1b[0m" + "\tcafé " + r"\xff\u202e\x00end"
    assert shown == b"step 1\r" + expected.encode() + b"\r\n"
    assert on_terminal("logs", "--raw", run) == _OUTPUT.replace(b"\n", b"\r\n")


def test_follow_ends_with_the_run(workspace: Workspace) -> None:
    """Following prints what comes and ends when the controller dies, losing nothing."""
    run = new_ulid()
    with workspace.ledger() as ledger:
        ledger.append(opened(run))
    directory = workspace.places.run(workspace.repository, run)
    command = [sys.executable, "-c", _MAIN, "logs", "-f", run]
    with (
        ready(_CONTROLLER, str(directory)) as controller,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower,
    ):
        assert controller.stdin is not None
        assert follower.stdout is not None
        for line in ("first\n", "second\n"):
            controller.stdin.write(line)
            controller.stdin.flush()
            assert follower.stdout.readline() == line
        controller.stdin.write("last\n")
        controller.stdin.flush()
        controller.stdin.close()
        assert follower.stdout.read() == "last\n"
        assert follower.wait() == 0


def test_follow_is_interrupted(workspace: Workspace) -> None:
    """An interrupt ends following with status 130 and no traceback."""
    run = new_ulid()
    with workspace.ledger() as ledger:
        ledger.append(opened(run))
    directory = workspace.places.run(workspace.repository, run)
    command = [sys.executable, "-c", _MAIN, "logs", "-f", run]
    with (
        ready(_CONTROLLER, str(directory)) as controller,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as follower,
    ):
        assert controller.stdin is not None
        assert follower.stdout is not None
        controller.stdin.write("first\n")
        controller.stdin.flush()
        assert follower.stdout.readline() == "first\n"
        follower.send_signal(signal.SIGINT)
        _, errors = follower.communicate(timeout=30)
        assert follower.returncode == 130
        assert "Traceback" not in errors


def test_a_reader_that_goes_away(workspace: Workspace) -> None:
    """A closed pipe ends printing quietly."""
    run = run_with_log(workspace, b"x" * (4 << 20))
    script = f"{sys.executable} -c '{_MAIN}' logs {run} | head -c 5"
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"xxxxx", b"")


def test_a_log_that_is_none(workspace: Workspace, sealrun: Callable[..., Answer]) -> None:
    """A missing log is no error; a link, a pipe or a directory in its place is never read."""
    assert sealrun("logs", run_with_log(workspace, None)).status == 0
    for make in (
        lambda file: file.symlink_to("/etc/passwd"),
        os.mkfifo,
        lambda file: file.mkdir(),
    ):
        run = run_with_log(workspace, None)
        make(workspace.places.run(workspace.repository, run) / "log")
        answer = sealrun("logs", run)
        assert (answer.status, answer.out) == (125, "")


# -- words ---------------------------------------------------------------------------------------


def test_amounts_in_words() -> None:
    """Durations and sizes are said as a person reads them; what is not known is a dash."""
    assert [duration(one) for one in (None, -1.0, 0.0421, 59.9, 303.2, 7900.0)] == [
        "-",
        "-",
        "0.0421 s",
        "59.9 s",
        "5 min 3 s",
        "2 h 11 min",
    ]
    assert [size(one) for one in (None, 0, 1536, 5 << 40)] == ["-", "0 bytes", "1.5 KiB", "5 TiB"]


def test_since() -> None:
    """An age or a date becomes a time as the ledger writes it."""
    assert since("2026-03-08T21:30:00+01:00") == "2026-03-08T20:30:00.000000Z"
    for wrong in ("", "h", "1y", "-5m", "99999999999w", "yesterday"):
        with pytest.raises(UsageError):
            since(wrong)
