"""An ordinary loop in a session raises no alarm, and a real mutation in the midst of it is found."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import _ordinary
from _cli import SEALRUN, Cli
from _git import WHO
from sealrun.guard import find

if TYPE_CHECKING:
    from pathlib import Path

    from _git import Repo

TRAIN = """\
import pathlib, sys, time
WIDTH = 0
SCALAR_LR = 0.5
waits, end = pathlib.Path("/out/waits"), time.monotonic() + 60
if sys.argv[1:]:
    waits.touch()
print("started", flush=True)
time.sleep(0.2)
while waits.exists() and time.monotonic() < end:
    time.sleep(0.02)
print(f"val_bpb: {SCALAR_LR * WIDTH}")
"""
#: Somebody else: makes one write of a value, and can be looked at before and after.
STRIKER = """\
import re, sys, time
time.sleep(0.1)
with open("train.py", "r+") as file:
    text = file.read()
    file.seek(0)
    file.write(re.sub("(?m)^SCALAR_LR = .*", f"SCALAR_LR = {sys.argv[1]}", text))
time.sleep(0.1)
"""
#: Iterations and how often somebody strikes: the proof, and the sample of it.
FULL, SAMPLE = (1000, 50), (12, 4)
EXPECTED = {
    "before-commit": "contains-foreign",
    "after-commit": "workspace-differs-foreign",
    "during-run": "edit-foreign",
}


def _night(repo: Repo, tmp_path: Path, count: int, every: int) -> tuple[Cli, list[dict[str, Any]]]:
    repo.commit(
        {
            "train.py": TRAIN,
            "pkg/__init__.py": "",
            "pkg/model.py": "DEPTH = 4\n",
            ".gitignore": "run.log\n__pycache__\n.venv\n",
        },
        "baseline",
    )
    repo.git("tag", "baseline")
    away = tmp_path / "away.git"
    subprocess.run(["git", "clone", "-q", "--bare", repo.path, away], check=True)
    repo.git("remote", "add", "origin", str(away))
    cli = Cli(repo.path, tmp_path / "home").with_base()
    room = tmp_path / "room"
    room.mkdir()
    cli.run("python3", "train.py")
    loop = subprocess.Popen(
        [
            *(SEALRUN, "session", "--", sys.executable, "-I", _ordinary.__file__),
            *(str(count), str(every), str(room), str(SEALRUN)),
        ],
        cwd=repo.path,
        env=cli.environment | WHO,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    strikes = 0
    while loop.poll() is None:
        if (room / "strike").exists():
            strikes += 1
            # Not before the guard has dealt with what the loop wrote.
            guard = find(repo.path, cli.places)
            assert guard is not None
            with guard:
                guard.status()
            # A value of its own each time: what is found must be this one.
            striker = [sys.executable, "-Ic", STRIKER, f"0.3{strikes:03}"]
            subprocess.run(striker, cwd=repo.path, check=True)
            (room / "strike").unlink()
        time.sleep(0.01)
    assert loop.returncode == 0, loop.stderr and loop.stderr.read().decode()[-2000:]
    lines = (room / "runs.jsonl").read_text().splitlines()
    return cli, [json.loads(line) for line in lines]


def _check(repo: Repo, tmp_path: Path, count: int, every: int) -> None:
    cli, runs = _night(repo, tmp_path, count, every)
    try:
        assert len(runs) == count
        alarms = [run for run in runs if not run["struck"] and run["verdict"] != "clean"]
        assert alarms == []
        for run in runs:
            if run["struck"]:
                codes = {reason["code"] for reason in run["reasons"]}
                assert run["verdict"] == "flagged", run
                assert EXPECTED[run["struck"]] in codes, run
        alerts = cli.json("alerts")["alerts"]
        assert {alert["writer"]["category"] for alert in alerts} == {"foreign"}
        assert all(STRIKER in alert["writer"]["process"]["cmdline"] for alert in alerts)
        assert len(alerts) == count // every
    finally:
        cli.stop_guard()


@pytest.mark.engine
def test_a_few_ordinary_iterations(repo: Repo, tmp_path: Path) -> None:
    """Twelve iterations of an ordinary loop: nine are clean without an alert, three strikes are found."""
    _check(repo, tmp_path, *SAMPLE)


@pytest.mark.engine
@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_thousand_ordinary_iterations(repo: Repo, tmp_path: Path) -> None:
    """A thousand iterations raise nothing, and each fiftieth, struck by somebody else, is found."""
    _check(repo, tmp_path, *FULL)
