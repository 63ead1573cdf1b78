"""Shows a file or directory of this host with another owner, without changing it.

Rules that this module keeps:

- The kernel does it (mount_setattr(2), ID-mapped mounts): a second mount of the same files, on
  which the ids of one owner and of the experiment's user are swapped. Nothing is copied.
- What is mounted below a directory is shown with it: an empty directory in its place would be half a
  data set that nobody misses.
- Such a mount is read-only from its first moment, without set-user-id and device files.
- It stands only while an engine takes it into a container. What a death left is removed by the next
  one that makes a container: a lock that nobody holds says so.
- Where the kernel, the file system or our privileges do not allow it, that is ``Unmappable``, and
  nothing was mounted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

from sealrun.errors import Fault
from sealrun.state import private
from sealrun.turns import turn

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

#: System calls, the same number on every architecture since Linux 5.1 (syscalls(2)).
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
#: From linux/fcntl.h, linux/mount.h and linux/sched.h.
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_RDONLY, _NOSUID, _NODEV, _IDMAP = 0x1, 0x2, 0x4, 0x00100000
_MS_PRIVATE, _MNT_DETACH = 1 << 18, 2
_CLONE_NEWUSER = 0x10000000
#: Ids are 32 bits wide, and the largest is none (user_namespaces(7)).
_IDS = 2**32 - 1
_SUFFIX = ".lock"


class Unmappable(Fault):
    """This machine cannot show files with another owner."""


def swapped(one: int, other: int) -> str:
    """Return a map of all ids in which two are swapped, as the kernel reads it (uid_map)."""
    low, high = sorted((one, other))
    if low == high:
        return f"0 0 {_IDS}\n"
    rows = [
        (0, 0, low),
        (low, high, 1),
        (low + 1, low + 1, high - low - 1),
        (high, low, 1),
        (high + 1, high + 1, _IDS - high - 1),
    ]
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in rows if count)


@contextlib.contextmanager
def shown(
    source: Path, directory: Path, name: str, owner: tuple[int, int], user: tuple[int, int]
) -> Generator[Path]:
    """Mount a file or directory so that what one owner owns is another user's, for a while.

    Args:
        directory: private, ours alone; leftovers in it are removed first.
        name: of the mount below it; no two at once may have the same.
        owner: uid and gid of the files as they are.
        user: uid and gid that they get in this view.

    Yields:
        Where the view stands.

    Raises:
        Unmappable: the kernel does not do it for us here.
    """
    private(directory)
    clear(directory)
    place, lock = directory / name, directory / f"{name}{_SUFFIX}"
    with turn(lock):
        try:
            try:
                _mount(source, place, owner, user)
            except OSError as error:
                raise Unmappable(
                    f"the kernel does not show {source} with another owner: {error.strerror}"
                ) from error
            yield place
        finally:
            _unmount(place)


def clear(directory: Path) -> None:
    """Remove the mounts that a dead process left below a directory."""
    for lock in directory.glob(f"*{_SUFFIX}"):
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its holder may have ended since it was opened, and another have taken its name.
            dead = os.path.samestat(lock.stat(), os.fstat(handle))
        except (BlockingIOError, FileNotFoundError):
            continue
        else:
            if dead:
                _unmount(directory / lock.name.removesuffix(_SUFFIX))
                lock.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _mount(source: Path, place: Path, owner: tuple[int, int], user: tuple[int, int]) -> None:
    if source.is_dir():
        place.mkdir(mode=0o700)
    else:
        place.touch(mode=0o600)
    with (
        _namespace(swapped(owner[0], user[0]), swapped(owner[1], user[1])) as ids,
        _descriptor(
            _call(
                _OPEN_TREE,
                ctypes.c_int(_AT_FDCWD),
                os.fsencode(source),
                ctypes.c_uint(_OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC),
            )
        ) as tree,
    ):
        flags = _RDONLY | _NOSUID | _NODEV | _IDMAP
        attributes = struct.pack("=QQQQ", flags, 0, _MS_PRIVATE, ids)
        _call(
            _MOUNT_SETATTR,
            ctypes.c_int(tree),
            b"",
            ctypes.c_uint(_AT_EMPTY_PATH | _AT_RECURSIVE),
            attributes,
            ctypes.c_size_t(len(attributes)),
        )
        _call(
            _MOVE_MOUNT,
            ctypes.c_int(tree),
            b"",
            ctypes.c_int(_AT_FDCWD),
            os.fsencode(place),
            ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        )


def _unmount(place: Path) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    # Again where somebody mounted twice; each success takes one away.
    while library.umount2(os.fsencode(place), ctypes.c_int(_MNT_DETACH)) == 0:
        pass
    with contextlib.suppress(OSError):
        if place.is_dir():
            place.rmdir()
        else:
            place.unlink(missing_ok=True)


def _call(number: int, *arguments: object) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    result = int(library.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


@contextlib.contextmanager
def _descriptor(number: int) -> Generator[int]:
    try:
        yield number
    finally:
        os.close(number)


@contextlib.contextmanager
def _namespace(uids: str, gids: str) -> Generator[int]:
    """Make a user namespace with the given maps; a shell that waits holds it meanwhile."""
    import subprocess

    with subprocess.Popen(
        ["unshare", "--user", "sh", "-c", "echo; read _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as holder:
        # Its line says that it is in the namespace.
        if holder.stdout is None or not holder.stdout.readline():
            raise PermissionError(errno.EPERM, "no user namespace can be made here")
        directory = f"/proc/{holder.pid}"
        _write(f"{directory}/uid_map", uids)
        _write(f"{directory}/gid_map", gids)
        with _descriptor(os.open(f"{directory}/ns/user", os.O_RDONLY | os.O_CLOEXEC)) as ids:
            yield ids


def _write(path: str, text: str) -> None:
    # The kernel takes a map in one write.
    with _descriptor(os.open(path, os.O_WRONLY | os.O_CLOEXEC)) as handle:
        os.write(handle, text.encode())
