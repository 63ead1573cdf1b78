"""The founding story of sealrun, told twice on real input: a night bare, and the night sealed.

    make demo
    python examples/demo.py --short

An agent edits one file, commits, trains, keeps what scores better. A tool on the same machine
rewrites the file behind its back. Everything here is real: the repository, the commits, the tool
(a process of its own), the training. Each claim is checked; the exit status is 1 when one fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stage import HERE, Narrator, NotAsTold, Tidy, Workspace

#: Where PyTorch's CPU build lies for those who have no other place configured.
TORCH_WHEELS = "https://download.pytorch.org/whl/cpu/torch/"
#: Seconds that the tool leaves a saved file alone: long enough for an agent to commit it.
IDLE = 3.0
TRAIN_SECONDS = 15
SHORT_SECONDS = 3


def beside_python(program: str) -> str:
    """Return the path of a program installed beside this interpreter, else from PATH."""
    found = shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
    if found is None:
        raise SystemExit(f"demo: {program} is not installed; `make demo` sets everything up")
    return found


def wheel_places() -> dict[str, str]:
    """Return the environment that lets uv find PyTorch's CPU build."""
    configured = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")
    return {"UV_FIND_LINKS": configured or TORCH_WHEELS}


def bare_environment(narrator: Narrator) -> dict[str, str]:
    """Make, once, a virtual environment from the example's lock; return what activates it."""
    lock = HERE / "nanogpt" / "requirements.txt"
    key = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    home = HERE.parent / ".demo" / f"venv-{key}"
    ready = home / "ready"
    if not ready.exists():
        narrator.tell("Set-up, once: PyTorch in a virtual environment, for the bare night.")
        uv, environment = beside_python("uv"), {**os.environ, **wheel_places()}
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", "3.11", str(home)],
            [uv, "pip", "install", "--python", str(home), "--require-hashes", "-r", str(lock)],
        ):
            subprocess.run(command, env=environment, check=True, cwd=HERE / "nanogpt")
        ready.touch()
    return {"PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(home)}


def bare_night(narrator: Narrator, night: Workspace) -> None:
    """Edit, commit, run and record as people do it today, with the tool on the machine."""
    narrator.title("Night one: bare")
    narrator.tell(
        """It is late. An agent improves a small language model: it edits train.py, commits, trains,
        keeps the commit if val_bpb fell. Nobody remembers that a house-style fixer is running on
        this machine, too."""
    )
    results = night.path / "results.tsv"
    results.write_text("commit\tval_bpb\tmemory_gb\tstatus\tdescription\n")
    with Tidy(night, idle=IDLE) as tidy:
        night.edit(r"^MATRIX_LR = .*$", "MATRIX_LR = 0.004")
        night.git("commit", "-qam", "Raise the matrix learning rate to 0.004")
        narrator.tell("The agent has saved and committed. A moment later:")
        tidy.strike()
    night.shell("git show --format=%s --unified=0 HEAD | grep '^[A-Z+-]'")
    shown = night.shell("git show HEAD:train.py | grep ^SCALAR_LR")
    narrator.check("the commit is clean: SCALAR_LR is 0.5 in it", shown == "SCALAR_LR = 0.5\n")
    status = night.shell("git status --short")
    narrator.check(
        "git status would tell, but the loop only reads commits", " M train.py" in status
    )

    night.run(["python3", "train.py"])
    night.shell("grep '^val_bpb:' run.log")
    number = night.value()
    narrator.check("there is a number", number is not None)
    executed, committed = night.executed_sha256(), night.committed_sha256()
    narrator.show(
        f"train.py as committed  {committed[:16]}...\ntrain.py as executed   {(executed or '-')[:16]}..."
    )
    narrator.check("what ran is not what was committed", executed not in {None, committed})
    narrator.check(
        "what trained was the tool's 0.3", b"SCALAR_LR = 0.3\n" in night.script.read_bytes()
    )

    short = night.git("rev-parse", "--short", "HEAD").strip()
    with results.open("a") as rows:
        rows.write(f"{short}\t{number}\t0.0\tkeep\traise matrix lr to 0.004\n")
    night.shell("cat results.tsv")
    narrator.check(
        f"a number stands under {short}, a commit that never ran", short in results.read_text()
    )

    narrator.tell("The next idea builds on it, and `git commit -a` takes along what lies there:")
    night.edit(r"^WARMUP = .*$", "WARMUP = 0.1")
    night.git("commit", "-qam", "Warm up for longer")
    diff = night.shell("git show --format='%an: %s' --unified=0 HEAD | grep '^[a-z+-]'")
    narrator.check(
        "the tool's 0.3 is now the agent's own, by name and in history",
        "+SCALAR_LR = 0.3" in diff and night.git("status", "--short", "-uno") == "",
    )
    narrator.tell(
        """From here on no git command can tell. The night that this is taken from went on for four
        hours; every number of it belonged to code that nobody had chosen."""
    )


class Sealed:
    """The second night: the same moves, each run through sealrun."""

    def __init__(self, narrator: Narrator, night: Workspace) -> None:
        self.narrator = narrator
        self.night = night
        self.sealrun = beside_python("sealrun")
        folder = Path(self.sealrun).parent
        night.environment["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"

    def warm(self) -> None:
        """Make base and environment beforehand, with progress on this terminal."""
        print("\n  $ sealrun warm", flush=True)
        done = subprocess.run(
            [self.sealrun, "warm"], cwd=self.night.path, env=self.night.environment, check=False
        )
        self.narrator.check("base and environment are there", done.returncode == 0)

    def run(self, idea: str, tidy: Tidy | None = None) -> tuple[int, dict[str, Any]]:
        """Run HEAD through sealrun; return the exit status and the run's record."""
        result = self.night.path.parent / "result.json"
        result.unlink(missing_ok=True)
        status = self.night.run(
            [
                "sealrun",
                "run",
                "-m",
                idea,
                "--result-file",
                f"../{result.name}",
                "--",
                "python3",
                "train.py",
            ],
            when_training=None if tidy is None else lambda: self._strike(tidy),
        )
        if not result.exists():
            self.narrator.show(self.night.log.read_text("utf-8", "replace"))
            raise NotAsTold("sealrun wrote a result")
        finished = json.loads(result.read_text())
        if finished["verdict"] is None:
            self.narrator.show(self.night.log.read_text("utf-8", "replace"))
            raise NotAsTold("sealrun judged the run")
        run = finished["run"]
        shown = subprocess.run(
            [self.sealrun, "show", run, "--json"],
            cwd=self.night.path,
            env=self.night.environment,
            capture_output=True,
            check=True,
        )
        record: dict[str, Any] = json.loads(shown.stdout)["run"]
        return status, record

    def _strike(self, tidy: Tidy) -> None:
        self.narrator.tell(
            "The training runs. Somebody opens the project in an editor, and its fixer starts:"
        )
        tidy.start()
        tidy.strike()

    def clean_run(self) -> None:
        """Tell of a run that nobody disturbs."""
        night, check = self.night, self.narrator.check
        night.edit(r"^MATRIX_LR = .*$", "MATRIX_LR = 0.004")
        night.git("commit", "-qam", "Raise the matrix learning rate to 0.004")
        self.narrator.tell(
            "The same first idea, committed. The run command has `sealrun run` in front."
        )
        status, record = self.run("raise matrix lr to 0.004")
        night.shell("grep '^val_bpb:' run.log; grep '^.sealrun' run.log")
        check("the experiment succeeded", status == 0)
        check("the verdict is clean", verdict(record) == "clean")
        check("what ran is what was committed", night.executed_sha256() == night.committed_sha256())

    def strike_before(self) -> None:
        """Tell of a strike between the commit and the run: refused, with the diff."""
        night, check = self.night, self.narrator.check
        with Tidy(night, idle=IDLE) as tidy:
            night.edit(r"^WARMUP = .*$", "WARMUP = 0.1")
            night.git("commit", "-qam", "Warm up for longer")
            self.narrator.tell(
                "The second idea is committed, and again the fixer strikes before the run:"
            )
            tidy.strike()
        status, record = self.run("warm up for longer")
        night.shell("tail -n 50 run.log")
        check("refused before anything ran, with status 121", status == 121)  # noqa: PLR2004 - told
        check("the record says so", verdict(record) == "refused")
        check("the diff names the line", "+SCALAR_LR = 0.3" in night.log.read_text())
        check("there is no number to be misled by", night.value() is None)

    def strike_during(self) -> dict[str, Any]:
        """Tell of a strike in the middle of a run: the committed bytes run on, the run is flagged."""
        night, check = self.night, self.narrator.check
        self.narrator.tell("The agent restores the file and runs its commit.")
        night.shell("git restore train.py")
        tidy = Tidy(night, idle=0)
        try:
            status, record = self.run("warm up for longer", tidy)
        finally:
            tidy.stop()
        night.shell("grep '^val_bpb:' run.log; grep '^.sealrun' run.log")
        check(
            "the file in the workspace was changed",
            b"SCALAR_LR = 0.3\n" in night.script.read_bytes(),
        )
        check("the experiment never saw it", night.executed_sha256() == night.committed_sha256())
        check("the run is flagged", (status, verdict(record)) == (0, "flagged"))
        check(
            "the reason is an edit that nobody has claimed", "edit-unattributed" in reasons(record)
        )
        if os.geteuid() == 0:
            said = night.log.read_text("utf-8", "replace")
            check("the fixer is named, with its command line", f"tidy.py {night.path}" in said)
            check("and so is who started it", ", child of " in said)
        return record

    def laundering(self) -> None:
        """Tell of a commit that takes the fixer's line along: found, and never harmless."""
        night, check = self.night, self.narrator.check
        self.narrator.tell(
            """The agent notices nothing. Its next idea is another line, and `git commit -a` takes along
            what lies there, as in the first night:"""
        )
        night.edit(r"^WEIGHT_DECAY = .*$", "WEIGHT_DECAY = 0.02")
        night.git("commit", "-qam", "Decay less")
        night.shell("git show --format='%an: %s' --unified=0 HEAD | grep '^[a-z+-]'")
        check("git is content", night.git("status", "--short", "-uno") == "")
        status, record = self.run("decay less")
        night.shell("grep '^val_bpb:' run.log; grep '^.sealrun' run.log")
        said = night.log.read_text("utf-8", "replace")
        check("what is committed runs", night.executed_sha256() == night.committed_sha256())
        check("the run is flagged", (status, verdict(record)) == (0, "flagged"))
        check("the reason is the fixer's line in the commit", "contains-foreign" in reasons(record))
        check("the number is not taken for the idea's", "belongs to the commit)" not in said)
        check("and how to restore the line is shown", "+SCALAR_LR = 0.5" in said)
        night.shell("sealrun alerts")
        night.edit(r"^SCALAR_LR = .*$", "SCALAR_LR = 0.5")
        night.git("commit", "-qam", "Restore the rate that nobody meant to change")

    def record(self, run: str) -> None:
        """Show what is on record."""
        self.narrator.title("The morning after")
        self.night.shell("sealrun log")
        self.night.shell(f"sealrun show {run} | sed '/^image/,$d'")

    def dismiss(self) -> None:
        """End the guard, which would linger for the next run."""
        subprocess.run(
            [self.sealrun, "guard", "stop"],
            cwd=self.night.path,
            env=self.night.environment,
            capture_output=True,
            check=False,
        )


def verdict(record: dict[str, Any]) -> str | None:
    """Return a record's verdict, or None where nothing was judged."""
    found = record.get("verdict")
    return found["kind"] if found else None


def reasons(record: dict[str, Any]) -> set[str]:
    """Return the codes that a record's verdict cites."""
    found = record.get("verdict")
    return {reason["code"] for reason in found["reasons"]} if found else set()


def main() -> int:
    """Tell both nights."""
    parser = argparse.ArgumentParser(description="The founding story of sealrun, for real.")
    parser.add_argument("--short", action="store_true", help="train for three seconds each time")
    parser.add_argument("--keep", action="store_true", help="leave both repositories behind")
    options = parser.parse_args()
    seconds = SHORT_SECONDS if options.short else TRAIN_SECONDS
    narrator = Narrator()
    places = wheel_places()
    folder = Path(tempfile.mkdtemp(prefix="sealrun-demo-"))
    sealed: Sealed | None = None
    try:
        bare = bare_environment(narrator)
        sealed = Sealed(narrator, Workspace(folder / "sealed", narrator, seconds, places))
        narrator.tell("Set-up, once: the base image and the environment of the sealed night.")
        sealed.warm()
        narrator.began = time.monotonic()
        bare_night(narrator, Workspace(folder / "bare", narrator, seconds, bare))
        narrator.title("Night two: through sealrun")
        sealed.clean_run()
        sealed.strike_before()
        flagged = sealed.strike_during()
        sealed.laundering()
        sealed.record(flagged["run"])
    except NotAsTold as error:
        print(f"\ndemo: NOT AS TOLD: {error}", file=sys.stderr)
        return 1
    finally:
        if sealed is not None:
            sealed.dismiss()
        if options.keep:
            print(f"\nThe repositories are in {folder}")
        else:
            shutil.rmtree(folder)
    narrator.tell(f"All {narrator.checked} claims of this story were checked as it was told.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
