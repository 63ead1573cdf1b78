"""Tokens a second of the example's training: bare, and through ``sealrun run`` with its guard.

Bare is the same commit with the same bytes of torch, unpacked from the environment that sealrun
made, on this machine's own Python of the base's version. Runs come in pairs, in the order bare,
sealed, sealed, bare, so that a machine that slows down or speeds up does it to both. Shown are each
pair's ratio, and their median with an interval that assumes nothing about how they are spread.

    python benchmarks/bench_throughput.py --pairs 10 --seconds 20
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.engine import connect
from sealrun.git import Repository
from sealrun.image.model import ENVIRONMENT
from sealrun.image.prepare import prepare
from sealrun.policy import committed_policy
from sealrun.progress import Silent
from sealrun.state import Places
from sealrun.tree import Spool, read_commit
from shared.figures import interval

if TYPE_CHECKING:
    from sealrun.image.model import Base, Environment

SEALRUN = Path(sys.executable).with_name("sealrun")
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "nanogpt"
#: Where PyTorch's own CPU build lies, for a machine that is set up for no other place.
TORCH_WHEELS = "https://download.pytorch.org/whl/cpu/torch/"
#: Of the script: rows of a batch times length of a row.
TOKENS = 16 * 64
#: The share of the bare throughput that has to be left.
TARGET = 0.99


@dataclass(frozen=True)
class Contender:
    """A way to train the commit: a command and its environment."""

    name: str
    command: list[str]
    work: Path
    environment: dict[str, str]

    def tokens(self, seconds: float) -> float:
        """Train once; return the tokens a second of the training loop alone."""
        done = subprocess.run(
            self.command,
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        steps = re.search(r"^num_steps: +(\d+)$", done.stdout, re.MULTILINE)
        if done.returncode or steps is None:
            raise SystemExit(f"{self.name} failed: {done.stderr[-2000:]}")
        if "[sealrun]" in done.stderr and "clean" not in done.stderr:
            raise SystemExit(f"{self.name} was not clean: {done.stderr[-2000:]}")
        # The loop ends with the first step after its time; a step takes a fiftieth of a second.
        return int(steps[1]) * TOKENS / seconds


def workspace(directory: Path, seconds: float) -> Path:
    """Make a repository of the example with a training time of its own."""
    work = directory / "work"
    shutil.copytree(EXAMPLE, work, ignore=shutil.ignore_patterns("__pycache__"))
    script = work / "train.py"
    source = script.read_text()
    if source.count("\nTRAIN_SECONDS = 20\n") != 1:
        raise SystemExit(f"{script} names no training time of 20 seconds")
    script.write_text(source.replace("\nTRAIN_SECONDS = 20\n", f"\nTRAIN_SECONDS = {seconds}\n"))
    git = ["git", "-C", str(work), "-c", "user.name=b", "-c", "user.email=b@example.invalid"]
    subprocess.run(["git", "init", "-q", work], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "bench"], check=True)
    return work


def made(work: Path, places: Places) -> tuple[Base, Environment]:
    """Return base and environment of the commit; ``warm`` made them."""
    repository = Repository.find(work)
    spool = Spool(places.spool("bench-throughput"), repository.algorithm)
    tree = read_commit(repository, repository.resolve(), spool)
    policy = committed_policy(tree).policy
    return prepare(tree, policy.image, places, connect(places), Silent(), make=False)


def interpreter(base: Base) -> str:
    """Return this machine's Python that is most like the base's; say where it is another."""
    candidates = (base.python_path or "", "/usr/bin/python3", sys.executable)
    program = "import platform; print(platform.python_version())"
    for candidate in candidates:
        if not candidate or not Path(candidate).exists():
            continue
        done = subprocess.run(
            [candidate, "-c", program], capture_output=True, text=True, check=True
        )
        if done.stdout.strip() == base.python:
            return candidate
    print(f"bare runs on {sys.version.split()[0]}, not on {base.python}: the ratio compares both")
    return sys.executable


def unpacked(environment: Environment, directory: Path) -> Path:
    """Unpack the environment's packages; return the directory to import from."""
    if environment.layer is None:
        raise SystemExit("the example's environment has no packages")
    with tarfile.open(environment.layer.path) as archive:
        archive.extractall(directory, filter="tar")
    (found,) = (directory / ENVIRONMENT.strip("/")).glob("lib/python3*/site-packages")
    return found


def main() -> None:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20, help="of one training")
    parser.add_argument("--quick", action="store_true", help="two pairs of five seconds")
    chosen = parser.parse_args()
    pairs, seconds = (2, 5.0) if chosen.quick else (chosen.pairs, chosen.seconds)
    if not (os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")):
        os.environ["UV_FIND_LINKS"] = TORCH_WHEELS
    places = Places.of_user()
    with tempfile.TemporaryDirectory(prefix="sealrun-bench-") as scratch:
        work = workspace(Path(scratch), seconds)
        subprocess.run([SEALRUN, "warm"], cwd=work, check=True)
        base, environment = made(work, places)
        library = unpacked(environment, Path(scratch) / "bare")
        bare = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(library),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        contenders = (
            Contender("bare", [interpreter(base), "train.py"], work, bare),
            Contender(
                "sealed",
                [str(SEALRUN), "run", "--", "python3", "train.py"],
                work,
                dict(os.environ),
            ),
        )
        try:
            measured = measure(contenders, pairs, seconds)
        finally:
            subprocess.run([SEALRUN, "guard", "stop"], cwd=work, check=False, capture_output=True)
    report(measured)


def measure(
    contenders: tuple[Contender, Contender], pairs: int, seconds: float
) -> list[tuple[float, float]]:
    """Return the tokens a second of both, pair by pair; a first run of each is thrown away."""
    for contender in contenders:
        contender.tokens(seconds)
    found: list[tuple[float, float]] = []
    for number in range(pairs):
        order = contenders if number % 2 == 0 else contenders[::-1]
        of = {contender.name: contender.tokens(seconds) for contender in order}
        found.append((of["bare"], of["sealed"]))
        print(f"{of['bare']:12,.0f} bare {of['sealed']:12,.0f} sealed", flush=True)
    return found


def report(measured: list[tuple[float, float]]) -> None:
    """Print medians, ratio and interval."""
    for name, values in zip(("bare", "sealed"), zip(*measured, strict=True), strict=True):
        print(f"{name:>15}  {statistics.median(values):10,.0f} tokens/s")
    ratios = [sealed / bare for bare, sealed in measured]
    low, high, covers = interval(ratios)
    print(
        f"sealed / bare {statistics.median(ratios):.4f}, {covers:.0%} interval {low:.4f} to "
        f"{high:.4f} over {len(ratios)} pairs (target at least {TARGET})"
    )


if __name__ == "__main__":
    main()
