"""Reads what stands at a path now, without being led elsewhere.

Rules that this module keeps:

- Each component below the root is opened with ``O_NOFOLLOW``: a directory swapped for a link is
  found as such and never followed.
- Special files are never opened, nothing blocks (``O_NONBLOCK``), and what was opened is checked
  with ``fstat``: between a look and an open the name may have changed.
- Memory is bounded: content above ``HEAD`` bytes is hashed in a stream, its beginning is kept.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from sealrun.guard.manifest import EXECUTABLE, FILE, LINK

if TYPE_CHECKING:
    from types import TracebackType

    from sealrun.guard.manifest import Guarded, Manifest

#: Bytes of a file that are kept as evidence.
HEAD = 1 << 20
_CHUNK = 1 << 20
#: Directory descriptors held open within one batch.
_HELD = 64

Identity = tuple[int, int, int, int, int, int]


class RootGone(Exception):
    """The guarded directory does not stand at its path any more."""


@dataclass(frozen=True)
class Found:
    """What stands at a path.

    Attributes:
        kind: ``file``, ``link``, ``missing``, ``directory``, ``special``, ``unreadable``, or
            ``detoured`` where a parent is no directory any more but a link or a file.
        mode: git's mode; 0 where git has none.
        digest: in the manifest's algorithm; empty for anything without content.
        sha256: of the content; empty where ``digest`` is the expected one.
        head: the first ``HEAD`` bytes, where ``sha256`` is given.
        torn: the file changed while it was read; another event will follow.
        identity: of what was looked at; None where nothing stood there or it could not be read.
    """

    kind: str
    mode: int = 0
    size: int = 0
    digest: str = ""
    sha256: str = ""
    head: bytes = b""
    links: int = 1
    torn: bool = False
    identity: Identity | None = None


MISSING = Found("missing")


def identity(status: os.stat_result) -> Identity:
    """Return what changes whenever a file's content or inode does, clocks permitting."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_mode,
    )


class Looker:
    """Looks at many paths below one root; a context manager that holds directories open."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._held: OrderedDict[bytes, int] = OrderedDict()
        try:
            self._top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise RootGone(os.fsdecode(root)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for fd in self._held.values():
            os.close(fd)
        os.close(self._top)

    def status(self, path: bytes) -> os.stat_result | None:
        """Return the status of what stands at a path itself; None where nothing does."""
        directory, _, name = path.rpartition(b"/")
        try:
            return os.stat(name, dir_fd=self._directory(directory), follow_symlinks=False)
        except OSError:
            return None

    def look(self, path: bytes, manifest: Manifest, expected: Guarded | None) -> Found:
        """Read what stands at a path.

        Args:
            path: relative to the root.
            manifest: says what kind of digest to take.
            expected: where the content has its digest, no evidence is taken.
        """
        directory, _, name = path.rpartition(b"/")
        try:
            parent = self._directory(directory)
        except FileNotFoundError:
            return MISSING
        except OSError as error:
            return Found("unreadable" if isinstance(error, PermissionError) else "detoured")
        try:
            return self._read(parent, name, manifest, expected)
        except FileNotFoundError:
            return MISSING
        except OSError:
            return Found("unreadable")

    def _read(
        self, parent: int, name: bytes, manifest: Manifest, expected: Guarded | None
    ) -> Found:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(name, dir_fd=parent)
            found = _hashed(target, LINK, status.st_nlink, manifest, expected)
            return replace(found, identity=identity(status))
        if stat.S_ISDIR(status.st_mode):
            return Found("directory", identity=identity(status))
        if not stat.S_ISREG(status.st_mode):
            return Found("special", identity=identity(status))
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent
        )
        try:
            return _file(fd, manifest, expected)
        finally:
            os.close(fd)

    def _directory(self, path: bytes) -> int:
        if not path:
            return self._top
        held = self._held.get(path)
        if held is not None:
            self._held.move_to_end(path)
            return held
        parent, _, name = path.rpartition(b"/")
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=self._directory(parent))
        self._held[path] = fd
        if len(self._held) > _HELD:
            os.close(self._held.popitem(last=False)[1])
        return fd


def _file(fd: int, manifest: Manifest, expected: Guarded | None) -> Found:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return Found("special")
    mode = EXECUTABLE if status.st_mode & stat.S_IXUSR else FILE
    if status.st_size <= HEAD:
        data = _upto(fd, status.st_size)
        found = _hashed(data, mode, status.st_nlink, manifest, expected)
    else:
        found = _streamed(fd, status, mode, manifest, expected)
    after = os.fstat(fd)
    if identity(after)[:5] != identity(status)[:5]:
        return replace(found, torn=True, identity=identity(after))
    return replace(found, identity=identity(after))


def _upto(fd: int, size: int) -> bytes:
    parts: list[bytes] = []
    left = size + 1
    while left > 0 and (part := os.read(fd, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)[:HEAD]


def _hashed(
    data: bytes, mode: int, links: int, manifest: Manifest, expected: Guarded | None
) -> Found:
    kind = "link" if mode == LINK else "file"
    hasher = manifest.hasher(len(data))
    hasher.update(data)
    digest = hasher.hexdigest()
    if expected is not None and digest == expected.digest:
        return Found(kind, mode, len(data), digest, links=links)
    return Found(kind, mode, len(data), digest, hashlib.sha256(data).hexdigest(), data, links=links)


def _streamed(
    fd: int, status: os.stat_result, mode: int, manifest: Manifest, expected: Guarded | None
) -> Found:
    hasher, plain = manifest.hasher(status.st_size), hashlib.sha256()
    same = expected is not None and expected.size == status.st_size
    head, size = b"", 0
    while chunk := os.read(fd, _CHUNK):
        head = head or chunk
        size += len(chunk)
        hasher.update(chunk)
        plain.update(chunk)
    digest = hasher.hexdigest()
    if same and expected is not None and digest == expected.digest:
        return Found("file", mode, size, digest, links=status.st_nlink)
    return Found("file", mode, size, digest, plain.hexdigest(), head[:HEAD], links=status.st_nlink)
