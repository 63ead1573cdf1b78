"""Takes caches out of a directory that a container could write to.

Rules that this module keeps:

- What lies there is hostile: names are bytes, no link is followed, nothing is opened that could
  block or act, no other file system is entered.
- Only directories and regular files are taken; of their modes only whether a file is executable.
- All or nothing: beyond a bound nothing is kept, because half a cache may be a broken one. A hole
  counts as much as data, since it would be copied into every run.
- What is compiled from Python and found by the time, size or name of its file stays behind: in an
  image every file has one time, and another commit's code would run.
- Locks of compilers stay behind. Whoever held one is dead, and who finds it waits for ever
  (``FileBaton`` of torch.utils.cpp_extension).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.errors import StorageFault

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

#: Bounds of a seed: bytes, files and directories, levels, bytes of a path. Each run copies it.
MOST_BYTES, MOST_FILES, MOST_LEVELS, MOST_PATH = 2 << 30, 100_000, 40, 1000
_CHUNK = 1 << 20
_DIRECTORY_MODE = 0o755
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Bytecode; what Numba keeps, which does not see that a function in another file was changed
#: ("Notes on Caching", limitations).
_FOUND_BY_FILE = (b".pyc", b".nbi", b".nbc")
#: Times are put into files again; what lies beyond is no time of a file.
_EARLIEST, _LATEST = 0, 1 << 62


class Unkept(Exception):
    """Why nothing is kept, as a clause: the caller's to tell, and no trouble."""


@dataclass(frozen=True)
class Entry:
    """A file or directory of a seed.

    Attributes:
        path: below the seed's root; bytes as text, surrogates escaped.
        sha256: of a file's content; None for a directory.
        size: bytes.
        executable: whether a file may be executed.
        mtime: nanoseconds since the epoch: builders compare times.
    """

    path: str
    sha256: str | None = None
    size: int = 0
    executable: bool = False
    mtime: int = 0


@dataclass(frozen=True)
class Gathered:
    """What was taken.

    Attributes:
        entries: parents before children, names in byte order.
        skipped: how many links, devices, pipes, locks and the like stayed behind.
    """

    entries: tuple[Entry, ...]
    skipped: int

    @property
    def files(self) -> int:
        """How many files were taken."""
        return sum(1 for entry in self.entries if entry.sha256 is not None)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)


def gather(source: Path, into: Path) -> Gathered:
    """Copy what may be kept.

    Args:
        source: a directory in which nothing runs any more.
        into: an empty directory of ours, which nobody else writes to.

    Raises:
        Unkept: it is more, or deeper, than a seed may be.
        StorageFault: it cannot be written.
    """
    try:
        top = os.open(source, _DIRECTORY)
    except OSError as error:
        raise Unkept(f"its caches cannot be read: {error.strerror}") from error
    target = os.open(into, _DIRECTORY)
    try:
        return _Gathering(os.fstat(top).st_dev).all(top, target)
    except OSError as error:
        raise StorageFault(
            f"cannot keep caches in {into}: {error.strerror}",
            hint="Free space or fix its permissions, or set SEALRUN_HOME to another place.",
        ) from error
    finally:
        os.close(target)
        os.close(top)


