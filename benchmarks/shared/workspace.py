"""Committed workspaces of many small files, and a guard that is armed over one.

Rules: files come from git itself (a packed commit, checked out), so that 100,000 of them take
seconds; nothing outside the given directory is touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.guard import GuardClient, ensure, write_manifest
from sealrun.state import Places

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

#: Files that one directory holds.
FULL = 20


@dataclass(frozen=True)
class Listed:
    """One tree entry."""

    path: bytes
    mode: int
    oid: str
    size: int


def make(work: Path, files: int) -> list[Listed]:
    """Make a repository of small files with one commit; return what it holds."""
    subprocess.run(["git", "init", "-q", "-b", "main", work], check=True)
    listed: list[Listed] = []
    stream = bytearray()
    changes = bytearray()
    for number in range(files):
        path = b"d%d/f%d.py" % (number // FULL, number % FULL)
        content = b"x = %012d\n" % number
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's
        listed.append(Listed(path, 0o100644, oid, len(content)))
        stream += b"blob\nmark :%d\ndata %d\n%s\n" % (number + 1, len(content), content)
        changes += b"M 100644 :%d %s\n" % (number + 1, path)
    stream += b"commit refs/heads/main\ncommitter b <b@example.invalid> 0 +0000\ndata 5\nbench\n"
    subprocess.run(
        ["git", "-C", work, "fast-import", "--quiet"], input=bytes(stream + changes), check=True
    )
    subprocess.run(["git", "-C", work, "reset", "-q", "--hard"], check=True)
    return listed


def places(home: Path) -> Places:
    """Return places of its own for one guard."""
    return Places(*(home / name for name in ("state", "data", "cache", "runtime")))


@contextlib.contextmanager
def guarded(work: Path, listed: list[Listed], home: Path) -> Generator[GuardClient]:
    """Start a guard over a workspace and arm the run ``run``; end the guard at the end."""
    home.mkdir(parents=True, exist_ok=True)
    write_manifest(home / "manifest", "sha1", listed)
    with ensure(work, places(home)) as guard:
        try:
            guard.arm("run", home / "manifest", home / "evidence")
            yield guard
        finally:
            guard.stop("benchmark", force=True)
