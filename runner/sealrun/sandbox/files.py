"""Reads the files of a container, where every name, link, size and type is hostile.

Rules that this module keeps:

- No link of the container's is ever followed: each directory is opened by its name relative to its
  parent's descriptor, with ``O_NOFOLLOW``, and each file is checked again after it was opened.
- Nothing is opened that could block or act: ``O_NONBLOCK``, and regular files alone.
- No other file system is entered: a mount shows as ``other``.
- Depth, number and size are bounded.
- Paths are bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import sys
import tarfile
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, cast

from sealrun.errors import SandboxError, StorageFault
from sealrun.sandbox.protocol import FileState

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from io import BufferedRandom
    from pathlib import Path

_CHUNK = 1 << 20
#: Directories below one another. No sane tree comes near; each costs a descriptor.
MAX_DEPTH = 200
#: New files that one collection takes.
MAX_FILES = 1_000_000
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def open_directory(root: Path, directory: str) -> int:
    """Open a directory of a container's root without following links below the root.

    Args:
        root: ``/proc/PID/root`` or another directory.
        directory: absolute, as the container sees it.

    Returns:
        A descriptor; the caller closes it.

    Raises:
        SandboxError: it is not there, or a part of its path is not a plain directory.
    """
    # /proc/PID/root is a link of the kernel's and has to be followed.
    current = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in directory.strip("/").split("/"):
        if part in ("", "."):
            continue
        try:
            following = os.open(part, _OPEN_DIRECTORY, dir_fd=current)
        except OSError as error:
            raise SandboxError(
                f"{directory} is not a plain directory in the container: {error.strerror}"
            ) from error
        finally:
            os.close(current)
        current = following
    return current


@dataclass(frozen=True)
class _Found:
    """A file in the midst of a walk, with the descriptor of the directory that holds it."""

    path: bytes
    name: bytes
    parent: int
    status: os.stat_result
    entered: bool


def _walk(top: int) -> Iterator[_Found]:
    """Walk below a directory; parents before children, names in byte order.

    The descriptors belong to the walk; ``parent`` is valid until the next step.
    """
    device = os.fstat(top).st_dev
    stack: list[tuple[int, bytes, Iterator[bytes]]] = [(os.dup(top), b"", _names(top))]
    try:
        while stack:
            directory, prefix, names = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                os.close(directory)
                continue
            try:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue
            path = prefix + name
            child = None
            if stat.S_ISDIR(status.st_mode) and status.st_dev == device and len(stack) < MAX_DEPTH:
                with contextlib.suppress(OSError):
                    child = os.open(name, _OPEN_DIRECTORY, dir_fd=directory)
            if child is not None:
                stack.append((child, path + b"/", _names(child)))
            yield _Found(path, name, directory, status, child is not None)
    finally:
        for directory, _, _ in stack:
            os.close(directory)


def _names(directory: int) -> Iterator[bytes]:
    return iter(sorted(os.fsencode(name) for name in os.listdir(directory)))


def list_files(top: int, largest: int | None = None) -> Iterator[FileState]:
    """List everything below an open directory.

    Args:
        top: descriptor; it stays the caller's.
        largest: bytes above which a file is not hashed (a sparse file costs its maker nothing).

    Yields:
        One state a file, parents first. ``sha256`` is None where a file could not be read or was
        not to be hashed.
    """
    for found in _walk(top):
        yield _state(found, largest)


def _state(found: _Found, largest: int | None) -> FileState:
    status = found.status
    mode = stat.S_IMODE(status.st_mode)
    if found.entered:
        return FileState(found.path, "directory", mode, 0, None)
    if stat.S_ISLNK(status.st_mode):
        digest = None
        with contextlib.suppress(OSError):
            digest = hashlib.sha256(os.readlink(found.name, dir_fd=found.parent)).hexdigest()
        return FileState(found.path, "symlink", mode, status.st_size, digest)
    if not stat.S_ISREG(status.st_mode):
        return FileState(found.path, "other", mode, status.st_size, None)
    digest = None
    if largest is None or status.st_size <= largest:
        with contextlib.suppress(OSError):
            digest = _hash(found)
    return FileState(found.path, "file", mode, status.st_size, digest)


def _open_regular(found: _Found) -> int:
    descriptor = os.open(found.name, _OPEN_FILE, dir_fd=found.parent)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no longer a regular file")
    return descriptor


def _hash(found: _Found) -> str:
    with os.fdopen(_open_regular(found), "rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def allocated(top: int) -> int:
    """Return the bytes that a directory takes on disk; the largest integer when it is too deep.

    A file that was removed while a process has it open is not seen.
    """
    total = 0
    for found in _walk(top):
        if stat.S_ISDIR(found.status.st_mode) and not found.entered:
            if found.path.count(b"/") + 1 >= MAX_DEPTH:
                return sys.maxsize
            continue
        total += found.status.st_blocks * 512
    return total


class Budget:
    """Bytes that may still be copied."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._left = limit
        self._files = 0

    def take(self, amount: int) -> None:
        """Count bytes.

        Raises:
            SandboxError: there are more than allowed.
        """
        self._left -= amount
        if self._left < 0:
            raise SandboxError(
                f"the experiment left more than {self.limit} bytes of new files",
                hint="Write less, or raise the policy's sandbox.outputs.",
            )

    def take_file(self) -> None:
        """Count a file.

        Raises:
            SandboxError: there are more than allowed.
        """
        self._files += 1
        if self._files > MAX_FILES:
            raise SandboxError(f"the experiment left more than {MAX_FILES} new files")


