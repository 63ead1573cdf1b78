"""How fast the guard starts, arms and drains over many files, and what it costs when nothing happens.

The guard and ``sealrun watch`` watch the same files at once. The witness, which names writers, reads
of each program that starts anywhere on the machine, so its share is shown apart, with their number.

    python benchmarks/bench_guard.py --files 100000 --seconds 20
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from sealrun.guard import ensure
from shared.figures import cpu
from shared.workspace import guarded, make, places

if TYPE_CHECKING:
    from collections.abc import Generator

SEALRUN = Path(sys.executable).with_name("sealrun")


@contextlib.contextmanager
def timed(name: str) -> Generator[None]:
    """Print how long a block took."""
    begun = time.perf_counter()
    yield
    print(f"{name:>34}  {(time.perf_counter() - begun) * 1000:8.1f} ms")


@contextlib.contextmanager
def watching(work: Path, home: Path) -> Generator[psutil.Process]:
    """Start ``sealrun watch`` and wait until it is ready."""
    with subprocess.Popen(
        [SEALRUN, "-q", "watch", "--jsonl", work],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"SEALRUN_HOME": str(home)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with timed("start of sealrun watch"):
            assert b"ready" in process.stdout.readline()
        try:
            yield psutil.Process(process.pid)
        finally:
            process.stdin.close()
            process.stdout.read()


def started() -> int:
    """Return how many processes were ever forked on this machine (proc(5), ``/proc/stat``)."""
    found = re.search(r"^processes (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def idle(watchers: dict[str, psutil.Process], seconds: float) -> None:
    """Print what watchers use while nothing happens to what they watch."""
    before = {name: cpu([process]) for name, process in watchers.items()}
    forks = started()
    time.sleep(seconds)
    for name, process in watchers.items():
        share = (cpu([process]) - before[name]) / seconds
        memory = process.memory_info().rss / 1e6
        print(f"{name + ', idle':>34}  {share:8.2%} of a core, {memory:.0f} MB")
    print(f"{'':>34}  {started() - forks} processes were started on the machine meanwhile")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=20)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sealrun-bench-") as scratch:
        work, home = Path(scratch) / "work", Path(scratch) / "home"
        listed = make(work, chosen.files)
        print(f"{chosen.files} files")
        with timed("start of the guard"), ensure(work, places(home)):
            pass
        with guarded(work, listed, home) as guard:
            with timed("arm"):
                guard.arm("other", home / "manifest", home / "other")
            guard.disarm("other")
            with timed("drain, nothing happened"):
                guard.drain("run")
            process = psutil.Process(guard.pid)
            watchers = {"guard": process}
            watchers |= {f"witness {n + 1}": c for n, c in enumerate(process.children())}
            with watching(work, home / "watch") as watch:
                watchers["sealrun watch"] = watch
                watchers |= {f"its witness {n + 1}": c for n, c in enumerate(watch.children())}
                idle(watchers, chosen.seconds)


if __name__ == "__main__":
    main()
