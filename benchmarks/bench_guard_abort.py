"""From a foreign write to the experiment's death, under the policy ``strict``.

Beside it what a loop's author would build: bare watchdog whose handler asks the engine to kill the
container. Both run the same image and the same command, and take turns; death is the kernel's word
(a pidfd of the experiment's process: our container's first process outlives it, because the files
of the container are verified once more).

    python benchmarks/bench_guard_abort.py --rounds 25
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import docker
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from sealrun.errors import Status
from shared.figures import compare

if TYPE_CHECKING:
    from collections.abc import Generator

SEALRUN = Path(sys.executable).with_name("sealrun")
TRAIN = "SCALAR_LR = 0.5\n"
#: What the container runs: says that it runs, then computes nothing.
COMMAND = ("sh", "-c", "echo started; exec sleep 60")
#: Seconds within which it must be dead.
PATIENCE = 30


def death(container: str, train: Path) -> float:
    """Change a committed file; return seconds until the experiment's process is dead."""
    first = json.loads(_docker("inspect", "-f", "{{.State.Pid}}", container))
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    handle = os.pidfd_open(int(children[0]) if children else first)
    try:
        begun = time.perf_counter()
        train.write_text(TRAIN.replace("0.5", "0.3"))
        ended, _, _ = select.select([handle], [], [], PATIENCE)
        assert ended, "the experiment lives on"
        return time.perf_counter() - begun
    finally:
        os.close(handle)
        train.write_text(TRAIN)


@contextlib.contextmanager
def running(command: list[str], work: Path) -> Generator[subprocess.Popen[str]]:
    """Start something and wait until its experiment runs."""
    with subprocess.Popen(
        command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n", "the experiment did not start"
        yield process


def ours(work: Path, commit: str) -> float:
    """``sealrun run`` under ``strict``."""
    with running([str(SEALRUN), "run", "--policy", "strict", "--", *COMMAND], work) as process:
        label = f"label=sealrun.commit={commit}"
        seconds = death(_docker("ps", "-q", "--filter", label), work / "train.py")
        process.wait()
    assert process.returncode == Status.ABORTED, process.returncode
    return seconds


class Killer(FileSystemEventHandler):
    """Bare watchdog's handler: reads the file and asks the engine to kill."""

    def __init__(self, client: docker.APIClient) -> None:
        self.client = client
        self.container: str | None = None

    def on_modified(self, event: FileSystemEvent) -> None:
        """Kill, once."""
        if self.container is not None and os.fsdecode(event.src_path).endswith("train.py"):
            Path(os.fsdecode(event.src_path)).read_bytes()
            container, self.container = self.container, None
            self.client.kill(container)


def bare(work: Path, image: str, killer: Killer) -> float:
    """Bare watchdog and ``docker kill``."""
    name = f"sealrun-bench-{os.getpid()}"
    command = ["docker", "run", "--rm", "--network", "none", "--name", name, image, *COMMAND]
    with running(command, work):
        killer.container = name
        return death(name, work / "train.py")


def _docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> None:
    """Let both take turns, and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="sealrun-bench-") as scratch:
        work = Path(scratch) / "work"
        git = ["git", "-C", str(work), "-c", "user.name=b", "-c", "user.email=b@example.invalid"]
        subprocess.run(["git", "init", "-q", work], check=True)
        (work / "train.py").write_text(TRAIN)
        (work / "unique").write_text(scratch)  # so that the commit tells our containers
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "bench"], check=True)
        commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
        warm = subprocess.run(
            [SEALRUN, "warm", "--json"], cwd=work, check=True, capture_output=True
        )
        image = json.loads(warm.stdout)["engine_image"]
        killer = Killer(docker.APIClient())
        observer = Observer()
        observer.schedule(killer, str(work), recursive=True)
        observer.start()
        seconds: dict[str, list[float]] = {"watchdog and docker kill": [], "sealrun run": []}
        for _ in range(rounds):
            seconds["watchdog and docker kill"].append(bare(work, image, killer))
            seconds["sealrun run"].append(ours(work, commit))
        observer.stop()
        subprocess.run([SEALRUN, "guard", "stop"], cwd=work, check=False, capture_output=True)
    print(f"from a write to the experiment's death, {rounds} rounds")
    compare(seconds, "watchdog and docker kill")


if __name__ == "__main__":
    main()