def copy_new(top: int, owner: int, into: Path, limit: int) -> list[FileState]:
    """Copy what one user made below an open directory.

    What the image brought belongs to root, and the experiment can neither give files away nor take
    them (no capability): so what belongs to its uid is new.

    Args:
        top: descriptor of the directory; it stays the caller's.
        owner: uid of the experiment as this host sees it.
        into: directory of ours, made if missing; nobody else writes into it.
        limit: bytes of content in all; holes count nothing.

    Returns:
        What was found. Only plain files and directories are copied; ``sha256`` of a file is None
        when it could not be.

    Raises:
        SandboxError: more than ``limit`` bytes, or too many files; what was copied stays.
        StorageFault: it cannot be written.
    """
    budget = Budget(limit)
    states: list[FileState] = []
    with _writing(into):
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        for found in _walk(top):
            if found.status.st_uid != owner:
                continue
            budget.take_file()
            state = _state(found, largest=-1)
            if found.entered:
                _place(into, found.path).mkdir(mode=0o700, parents=True, exist_ok=True)
            elif state.kind == "file":
                state = FileState(
                    state.path, "file", state.mode, state.size, _copy(found, into, budget)
                )
            states.append(state)
    return states


def _copy(found: _Found, into: Path, budget: Budget) -> str | None:
    try:
        source = _open_regular(found)
    except OSError:
        return None
    try:
        size = os.fstat(source).st_size
        with _create(into, found.path, found.status.st_mode) as target:
            for start, end in _extents(source, size):
                offset = start
                while offset < end:
                    part = os.pread(source, min(_CHUNK, end - offset), offset)
                    if not part:
                        break
                    budget.take(len(part))
                    target.seek(offset)
                    target.write(part)
                    offset += len(part)
            target.truncate(size)
            if size > budget.limit:
                # Holes beyond measure: reading them back would take its time for nothing.
                return None
            target.seek(0)
            return hashlib.file_digest(target, "sha256").hexdigest()
    finally:
        os.close(source)


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file that hold data (lseek(2), SEEK_DATA)."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here on
                return
            start = offset
        try:
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError:
            end = size
        if start >= size:
            return
        yield start, min(end, size)
        offset = max(end, start + 1)


def _place(into: Path, path: bytes) -> Path:
    return into / os.fsdecode(path)


def _create(into: Path, path: bytes, mode: int) -> BufferedRandom:
    target = _place(into, path)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(target, flags, 0o600 | (mode & 0o100)), "w+b")


