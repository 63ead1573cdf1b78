"""The stage of the demo: a repository, an agent's few moves, a tool in the wings, and a narrator.

Rules that this module keeps:

- Everything is real: real git, a real second process that rewrites files, real training.
- What is told is checked: ``Narrator.check`` ends the demo when something is not as told.
- Plain lines that read well in a terminal, in a pipe and in a log of CI.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

HERE = Path(__file__).resolve().parent
WIDTH = 92
#: Seconds after which a scene that does not come to its point has failed.
PATIENCE = 60.0
#: Seconds between two lines of progress.
PROGRESS_EVERY = 5.0


class NotAsTold(Exception):
    """Something on the stage did not happen as the story says."""


class Narrator:
    """Tells the story on stdout and holds it to what happened."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.checked = 0

    def title(self, text: str) -> None:
        """Open a part."""
        print(
            f"\n{'=' * WIDTH}\n{text}   ({time.monotonic() - self.began:.0f} s)\n{'=' * WIDTH}",
            flush=True,
        )

    def tell(self, text: str) -> None:
        """Tell a paragraph."""
        print("\n" + textwrap.fill(" ".join(text.split()), WIDTH), flush=True)

    def show(self, text: str, *, limit: int = 60) -> None:
        """Show what a command printed."""
        lines = text.rstrip("\n").split("\n") if text.strip() else []
        for line in lines[:limit]:
            print(f"    {line}".rstrip())
        if len(lines) > limit:
            print(f"    ... and {len(lines) - limit} lines more")
        sys.stdout.flush()

    def check(self, told: str, holds: bool) -> None:  # noqa: FBT001 - read as a sentence
        """Say what is so, or end the demo because it is not.

        Raises:
            NotAsTold: it is not.
        """
        if not holds:
            raise NotAsTold(told)
        self.checked += 1
        print(f"  -> {told}", flush=True)


class Workspace:
    """A git repository made from ``examples/nanogpt``, with the moves that an agent makes in it."""

    def __init__(
        self, path: Path, narrator: Narrator, seconds: int, environment: Mapping[str, str]
    ) -> None:
        self.path = path
        self.narrator = narrator
        self.environment = {**os.environ, **environment, "GIT_CONFIG_GLOBAL": os.devnull}
        path.mkdir()
        for file in sorted((HERE / "nanogpt").iterdir()):
            if file.is_file():
                (path / file.name).write_bytes(file.read_bytes())
        self.edit(r"^TRAIN_SECONDS = .*$", f"TRAIN_SECONDS = {seconds}")
        self.git("init", "-q", "-b", "night")
        self.git("config", "user.name", "agent")
        self.git("config", "user.email", "agent@example.invalid")
        self.git("add", ".")
        self.git("commit", "-q", "-m", "Start")

    @property
    def script(self) -> Path:
        """The file that the agent edits."""
        return self.path / "train.py"

    @property
    def log(self) -> Path:
        """Where the agent sends the output of a run."""
        return self.path / "run.log"

    def edit(self, pattern: str, replacement: str) -> None:
        """Edit ``train.py`` as the agent does: one place, saved at once."""
        text, count = re.subn(pattern, replacement, self.script.read_text(), flags=re.MULTILINE)
        if count != 1:
            raise NotAsTold(f"{pattern} stands in train.py {count} times")
        self.script.write_text(text)

    def git(self, *arguments: str) -> str:
        """Call git and return what it prints."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def shell(self, command: str, *, limit: int = 60) -> str:
        """Show a command and what it prints, as a terminal would; return the output."""
        print(f"\n  $ {command}", flush=True)
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.narrator.show(done.stdout, limit=limit)
        return done.stdout

    def run(self, argv: list[str], *, when_training: Callable[[], None] | None = None) -> int:
        """Run a command with its output in ``run.log``, telling its progress; return its status.

        Args:
            when_training: called once, when the training prints its first step.
        """
        print(f"\n  $ {shlex.join(argv)} > run.log 2>&1", flush=True)
        told, seen = time.monotonic(), 0
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                argv,
                cwd=self.path,
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
            while process.poll() is None:
                time.sleep(0.1)
                steps = re.findall(rb"^step .*$", self.log.read_bytes(), re.MULTILINE)
                if steps and when_training is not None:
                    when_training()
                    when_training = None
                if len(steps) > seen and time.monotonic() - told > PROGRESS_EVERY:
                    seen, told = len(steps), time.monotonic()
                    print(f"    ({steps[-1].decode()})", flush=True)
        return process.returncode

    def committed_sha256(self) -> str:
        """Return the sha256 of ``train.py`` as HEAD holds it."""
        return hashlib.sha256(self.git("show", "HEAD:train.py").encode()).hexdigest()

    def executed_sha256(self) -> str | None:
        """Return the sha256 that the training printed of its own file."""
        found = re.search(
            r"^train_py_sha256: (\w+)$", self.log.read_text("utf-8", "replace"), re.MULTILINE
        )
        return found[1] if found else None

    def value(self) -> str | None:
        """Return the number that ``grep '^val_bpb:' run.log`` finds, as text."""
        found = re.search(
            r"^val_bpb: +(\S+)$", self.log.read_text("utf-8", "replace"), re.MULTILINE
        )
        return found[1] if found else None


class Tidy:
    """The rewriting tool as a process of its own, there as long as the context lasts."""

    def __init__(self, workspace: Workspace, *, idle: float) -> None:
        self.workspace = workspace
        self.idle = idle
        self.output: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - stop() closes it
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process."""
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(HERE / "tidy.py"),
                str(self.workspace.path),
                "--idle",
                str(self.idle),
            ],
            stdin=subprocess.PIPE,
            stdout=self.output,
        )

    def stop(self) -> None:
        """End the process, if it runs."""
        if self.process is not None:
            if self.process.stdin is not None:
                self.process.stdin.close()
            self.process.wait(PATIENCE)
            self.process = None
        self.output.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def strike(self) -> None:
        """Wait until the tool has rewritten ``train.py`` and show what it said.

        Raises:
            NotAsTold: it did not within ``PATIENCE``, or it ended.
        """
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit and self.process is not None:
            self.output.seek(0)
            said = self.output.read()
            if said:
                self.workspace.narrator.show(said)
                return
            time.sleep(0.05)
        raise NotAsTold("the house-style fixer did not strike")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
