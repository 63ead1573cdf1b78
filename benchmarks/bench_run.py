"""``sealrun run -- true``, warm, against ``docker run --rm`` with the same hardening.

Whole processes against whole processes, and our run in process (no start of an interpreter) against
the same. Beside it: ``sealrun --help`` against ``python -c "import typer"``. Contenders take turns;
medians and their ratios are shown.

    python benchmarks/bench_run.py --rounds 15
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.course import Asked
from sealrun.experiment import Experiment
from sealrun.git import Repository
from sealrun.progress import Silent
from sealrun.sandbox.spec import HOME, SCRATCH
from sealrun.shipped import shipped
from sealrun.state import Places, repository_id
from sealrun.verdict import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

SEALRUN = Path(sys.executable).with_name("sealrun")


class Quiet(Silent):
    """A listener for a run in process."""

    def say(self, text: str, *, level: int = 0) -> None:
        """Drop it."""


def hardened(image: str, out: Path) -> list[str]:
    """Return ``docker run`` with the options that our sandbox sets."""
    options = [
        *("--rm", "--network", "none", "--cap-drop", "ALL", "--user", "10001:10001"),
        *("--security-opt", "no-new-privileges:true"),
        *("--security-opt", f"seccomp={shipped('images', 'seccomp', 'sealrun.json')}"),
        *("--pids-limit", "4096", "--ulimit", "core=0"),
        *("--shm-size", "1g", "--ipc", "private", "--log-driver", "none"),
        *("-v", f"{out}:/out"),
    ]
    for directory in (*SCRATCH, HOME):
        options += ["--tmpfs", f"{directory}:rw,exec,nosuid,nodev,size=4g,mode=1777"]
    return ["docker", "run", *options, image, "true"]


def installed(scratch: Path) -> dict[str, str]:
    """Return an environment in which modules are compiled once, as an installation has them.

    A checkout whose Python may not write bytecode compiles every module of ours at each start.
    """
    environment = dict(os.environ, PYTHONPYCACHEPREFIX=str(scratch / "bytecode"))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def once(repository: Repository, places: Places) -> None:
    """Run ``true`` in process, from commit to verdict."""
    identity = repository_id(repository.common_dir) or ""
    finished = Experiment(Asked(("true",)), repository, identity, places, Quiet()).execute()
    assert finished.verdict.kind is Kind.CLEAN, finished.verdict


def command(arguments: list[str], work: Path, environment: dict[str, str]) -> Callable[[], object]:
    """Return an action that runs a program to its end and needs it to succeed."""
    return lambda: subprocess.run(
        arguments, cwd=work, env=environment, check=True, capture_output=True
    )


def measure(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median of each contender over interleaved rounds, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, action in contenders.items():
            started = time.perf_counter()
            action()
            if number:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    chosen = parser.parse_args()
    rounds = 3 if chosen.quick else chosen.rounds
    with tempfile.TemporaryDirectory(prefix="sealrun-bench-") as scratch:
        work = Path(scratch) / "work"
        work.mkdir()
        git = ["git", "-C", str(work), "-c", "user.name=b", "-c", "user.email=b@example.invalid"]
        subprocess.run(["git", "init", "-q", work], check=True)
        (work / "train.py").write_text("print('val_bpb: 1')\n")
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "bench"], check=True)
        places = Places.of_user()
        environment = installed(Path(scratch))
        warm = subprocess.run(
            [SEALRUN, "warm", "--json"], cwd=work, env=environment, check=True, capture_output=True
        )
        name = json.loads(warm.stdout)["engine_image"]
        repository = Repository.find(work)
        contenders = {
            "docker run": command(hardened(name, work), work, environment),
            "sealrun run": command([str(SEALRUN), "run", "--", "true"], work, environment),
            "in process": lambda: once(repository, places),
        }
        medians = measure(contenders, rounds)
        subprocess.run([SEALRUN, "guard", "stop"], cwd=work, check=False, capture_output=True)
        starts = measure(
            {
                "import typer": command([sys.executable, "-c", "import typer"], work, environment),
                "sealrun --help": command([str(SEALRUN), "--help"], work, environment),
            },
            rounds,
        )
    for label, seconds in {**medians, **starts}.items():
        print(f"{label:>15}  {seconds * 1000:7.1f} ms")
    print(
        f"sealrun run / docker run {medians['sealrun run'] / medians['docker run']:.2f} "
        "(target at most 2.5)"
    )
    print(
        f"in process / docker run {medians['in process'] / medians['docker run']:.2f} "
        "(target at most 1.6)"
    )
    print(
        f"sealrun --help / import typer {starts['sealrun --help'] / starts['import typer']:.2f} "
        "(target under 2)"
    )


if __name__ == "__main__":
    main()
