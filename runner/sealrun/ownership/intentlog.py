"""The log of intents: how it lies on the disk, how a hook appends to it, how it is read back.

Rules that this module keeps:

- An agent waits for its hook: only cheap parts of the standard library are imported here (a bare
  interpreter with ``json`` needs 15 ms; ``pathlib``, ``typing`` and ``dataclasses`` would add 10).
- No lock is waited for: a record is one ``write`` to a file opened with O_APPEND, which the kernel
  does not interleave (write(2)). Each record begins and ends with a line feed, so that one torn by
  a full disk spoils no other.
- It is bounded: a content above ``CONTENT_LIMIT`` is kept as its hash alone, and there are two
  generations; when the newer is full it becomes the older, and the older goes.
- What is read back is hostile: sizes are capped, links are not followed, a content counts only when
  it hashes to its name, a record that is no JSON object is skipped.
"""
# pathlib costs every hook 4 ms:
# ruff: noqa: PTH102, PTH104, PTH112, PTH116, PTH118, PTH120

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time

TYPE_CHECKING = False  # typing's own costs every hook 3 ms
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

#: Directory of the log, below the state directory of one repository (``Places.repository``).
DIRECTORY = "intents"
#: Where the state directory of a repository stands below the state root; see ``state.Places``.
REPOSITORIES = "repositories"
NEWER, OLDER = "current", "previous"
RECORDS = "intents.jsonl"
BLOBS = "blobs"
_USED = "used"

#: Bytes of one content that are kept; of a larger one only the hash.
CONTENT_LIMIT = 1 << 20
#: Bytes of records, and of contents, that fill a generation.
RECORDS_LIMIT = 4 << 20
BLOBS_LIMIT = 128 << 20
#: Contents are accounted in units of this many bytes: one byte of the file ``used`` each.
_UNIT = 4096
#: Bytes of one record: 64 observed paths of full length fit.
_RECORD_LIMIT = 512 << 10

#: The state of a path that holds no file.
ABSENT = "absent"


def directory_of(state: str, repository: str) -> str:
    """Return the log's directory of one repository below the state root."""
    return os.path.join(state, REPOSITORIES, repository, DIRECTORY)


