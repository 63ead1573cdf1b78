"""What a workspace is supposed to be: HEAD's committed tree, or what stood there at the start.

Rules that this module keeps:

- A commit's objects are re-hashed for each watch, into a spool of its own that is thrown away; git's
  word is never taken, nor that of an earlier call.
- What git's settings would have checked out counts (line endings, modes that mean nothing, what a
  sparse checkout left out).
- Where there is no commit, the first sight is what counts, and whoever asks is told.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.errors import RepositoryError, UsageError
from sealrun.git import Repository
from sealrun.guard.content import Looker
from sealrun.guard.manifest import Guarded, Manifest
from sealrun.importable import OUTPUTS
from sealrun.tree import Spool, read_commit
from sealrun.watch.inventory import Inventory, take
from sealrun.workspace import checked_out, replaced_objects

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Names that a loop writes while it works; without a commit nobody else says that they may change.
_WRITTEN = (b".log", b".out", b".err", b".pid", b".tsv", b".jsonl")
RAW = Manifest("raw-sha256", ())


@dataclass(frozen=True)
class Expected:
    """What is compared with what.

    Attributes:
        workspace: top of the working directory, resolved.
        manifest: every file that must be as it says.
        repository: where HEAD is; None without git.
        commit: whose tree it is; None where the state at the start counts.
        hidden: tracked paths that an index flag hid from git at the start.
        replaced: objects of the commit that replace refs hid at the start.
    """

    workspace: Path
    manifest: Manifest
    repository: Repository | None = None
    commit: str | None = None
    hidden: frozenset[bytes] = frozenset()
    replaced: tuple[str, ...] = ()


def of(directory: Path, scratch: Path) -> Expected:
    """Find out what a directory is supposed to be.

    Args:
        directory: inside a git working directory, whose top is then watched, or any other.
        scratch: private directory for the commit's objects; the caller removes it.

    Raises:
        UsageError: there is no such directory.
        ObjectCorrupt: an object of HEAD's commit is missing or does not hash to its id.
    """
    top = directory.resolve()
    if not top.is_dir():
        raise UsageError(f"{directory} is not a directory", hint="Name the directory to watch.")
    try:
        repository = Repository.find(top)
    except RepositoryError:
        return Expected(top, at_start(top))
    try:
        commit = repository.resolve()
    except RepositoryError:
        return Expected(repository.workspace, at_start(repository.workspace), repository)
    return of_commit(repository, commit, scratch)


def of_commit(repository: Repository, commit: str, scratch: Path) -> Expected:
    """Return what a commit wants the working directory to be.

    Raises:
        ObjectCorrupt: an object is missing or does not hash to its id.
    """
    spool = Spool(scratch, repository.algorithm)
    tree = read_commit(repository, commit, spool)
    flags = index_flags(repository)
    absent = _left_out(repository, flags)
    files = tuple(
        Guarded(entry.path, entry.mode, entry.size, entry.oid)
        for entry in checked_out(tree, repository)
        if entry.path not in absent
    )
    spool.close()
    return Expected(
        workspace=repository.workspace,
        manifest=Manifest(f"git-{tree.algorithm}", files),
        repository=repository,
        commit=commit,
        hidden=frozenset(flags) - absent,
        replaced=replaced_objects(repository, tree),
    )


def verify_objects(repository: Repository, commit: str, scratch: Path) -> None:
    """Hash a commit's objects as git has them now.

    Raises:
        ObjectCorrupt: one is missing or does not hash to its id.
    """
    spool = Spool(scratch, repository.algorithm)
    try:
        read_commit(repository, commit, spool)
    finally:
        spool.close()


def index_flags(repository: Repository) -> dict[bytes, bytes]:
    """Return the tracked paths that an index flag hides from git (git-ls-files(1), ``-v``).

    Returns:
        By path: the letter that git gives: lower case for assume-unchanged, ``S`` for skip-worktree.
    """
    status, output, _ = repository.git.attempt("ls-files", "-v", "-z")
    if status != 0:
        return {}
    lines = (line for line in output.split(b"\0") if line)
    return {line[2:]: line[:1] for line in lines if line[:1].islower() or line[:1] == b"S"}


def at_start(workspace: Path) -> Manifest:
    """Return what stands in a directory now, but for what a loop writes while it works."""
    root = os.fsencode(workspace)
    with Looker(root) as looker:
        files = tuple(sorted(_now(take(root), looker), key=lambda entry: entry.path))
    return Manifest(RAW.algorithm, files)


def guarded(path: bytes, looker: Looker) -> Guarded | None:
    """Return what stands at a path now as what should stand there; None for no file or link."""
    found = looker.look(path, RAW, None)
    if found.kind not in ("file", "link"):
        return None
    return Guarded(path, found.mode, found.size, found.sha256)


def _now(inventory: Inventory, looker: Looker) -> Iterator[Guarded]:
    for path in inventory.files:
        directory, _, name = path.rpartition(b"/")
        if name.endswith(_WRITTEN) or OUTPUTS & set(directory.split(b"/")):
            continue
        if directory.rpartition(b"/")[2] == b"__pycache__":
            continue
        entry = guarded(path, looker)
        if entry is not None:
            yield entry


def _left_out(repository: Repository, flags: dict[bytes, bytes]) -> frozenset[bytes]:
    """Return what a sparse checkout left out on purpose; the flag alone proves nothing."""
    sparse = repository.git.attempt("config", "--type=bool", "--get", "core.sparseCheckout")[1]
    if sparse.strip() != b"true":
        return frozenset()
    root = os.fsencode(repository.workspace)
    skipped = (path for path, flag in flags.items() if flag in (b"S", b"s"))
    return frozenset(path for path in skipped if not os.path.lexists(root + b"/" + path))
