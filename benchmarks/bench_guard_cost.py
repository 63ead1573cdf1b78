"""What guarding costs others: an experiment's CPU time under an event storm, and opening files.

The experiment computes a fixed amount: alone, with a storm of writes in a workspace that nobody
guards, and with the same storm in a guarded one. The opener opens and closes files of both
workspaces in turns. The guard asks for no permission events (decision 0009): its marks cost where a
file is written, and an ``open`` should cost the same.

    python benchmarks/bench_guard_cost.py --rounds 5
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.figures import cpu, family
from shared.workspace import guarded, make

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    import psutil

FILES = 2_000
#: Opens of one round.
OPENS = 20_000
#: A fixed amount of computing, which says what it used: CPU seconds and seconds.
EXPERIMENT = """
import time
begun, wall = time.process_time(), time.monotonic()
x = 0
for n in range(12_000_000):
    x += n * n
print(time.process_time() - begun, time.monotonic() - wall)
"""
#: Four events each time: create, modify, close, delete.
STORM = """
import os, signal, sys
count = 0
def end(*_):
    print(count)
    sys.stdout.flush()
    os._exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    file = os.open("d1/scratch", os.O_CREAT | os.O_WRONLY)
    os.write(file, b"x")
    os.close(file)
    os.unlink("d1/scratch")
    count += 4
"""


@dataclass(frozen=True)
class Computed:
    """What one experiment took.

    Attributes:
        events: a second, that the storm beside it made.
        guard: CPU seconds of the guard meanwhile.
    """

    cpu: float
    wall: float
    events: float = 0.0
    guard: float = 0.0


def compute(storm: Path | None, guards: Sequence[psutil.Process] = ()) -> Computed:
    """Compute, beside a storm in a workspace."""
    before = cpu(guards)
    with storming(storm) as events:
        done = subprocess.run(
            [sys.executable, "-Ic", EXPERIMENT], check=True, capture_output=True, text=True
        )
    used, wall = map(float, done.stdout.split())
    return Computed(used, wall, events() / wall, cpu(guards) - before)


@contextlib.contextmanager
def storming(work: Path | None) -> Generator[Callable[[], int]]:
    """Let a storm rage in a workspace; yield what tells, afterwards, how many events it made."""
    if work is None:
        yield lambda: 0
        return
    with subprocess.Popen(
        [sys.executable, "-Ic", STORM], cwd=work, stdout=subprocess.PIPE, text=True
    ) as process:
        said: list[str] = []
        try:
            yield lambda: int(said[0])
        finally:
            process.terminate()
            said.append(process.communicate()[0])


def opens(work: Path, flags: int) -> float:
    """Return microseconds that opening and closing a file takes."""
    path = os.fsencode(work / "d0" / "f0.py")
    begun = time.perf_counter()
    for _ in range(OPENS):
        os.close(os.open(path, flags))
    return (time.perf_counter() - begun) / OPENS * 1e6


def writes(work: Path) -> float:
    """Return microseconds that opening, writing one byte and closing takes."""
    path = os.fsencode(work / "d1" / "written")
    begun = time.perf_counter()
    for _ in range(OPENS):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.pwrite(file, b"x", 0)
        os.close(file)
    return (time.perf_counter() - begun) / OPENS * 1e6


def tell_storm(conditions: dict[str, list[Computed]]) -> None:
    """Print what the experiment took in each condition."""
    alone = conditions["alone"]
    for name, computed in conditions.items():
        used = statistics.median(c.cpu for c in computed)
        wall = statistics.median(c.wall for c in computed)
        print(
            f"{name:>34}  {used:5.2f} s of CPU, {wall:5.2f} s, ratios "
            f"{used / statistics.median(c.cpu for c in alone):.2f} and "
            f"{wall / statistics.median(c.wall for c in alone):.2f}; "
            f"{statistics.median(c.events for c in computed):8.0f} events a second; "
            f"guard {statistics.median(c.guard for c in computed):.2f} s"
        )


def main() -> None:
    """Measure in turns, and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="sealrun-bench-") as scratch:
        plain, watched = Path(scratch) / "plain", Path(scratch) / "watched"
        make(plain, FILES)
        listed = make(watched, FILES)
        with guarded(watched, listed, Path(scratch) / "home") as guard:
            guards = family(guard.pid)
            print(f"an experiment's fixed computation, {rounds} rounds")
            conditions: dict[str, list[Computed]] = {
                name: [] for name in ("alone", "storm", "storm, guarded")
            }
            for _ in range(rounds):
                conditions["alone"].append(compute(None))
                conditions["storm"].append(compute(plain))
                conditions["storm, guarded"].append(compute(watched, guards))
            tell_storm(conditions)
            gaps = [gap.text for gap in guard.drain("run").coverage.gaps]
            print(f"{'':>34}  coverage of the storms: {gaps or 'complete'}")
            print(f"opening a file, {rounds * 3} rounds of {OPENS}, guarded beside not guarded")
            for name, action in {
                "open to read, close": lambda work: opens(work, os.O_RDONLY),
                "open to write, close": lambda work: opens(work, os.O_WRONLY),
                "open, write one byte, close": writes,
            }.items():
                took = [(action(plain), action(watched)) for _ in range(rounds * 3)]
                bare, ours = (statistics.median(column) for column in zip(*took, strict=True))
                print(
                    f"{name:>34}  {bare:6.2f} µs, guarded {ours:6.2f} µs, ratio {ours / bare:.2f}"
                )


if __name__ == "__main__":
    main()
