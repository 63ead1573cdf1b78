"""A directory as destination: files named by their digests, and one head that is replaced.

Rules that this module keeps:

- A file appears under its name only when it is complete and on the disk; the head is replaced last,
  by a rename. A death at any moment leaves the old head or the new one.
- The directory itself is never made: a disk that is not mounted must not be written behind.
- Reading follows no link and takes only regular files; a FIFO holds nobody up.
- One machine writes one line; nobody else's files are touched.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from sealrun.mirror.format import HEAD_LIMIT, Damaged, is_line
from sealrun.mirror.line import TOP, Unreachable
from sealrun.mirror.packs import index_packs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sealrun.mirror.format import Blob
    from sealrun.mirror.line import Change, Piece

_HEAD = "head.json"
_DRAFT = ".draft-"
_PIECE = re.compile(r"[0-9a-f]{64}")


class DirectoryLine:
    """One line below a directory.

    Args:
        root: the destination, which has to exist.
        name: of the line.
    """

    carries_commits = False

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.directory = root / TOP / name
        self.name = name

    def head(self) -> bytes | None:
        """Return the bytes of the head; None where there is none."""
        if not self.root.is_dir():
            raise Unreachable(
                f"{self.root} is not there", hint="Mount the disk, or make the directory."
            )
        return _read(self.directory / _HEAD, HEAD_LIMIT + 1)

    def piece(self, folder: str, digest: str, limit: int) -> bytes:
        """Return a piece as it is stored."""
        found = _read(self.directory / folder / digest, limit + 1)
        if found is None:
            raise Damaged(f"{folder}/{digest[:12]} is missing in {self.directory}")
        if len(found) > limit:
            raise Damaged(f"{folder}/{digest[:12]} is larger than {limit} bytes")
        return found

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def unpack(self, repository: Path, packs: Sequence[tuple[int, Blob]]) -> None:
        """Bring the packs of segments into a bare repository of ours."""
        index_packs(self, repository, packs)

    def write(self, change: Change) -> None:
        """Write the pieces, then the head, then remove what it does not name any more."""
        try:
            if not self.root.is_dir():
                raise Unreachable(
                    f"{self.root} is not there", hint="Mount the disk, or make the directory."
                )
            for folder in change.keep:
                _make(self.directory / folder, self.root)
            self._sweep(self.directory)
            for folder in change.keep:
                self._sweep(self.directory / folder)
            for piece in change.pieces:
                self._put(piece)
            for folder in change.keep:
                _sync(self.directory / folder)
            _write(self.directory / _HEAD, change.head)
            _sync(self.directory)
            for folder, names in change.keep.items():
                self._prune(self.directory / folder, names)
        except OSError as error:
            raise _trouble(error, self.root) from error

    def _put(self, piece: Piece) -> None:
        target = self.directory / piece.folder / piece.digest
        with suppress(OSError):
            facts = target.lstat()
            if stat.S_ISREG(facts.st_mode) and facts.st_size == piece.size:
                return
        content = piece.load()
        if hashlib.sha256(content).hexdigest() != piece.digest:
            raise Unreachable(f"a file of {piece.folder} changed while it was mirrored")
        _write(target, content)

    @staticmethod
    def _sweep(directory: Path) -> None:
        """Remove the drafts of those that died: nobody else writes this line now."""
        for entry in directory.iterdir():
            if entry.name.startswith(_DRAFT):
                entry.unlink(missing_ok=True)

    @staticmethod
    def _prune(directory: Path, keep: frozenset[str]) -> None:
        for entry in directory.iterdir():
            if _PIECE.fullmatch(entry.name) and entry.name not in keep:
                with suppress(OSError):
                    entry.unlink()


def is_mirror(root: Path) -> bool:
    """Tell whether a directory holds a mirror."""
    return (root / TOP).is_dir()


def lines(root: Path) -> list[str]:
    """Return the names of the lines below a directory.

    Raises:
        Unreachable: it cannot be read.
    """
    found: list[str] = []
    try:
        for repository in sorted((root / TOP).iterdir()):
            if repository.is_dir() and not repository.is_symlink():
                found += [f"{repository.name}/{one.name}" for one in sorted(repository.iterdir())]
    except OSError as error:
        raise _trouble(error, root) from error
    return [name for name in found if is_line(name)]


def _make(directory: Path, root: Path) -> None:
    missing = [p for p in (directory, *directory.parents) if p.is_relative_to(root)]
    for one in reversed(missing):
        if one != root:
            one.mkdir(mode=0o700, exist_ok=True)


def _write(target: Path, content: bytes) -> None:
    draft = target.with_name(f"{_DRAFT}{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(draft, flags, 0o600)
    try:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.replace(target)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise


def _read(file: Path, limit: int) -> bytes | None:
    """Return at most so many bytes of a regular file; None where there is none."""
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        descriptor = os.open(file, flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
            raise Damaged(f"{file} is no regular file") from error
        raise _trouble(error, file) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Damaged(f"{file} is no regular file")
    with os.fdopen(descriptor, "rb") as stream:
        try:
            return stream.read(limit)
        except OSError as error:
            raise _trouble(error, file) from error


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _trouble(error: OSError, where: Path) -> Unreachable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unreachable(f"no space left in {where}", hint="Free space there.")
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else where
    return Unreachable(f"{place}: {error.strerror}", hint="Fix the disk or its permissions.")
