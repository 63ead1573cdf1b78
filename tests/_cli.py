"""The command line as a user runs it: a process of its own, with a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _forked
from _base import keep_witnesses, shared_base
from sealrun.state import Places

if TYPE_CHECKING:
    from collections.abc import Mapping

SEALRUN = Path(sys.executable).with_name("sealrun")


def run_started(
    program: Path, arguments: tuple[str, ...], cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a process that is started for it."""
    return subprocess.run(
        [program, *arguments],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=timeout,
        check=False,
    )


@dataclass
class Cli:
    """Runs ``sealrun`` in one repository with one home."""

    directory: Path
    home: Path
    extra: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def environment(self) -> dict[str, str]:
        """What the process gets: the caller's variables and a home of its own."""
        return os.environ | {"SEALRUN_HOME": str(self.home)} | self.extra

    @property
    def places(self) -> Places:
        """Where this home's state stands."""
        return Places(
            self.home / "state", self.home / "data", self.home / "cache", self.home / "runtime"
        )

    @property
    def program(self) -> str:
        """The command, for tests that start it in a way of their own."""
        return str(SEALRUN)

    def with_base(self) -> Cli:
        """Put the shipped base into this home, as ``sealrun warm`` would."""
        shared_base(self.places)
        return self

    def __call__(
        self, *arguments: str, status: int | None = 0, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and check its status (None: any)."""
        variables = self.environment
        started = _forked.has_to_start(arguments, variables)
        run = run_started if started else _forked.run
        done = run(SEALRUN, arguments, self.directory, variables, timeout)
        assert "Traceback" not in done.stderr, done.stderr
        if status is not None:
            assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401
        """Start a command and return while it runs."""
        defaults: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        return subprocess.Popen(
            [SEALRUN, *arguments],
            cwd=self.directory,
            env=self.environment,
            **(defaults | options),
        )

    def json(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """Run a command with ``--json`` and return its document."""
        document: dict[str, Any] = json.loads(self(*arguments, "--json", status=status).stdout)
        return document

    def run(
        self, *command: str, status: int = 0, options: tuple[str, ...] = ()
    ) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
        """Run an experiment; return its result file and the finished process."""
        file = self.home / "result.json"
        file.unlink(missing_ok=True)
        done = self("run", "--result-file", str(file), *options, "--", *command, status=status)
        result: dict[str, Any] = json.loads(file.read_text())
        return result, done

    def stop_guard(self) -> None:
        """End this home's guard, so that no test leaves a process behind."""
        keep_witnesses(self.places)
        self("guard", "stop", status=None)
