"""Disk from nothing to a warm image, and after ``sealrun gc``, beside what the image unpacks to.

An engine with a store of its own starts in namespaces of its own (root). One repository with a lock
is warmed from nothing; a thread adds up meanwhile what everything of it takes on the disk: the
engine's data, sealrun's data, state and cache, and the temporary directory, each inode once. The
unpacked environment is what its layer unpacks to; the base is shown apart. Then one experiment
runs, ``sealrun gc`` frees what it can, and the run is reproduced to see that it still can be.

    python benchmarks/bench_disk.py                  # the lock of examples/nanogpt: PyTorch
    python benchmarks/bench_disk.py --quick          # numpy's
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Generator

SEALRUN = Path(sys.executable).with_name("sealrun")
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "nanogpt"
QUICK = "numpy==2.4.6\n"
SCRIPT = "import {name}\nprint('val_bpb: 1', {name}.__version__)\n"
#: Times the unpacked environment: at the peak, and after a collection.
PEAK, AFTER = 2.2, 1.1
_ENGINE = """
mount -t tmpfs tmpfs /run && exec dockerd --host "unix://$1/engine.sock" \
  --data-root "$1/engine" --exec-root /run/second --pidfile "$1/engine.pid" \
  --bridge none --iptables=false --ip6tables=false --containerd-namespace sealrun-bench \
  --containerd-plugins-namespace sealrun-bench-plugins
"""


def disk_usage(*roots: Path) -> int:
    """Return the bytes that everything below some directories takes, each inode once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for root in roots:
        device = root.stat().st_dev
        for directory, names, files in os.walk(root):
            with contextlib.suppress(OSError):
                # An overlay's mount shows what its layers hold already.
                names[:] = [n for n in names if os.lstat(f"{directory}/{n}").st_dev == device]
            for name in (*names, *files):
                with contextlib.suppress(OSError):
                    found = os.lstat(f"{directory}/{name}")
                    if (found.st_dev, found.st_ino) not in seen:
                        seen.add((found.st_dev, found.st_ino))
                        total += found.st_blocks * 512
    return total


class Sampler:
    """Watches what some directories take, and keeps the most."""

    def __init__(self, roots: dict[str, Path]) -> None:
        self.roots = roots
        self.peak = 0
        self.parts: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            parts = {name: disk_usage(root) for name, root in self.roots.items()}
            if sum(parts.values()) > self.peak:
                self.peak, self.parts = sum(parts.values()), parts

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@contextlib.contextmanager
def own_engine(directory: Path) -> Generator[None]:
    """Run an engine whose data stands below a directory."""
    command = ["unshare", "--mount", "--net", "sh", "-c", _ENGINE, "engine", str(directory)]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    query = ["docker", "-H", f"unix://{directory}/engine.sock", "info"]
    try:
        while subprocess.run(query, capture_output=True, check=False).returncode:
            if process.poll() is not None:
                raise SystemExit((directory / "log").read_text())
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(60)


def repository(work: Path, *, quick: bool) -> None:
    """Make a repository whose lock holds PyTorch, or numpy."""
    work.mkdir()
    name = "numpy" if quick else "torch"
    (work / "train.py").write_text(SCRIPT.format(name=name))
    if quick:
        (work / "requirements.txt").write_text(QUICK)
    else:
        shutil.copy(EXAMPLE / "requirements.txt", work)
    (work / "sealrun.toml").write_text('[image]\nbase = "debian-python"\n')
    who = ("-c", "user.name=b", "-c", "user.email=b@example.invalid")
    for arguments in (("init", "-q"), ("add", "-A"), (*who, "commit", "-q", "-m", "bench")):
        subprocess.run(["git", *arguments], cwd=work, check=True)


def main() -> None:
    """Measure, print, and fail where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="numpy instead of PyTorch")
    parser.add_argument("--rounds", type=int, default=1, help="for make bench; one is enough")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    chosen = parser.parse_args()
    # Not deep: an engine's socket has a short name (unix(7): 108 bytes).
    top = Path(tempfile.mkdtemp(prefix="sealrun-bench-"))
    try:
        figures = measured(top, quick=chosen.quick)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    for name, value in figures.items():
        print(f"{name:<34}{value}")
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1))
    if figures["peak / unpacked"] > PEAK or figures["after gc / unpacked"] > AFTER:
        raise SystemExit("more disk than the budget allows")


def measured(top: Path, *, quick: bool) -> dict[str, Any]:
    """Return the figures of one warm, one run and one collection."""
    work, temporary, home = top / "work", top / "tmp", top / "home"
    temporary.mkdir()
    repository(work, quick=quick)
    environment = os.environ | {
        "SEALRUN_HOME": str(home),
        "TMPDIR": str(temporary),
        "DOCKER_HOST": f"unix://{top}/engine.sock",
    }

    def sealrun(*arguments: str) -> str:
        done = subprocess.run(
            [SEALRUN, *arguments], cwd=work, env=environment, stdout=subprocess.PIPE, check=True
        )
        return done.stdout.decode()

    with own_engine(top):
        home.mkdir()
        roots = {"engine": top / "engine", "sealrun": home, "temporary": temporary}
        before = {name: disk_usage(root) for name, root in roots.items()}
        began = time.monotonic()
        with Sampler(roots) as sampler:
            sealrun("warm")
        seconds = time.monotonic() - began
        warm = {name: disk_usage(root) - before[name] for name, root in roots.items()}
        sealrun("run", "--", "python3", "train.py")
        (run,) = json.loads(sealrun("log", "--json"))["runs"]
        sizes: dict[str, int] = {}
        for layer in run["layers"]:
            sizes[layer["role"]] = sizes.get(layer["role"], 0) + layer["size"]
        freed = json.loads(sealrun("gc", "--json"))
        after = {name: disk_usage(root) - before[name] for name, root in roots.items()}
        again = json.loads(sealrun("reproduce", run["run"], "--json"))
        sealrun("guard", "stop")
    unpacked, base = sizes["environment"], sizes["base"]
    peak = sampler.peak - sum(before.values())
    return {
        "unpacked environment, MB": round(unpacked / 1e6),
        "unpacked base, MB": round(base / 1e6),
        "seconds of warm": round(seconds, 1),
        "peak, MB": round(peak / 1e6),
        **{f"  of it {name}, MB": round(size / 1e6) for name, size in sampler.parts.items()},
        "peak / unpacked": round(peak / unpacked, 2),
        "peak / unpacked with base": round(peak / (unpacked + base), 2),
        "warm, MB": round(sum(warm.values()) / 1e6),
        **{f"  of it {name}, MB (warm)": round(size / 1e6) for name, size in warm.items()},
        "warm / unpacked": round(sum(warm.values()) / unpacked, 2),
        "after gc, MB": round(sum(after.values()) / 1e6),
        "after gc / unpacked": round(sum(after.values()) / unpacked, 2),
        "gc says it freed, MB": round(freed["bytes"] / 1e6),
        "reproduced after gc": again["likeness"],
    }


if __name__ == "__main__":
    main()