@contextlib.contextmanager
def _writing(into: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFault(
            f"cannot copy the outputs of a container to {into}: {error.strerror or error}",
            hint="Free space where sealrun keeps its state, or set SEALRUN_HOME to another place.",
        ) from error


class _Chunks:
    """A readable stream made of chunks."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._left = b""

    def read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            if not self._left:
                self._left = next(self._chunks, b"")
                if not self._left:
                    break
            part, self._left = self._left[:size], self._left[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _members(
    chunks: Iterable[bytes],
) -> Iterator[tuple[bytes, tarfile.TarInfo, IO[bytes] | None]]:
    """Yield path below the archive's first directory, header, and content of regular files."""
    stream = cast("IO[bytes]", _Chunks(chunks))
    try:
        with tarfile.open(
            mode="r|", fileobj=stream, encoding="utf-8", errors="surrogateescape"
        ) as archive:
            for member in archive:
                parts = member.name.encode("utf-8", "surrogateescape").split(b"/")
                path = b"/".join(part for part in parts[1:] if part != b".")
                if path:
                    yield path, member, archive.extractfile(member) if member.isreg() else None
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise SandboxError(f"the engine sent an unreadable archive: {error}") from error


def list_archive(chunks: Iterable[bytes], largest: int | None = None) -> Iterator[FileState]:
    """List what an engine's archive of one directory holds (see ``list_files``).

    Raises:
        SandboxError: it is not a tar archive.
    """
    known: dict[bytes, tuple[int, str | None]] = {}
    top: bytes | None = None
    for path, member, content in _members(chunks):
        top = top or member.name.encode("utf-8", "surrogateescape").split(b"/")[0] + b"/"
        if content is not None:
            wanted = largest is None or member.size <= largest
            known[path] = member.size, _drain(content, None) if wanted else None
            yield FileState(path, "file", member.mode & 0o7777, *known[path])
        elif member.islnk():
            # The second name of a file that came before; its entry carries no size.
            first = member.linkname.encode("utf-8", "surrogateescape").removeprefix(top)
            yield FileState(path, "file", member.mode & 0o7777, *known.get(first, (0, None)))
        elif member.issym():
            target = member.linkname.encode("utf-8", "surrogateescape")
            digest = hashlib.sha256(target).hexdigest()
            yield FileState(path, "symlink", member.mode & 0o7777, len(target), digest)
        else:
            kind = "directory" if member.isdir() else "other"
            yield FileState(path, kind, member.mode & 0o7777, 0, None)


def copy_archive(chunks: Iterable[bytes], owner: int, into: Path, limit: int) -> list[FileState]:
    """Copy what one user made out of an engine's archive of a directory (see ``copy_new``).

    Raises:
        SandboxError: more than ``limit`` bytes, too many files, or not a tar archive.
        StorageFault: it cannot be written.
    """
    budget = Budget(limit)
    states: list[FileState] = []
    with _writing(into):
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, member, content in _members(chunks):
            if member.uid != owner:
                continue
            budget.take_file()
            mode, digest = member.mode & 0o7777, None
            kind = "directory" if member.isdir() else "symlink" if member.issym() else "other"
            plain = not any(part in (b"", b"..") for part in path.split(b"/"))
            if member.isdir() and plain:
                _place(into, path).mkdir(mode=0o700, parents=True, exist_ok=True)
            elif content is not None and plain:
                kind = "file"
                with _create(into, path, mode) as target:
                    digest = _drain(content, partial(_keep, target, budget))
            states.append(FileState(path, kind, mode, member.size, digest))
    return states


def _keep(target: IO[bytes], budget: Budget, part: bytes) -> None:
    budget.take(len(part))
    target.write(part)


def _drain(content: IO[bytes], each: Callable[[bytes], None] | None) -> str:
    digest = hashlib.sha256()
    while part := content.read(_CHUNK):
        digest.update(part)
        if each is not None:
            each(part)
    return digest.hexdigest()
