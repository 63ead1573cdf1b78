"""Full content verification against reading the same bytes, and against ``sha256sum``.

The files are committed, so that the comparison is the real one; contenders take turns, medians and
their ratios are shown.

    python benchmarks/bench_verify.py --quick
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.git import Repository
from sealrun.tree import Spool, read_commit
from sealrun.workspace import compare

if TYPE_CHECKING:
    from collections.abc import Callable

#: Files of one tree, and how large each is on average in bytes.
SIZES, QUICK, AVERAGE = (10_000, 100_000), (2_000,), 4_000
ROUNDS = 5


def make(directory: Path, files: int) -> Repository:
    """Commit so many files of random sizes and content."""
    random.seed(files)
    for number in range(files):
        folder = directory / f"d{number % 211:03d}"
        folder.mkdir(exist_ok=True)
        size = int(random.expovariate(1 / AVERAGE))
        (folder / f"f{number:06d}.py").write_bytes(os.urandom(size))
    # gc.auto: git would go on packing in the background while we measure.
    git = ["git", "-c", "gc.auto=0", "-c", "user.name=b", "-c", "user.email=b@example.invalid"]
    subprocess.run([*git, "init", "-q", directory], check=True)
    subprocess.run([*git, "-C", directory, "add", "-A"], check=True)
    subprocess.run([*git, "-C", directory, "commit", "-q", "-m", "bench"], check=True)
    return Repository.find(directory)


def read_all(paths: list[Path]) -> None:
    """Read the same bytes and do nothing with them."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            file.readall()


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(files: int) -> None:
    """Measure one size and print its row."""
    with tempfile.TemporaryDirectory(prefix="sealrun-bench-") as scratch:
        work, spools = Path(scratch) / "work", Path(scratch) / "spool"
        work.mkdir()
        spools.mkdir()
        repository = make(work, files)
        tree = read_commit(repository, repository.resolve(), Spool(spools, repository.algorithm))
        paths = sorted(p for p in work.glob("d*/*"))
        names = b"\0".join(str(p).encode() for p in paths)

        def sha256sum() -> None:
            subprocess.run(
                ["xargs", "-0", "sha256sum"], input=names, stdout=subprocess.DEVNULL, check=True
            )

        contenders: dict[str, Callable[[], object]] = {
            "verify": lambda: compare(tree, repository),
            "read": lambda: read_all(paths),
            "sha256sum": sha256sum,
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for action in contenders.values():
            action()
        for _ in range(ROUNDS):
            for name, action in contenders.items():
                times[name].append(timed(action))
        assert compare(tree, repository).differences == ()
    medians = {name: statistics.median(values) for name, values in times.items()}
    against_read = medians["verify"] / medians["read"]
    against_sum = medians["sha256sum"] / medians["verify"]
    print(
        f"{files:>7} files  verify {medians['verify']:.3f} s  read {medians['read']:.3f} s  "
        f"sha256sum {medians['sha256sum']:.3f} s  |  verify/read {against_read:.2f} "
        f"(target at most 2)  sha256sum/verify {against_sum:.2f} (target over 1)"
    )


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small tree only")
    for files in QUICK if parser.parse_args().quick else SIZES:
        measure(files)


if __name__ == "__main__":
    main()
