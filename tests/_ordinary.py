"""An ordinary night of a loop, as a program: ``python -I _ordinary.py COUNT EVERY ROOM SEALRUN``.

It edits, commits, runs, writes its logs and scratch files, begins the next idea while a run is under
way, keeps or discards, and does what else agents do. Each ``EVERY``-th time it waits until somebody
else has struck: it makes ``ROOM/strike`` and goes on when that is gone. What it saw of each run
is a line of ``ROOM/runs.jsonl``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path.cwd()
#: What an experiment leaves while it waits to be struck.
WAITS = "state/repositories/*/runs/*/outputs/out/waits"


def git(*words: str) -> None:
    """Call git."""
    subprocess.run(["git", *words], check=True, capture_output=True)


def edit(number: int) -> None:
    """Save an idea, in one of the ways of editors and shells."""
    file = HERE / "train.py"
    text = re.sub(r"WIDTH = \d+", f"WIDTH = {number}", file.read_text())
    way = number % 4
    if way == 0:
        file.write_text(text)
    elif way == 1:
        swap = HERE / ".train.py.swp"
        swap.write_text("swap")
        draft = HERE / "train.py~"
        draft.write_text(text)
        draft.rename(file)
        swap.unlink()
    elif way == 2:
        subprocess.run(["sed", "-i", f"s/^WIDTH = .*/WIDTH = {number}/", "train.py"], check=True)
    else:
        with file.open("r+") as opened:
            opened.truncate()
            opened.write(text)


def clutter(number: int) -> None:
    """Leave what lies about in a loop's directory, and read everything as an editor does."""
    (HERE / "results.tsv").open("a").write(f"{number}\t1.0\t0.0\tkeep\tidea\n")
    (HERE / "scratch").mkdir(exist_ok=True)
    (HERE / "scratch" / f"{number % 7}.txt").write_text("x" * number)
    (HERE / "wandb" / f"run-{number % 5}").mkdir(parents=True, exist_ok=True)
    (HERE / "wandb" / f"run-{number % 5}" / "events").write_text(str(number))
    (HERE / "checkpoints").mkdir(exist_ok=True)
    (HERE / "checkpoints" / "last.pt").write_bytes(bytes(1000))
    subprocess.run([sys.executable, "-m", "compileall", "-q", "pkg"], check=True)
    (HERE / ".venv" / "lib").mkdir(parents=True, exist_ok=True)
    (HERE / ".venv" / "lib" / "site.py").write_text(str(number))
    for file in HERE.glob("**/*"):
        if file.is_file() and ".git" not in file.parts:
            file.read_bytes()
    if number % 10 == 0:
        git("fetch", "-q", "origin")
    if number % 25 == 0:
        git("gc", "-q")
    if number % 40 == 0:
        shutil.rmtree(HERE / "scratch")


def strike(room: Path) -> None:
    """Wait until somebody else has struck."""
    (room / "strike").touch()
    while (room / "strike").exists():
        time.sleep(0.01)


def iterate(number: int, *, struck: str, room: Path, sealrun: str) -> dict[str, object]:
    """Try one idea; return what became of it."""
    edit(number)
    if struck == "before-commit":
        strike(room)
    git("commit", "-q", "-a", "-m", f"idea {number}")
    if struck == "after-commit":
        strike(room)
    result = room / "result.json"
    command = [sealrun, "run", "--result-file", str(result), "--", "python3", "train.py"]
    if struck == "during-run":
        command.append("waits")
    with (HERE / "run.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        while process.poll() is None and b"started" not in (HERE / "run.log").read_bytes():
            time.sleep(0.01)
        if struck == "during-run":
            strike(room)
            for waits in Path(os.environ["SEALRUN_HOME"]).glob(WAITS):
                waits.unlink()
        elif process.poll() is None and number % 3 == 0:
            edit(number + 10_000)  # the next idea
            if number % 6 == 0:
                git("commit", "-q", "-a", "-m", "next idea")
        clutter(number)
        process.wait()
    git("reset", "-q", "--hard", "HEAD" if struck or number % 2 else "HEAD~1")
    found: dict[str, object] = json.loads(result.read_text())
    return found | {"number": number, "struck": struck}


def main() -> None:
    """Run the night."""
    count, every, room, sealrun = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    phases = ("before-commit", "after-commit", "during-run")
    with (room / "runs.jsonl").open("a") as runs:
        for number in range(1, count + 1):
            turn = number // every if number % every == 0 else 0
            struck = phases[turn % 3] if turn else ""
            seen = iterate(number, struck=struck, room=room, sealrun=sealrun)
            runs.write(json.dumps(seen) + "\n")
            runs.flush()
            if struck:
                # What was struck is not built upon: as it was before, by the loop's own hand.
                git("reset", "-q", "--hard", "baseline")


if __name__ == "__main__":
    main()
