"""``sealrun bundle export`` against ``docker save`` and ``git bundle``, of the same run.

One repository of three files, one run, signed. Contenders take turns; bytes written and the median
of seconds are shown. A bundle holds more than the other two together: log, outputs, evidence,
events and statement, and its reader checks all of it.

    python benchmarks/bench_bundle.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench_run import SEALRUN, measure

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes that a thin bundle of such a repository may have.
SMALL = 100_000
FILES = {
    "train.py": "SCALAR_LR = 0.5\nprint('val_bpb: 1')\n" * 300,
    "prepare.py": "print('data')\n" * 300,
    "README.md": "three files\n",
}


def call(work: Path, *arguments: str | Path) -> str:
    """Run a program to its end and return what it printed; it must succeed."""
    return subprocess.run(
        arguments, cwd=work, check=True, capture_output=True, text=True
    ).stdout.strip()


def prepared(work: Path) -> tuple[str, str]:
    """Commit, run and sign; return the run's id and its image's."""
    work.mkdir()
    call(work, "git", "init", "-q")
    for name, content in FILES.items():
        (work / name).write_text(content)
    call(work, "git", "add", "-A")
    who = ("-c", "user.name=b", "-c", "user.email=b@example.invalid")
    call(work, "git", *who, "commit", "-q", "-m", "bench")
    call(work, SEALRUN, "warm")
    call(work, SEALRUN, "run", "--", "python3", "train.py")
    (run,) = json.loads(call(work, SEALRUN, "log", "--json"))["runs"]
    if not json.loads(call(work, SEALRUN, "key", "list", "--json"))["keys"]:
        call(work, SEALRUN, "key", "create")
    call(work, SEALRUN, "key", "sign", run["run"])
    return run["run"], run["loading"]["engine_image"]


def fresh(file: Path, action: Callable[[], object]) -> Callable[[], object]:
    """Return an action before which its file is removed."""

    def once() -> None:
        file.unlink(missing_ok=True)
        action()

    return once


def main() -> None:
    """Measure and print bytes and seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sealrun-bench-") as scratch:
        work, out = Path(scratch) / "work", Path(scratch)
        run, image = prepared(work)
        ref = f"refs/sealrun/runs/{run}"
        commands: dict[str, tuple[str | Path, ...]] = {
            "git bundle": ("git", "bundle", "create", "-q", out / "git bundle", ref),
            "bundle export": (SEALRUN, "bundle", "export", run, "-o", out / "bundle export"),
            "docker save": ("docker", "save", image, "-o", out / "docker save"),
            "bundle export --full": (
                *(SEALRUN, "bundle", "export", run, "--full"),
                *("-o", out / "bundle export --full"),
            ),
        }
        contenders = {
            name: fresh(out / name, lambda command=command: call(work, *command))  # type: ignore[misc]
            for name, command in commands.items()
        }
        medians = measure(contenders, 1 if chosen.quick else chosen.rounds)
        sizes = {name: (out / name).stat().st_size for name in commands}
        call(work, SEALRUN, "guard", "stop")
    print(f"{'':<22}{'bytes':>14}{'seconds':>9}")
    for name, seconds in medians.items():
        print(f"{name:<22}{sizes[name]:>14,}{seconds:>9.2f}")
    assert sizes["bundle export"] < SMALL, "a thin bundle of three files has 100 KB at most"
    assert sizes["bundle export --full"] < sizes["docker save"], "a full bundle is no larger"


if __name__ == "__main__":
    main()
