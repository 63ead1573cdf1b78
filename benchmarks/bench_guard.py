"""How fast the guard starts, arms, drains and tells, and what it costs.

Run with ``python benchmarks/bench_guard.py [FILES]``; prints one figure a line.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from sealrun.guard import GuardClient, Mutation, ensure, write_manifest
from sealrun.state import Places

STRIKES = 200
STORM = 100_000


@dataclass(frozen=True)
class Listed:
    """One tree entry."""

    path: bytes
    mode: int
    oid: str
    size: int


def main() -> None:
    """Print the figures."""
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        work = home / "work"
        listed = make(work, files)
        places = Places(*(home / name for name in ("state", "data", "cache", "runtime")))
        write_manifest(home / "manifest", "sha1", listed)
        with timed(f"start of the guard, {files} files"), ensure(work, places):
            pass
        with ensure(work, places) as guard:
            try:
                measure(guard, work, home)
            finally:
                guard.stop("benchmark", force=True)


def measure(guard: GuardClient, work: Path, home: Path) -> None:
    """Measure one armed run."""
    with timed("status (a drain without a run)"):
        guard.status()
    with timed("arm"):
        guard.arm("run", home / "manifest", home / "evidence")
    for _ in range(2):
        with timed("drain, nothing happened"):
            guard.drain("run")
    process = psutil.Process(guard.pid)
    before = process.cpu_times()
    time.sleep(5)
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    print(f"idle CPU over 5 s: {spent / 5:.2%} of a core")
    print(f"resident: {process.memory_info().rss / 1e6:.0f} MB")
    latency(guard, work)
    storm(guard, work, process)


def latency(guard: GuardClient, work: Path) -> None:
    """Compare write to alert, evidence included, with bare watchdog's write to event."""
    target = work / "d0" / "f0.py"
    heard = threading.Event()

    def on_mutation(mutation: Mutation) -> None:
        if not mutation.restored:
            heard.set()

    guard.on_mutation("run", on_mutation)
    told = sorted(strike(target, heard, number) for number in range(STRIKES))
    print(f"write to alert with evidence: {spread(told)}")

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if os.fsdecode(event.src_path) == str(target) and event.event_type == "modified":
                heard.set()

    observer = Observer()
    observer.schedule(Handler(), str(work), recursive=True)
    observer.start()
    bare = sorted(strike(target, heard, -number - 1) for number in range(STRIKES))
    observer.stop()
    print(f"write to event, bare watchdog: {spread(bare)}")


def strike(target: Path, heard: threading.Event, number: int) -> float:
    """Write something new; return milliseconds until somebody heard of it."""
    heard.clear()
    time.sleep(0.005)
    begun = time.perf_counter()
    target.write_text(f"foreign = {number}  # longer than before\n")
    assert heard.wait(10), "nobody heard"
    return (time.perf_counter() - begun) * 1000


def storm(guard: GuardClient, work: Path, process: psutil.Process) -> None:
    """Write as fast as one process can, to one guarded directory."""
    script = (
        f"import os\nfor n in range({STORM} // 4):\n"
        "    fd = os.open('d1/scratch', os.O_CREAT | os.O_WRONLY); os.write(fd, b'x'); os.close(fd)"
        "; os.unlink('d1/scratch')\n"
    )
    before = process.cpu_times()
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], cwd=work, check=True)
    wrote = time.perf_counter() - begun
    with timed("drain after the storm"):
        report = guard.drain("run")
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    lost = [gap.numbers for gap in report.coverage.gaps]
    print(f"storm of {STORM} events in {wrote:.2f} s: {spent:.2f} s of CPU, lost: {lost or 'none'}")


class timed:  # noqa: N801 - reads as a word
    """Print how long a block took."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        print(f"{self.name}: {(time.perf_counter() - self.begun) * 1000:.1f} ms")


def spread(milliseconds: list[float]) -> str:
    """Return median and tail."""
    tail = milliseconds[int(len(milliseconds) * 0.99)]
    return f"p50 {statistics.median(milliseconds):.2f} ms, p99 {tail:.2f} ms"


def make(work: Path, files: int) -> list[Listed]:
    """Make a repository of many small files, twenty a directory."""
    listed: list[Listed] = []
    for number in range(files):
        path = f"d{number // 20}/f{number}.py"
        content = b"x = %d\n" % number * 20
        if number % 20 == 0:
            (work / path).parent.mkdir(parents=True)
        (work / path).write_bytes(content)
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's
        listed.append(Listed(path.encode(), 0o100644, oid, len(content)))
    subprocess.run(["git", "init", "-q"], cwd=work, check=True)
    subprocess.run(["git", "add", "."], cwd=work, check=True)
    return listed


if __name__ == "__main__":
    main()
