"""Trouble of the machine, through the command line: disk, state, ledger, engine.

Each is 125 (or a refusal), says where and what to do, is never an outcome of the experiment, leaves
nothing half-written, and the next run works once the trouble is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _cli import Cli
from _disk import fill, free, small_disk
from _engine import speaking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _git import Repo

HELLO = 'print("val_bpb: 1.5")\n'
NOBODY = 65534


@pytest.fixture
def cli(repo: Repo) -> Iterator[Cli]:
    """A warm command line in a repository whose HEAD holds ``train.py``."""
    repo.commit({"train.py": HELLO}, "baseline")
    cli = Cli(repo.path, repo.path.parent / "home").with_base()
    yield cli
    cli.stop_guard()


def _told(stderr: str) -> None:
    """Assert that an error has its two parts and only lines of ours."""
    lines = stderr.splitlines()
    assert any(line.startswith("[sealrun] error: ") for line in lines), stderr
    assert any(line.startswith("[sealrun] hint: ") for line in lines), stderr
    assert "unforeseen" not in stderr, stderr


def _runs(cli: Cli) -> list[tuple[str, str | None]]:
    found = []
    for run in cli.json("log")["runs"]:
        verdict = run["verdict"]
        found.append((run["outcome"], verdict["kind"] if verdict else None))
    return found


def _ledger(cli: Cli) -> Path:
    (found,) = (cli.home / "state").rglob("ledger.sqlite")
    return found


def _containers(run_id: str) -> bytes:
    query = ["docker", "ps", "-a", "-q", "--filter", f"label=sealrun.run={run_id}"]
    return subprocess.run(query, capture_output=True, check=True).stdout


# -- disk space ----------------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.parametrize("leave", [0, 16 << 10, 4 << 20], ids=["nothing", "little", "a tree less"])
def test_no_space_for_the_cache(cli: Cli, repo: Repo, leave: int) -> None:
    """At the spool or at the tree layer: told which, nothing ran, and then it works again."""
    repo.commit({"weights": os.urandom(3 << 20)})
    cache = cli.home / "cache"
    with small_disk(cache, 16 << 20):
        fill(cache, leave)
        for _ in range(2):
            done = cli("run", "--", "python3", "train.py", status=125)
            assert str(cache) in done.stderr
            assert "pace" in done.stderr
            _told(done.stderr)
        assert cli("warm", status=125).stderr
        assert {outcome for outcome, _ in _runs(cli)} <= {"not-started"}
        free(cache)
        assert cli.run("python3", "train.py")[0]["verdict"] == "clean"


@pytest.mark.engine
@pytest.mark.parametrize(
    "leave",
    [0, 64 << 10]
    + [pytest.param(pages << 12, marks=pytest.mark.soak) for pages in (1, 2, 3, 4, 8, 24, 50, 100)],
)
def test_no_space_for_the_state(cli: Cli, leave: int) -> None:
    """Before the first run and before a later one: told which file, and nothing half-written."""
    state = cli.home / "state"
    with small_disk(state, 8 << 20):
        fill(state, leave)
        done = cli("run", "--", "python3", "train.py", status=None)
        if done.returncode:
            assert done.returncode == 125
            _told(done.stderr)
            assert str(state) in done.stderr
            assert "pace" in done.stderr
        free(state)
        assert cli.run("python3", "train.py")[0]["verdict"] == "clean"
        before = _runs(cli)
        fill(state, leave)
        done = cli("run", "--", "python3", "train.py", status=None)
        if done.returncode:
            assert done.returncode == 125
            _told(done.stderr)
            assert str(state) in done.stderr
        free(state)
        assert cli.run("python3", "train.py")[0]["verdict"] == "clean"
        assert len(_runs(cli)) >= len(before) + 1
        cli("alerts", "--verify-chain")


@pytest.mark.engine
@pytest.mark.parametrize("where", ["log", "out", "workdir"])
def test_space_that_runs_out_during_a_run(cli: Cli, where: str) -> None:
    """At the log or the outputs: 125, no outcome of the experiment, the container is gone."""
    script = {
        "log": "import sys\nfor _ in range(64): sys.stdout.write('x' * (1 << 20))",
        "out": "open('/out/big', 'wb').write(bytes(64 << 20))",
        "workdir": "open('big', 'wb').write(bytes(64 << 20))",
    }[where]
    state = cli.home / "state"
    with small_disk(state, 16 << 20):
        done = cli("run", "--", "python3", "-c", script, status=125)
        _told(done.stderr)
        assert str(state) in done.stderr
        big = [
            path for path in state.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20
        ]
        assert big
        for path in big:
            path.unlink()
        assert cli.run("python3", "train.py")[0]["verdict"] == "clean"
        last, first = cli.json("log")["runs"]
        assert (first["outcome"], first["verdict"]) == ("interrupted", None)
        assert last["outcome"] == "succeeded"
        assert _containers(first["run"]) == b""


# -- the places of our state ---------------------------------------------------------------------


def test_a_home_that_is_a_file(repo: Repo, tmp_path: Path) -> None:
    """SEALRUN_HOME below a file cannot be made; every command says so."""
    repo.commit({"train.py": HELLO})
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/sealrun")):
        for command in (("run", "--", "true"), ("warm",), ("policy", "diff")):
            done = Cli(repo.path, home)(*command, status=125)
            _told(done.stderr)
            assert str(home) in done.stderr
            assert "SEALRUN_HOME" in done.stderr


@pytest.mark.engine
def test_a_state_that_became_read_only(cli: Cli) -> None:
    """A file system that was remounted: reading still works, running says what is wrong."""
    state = cli.home / "state"
    with small_disk(state, 16 << 20):
        result, _ = cli.run("python3", "train.py")
        subprocess.run(["mount", "-o", "remount,ro", str(state)], check=True)
        done = cli("run", "--", "python3", "train.py", status=125)
        _told(done.stderr)
        assert str(state) in done.stderr
        assert cli.json("show", result["run"])["run"]["outcome"] == "succeeded"
        assert len(_runs(cli)) == 1


#: Where the interpreter lies in root's home an ordinary user could not start the guard with it.
_SEES_PYTHON = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


@contextmanager
def _ordinary(repo: Repo) -> Iterator[tuple[Path, dict[str, str], list[str]]]:
    """A copy of a repository that an ordinary user owns; its variables, and how to become it."""
    directory = Path(tempfile.mkdtemp(prefix="sealrun-user-"))
    try:
        shutil.copytree(repo.path, directory / "repo")
        for path in (directory, *directory.rglob("*")):
            os.lchown(path, NOBODY, NOBODY)
        variables = {"PATH": os.environ["PATH"], "HOME": str(directory)}
        yield (
            directory,
            variables,
            ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"],
        )
    finally:
        shutil.rmtree(directory)


def test_a_user_without_the_right_to_the_engine(repo: Repo) -> None:
    """Permission denied is told apart from no engine, with who can change it."""
    repo.commit({"train.py": HELLO})
    with _ordinary(repo) as (directory, variables, become):
        home = directory / "home"
        cli = Cli(directory / "repo", home, variables)
        try:
            done = subprocess.run(
                [*become, *_SEES_PYTHON, cli.program, "run", "--", "python3", "train.py"],
                cwd=cli.directory,
                env=variables | {"SEALRUN_HOME": str(home)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 125, done.stderr
            assert "you may not use it" in done.stderr
            _told(done.stderr)
        finally:
            cli.stop_guard()


def test_a_user_without_the_right_to_the_state(repo: Repo, tmp_path: Path) -> None:
    """Somebody else's SEALRUN_HOME or git directory is a clear error."""
    repo.commit({"train.py": HELLO})
    with _ordinary(repo) as (directory, variables, become):
        locked = directory / "locked"
        locked.mkdir(mode=0o700)
        program = Cli(tmp_path, tmp_path).program
        for home in (locked, locked / "home"):
            for command in (["run", "--", "true"], ["warm"], ["log"]):
                done = subprocess.run(
                    [*become, program, *command],
                    cwd=directory / "repo",
                    env=variables | {"SEALRUN_HOME": str(home)},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert "unforeseen" not in done.stderr, done.stderr
                if command != ["log"]:
                    assert done.returncode == 125
                    assert str(home) in done.stderr
                    _told(done.stderr)
        shutil.rmtree(directory / "repo" / ".git" / "sealrun", ignore_errors=True)
        os.chown(directory / "repo" / ".git", 0, 0)
        (directory / "repo" / ".git").chmod(0o755)
        done = subprocess.run(
            [*become, program, "run", "--", "true"],
            cwd=directory / "repo",
            env=variables | {"SEALRUN_HOME": str(directory / "home")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 125
        assert ".git/sealrun" in done.stderr
        _told(done.stderr)


# -- the ledger ----------------------------------------------------------------------------------


@pytest.mark.engine
def test_a_locked_ledger(cli: Cli) -> None:
    """Another process holds it: named, 125, and nothing ran."""
    cli.run("python3", "train.py")
    connection = sqlite3.connect(_ledger(cli), isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        done = cli("run", "--", "python3", "train.py", status=125)
        assert "is locked" in done.stderr
        assert f"process {os.getpid()}" in done.stderr
        _told(done.stderr)
        assert len(_runs(cli)) == 1
        connection.execute("ROLLBACK")
    finally:
        connection.close()
    assert cli.run("python3", "train.py")[0]["verdict"] == "clean"


@pytest.mark.engine
@pytest.mark.soak(sample=True)
def test_a_ledger_that_is_locked_at_the_end_of_a_run(cli: Cli) -> None:
    """The verdict cannot be recorded: 125, and the next start closes the open record."""
    process = cli.start("run", "--", "python3", "-c", "import time; print(1); time.sleep(2)")
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    connection = sqlite3.connect(_ledger(cli), isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    _, errors = process.communicate(timeout=60)
    connection.close()
    assert process.returncode == 125, errors
    _told(errors.decode())
    assert cli.run("python3", "train.py")[0]["verdict"] == "clean"
    assert _runs(cli) == [("succeeded", "clean"), ("interrupted", None)]


@pytest.mark.engine
@pytest.mark.parametrize("damage", ["head", "middle", "empty", "text", "newer", "another"])
def test_a_damaged_ledger(cli: Cli, damage: str) -> None:
    """It is reported and kept byte for byte; no command begins a new one."""
    cli.run("python3", "train.py")
    cli.stop_guard()
    file = _ledger(cli)
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if damage == "newer":
            connection.execute("PRAGMA user_version = 999")
    connection.close()
    content = bytearray(file.read_bytes())
    if damage == "head":
        content[:100] = os.urandom(100)
    elif damage == "middle":
        content[4096:] = os.urandom(len(content) - 4096)
    elif damage == "empty":
        content = bytearray()
    elif damage == "text":
        content = bytearray(b"no database\n" * 1000)
    if damage == "another":
        (cli.directory / ".git" / "sealrun" / "id").write_text("0" * 32 + "\n")
        target = cli.home / "state" / "repositories" / ("0" * 32)
        shutil.copytree(file.parent, target)
        file = target / file.name
    file.write_bytes(content)
    for command in (("run", "--", "python3", "train.py"), ("log",), ("alerts", "--verify-chain")):
        done = cli(*command, status=125)
        assert str(file) in done.stderr
        _told(done.stderr)
    assert file.read_bytes() == content


# -- engines -------------------------------------------------------------------------------------


@contextmanager
def _listening(answer: Callable[[bytes], bytes | None]) -> Iterator[str]:
    """Answer each request with raw bytes, or never (None), on a socket; yield its endpoint."""
    with tempfile.TemporaryDirectory(prefix="sealrun-") as directory:
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"{directory}/s")
        server.listen()
        kept: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                kept.append(connection)
                said = answer(connection.recv(65536))
                if said is not None:
                    connection.sendall(said)
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"unix://{directory}/s"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
            thread.join()


_ANSWERS = {
    "nothing": None,
    "end": b"",
    "text": b"SSH-2.0-OpenSSH_9.2\r\n",
    "html": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
    "null": b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 4\r\n\r\nnull",
    "old": b'HTTP/1.1 200 OK\r\nApi-Version: 1.20\r\nContent-Length: 22\r\n\r\n{"ServerVersion":"1.8"}'[
        :-1
    ],
    "error": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.engine
@pytest.mark.parametrize("kind", _ANSWERS)
def test_an_engine_that_answers_badly(cli: Cli, kind: str) -> None:
    """Silence and garbage are told within seconds, as our trouble, with the endpoint."""
    with _listening(lambda _: _ANSWERS[kind]) as endpoint:
        cli.extra["DOCKER_HOST"] = endpoint
        started = time.monotonic()
        done = cli("run", "--", "python3", "train.py", status=125)
        assert time.monotonic() - started < 30
        assert endpoint in done.stderr
        _told(done.stderr)
    assert _runs(cli) == [("not-started", None)]


@pytest.mark.engine
def test_an_engine_that_knows_only_its_name(cli: Cli) -> None:
    """It answers who it is, and the same to everything else: found out before anything runs."""
    with (
        tempfile.TemporaryDirectory(prefix="sealrun-") as directory,
        speaking(Path(directory) / "s") as endpoint,
    ):
        cli.extra["DOCKER_HOST"] = endpoint
        _told(cli("run", "--", "python3", "train.py", status=125).stderr)
    assert _runs(cli) == [("not-started", None)]


@pytest.mark.engine
@pytest.mark.soak
def test_an_engine_that_hangs_after_its_first_answer(cli: Cli) -> None:
    """Whatever it does not answer ends after a minute or two, as our trouble."""
    answered: list[bytes] = []
    info = b'{"ServerVersion": "27", "ID": "x", "DriverStatus": []}'
    head = b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: %d\r\n\r\n" % len(info)

    def once(request: bytes) -> bytes | None:
        answered.append(request)
        return head + info if len(answered) == 1 else None

    with _listening(once) as endpoint:
        cli.extra["DOCKER_HOST"] = endpoint
        done = cli("run", "--", "python3", "train.py", status=125, timeout=200)
        assert endpoint in done.stderr
        _told(done.stderr)
    assert len(answered) > 1
    assert _runs(cli) == [("not-started", None)]


_SECOND = """
mount -t tmpfs tmpfs /run && exec dockerd --host "unix://$1/engine.sock" \
  --data-root "$1/data" --exec-root /run/second --pidfile "$1/engine.pid" \
  --bridge none --iptables=false --ip6tables=false --containerd-namespace sealrun-second \
  --containerd-plugins-namespace sealrun-second-plugins
"""


@contextmanager
def _engine_of_our_own(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    (directory / "engine.pid").unlink(missing_ok=True)
    (directory / "engine.sock").unlink(missing_ok=True)
    command = ["unshare", "--mount", "--net", "sh", "-c", _SECOND, "second", str(directory)]
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    query = ["docker", "-H", f"unix://{directory}/engine.sock", "info"]
    try:
        for _ in range(200):
            if subprocess.run(query, capture_output=True, check=False).returncode == 0:
                break
            assert process.poll() is None, (directory / "log").read_text()
            time.sleep(0.1)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


@pytest.mark.engine
def test_an_engine_that_dies_during_a_run(cli: Cli) -> None:
    """SIGKILL to the engine: 125, interrupted, nothing judged; the next start clears up."""
    directory = Path(tempfile.mkdtemp(prefix="sealrun-"))
    endpoint = f"unix://{directory}/engine.sock"
    cli.extra["DOCKER_HOST"] = endpoint
    try:
        with _engine_of_our_own(directory) as engine:
            assert cli.run("python3", "train.py")[0]["verdict"] == "clean"
            file = cli.home / "fault.json"
            process = cli.start(
                *("run", "--result-file", str(file), "--"),
                *("python3", "-c", "import time; print('val_bpb: 9', flush=True); time.sleep(60)"),
            )
            assert process.stdout is not None
            assert process.stdout.readline() == b"val_bpb: 9\n"
            engine.send_signal(signal.SIGKILL)
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 125, errors
            _told(errors.decode())
            fault = json.loads(file.read_text())
            assert (fault["verdict"], fault["outcome"], fault["status"]) == (None, None, 125)
            run = cli.json("show", fault["run"])["run"]
            assert (run["outcome"], run["verdict"], run["metric"]) == ("interrupted", None, None)
            _told(cli("run", "--", "python3", "train.py", status=125).stderr)
        with _engine_of_our_own(directory):
            assert cli.run("python3", "train.py")[0]["verdict"] == "clean"
            query = ["docker", "-H", endpoint, "ps", "-aq"]
            assert subprocess.run(query, capture_output=True, check=True).stdout == b""
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# -- two at once ---------------------------------------------------------------------------------


@pytest.mark.engine
def test_two_first_runs_at_once(cli: Cli) -> None:
    """Both run; the record holds both, and one first approval."""
    processes = [cli.start("run", "--", "python3", "train.py") for _ in range(3)]
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert output == b"val_bpb: 1.5\n"
    assert _runs(cli) == [("succeeded", "clean")] * 3