class Journal:
    """The newer generation, open for appending.

    Args:
        directory: the log's directory; made, readable by its owner alone, when missing.

    Raises:
        OSError: it cannot be made or opened.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        _make(directory)
        _make(os.path.join(directory, NEWER, BLOBS))
        self._newer = self._open(NEWER)
        if self._full() and self._roll():
            os.close(self._newer)
            _make(os.path.join(directory, NEWER, BLOBS))
            self._newer = self._open(NEWER)
        self._blobs = os.open(BLOBS, _DIRECTORY, dir_fd=self._newer)

    def _open(self, name: str) -> int:
        return os.open(os.path.join(self._directory, name), _DIRECTORY)

    def keep(self, content: bytes) -> str:
        """Keep a content under its hash; return the SHA-256, hexadecimal."""
        name = hashlib.sha256(content).hexdigest()
        if len(content) > CONTENT_LIMIT:
            return name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            blob = os.open(name, flags, 0o600, dir_fd=self._blobs)
        except FileExistsError:
            if os.stat(name, dir_fd=self._blobs, follow_symlinks=False).st_size == len(content):
                return name
            # Torn by a full disk, once: made anew.
            os.unlink(name, dir_fd=self._blobs)
            blob = os.open(name, flags, 0o600, dir_fd=self._blobs)
        try:
            _write(blob, content)
        finally:
            os.close(blob)
        self._append(_USED, b"." * (len(content) // _UNIT + 1))
        return name

    def append(self, record: dict[str, Any]) -> None:
        """Append one record, with the time."""
        record = {"at": time.time(), "monotonic": time.monotonic(), **record}
        line = json.dumps(record, separators=(",", ":")).encode("ascii")
        if len(line) <= _RECORD_LIMIT:
            self._append(RECORDS, b"\n" + line + b"\n")

    def _append(self, name: str, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=self._newer)
        try:
            os.write(file, content)
        finally:
            os.close(file)

    def _size(self, name: str) -> int:
        try:
            return os.stat(name, dir_fd=self._newer, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0

    def _full(self) -> bool:
        return self._size(RECORDS) >= RECORDS_LIMIT or self._size(_USED) * _UNIT >= BLOBS_LIMIT

    def _roll(self) -> bool:
        """Make the newer generation the older one; false where another hook is at it."""
        lock = os.open(
            self._path("lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        waste = self._path(f"waste-{time.time_ns()}")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had the lock before us may have done it.
            if os.fstat(self._newer).st_ino == os.stat(self._path(NEWER)).st_ino:
                with _missing_is_fine():
                    os.rename(self._path(OLDER), waste)
                os.rename(self._path(NEWER), self._path(OLDER))
        except BlockingIOError:
            return False
        finally:
            # Before a process is forked, which would hold the lock as well.
            os.close(lock)
        if os.path.isdir(waste):
            _remove_later(waste)
        return True

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def close(self) -> None:
        """Close what is open."""
        os.close(self._blobs)
        os.close(self._newer)


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _missing_is_fine:  # noqa: N801 - contextlib.suppress, without importing contextlib
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> bool:
        return kind is not None and issubclass(kind, FileNotFoundError)


def _make(directory: str) -> None:
    if os.path.isdir(directory):
        return
    _make(os.path.dirname(directory))
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        if not os.path.isdir(directory):
            raise


def _write(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


def _remove_later(directory: str) -> None:
    """Remove a generation in a process of its own: thousands of files, and an agent waits."""
    if os.fork():
        return
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nowhere, descriptor)
        import shutil

        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os._exit(0)


def records(directory: str) -> Iterator[dict[str, Any]]:
    """Yield the records of both generations, oldest first; what is no record is skipped."""
    for generation in (OLDER, NEWER):
        # What a racing roll-over adds beyond the limit is read too, what a stranger adds is not.
        text = read_file(os.path.join(directory, generation, RECORDS), 2 * RECORDS_LIMIT)
        for line in (text or b"").split(b"\n"):
            record = _record(line)
            if record is not None:
                yield record


def last_records(directory: str, size: int) -> list[dict[str, Any]]:
    """Return the records in the last ``size`` bytes of the newer generation, oldest first."""
    text = read_file(os.path.join(directory, NEWER, RECORDS), size, last=True)
    found = (_record(line) for line in (text or b"").split(b"\n"))
    return [record for record in found if record is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    if not line or len(line) > _RECORD_LIMIT:
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def content(directory: str, name: str) -> bytes | None:
    """Return the content that hashes to ``name``; None where it was not kept or was changed."""
    if len(name) != 64 or not set(name) <= set("0123456789abcdef"):  # noqa: PLR2004 - SHA-256
        return None
    for generation in (NEWER, OLDER):
        found = read_file(os.path.join(directory, generation, BLOBS, name), CONTENT_LIMIT)
        if found is not None and hashlib.sha256(found).hexdigest() == name:
            return found
    return None


def read_file(path: str, limit: int, *, last: bool = False) -> bytes | None:
    """Return at most ``limit`` bytes of a regular file; None where there is none.

    Args:
        last: the last bytes instead of the first.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(file)
        if status.st_mode & 0o170000 != 0o100000:  # noqa: PLR2004 - S_IFREG; stat costs 1 ms
            return None
        at = max(0, status.st_size - limit) if last else 0
        parts: list[bytes] = []
        while limit > 0 and (part := os.pread(file, min(limit, 1 << 20), at)):
            parts.append(part)
            at += len(part)
            limit -= len(part)
        return b"".join(parts)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ESTALE):
            return None
        raise
    finally:
        os.close(file)
