"""A forked command is the command: what it is given, what it gives back, what it can import."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import _forked
import sealrun
from _cli import SEALRUN, run_started
from sealrun.cli import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., subprocess.CompletedProcess[str]]

#: Forks for each module a process that has imported nothing of the package, and most of what it uses.
_EACH_FIRST = """
import asyncio, concurrent.futures, email, gc, http.server, importlib, os, sqlite3, sys, traceback
import docker, cryptography, packaging.requirements, platformdirs, psutil, pydantic, requests
import rich.console, rich.table, securesystemslib.signer, typer, watchdog.observers
gc.freeze()
for name in sys.argv[1:]:
    if os.fork() == 0:
        status = 1
        try:
            importlib.import_module(name)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.wait()[1] != 0:
        print(name)
"""
#: Says what the program that runs it was given.
_SAYS = """
import json, os, resource, signal, sys
print(json.dumps({
    "cwd": os.getcwd(), "umask": os.umask(0), "argv": sys.argv,
    "fds": sorted(f for f in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + f)),
    "limits": [resource.getrlimit(number) for number in range(16)],
    "place": [os.getpgrp(), os.getsid(0), os.nice(0), sorted(os.sched_getaffinity(0))],
    "streams": [os.readlink("/proc/self/fd/0"), os.isatty(1), os.isatty(2)],
    "ignored": [n for n in range(1, 32) if signal.getsignal(n) == signal.SIG_IGN],
}), flush=True)
print("to the other one\\r\\n\\udcff".encode(errors="surrogateescape").decode("latin-1"), file=sys.stderr, flush=True)
os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1:] == ["die"] else sys.exit(7)
"""


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The variables of a home of its own, and some that no program reads."""
    odd = {"SEALRUN_TEST": "a\nb", "SEALRUN_BYTES": os.fsdecode(b"caf\xe9"), "TZ": "Asia/Tokyo"}
    return dict(os.environ) | {"SEALRUN_HOME": str(tmp_path / "home")} | odd


@pytest.mark.parametrize("ending", ["die", "caf\udce9 ü\n"])
def test_a_program_of_either_is_given_the_same(
    tmp_path: Path, home: dict[str, str], ending: str
) -> None:
    """Arguments, directory, umask, limits, descriptors, signals; output and status."""
    where = tmp_path / "a b"
    where.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_NOFILE)
    before = os.umask(0o027)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, limits[0][1]))
        resource.setrlimit(resource.RLIMIT_NOFILE, (777, limits[1][1]))
        call = ("session", "--", sys.executable, "-ISc", _SAYS, ending)
        started, forked = (_run(run, call, where, home) for run in (run_started, _forked.run))
    finally:
        os.umask(before)
        resource.setrlimit(resource.RLIMIT_CORE, limits[0])
        resource.setrlimit(resource.RLIMIT_NOFILE, limits[1])
    assert forked == started
    assert started["status"] == (-signal.SIGKILL if ending == "die" else 7)
    assert started["said"]["umask"] == 0o027
    assert started["said"]["cwd"] == str(where)


def _run(run: Run, call: tuple[str, ...], where: Path, home: dict[str, str]) -> dict[str, Any]:
    done = run(SEALRUN, call, where, home, 60)
    return {"status": done.returncode, "said": json.loads(done.stdout or "{}"), "err": done.stderr}


@pytest.mark.parametrize("call", [("--version",), ("log", "--no-such"), ("show", "01ABC"), ()])
def test_a_command_says_the_same(
    tmp_path: Path, home: dict[str, str], call: tuple[str, ...]
) -> None:
    """Output, errors and status of a command are those of one that was started."""
    one, other = (run(SEALRUN, call, tmp_path, home, 60) for run in (run_started, _forked.run))
    assert (one.returncode, one.stdout, one.stderr) == (
        other.returncode,
        other.stdout,
        other.stderr,
    )


def test_one_call_leaves_nothing_to_the_next(tmp_path: Path, home: dict[str, str]) -> None:
    """Each has a process of its own: what another one's directory and variables were is gone."""
    call = ("engine", "status", "--json")
    env = home | {"DOCKER_HOST": f"unix://{tmp_path}/none"}
    assert str(tmp_path) in _forked.run(SEALRUN, call, tmp_path, env, 60).stdout
    other = tmp_path / "other"
    other.mkdir()
    assert f"{tmp_path}/none" not in _forked.run(SEALRUN, call, other, home, 60).stdout
    assert _forked.run(SEALRUN, ("session", "--", "pwd"), other, home, 60).stdout == f"{other}\n"


def test_a_call_that_takes_too_long_is_killed(tmp_path: Path, home: dict[str, str]) -> None:
    """At the end of its time a call ends, and its caller is told."""
    call = ("session", "--", "sleep", "4242")
    with pytest.raises(subprocess.TimeoutExpired):
        _forked.run(SEALRUN, call, tmp_path, home, 0.5)
    deadline = time.monotonic() + 60
    while any("4242" in _words(process) for process in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _words(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def test_what_needs_a_start_is_noticed() -> None:
    """A variable that Python or its loader reads at the start needs one, and so does a session."""
    same = dict(os.environ)
    assert not _forked.has_to_start(("log",), same | {"HOME": "/", "TZ": "UTC"})
    assert _forked.has_to_start(("-q", "session", "--", "true"), same)
    for name in ("PYTHONPATH", "LC_ALL", "LD_PRELOAD"):
        assert _forked.has_to_start(("log",), same | {name: "x"}), name


def test_what_commands_import_can_be_imported_first() -> None:
    """No module that is imported when it is needed needs that another one was; forks would hide it."""
    package = Path(sealrun.__file__).parent
    texts = [file.read_text("utf-8") for file in package.rglob("*.py")]
    names = {
        name
        for text in texts
        for name in re.findall(r"^ +from (sealrun\S*) import", text, re.MULTILINE)
    }
    names |= {f"sealrun.cli.{name.replace('-', '_')}" for name in COMMANDS}
    assert len(names) > 100
    done = subprocess.run(
        [sys.executable, "-I", "-c", _EACH_FIRST, *sorted(names)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "", done.stderr
