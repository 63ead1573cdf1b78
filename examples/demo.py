"""The founding story of sealrun, told twice on real input: a night bare, and the night sealed.

    make demo
    python examples/demo.py --short

An agent edits one file, commits, trains, keeps what scores better. A tool on the same machine
rewrites the file behind its back. In the end the machine is lost, and an idea that the agent had
thrown away is run again elsewhere. Everything here is real: the repository, the commits, the tool
(a process of its own), the training. Each claim is checked; the exit status is 1 when one fails.

The sealed night has a home of its own (``--home``): the story removes it and brings it back.
"""

from __future__ import annotations

import argparse
import contextlib
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

import docker
from stage import HERE, Narrator, NotAsTold, Tidy, Workspace

#: Where PyTorch's CPU build lies for those who have no other place configured.
TORCH_WHEELS = "https://download.pytorch.org/whl/cpu/torch/"
#: Seconds that the tool leaves a saved file alone: long enough for an agent to commit it.
IDLE = 3.0
TRAIN_SECONDS = 15
SHORT_SECONDS = 3
#: Steps of the idea that is run again: an equal number of steps repeats, an equal time does not.
STEPS = 20


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


def engine_endpoint(sealrun: str) -> dict[str, str]:
    """Return the environment that leads another home of sealrun to the engine that answers here."""
    done = subprocess.run(
        [sealrun, "engine", "status", "--json"], capture_output=True, check=False, text=True
    )
    if done.returncode:
        raise SystemExit(f"demo: {done.stderr.strip()}")
    return {"DOCKER_HOST": json.loads(done.stdout)["engine"]["endpoint"]}


class Sealed:
    """The second night: the same moves, each run through sealrun.

    Args:
        home: state and data of the machine that the night runs on.
    """

    def __init__(self, narrator: Narrator, night: Workspace, home: Path) -> None:
        self.narrator = narrator
        self.night = night
        self.home = home
        self.sealrun = beside_python("sealrun")
        folder = Path(self.sealrun).parent
        night.environment |= {
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "SEALRUN_HOME": str(home),
            **engine_endpoint(self.sealrun),
        }

    def warm(self) -> None:
        """Make base and environment beforehand, with progress on this terminal."""
        print("\n  $ sealrun warm", flush=True)
        done = subprocess.run(
            [self.sealrun, "warm"], cwd=self.night.path, env=self.night.environment, check=False
        )
        self.narrator.check("base and environment are there", done.returncode == 0)

    def run(
        self, idea: str, tidy: Tidy | None = None, *, options: tuple[str, ...] = ()
    ) -> tuple[int, dict[str, Any]]:
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
                *options,
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
        record: dict[str, Any] = self.document("show", run)["run"]
        return status, record

    def document(self, *arguments: str) -> dict[str, Any]:
        """Return what a command of sealrun answers as JSON."""
        done = subprocess.run(
            [self.sealrun, *arguments, "--json"],
            cwd=self.night.path,
            env=self.night.environment,
            capture_output=True,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

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

    def discard(self) -> dict[str, Any]:
        """Tell of an idea that scores worse: the agent throws its commit away, as loops do."""
        night, check = self.night, self.narrator.check
        self.narrator.title("The machine is lost")
        self.narrator.tell(
            f"""One more idea, for a look: {STEPS} steps. It is a bad one, and the agent throws the
            commit away. Its reflog expires, git collects its garbage."""
        )
        night.edit(r"^MATRIX_LR = .*$", "MATRIX_LR = 0.4")
        night.git("commit", "-qam", "Raise the matrix learning rate a hundredfold")
        status, record = self.run("raise matrix lr to 0.4", options=("--steps", str(STEPS)))
        night.shell("grep '^val_bpb:' run.log")
        check("the run is clean", (status, verdict(record)) == (0, "clean"))
        night.shell("git reset --hard HEAD~1")
        night.git("reflog", "expire", "--expire=now", "--all")
        night.git("gc", "--quiet", "--prune=now")
        holders = night.shell(f"git branch --all --contains {record['commit'][:7]}")
        check("no branch holds the commit any more", holders == "")
        return record

    def lose(self, discarded: dict[str, Any], mirror: Path, remote: Path) -> None:
        """Tell of the end of a machine: its record was mirrored, all else is removed."""
        night, check = self.night, self.narrator.check
        self.narrator.tell(
            """The night's record is mirrored to another disk; the code is on a remote, as always.
            Then the rented machine goes away, and everything with it:"""
        )
        mirror.mkdir()
        configuration = self.home / "config" / "mirror.toml"
        configuration.parent.mkdir(exist_ok=True)
        configuration.write_text(
            f'[destination.disk]\ntype = "directory"\npath = "{mirror}"\nlayers = true\n'
        )
        night.shell("sealrun mirror now")
        # By a URL: git copies whole object directories between local paths.
        night.git("clone", "-q", "--bare", f"file://{night.path}", str(remote))
        self.rows = {row["run"] for row in self.document("log")["runs"]}
        self.dismiss()
        shutil.rmtree(night.path)
        shutil.rmtree(self.home)
        with_engine = docker.APIClient(self.night.environment["DOCKER_HOST"])
        with contextlib.closing(with_engine):
            for row in with_engine.images("sealrun-tree"):
                if row["Id"] == discarded["image_id"]:
                    with_engine.remove_image(row["Id"], force=True)
        check("the clone and sealrun's own directories are gone", not self.home.exists())

    def reproduce(self, discarded: dict[str, Any], mirror: Path, remote: Path) -> None:
        """Tell of another machine: the record is restored, and the discarded idea is run again."""
        night, check = self.night, self.narrator.check
        self.narrator.tell("On the next machine there is a fresh clone, and the mirror:")
        subprocess.run(["git", "clone", "-q", f"file://{remote}", str(night.path)], check=True)
        commit = discarded["commit"]
        held = night.shell(f"git cat-file -t {commit[:12]} 2>&1")
        check("the clone has never heard of the discarded commit", "commit" not in held.split())
        night.shell(f"sealrun restore {mirror}")
        night.shell("sealrun log")
        rows = {row["run"] for row in self.document("log")["runs"]}
        check(f"all {len(rows)} rows are there again", rows == self.rows)
        night.shell(f"sealrun reproduce {commit[:7]}")
        again = self.document("reproduce", discarded["run"])
        check(
            "its image was rebuilt to the same id",
            again["repetitions"][0]["image_id"] == discarded["image_id"],
        )
        check(
            "the number of the discarded idea is the same to the last digit",
            again["likeness"] in {"outputs-identical", "metric-identical"},
        )

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
    parser.add_argument(
        "--home",
        type=Path,
        default=HERE.parent / ".demo" / "home",
        help="the sealed night's own SEALRUN_HOME; the story removes it and makes it again",
    )
    options = parser.parse_args()
    seconds = SHORT_SECONDS if options.short else TRAIN_SECONDS
    narrator = Narrator()
    places = wheel_places()
    folder = Path(tempfile.mkdtemp(prefix="sealrun-demo-"))
    sealed: Sealed | None = None
    try:
        bare = bare_environment(narrator)
        sealed = Sealed(
            narrator,
            Workspace(folder / "sealed", narrator, seconds, places),
            options.home.absolute(),
        )
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
        discarded = sealed.discard()
        mirror, remote = folder / "mirror", folder / "remote.git"
        sealed.lose(discarded, mirror, remote)
        sealed.reproduce(discarded, mirror, remote)
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
