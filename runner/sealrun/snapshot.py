"""A commit of the working directory as it is, without touching HEAD, index or files.

Rules that this module keeps:

- What is sealed is tracked files and untracked ones that git does not ignore, raw: no clean filter
  runs.
- Everything is read and hashed twice; a file that changed in between refuses the snapshot, because
  nobody could say which state was meant.
- The commit stands under ``refs/sealrun/snapshots/`` and nowhere else.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import Refused, RepositoryError
from sealrun.git import SNAPSHOT_REFS
from sealrun.tree import EXECUTABLE, FILE, SYMLINK, blob_id
from sealrun.workspace import open_directory

if TYPE_CHECKING:
    from sealrun.git import Repository

#: Bytes of one file that a snapshot takes; datasets and checkpoints belong outside the repository.
FILE_LIMIT = 100 << 20

_IDENTITY = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER")
    for key, value in (("NAME", "sealrun snapshot"), ("EMAIL", "snapshot@sealrun.invalid"))
}


def take(repository: Repository) -> str:
    """Commit the working directory as it is; return the commit's id.

    Raises:
        Refused: a file changed while it was read, or cannot be taken.
        RepositoryError: there is nothing to take.
    """
    git = repository.git
    listed = git.run("ls-files", "--cached", "--others", "--exclude-standard", "-z")
    paths = sorted({path for path in listed.split(b"\0") if path})
    first = _read_all(repository, paths, write=True)
    if first != _read_all(repository, paths, write=False):
        raise Refused(
            "the working directory changed while the snapshot was taken",
            hint="Wait until nothing writes there any more, and run again.",
        )
    if not first:
        raise RepositoryError(f"{repository.workspace} holds no file to take a snapshot of")
    with tempfile.TemporaryDirectory(prefix="sealrun-") as scratch:
        extra = {"GIT_INDEX_FILE": str(Path(scratch) / "index"), **_IDENTITY}
        lines = b"".join(
            b"%o %s\t%s\0" % (mode, oid.encode(), path) for path, (mode, oid) in first.items()
        )
        git.run("update-index", "-z", "--index-info", stdin=lines, extra=extra)
        tree = git.run("write-tree", extra=extra).strip().decode()
        head = git.attempt("rev-parse", "--verify", "--quiet", "HEAD^{commit}")[1].strip().decode()
        parents = ("-p", head) if head else ()
        commit = git.run("commit-tree", tree, *parents, stdin=b"sealrun snapshot\n", extra=extra)
    oid = commit.strip().decode()
    git.run("update-ref", "--no-deref", f"{SNAPSHOT_REFS}{oid}", oid)
    return oid


def _read_all(
    repository: Repository, paths: list[bytes], *, write: bool
) -> dict[bytes, tuple[int, str]]:
    found: dict[bytes, tuple[int, str]] = {}
    root = os.open(repository.workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in paths:
            entry = _read(root, path)
            if entry is None:
                continue
            mode, content = entry
            found[path] = (mode, blob_id(content, repository.algorithm))
            if write:
                repository.git.run("hash-object", "-w", "--no-filters", "--stdin", stdin=content)
    finally:
        os.close(root)
    return found


def _read(root: int, path: bytes) -> tuple[int, bytes] | None:
    name = path.decode("utf-8", "backslashreplace")
    parent, _, last = path.rpartition(b"/")
    try:
        directory = open_directory(root, parent)
    except OSError:
        return None
    try:
        status = os.stat(last, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            return SYMLINK, os.readlink(last, dir_fd=directory)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(
                f"{name} is no regular file",
                hint="Add it to .gitignore, or remove it.",
            )
        if status.st_size > FILE_LIMIT:
            raise Refused(
                f"{name} is larger than {FILE_LIMIT >> 20} MiB",
                hint="Add it to .gitignore; data belongs into a data mount.",
            )
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(last, flags, dir_fd=directory), "rb") as file:
            content = file.read(FILE_LIMIT + 1)
        return (EXECUTABLE if status.st_mode & 0o100 else FILE), content
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"{name} cannot be read: {error.strerror}") from error
    finally:
        os.close(directory)
