"""A git working directory with a real guard over it, for the guard's tests."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from sealrun.errors import GuardError
from sealrun.guard import GuardClient, ensure, find, write_manifest
from sealrun.guard.client import LOCK
from sealrun.state import Places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sealrun.guard import Coverage, Mutation, Report

COMMITTED = {
    b"train.py": b"SCALAR_LR = 0.5\n",
    b"prepare.py": b"print('prepare')\n",
    b"pkg/__init__.py": b"",
    b"pkg/deep/model.py": b"WIDTH = 64\n",
    b"pkg/caf\xe9.py": b"x = 1\n",
}


@dataclass(frozen=True)
class Listed:
    """One tree entry, as ``sealrun.tree.Entry`` has it."""

    path: bytes
    mode: int
    oid: str
    size: int


@dataclass
class Site:
    """One workspace, its places, and the client that tests speak through."""

    root: Path
    places: Places
    manifest: Path
    evidence: Path
    entries: list[Listed] = field(default_factory=list[Listed])
    _client: GuardClient | None = None

    @property
    def guard(self) -> GuardClient:
        """A client of the guard, which starts at first use."""
        if self._client is None:
            self._client = ensure(self.root, self.places)
        return self._client

    def git(self, *arguments: str) -> bytes:
        """Run the user's git in the workspace."""
        name = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        done = subprocess.run(
            ["git", *name, *arguments], cwd=self.root, check=True, capture_output=True
        )
        return done.stdout

    def sh(self, script: str) -> str:
        """Run a shell script in the workspace, in a process of its own."""
        done = subprocess.run(
            ["bash", "-ec", script], cwd=self.root, check=True, capture_output=True, text=True
        )
        return done.stdout

    def python(self, script: str) -> None:
        """Run a Python script in the workspace, in a process of its own."""
        subprocess.run(["python3", "-Ic", script], cwd=self.root, check=True)

    def put(self, path: bytes, content: bytes, mode: int = 0o100644) -> None:
        """Write a file (or link) and list it in the manifest."""
        where = self.root / os.fsdecode(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        if mode == 0o120000:
            where.symlink_to(os.fsdecode(content))
        else:
            where.write_bytes(content)
            where.chmod(mode & 0o777)
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's
        self.entries.append(Listed(path, mode, oid, len(content)))

    def commit(self) -> None:
        """Commit everything and write the manifest of it."""
        self.git("add", "-A")
        self.git("commit", "-qm", "state")
        write_manifest(self.manifest, "sha1", self.entries)

    def arm(self, run_id: str = "run", extra: tuple[Path, ...] = ()) -> Coverage:
        """Arm a run with what is committed."""
        return self.guard.arm(run_id, self.manifest, self.evidence, extra)

    def drain(self) -> Report:
        """Drain the run."""
        return self.guard.drain("run")

    def only(self) -> Mutation:
        """Drain, and return the one mutation that there must be."""
        (mutation,) = self.drain().mutations
        return mutation


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A committed workspace; its guard is ended afterwards."""
    home = tmp_path / "home"
    places = Places(home / "state", home / "data", home / "cache", home / "runtime")
    made = Site(tmp_path / "work", places, tmp_path / "manifest", tmp_path / "evidence")
    made.root.mkdir()
    made.git("init", "-q", "-b", "main")
    for path, content in COMMITTED.items():
        made.put(path, content)
    made.put(b"tool.sh", b"#!/bin/sh\n", 0o100755)
    made.put(b"link", b"train.py", 0o120000)
    made.commit()
    yield made
    end(made.root, places)


def end(root: Path, places: Places) -> None:
    """End the guard of a workspace, if one runs."""
    with suppress(GuardError):
        client = find(root, places)
        if client is not None:
            client.stop("test", force=True)


def kill(pid: int, root: Path, places: Places) -> None:
    """Kill the guard of a workspace, and wait until another can begin."""
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: find(root, places) is None)
    with (places.guard(root.resolve()) / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
