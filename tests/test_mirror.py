"""The record outlives the machine: mirrored after each run, restored elsewhere, never silently changed."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from _cli import Cli
from _ledger import alert, ended, ledger_at, opened
from sealrun.ledger import Ledger, OutputFile, Pin, new_ulid
from sealrun.ledger.events import ForeignState
from sealrun.mirror.format import Head, Segment, blob_of, encode
from sealrun.state import repository_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from _git import Repo


@dataclass
class Machine:
    """A machine with a clone, a home of its own, and a record without an engine."""

    repo: Repo
    cli: Cli
    runs: list[str] = field(default_factory=list[str])

    @property
    def identity(self) -> str:
        """The repository's id."""
        found = repository_id(self.repo.find().common_dir)
        assert found is not None
        return found

    def ledger(self) -> Ledger:
        """Open the ledger for writing."""
        return ledger_at(self.cli.places.ledger(self.identity), self.identity)

    def run(self, *, kept: bool = True, size: int = 100) -> str:
        """Put a run on record, with log, output and evidence; a discarded one leaves no branch."""
        run, places = new_ulid(), self.cli.places
        commit = self.repo.commit({"train.py": f"# {run}\n"}, f"idea {len(self.runs)}")
        directory = places.run(self.identity, run)
        (directory / "log").write_text(f"val_bpb: {len(self.runs)}\n")
        (directory / "lock").touch()
        out = directory / "outputs" / "out"
        out.mkdir(parents=True)
        model = os.urandom(size)
        (out / "model.bin").write_bytes(model)
        foreign = b"SCALAR_LR = 0.3  # " + run.encode()
        digest = hashlib.sha256(foreign).hexdigest()
        evidence = directory / "evidence" / digest[:2] / digest
        evidence.parent.mkdir(parents=True)
        evidence.write_bytes(foreign)
        state = ForeignState(
            path="train.py", change="modified", sha256=digest, evidence=str(evidence)
        )
        listed = OutputFile(
            path="out/model.bin", size=size, sha256=hashlib.sha256(model).hexdigest()
        )
        with self.ledger() as ledger, ledger.transaction() as tx:
            tx.append(opened(run, commit=commit))
            tx.append(Pin(run=run, ref=f"refs/sealrun/runs/{run}", commit=commit))
            tx.append(alert(run, states=(state,)))
            tx.append(ended(run, outputs=(listed,)))
        self.repo.find().pin(run, commit)
        if not kept:
            self.repo.git("reset", "-q", "--hard", "HEAD~1")
        self.runs.append(run)
        return run

    def configure(self, text: str) -> None:
        """Write ``mirror.toml``."""
        file = self.cli.home / "config" / "mirror.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o600)

    def now(self, status: int = 0) -> list[dict[str, Any]]:
        """Mirror now."""
        rows: list[dict[str, Any]] = self.cli.json("mirror", "now", status=status)["destinations"]
        return rows

    def status(self, status: int = 0) -> list[dict[str, Any]]:
        """Return how the mirrors stand."""
        document = self.cli.json("mirror", "status", status=status)
        rows: list[dict[str, Any]] = document["destinations"]
        return rows

    def head(self) -> str:
        """Return the head of the local chain, as an anchor."""
        return self.cli("alerts", "--head").stdout.strip()


@pytest.fixture
def machine(repo: Repo, tmp_path: Path) -> Machine:
    """A machine with three runs on record, of which the second was discarded."""
    repo.commit({"train.py": "pass\n"}, "baseline")
    machine = Machine(repo, Cli(repo.path, tmp_path / "home"))
    machine.run()
    machine.run(kept=False)
    machine.run()
    return machine


@dataclass
class Destination:
    """A place to mirror to.

    Attributes:
        source: what ``restore`` is given.
        text: of ``mirror.toml``.
    """

    source: str
    text: str
    path: Path


def directory_at(path: Path, extra: str = "") -> Destination:
    """Return a directory as destination."""
    path.mkdir(exist_ok=True)
    text = f'[destination.disk]\ntype = "directory"\npath = "{path}"\n{extra}'
    return Destination(str(path), text, path)


def bare_at(path: Path, extra: str = "") -> Destination:
    """Return a bare git repository as destination."""
    subprocess.run(["git", "init", "-q", "--bare", str(path)], check=True)
    text = f'[destination.hub]\ntype = "git"\nurl = "{path}"\n{extra}'
    return Destination(str(path), text, path)


KINDS: dict[str, Callable[[Path], Destination]] = {"directory": directory_at, "git": bare_at}


@pytest.fixture(params=list(KINDS))
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> Destination:
    """Each kind of destination."""
    return KINDS[request.param](tmp_path / "destination")


def elsewhere(machine: Machine, tmp_path: Path, name: str = "elsewhere") -> Cli:
    """Return another machine: a fresh clone and another home."""
    clone = tmp_path / name / "clone"
    subprocess.run(["git", "clone", "-q", str(machine.repo.path), str(clone)], check=True)
    return Cli(clone, tmp_path / name / "home")


def refused(cli: Cli, source: str, *arguments: str, status: int = 125) -> str:
    """Restore, which must be refused and must leave nothing; return what was said."""
    said = cli("restore", source, *arguments, status=status).stderr
    assert not (cli.directory / ".git" / "sealrun").exists()
    listed = subprocess.run(
        ["git", "for-each-ref", "refs/sealrun"], cwd=cli.directory, capture_output=True, check=True
    )
    assert listed.stdout == b""
    assert not list(cli.home.rglob("ledger.sqlite"))
    return said


def test_every_row_is_there_again_on_another_machine(
    machine: Machine, destination: Destination, tmp_path: Path
) -> None:
    """Log, show, alerts, evidence, outputs, pins and the chain with its anchor come back."""
    machine.configure(destination.text)
    machine.now()
    (row,) = machine.status()
    assert (row["state"], row["events"], row["head"]) == ("whole", 12, machine.head())
    other = elsewhere(machine, tmp_path)
    found = other.json("restore", destination.source, "--anchor", machine.head())
    assert (found["runs"], found["events"], found["anchored"]) == (3, 12, True)
    assert found["head"] == machine.head()
    assert other.json("log") == machine.cli.json("log")
    for run in machine.runs:
        assert other.json("show", run) == machine.cli.json("show", run)
        assert other("logs", run).stdout == machine.cli("logs", run).stdout
    assert other.json("alerts") == machine.cli.json("alerts")
    said = other("alerts", "--verify-chain", "--anchor", machine.head()).stderr
    assert "continues the anchor's" in said
    for file in (machine.cli.home / "state/repositories").rglob("*"):
        twin = (
            other.home
            / "state/repositories"
            / file.relative_to(machine.cli.home / "state/repositories")
        )
        if file.is_file() and not file.name.startswith(("ledger.sqlite", "lock")):
            assert twin.read_bytes() == file.read_bytes()
    shown = subprocess.run(
        ["git", "show", f"refs/sealrun/runs/{machine.runs[1]}:train.py"],
        cwd=other.directory,
        capture_output=True,
        check=True,
    )
    assert machine.runs[1].encode() in shown.stdout


_UNUSED = (json, secrets, shutil, signal, sys, time, Head, Segment, blob_of, encode)
