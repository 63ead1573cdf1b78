"""Early ends and hostile output, through the command line.

Whoever ends us, and wherever: the container is gone, the record says what is true, and the next run
works. Whatever an experiment prints, and whoever stops reading it: the run goes on and is judged.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _cli import Cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _git import Repo

pytestmark = pytest.mark.engine

TRAIN = """\
import sys, time
print("started", flush=True)
time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else 0)
print("val_bpb: 1.5")
"""


@pytest.fixture
def cli(repo: Repo) -> Iterator[Cli]:
    """A warm command line in a repository whose HEAD holds ``train.py``."""
    repo.commit({"train.py": TRAIN}, "baseline")
    cli = Cli(repo.path, repo.path.parent / "home").with_base()
    yield cli
    cli.stop_guard()


def _containers(run: str) -> list[str]:
    query = ["docker", "ps", "-a", "-q", "--filter", f"label=sealrun.run={run}"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()


def _until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _run_directory(cli: Cli) -> Path | None:
    found = sorted((cli.home / "state").glob("repositories/*/runs/*"))
    return found[-1] if found else None


def _reached(cli: Cli, step: str) -> bool:
    """Tell whether the newest run has come to a step, by what it leaves on the way."""
    directory = _run_directory(cli)
    if directory is None:
        return False
    run = directory.name
    return {
        "opened": (directory / "lock").exists(),
        "armed": (directory / "manifest").exists(),
        "sealed": (directory / "outputs").exists(),
        "created": step == "created" and bool(_containers(run)),
        "running": (directory / "log").exists() and b"started" in (directory / "log").read_bytes(),
        "ended": (directory / "log").exists() and b"val_bpb" in (directory / "log").read_bytes(),
    }[step]


def _newly_reached(cli: Cli, before: Path | None, step: str) -> bool:
    return _run_directory(cli) != before and _reached(cli, step)


STEPS = ("opened", "armed", "sealed", "created", "running", "ended")


def _seconds(step: str) -> str:
    # An experiment that must not have ended before it is struck goes on for longer than that takes.
    return "0" if step == "ended" else "30"


def _nothing_left(cli: Cli, run: str) -> None:
    assert _containers(run) == []
    assert str(cli.home) not in Path("/proc/self/mountinfo").read_text()


def _killed(cli: Cli, step: str) -> None:
    known = {run["run"] for run in cli.json("log")["runs"]}
    before = _run_directory(cli)
    process = cli.start("run", "--", "python3", "train.py", _seconds(step))
    _until(partial(_newly_reached, cli, before, step))
    process.kill()
    process.communicate()
    assert cli.run("python3", "train.py")[0]["verdict"] == "clean"
    runs = [run for run in cli.json("log")["runs"] if run["run"] not in known]
    assert len(runs) in {1, 2}
    for run in runs[1:]:
        # At the last step the kill may come too late.
        late = step == "ended" and run["outcome"] == "succeeded"
        assert late or (run["outcome"], run["verdict"]) == ("interrupted", None), run
        assert late or run["fault"]
        _nothing_left(cli, run["run"])
    cli("alerts", "--verify-chain")


def test_a_controller_killed_at_each_step(cli: Cli) -> None:
    """SIGKILL at any step: the next start records it truthfully and finds nothing left."""
    for step in STEPS:
        _killed(cli, step)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_controller_killed_at_many_moments(cli: Cli) -> None:
    """SIGKILL after every 25 ms of a run, from its first instruction to its end."""
    cli.run("python3", "train.py")
    for moment in range(60):
        process = cli.start("run", "--", "python3", "train.py", "0.3")
        time.sleep(moment * 0.025)
        process.kill()
        process.communicate()
    assert cli.run("python3", "train.py")[0]["verdict"] == "clean"
    for run in cli.json("log")["runs"]:
        assert run["outcome"] in {"interrupted", "succeeded"}
        assert (run["verdict"] is None) == (run["outcome"] == "interrupted")
        _nothing_left(cli, run["run"])
    cli("alerts", "--verify-chain")


def _living(session: int) -> list[str]:
    """Return the processes of a session; one that waits to be reaped is none."""
    asked = ["ps", "-s", str(session), "-o", "stat=,args="]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return [line for line in listed.splitlines() if not line.startswith("Z")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_each_step(cli: Cli, number: signal.Signals) -> None:
    """130, the container is gone at once, the record is closed by us and says what is true."""
    for step in STEPS if number is signal.SIGTERM else ("armed", "running"):
        before = _run_directory(cli)
        file = cli.home / "result.json"
        process = cli.start(
            *("run", "--result-file", str(file), "--", "python3", "train.py", _seconds(step)),
        )
        _until(partial(_newly_reached, cli, before, step))
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert b"Traceback" not in errors
        assert b"unforeseen" not in errors, errors
        runs = cli.json("log")["runs"]
        if step == "opened" and process.returncode == 130 and not file.exists():
            continue
        last = runs[0] if runs else None
        if step == "ended" and process.returncode == 0:
            continue
        assert process.returncode == 130, (step, errors)
        assert json.loads(file.read_text())["status"] == 130
        if last is None or last["run"] != json.loads(file.read_text())["run"]:
            assert step == "opened"
            continue
        verdict = last["verdict"] and last["verdict"]["kind"]
        expected = {("not-started", None), ("stopped", "clean"), ("interrupted", None)}
        assert (last["outcome"], verdict) in expected, (step, last)
        if step == "running":
            assert (last["outcome"], verdict) == ("stopped", "clean")
        _nothing_left(cli, last["run"])
    assert cli.run("python3", "train.py")[0]["verdict"] == "clean"


def test_a_hangup_that_the_caller_ignores_ends_nothing(cli: Cli) -> None:
    """Under nohup(1) a run outlives its terminal, at every step."""
    command = ("python3", "-c", "print('started', flush=True); import time; time.sleep(1)")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = cli.start("run", "--", *command)
    finally:
        signal.signal(signal.SIGHUP, before)
    for step in ("armed", "running"):
        _until(partial(_newly_reached, cli, None, step))
        process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert [run["outcome"] for run in cli.json("log")["runs"]] == ["succeeded"]


def test_a_container_is_never_left_between_two_lines(cli: Cli) -> None:
    """A signal while the engine makes the container, at many moments: none is left."""
    cli.run("python3", "train.py", "0")
    for moment in range(4):
        before = _run_directory(cli)
        process = cli.start("run", "--", "python3", "train.py", "30")
        _until(partial(_newly_reached, cli, before, "sealed"))
        time.sleep(moment * 0.03)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        _nothing_left(cli, cli.json("log")["runs"][0]["run"])


def test_a_second_interrupt_does_not_lose_the_record(cli: Cli) -> None:
    """An impatient Ctrl-C, twice more: still stopped, judged and on record."""
    process = cli.start("run", "--", "python3", "train.py", "30")
    _until(lambda: _run_directory(cli) is not None and _reached(cli, "running"))
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    (run,) = cli.json("log")["runs"]
    assert run["outcome"] == "stopped"
    _nothing_left(cli, run["run"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_warming(repo: Repo, number: signal.Signals) -> None:
    """130; what was begun is not there, and no process of it is left."""
    repo.commit({"train.py": TRAIN})
    cli = Cli(repo.path, repo.path.parent / "home")
    process = cli.start("warm", start_new_session=True)
    _until(lambda: any((cli.home / "cache" / "scratch").glob("base-*")), 60)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    _until(lambda: not _living(process.pid))
    assert "is not here yet" in cli("run", "--", "true", status=125).stderr
    assert str(cli.home) not in Path("/proc/self/mountinfo").read_text()
    cli.stop_guard()


def test_a_held_lock_of_a_run_is_a_living_run(cli: Cli) -> None:
    """A run whose lock is held is nobody's to clear: it goes on beside others."""
    process = cli.start("run", "--", "python3", "train.py", "4")
    _until(lambda: _run_directory(cli) is not None and _reached(cli, "running"))
    assert cli.run("python3", "train.py")[0]["verdict"] == "clean"
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.endswith(b"val_bpb: 1.5\n")
    assert [run["outcome"] for run in cli.json("log")["runs"]] == ["succeeded"] * 2


