"""The kernel's fanotify, which says *who* touched a file: a binding through ctypes.

Rules that this module keeps:

- Only events that a change makes are asked for; reads never are.
- Directories are marked one by one (``EVENT_ON_CHILD``): what happens elsewhere on the file system
  costs neither us nor its writer anything.
- A file descriptor that the kernel puts into an event (a pidfd) is the caller's to close; ``parse``
  leaves none out.
- Without the privilege nothing fails: ``open_group`` says why there is no group.

Constants and layouts are those of fanotify_init(2), fanotify_mark(2), fanotify(7) and
name_to_handle_at(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MODIFY, ATTRIBUTE, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
OVERFLOW, DIRECTORY = 0x4000, 0x40000000
_ON_CHILD = 0x08000000
CHANGES = (
    MODIFY
    | ATTRIBUTE
    | CLOSE_WRITE
    | MOVED_FROM
    | MOVED_TO
    | CREATE
    | DELETE
    | DIRECTORY
    | _ON_CHILD
)

_CLOEXEC, _NONBLOCK, _UNLIMITED_MARKS = 0x1, 0x2, 0x20
_REPORT_PIDFD, _REPORT_DIR_FID, _REPORT_NAME = 0x80, 0x400, 0x800
_ADD, _REMOVE, _DONT_FOLLOW, _ONLYDIR = 0x1, 0x2, 0x4, 0x8
_AT_HANDLE_FID = 0x200
_MAX_HANDLE = 128
#: event_len, vers, reserved, metadata_len, mask, fd, pid.
_METADATA = struct.Struct("=IBBHQii")
#: info_type, pad, len.
_INFO = struct.Struct("=BBH")
#: handle_bytes, handle_type.
_HANDLE = struct.Struct("=Ii")
_DFID_NAME, _PIDFD = 2, 4
#: FAN_NOPIDFD: the process had ended when the event was read.
ENDED = -1
_FSID = 8
#: No event needs more bytes: a handle, a name (NAME_MAX and its end, padded) and a pidfd.
LARGEST = 1 << 10

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Touch:
    """One fanotify event.

    Attributes:
        directory: names the directory as ``key_of`` does; empty for an overflow.
        name: of the entry; ``.`` for the directory itself.
        mask: what happened; several things, where the kernel merged them.
        pid: of the process, in our pid namespace; 0 where it has none there.
        pidfd: refers to that process; ``ENDED`` where it had ended already; None where the kernel
            gives none.
    """

    directory: bytes
    name: bytes
    mask: int
    pid: int
    pidfd: int | None


def open_group() -> int:
    """Open a group that reports directory, name and process of each event.

    Returns:
        A descriptor, closed on exec, which never blocks.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN, ENOSYS or EINVAL where the kernel cannot do it.
    """
    wanted = _CLOEXEC | _NONBLOCK | _UNLIMITED_MARKS | _REPORT_DIR_FID | _REPORT_NAME
    for flags in (wanted | _REPORT_PIDFD, wanted):
        fd = int(_libc.fanotify_init(ctypes.c_uint(flags), ctypes.c_uint(os.O_RDONLY)))
        if fd >= 0:
            return fd
        if ctypes.get_errno() != errno.EINVAL:  # before Linux 5.15 there were no pidfds
            break
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def mark(group: int, directory: bytes) -> bytes:
    """Ask for the changes in a directory.

    Returns:
        The directory's key, as events have it.

    Raises:
        OSError: it is no directory any more, or its file system has no handles.
    """
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _mark(group, _ADD, fd)
        return _key(fd)
    finally:
        os.close(fd)


def keys_along(directory: bytes) -> dict[bytes, bytes]:
    """Return the key of a directory and of each above it, by path.

    One that is a link, or below one, is left out, as what does not exist is. One whose file system
    has no handles has an empty key.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    found: dict[bytes, bytes] = {}
    at, fd = b"", os.open(b"/", flags)
    try:
        for name in directory.split(b"/")[1:]:
            try:
                below = os.open(name, flags, dir_fd=fd)
            except OSError:
                break
            os.close(fd)
            at, fd = at + b"/" + name, below
            try:
                found[at] = _key(fd)
            except OSError:
                found[at] = b""
    finally:
        os.close(fd)
    return found


def unmark(group: int, directory: bytes, key: bytes) -> None:
    """Stop asking, where the directory of that key still stands at its path.

    Raises:
        OSError: it does not, or was not marked.
    """
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if _key(fd) == key:
            _mark(group, _REMOVE, fd)
    finally:
        os.close(fd)


def _mark(group: int, action: int, directory: int) -> None:
    done = _libc.fanotify_mark(
        group,
        ctypes.c_uint(action | _ONLYDIR | _DONT_FOLLOW),
        ctypes.c_uint64(CHANGES),
        directory,
        b".",
    )
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _key(directory: int) -> bytes:
    """Return what events name a directory by: its file system's id and its handle."""
    handle = ctypes.create_string_buffer(_HANDLE.size + _MAX_HANDLE)
    mount = ctypes.c_int()
    for flags in (0, _AT_HANDLE_FID):  # some file systems have handles for this purpose only
        _HANDLE.pack_into(handle, 0, _MAX_HANDLE, 0)
        done = _libc.name_to_handle_at(directory, b".", handle, ctypes.byref(mount), flags)
        if done == 0:
            length, _ = _HANDLE.unpack_from(handle)
            fsid = os.fstatvfs(directory).f_fsid.to_bytes(_FSID, "little")
            return fsid + handle.raw[: _HANDLE.size + length]
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def parse(buffer: bytes) -> Iterator[Touch]:
    """Yield the events of one read; an event of no directory of ours is left to the caller."""
    at = 0
    while at + _METADATA.size <= len(buffer):
        length, _, _, header, mask, _, pid = _METADATA.unpack_from(buffer, at)
        if length < _METADATA.size or at + length > len(buffer):
            return
        directory, name = b"", b""
        pidfd: int | None = None
        place, end = at + header, at + length
        while place + _INFO.size <= end:
            kind, _, size = _INFO.unpack_from(buffer, place)
            if size < _INFO.size:
                break
            if kind == _DFID_NAME:
                directory, name = _directory(buffer, place + _INFO.size, place + size)
            elif kind == _PIDFD:
                number = int(struct.unpack_from("=i", buffer, place + _INFO.size)[0])
                pidfd = number if number >= ENDED else None
            place += size
        yield Touch(directory, name, mask, pid, pidfd)
        at += length


def _directory(buffer: bytes, start: int, end: int) -> tuple[bytes, bytes]:
    length, _ = _HANDLE.unpack_from(buffer, start + _FSID)
    name = start + _FSID + _HANDLE.size + length
    return buffer[start:name], buffer[name:end].split(b"\0", 1)[0]