class _Gathering:
    def __init__(self, device: int) -> None:
        self._device = device
        self._entries: list[Entry] = []
        self._left = MOST_BYTES
        self._skipped = 0

    def all(self, top: int, target: int) -> Gathered:
        self._directory(top, target, b"", 1)
        return Gathered(tuple(self._entries), self._skipped)

    def _directory(self, source: int, target: int, below: bytes, level: int) -> None:
        if level > MOST_LEVELS:
            raise Unkept(f"it left directories more than {MOST_LEVELS} levels deep")
        for name in _names(source):
            path = below + name
            if len(path) > MOST_PATH:
                raise Unkept(f"it left a path of more than {MOST_PATH} bytes")
            with _opened(source, name) as found:
                if found is None or os.fstat(found).st_dev != self._device:
                    self._skipped += 1
                    continue
                if len(self._entries) >= MOST_FILES:
                    raise Unkept(f"it left more than {MOST_FILES} files and directories")
                if stat.S_ISDIR(os.fstat(found).st_mode):
                    self._entries.append(Entry(os.fsdecode(path)))
                    os.mkdir(name, 0o700, dir_fd=target)
                    with _closing(os.open(name, _DIRECTORY, dir_fd=target)) as made:
                        os.fchmod(made, _DIRECTORY_MODE)
                        self._directory(found, made, path + b"/", level + 1)
                else:
                    self._file(found, target, name, path)

    def _file(self, source: int, target: int, name: bytes, path: bytes) -> None:
        status = os.fstat(source)
        is_lock = status.st_size == 0 and (name == b"lock" or name.endswith(b".lock"))
        if is_lock or name.endswith(_FOUND_BY_FILE):
            self._skipped += 1
            return
        if status.st_size > self._left:
            raise Unkept(f"it left more than {MOST_BYTES} bytes")
        executable = bool(status.st_mode & 0o111)
        mtime = min(max(status.st_mtime_ns, _EARLIEST), _LATEST)
        digest, size = hashlib.sha256(), 0
        with _closing(os.open(name, _NEW, 0o600, dir_fd=target)) as made:
            while part := os.read(source, _CHUNK):
                size += len(part)
                if size > self._left:
                    raise Unkept(f"it left more than {MOST_BYTES} bytes")
                digest.update(part)
                _write(made, part)
            os.fchmod(made, mode(executable=executable))
            os.utime(made, ns=(mtime, mtime))
            mtime = os.fstat(made).st_mtime_ns
        self._left -= size
        self._entries.append(Entry(os.fsdecode(path), digest.hexdigest(), size, executable, mtime))


def mode(*, executable: bool) -> int:
    """Return the permission bits of a seed's file: readable by all, writable by nobody."""
    return 0o555 if executable else 0o444


def difference(top: int, entries: Sequence[Entry]) -> str | None:
    """Compare a seed's own directory with what it has to hold, every byte and every name.

    Args:
        top: descriptor of the directory; it stays the caller's.

    Returns:
        The first difference, as a clause; None where there is none.
    """
    wanted = {entry.path: entry for entry in entries}
    try:
        found = _different(top, "", wanted)
    except OSError as error:
        return f"they cannot be read: {error.strerror}"
    if found is None and wanted:
        return f"{next(iter(wanted))!r} is missing"
    return found


def _different(top: int, below: str, wanted: dict[str, Entry]) -> str | None:
    for name in _names(top):
        path = below + os.fsdecode(name)
        entry = wanted.pop(path, None)
        if entry is None:
            return f"{path!r} was added"
        with _opened(top, name) as found:
            if found is None or not _is(found, entry):
                return f"{path!r} was changed"
            if entry.sha256 is None and (deeper := _different(found, path + "/", wanted)):
                return deeper
    return None


def _is(found: int, entry: Entry) -> bool:
    status = os.fstat(found)
    if entry.sha256 is None:
        return stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == _DIRECTORY_MODE
    as_kept = (mode(executable=entry.executable), entry.size, entry.mtime)
    # First what costs nothing: somebody's hole may be as large as a file can be.
    if (stat.S_IMODE(status.st_mode), status.st_size, status.st_mtime_ns) != as_kept:
        return False
    with os.fdopen(os.dup(found), "rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == entry.sha256


def _names(directory: int) -> list[bytes]:
    return sorted(os.fsencode(name) for name in os.listdir(directory))


@contextlib.contextmanager
def _opened(parent: int, name: bytes) -> Generator[int | None]:
    """Open a directory or regular file without following a link; None for whatever else it is."""
    handle = None
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        # A device may act on being opened.
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            flags = _DIRECTORY if stat.S_ISDIR(status.st_mode) else _FILE
            handle = os.open(name, flags, dir_fd=parent)
            if not os.path.samestat(os.fstat(handle), status):
                os.close(handle)
                handle = None
    except OSError:
        # Closed by its owner, or gone.
        handle = None
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def _closing(handle: int) -> Generator[int]:
    try:
        yield handle
    finally:
        os.close(handle)


def _write(handle: int, part: bytes) -> None:
    view = memoryview(part)
    while view:
        view = view[os.write(handle, view) :]