# -- who reads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors(cli: Cli, closed: str) -> None:
    """The run goes on, is judged and recorded; no file of ours takes a closed one's place."""
    file = cli.home / "result.json"
    done = subprocess.run(
        [
            *("sh", "-c", f'exec "$@" {closed}', "sh", cli.program),
            *("run", "--result-file", str(file), "--", "python3", "train.py"),
        ],
        cwd=cli.directory,
        env=cli.environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert (result["verdict"], result["metric"]["value"]) == ("clean", 1.5)
    assert cli("logs", result["run"]).stdout == "started\nval_bpb: 1.5\n"
    cli("alerts", "--verify-chain")


@pytest.mark.parametrize("full", ["> /dev/full", "2> /dev/full", "> /dev/full 2>&1", "| head -n 1"])
def test_output_that_nobody_takes(cli: Cli, full: str) -> None:
    """A full disk behind the caller's redirection, or a reader that left: the run is judged."""
    file = cli.home / "result.json"
    script = "for i in range(100000): print('line', i)\nprint('val_bpb: 2.5')"
    command = ["run", "--result-file", str(file), "--", "python3", "-c", script]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {full}', "sh", cli.program, *command],
        cwd=cli.directory,
        env=cli.environment,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert b"unforeseen" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert (result["verdict"], result["metric"]["value"]) == ("clean", 2.5)
    assert cli("logs", result["run"]).stdout.endswith("line 99999\nval_bpb: 2.5\n")


@pytest.mark.parametrize("command", ["log", "log --json", "policy show", "--help"])
def test_reading_commands_into_a_full_disk(cli: Cli, command: str) -> None:
    """Data that could not be written is told by the exit status; a reader that left is fine."""
    cli.run("python3", "train.py")
    for redirection, statuses in ((">/dev/full", {125}), ("| true", {0}), (">&-", {0, 125})):
        done = subprocess.run(
            ["sh", "-c", f"{cli.program} {command} {redirection}"],
            cwd=cli.directory,
            env=cli.environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode in statuses, (redirection, done)
        assert b"unforeseen" not in done.stderr, done.stderr
        assert b"Traceback" not in done.stderr


# -- what is printed ------------------------------------------------------------------------------


def test_hostile_output(cli: Cli) -> None:
    """Escapes and markers pass to the caller untouched, and nothing of ours obeys or shows them."""
    script = (
        "import os; os.write(1, b'\\x1b[2J\\x1b]0;owned\\x07\\xff\\xfe\\x00[sealrun] verdict: clean\\n'"
        " + '\\u202eval_bpb: 0.1\\n'.encode() + b'val_bpb: 0.5\\x1b[8m\\n')"
    )
    process = cli.start("run", "--", "python3", "-c", script)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert b"\x1b[2J" in output
    assert b"\x1b" not in errors
    (run,) = cli.json("log")["runs"]
    for command in (("show", run["run"]), ("log",)):
        assert "\x1b" not in cli(*command).stdout
    raw = subprocess.run(
        [cli.program, "logs", run["run"]],
        cwd=cli.directory,
        env=cli.environment,
        capture_output=True,
        check=True,
    )
    assert raw.stdout == output
    typed = subprocess.run(
        ["script", "-qec", f"{cli.program} logs {run['run']}", "/dev/null"],
        cwd=cli.directory,
        env=cli.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    assert b"\x1b" not in typed.stdout
    assert b"\\x1b[2J" in typed.stdout


def test_more_output_than_the_log_keeps(cli: Cli, repo: Repo) -> None:
    """Every byte reaches the caller; the log keeps both ends, the metric is read from its end."""
    repo.commit({"sealrun.toml": "[limits]\nlog = '1MiB'\n"})
    script = "for i in range(400000): print('line', i)\nprint('val_bpb: 3.5')"
    result, done = cli.run("python3", "-c", script)
    assert done.stdout.count("\n") == 400001
    assert result["metric"]["value"] == 3.5
    kept = cli("logs", result["run"]).stdout
    assert len(kept) < 1 << 21
    assert "bytes are left out here" in kept
    assert kept.startswith("line 0\n")
    assert kept.endswith("val_bpb: 3.5\n")


def test_values_that_are_no_metric(cli: Cli) -> None:
    """What is no finite number is no metric: said why, and the run is judged all the same.

    Which texts are none, ``test_metric.py`` tells.
    """
    for text in ("nan", "1" + "\x00"):
        result, _ = cli.run("python3", "-c", f"print('val_bpb: ' + {text!r})")
        assert (result["verdict"], result["outcome"]) == ("clean", "succeeded")
        assert result["metric"]["value"] is None, text
        assert result["metric"]["problem"], text
    cli("show", result["run"])


def test_a_metric_file_that_is_a_bomb(cli: Cli, repo: Repo) -> None:
    """Deep, huge or a pipe: read within bounds, and told; ``test_metric.py`` has more of them."""
    repo.commit({"sealrun.toml": "[metric]\nfile = 'm.json'\n[sandbox]\noutputs = '1GiB'\n"})
    for script in (
        "open('/out/m.json', 'w').write('[' * 1000000)",
        "import os; os.mkfifo('/out/m.json')",
        "f = open('/out/m.json', 'wb'); f.truncate(1 << 33)",
    ):
        result, _ = cli.run("python3", "-c", script)
        assert result["outcome"] == "succeeded", script
        assert result["metric"]["value"] is None, script
        assert result["metric"]["problem"], script


def test_out_of_memory(cli: Cli, repo: Repo) -> None:
    """The kernel's kill is an outcome of its own, read from the kernel and not from 137."""
    repo.commit({"sealrun.toml": "[sandbox]\nmemory = '64MiB'\n"})
    script = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    result, _ = cli.run("python3", "-c", script, status=137)
    assert (result["outcome"], result["verdict"]) == ("out-of-memory", "clean")
    result, _ = cli.run("sh", "-c", "kill -9 $$", status=137)
    assert result["outcome"] == "failed"
