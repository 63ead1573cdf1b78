"""From a write to an alert with its evidence: the guard and ``sealrun watch`` beside bare watchdog
and inotifywait.

Each contender watches a workspace of its own, in a process of its own, and tells through a pipe or a
socket; they take turns, so that the machine's load is the same for all. A write puts other bytes of
the same length into a tracked file. The guard has copied them, written its journal and named the
writer when it tells; bare watchdog's handler has read the file; inotifywait has only the name.

    python benchmarks/bench_guard_alert.py --strikes 300
"""  # noqa: D205 - one sentence

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from shared.figures import compare
from shared.workspace import guarded, make

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from sealrun.guard import Mutation

FILES = 2_000
TARGET = "d0/f0.py"
SEALRUN = Path(sys.executable).with_name("sealrun")
BARE = Path(__file__).with_name("shared") / "bare.py"
#: Seconds between two strikes: what a contender still does about the last one is over.
REST = 0.03
#: Seconds after which an alert will not come any more.
PATIENCE = 30


@dataclass
class Contender:
    """A watcher of one workspace.

    Attributes:
        told: what it said, and when: the sha256 of the bytes that it saw; None where it has none.
    """

    work: Path
    told: SimpleQueue[tuple[float, str | None]] = field(
        default_factory=SimpleQueue[tuple[float, str | None]]
    )

    def tell(self, digest: str | None) -> None:
        """Take its word."""
        self.told.put((time.perf_counter(), digest))

    def strike(self, number: int) -> float:
        """Write something new; return seconds until it told of exactly that."""
        time.sleep(REST)
        with contextlib.suppress(Empty):
            while True:
                self.told.get_nowait()
        content = b"x = %012d\n" % (10**9 + number)
        digest = hashlib.sha256(content).hexdigest()
        file = os.open(self.work / TARGET, os.O_WRONLY)
        begun = time.perf_counter()
        os.pwrite(file, content, 0)
        os.close(file)
        while True:
            try:
                at, seen = self.told.get(timeout=PATIENCE)
            except Empty as error:
                raise SystemExit(f"nobody told of write {number} in {self.work}") from error
            if seen in (digest, None):
                return at - begun


@dataclass(frozen=True)
class Program:
    """A watcher that writes a line for each change.

    Attributes:
        ready: is in the line that says that every watch is in place.
        digest: whether an alert's line ends in the sha256 of the bytes that it saw.
    """

    command: tuple[str | Path, ...]
    ready: str
    digest: bool = False

    @contextlib.contextmanager
    def over(self, work: Path) -> Generator[Contender]:
        """Start it over a workspace; end it at the end."""
        make(work, FILES)
        contender = Contender(work)
        with subprocess.Popen(
            (*self.command, work),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"SEALRUN_HOME": str(work.parent / "home")},
        ) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            while self.ready not in (line := process.stdout.readline()):
                assert line, f"{self.command[0]} ended before it was ready"
            listener = threading.Thread(target=self._listen, args=(process.stdout, contender))
            listener.start()
            try:
                yield contender
            finally:
                process.stdin.close()
                if not self.ends_by_itself:
                    process.terminate()
                listener.join()

    @property
    def ends_by_itself(self) -> bool:
        """Whether the end of standard input ends it."""
        return self.command[0] != "inotifywait"

    def _listen(self, lines: Iterable[str], contender: Contender) -> None:
        for line in lines:
            if TARGET in line:
                contender.tell(line.split()[-1] if self.digest else None)


PROGRAMS = {
    "bare watchdog, file read": Program((sys.executable, BARE), "ready", digest=True),
    "inotifywait, name only": Program(
        ("inotifywait", "-m", "-r", "-e", "modify", "--format", "%w%f"), "Watches established"
    ),
    "sealrun watch --jsonl": Program((SEALRUN, "-q", "watch", "--jsonl"), '{"event": "ready"}'),
}


@contextlib.contextmanager
def guard(work: Path) -> Generator[Contender]:
    """The guard over an armed run, as ``sealrun run`` follows it."""
    listed = make(work, FILES)
    with guarded(work, listed, work.parent / "home") as client:
        contender = Contender(work)

        def on_mutation(mutation: Mutation) -> None:
            evidence = mutation.evidence
            assert evidence is not None
            assert evidence.file is not None
            contender.tell(evidence.sha256)

        client.on_mutation("run", on_mutation, lambda _: None)
        yield contender


def main() -> None:
    """Let the contenders take turns, and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strikes", type=int, default=300)
    strikes = parser.parse_args().strikes
    starts = {name: program.over for name, program in PROGRAMS.items()}
    starts["guard, evidence and writer"] = guard
    if shutil.which("inotifywait") is None:
        print("inotifywait is not installed (Debian: inotify-tools): left out")
        del starts["inotifywait, name only"]
    with (
        tempfile.TemporaryDirectory(prefix="sealrun-bench-") as scratch,
        contextlib.ExitStack() as stack,
    ):
        contenders: dict[str, Contender] = {}
        for number, (name, start) in enumerate(starts.items()):
            home = Path(scratch) / str(number)
            home.mkdir()
            contenders[name] = stack.enter_context(start(home / "work"))
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(strikes):
            for name, contender in contenders.items():
                seconds[name].append(contender.strike(number))
    print(f"from a write to the alert, {FILES} files, {strikes} strikes each")
    compare(seconds, "bare watchdog, file read")


if __name__ == "__main__":
    main()
