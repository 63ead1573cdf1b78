"""What goes wrong below the ledger, in words that say what to do; and where its file lies.

Rules that this module keeps:

- Every error of SQLite becomes one of ours: locked, damaged, no space, no access. Only misuse of
  SQLite by this package itself stays what it is.
- Damage never leads to a new ledger: what is there stays for its owner to rescue.
- Who holds a lock is said when the kernel tells (``/proc/locks``), and not guessed otherwise.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import LedgerError, StorageFault

if TYPE_CHECKING:
    from collections.abc import Generator

    from sealrun.errors import Fault

#: Magic numbers of statfs(2), from linux/magic.h and the file systems' own headers, of what is
#: served by another machine or by a process: there SQLite's shared memory is not shared. virtiofs,
#: GlusterFS and WebDAV have FUSE's.
NETWORK_FILE_SYSTEMS = {
    0x00006969: "nfs",
    0x0000517B: "smb",
    0x0000564C: "ncp",
    0x00C36400: "ceph",
    0x01021997: "9p",
    0x01161970: "gfs2",
    0x18031977: "wekafs",
    0x0BD00BD0: "lustre",
    0x19830326: "beegfs",
    0x20030528: "orangefs",
    0x47504653: "gpfs",
    0x5346414F: "afs",
    0x61636673: "acfs",
    0x65735546: "fuse",
    0x6B414653: "afs",
    0x73757245: "coda",
    0x7461636F: "ocfs2",
    0x786F4256: "vboxsf",
    0x7C7C6673: "prl_fs",
    0xAAD7AAEA: "panfs",
    0xBACBACBC: "vmhgfs",
    0xBEEFDEAD: "snfs",
    0xFE534D42: "smb2",
    0xFF534D42: "cifs",
}

_STATFS_BYTES = 256
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM}
_NO_ACCESS = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}


def file_system_magic(path: Path) -> int | None:
    """Return statfs(2)'s ``f_type`` of an existing path, or None where that cannot be asked."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        return None
    # f_type is the first member, a machine word; magics fit 32 bits.
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) & 0xFFFFFFFF


def network_file_system(path: Path) -> str | None:
    """Return the name of the network file system that a path lies on, or None for a local one."""
    return NETWORK_FILE_SYSTEMS.get(file_system_magic(path) or 0)


@contextlib.contextmanager
def translated(file: Path) -> Generator[None]:
    """Raise SQLite's errors about a ledger's file as ours."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.DatabaseError as error:
        raise translate(file, error) from error


def translate(file: Path, error: sqlite3.DatabaseError) -> Fault:
    """Return our error for one of SQLite's."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code in _BUSY:
        return locked(file)
    if code in _FULL:
        return StorageFault(
            f"the ledger {file} cannot be written: {error}; nothing of this step was recorded",
            hint="Free space on its file system (df shows it), then repeat the command.",
        )
    if code in _NO_ACCESS:
        return StorageFault(
            f"the ledger {file} cannot be opened or written: {error}",
            hint="Its directory and files must belong to the calling user and be writable.",
        )
    if code == sqlite3.SQLITE_CONSTRAINT:
        return LedgerError(f"the ledger {file} refused a change: {error}")
    return damaged(file, str(error))


def damaged(file: Path, detail: str) -> LedgerError:
    """Return the error for a file that is no sound ledger."""
    return LedgerError(
        f"the ledger {file} is damaged: {detail}",
        hint=(
            "Nothing in it was changed and no new one was begun. Copy it with its -wal and -shm "
            "files to a safe place, check the disk, then put back a copy from a backup. "
            "The sqlite3 program's .recover command can save what is left."
        ),
    )


def locked(file: Path) -> LedgerError:
    """Return the error for a ledger that another process holds."""
    names = [_process(pid) for pid in holders(file)]
    by = f" by {', '.join(names)}" if names else ""
    return LedgerError(
        f"the ledger {file} is locked{by}",
        hint=(
            "Another sealrun writes to it, or a program has it open for writing. "
            "Wait for it to end, then repeat the command."
        ),
    )


def holders(file: Path) -> list[int]:
    """Return the ids of other processes that hold a write lock on a ledger, as the kernel says."""
    inodes: set[str] = set()
    for name in (file, Path(f"{file}-shm")):
        with contextlib.suppress(OSError):
            inodes.add(str(name.stat().st_ino))
    try:
        lines = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return []
    found: set[int] = set()
    for line in lines:
        # A line: 1: POSIX  ADVISORY  WRITE 4711 fe:00:1234 120 120  (proc_locks(5))
        words = line.split()
        if len(words) < 6 or words[3] != "WRITE":  # noqa: PLR2004 - the six fields used here
            continue
        if words[5].rpartition(":")[2] in inodes and words[4].isdigit():
            found.add(int(words[4]))
    return sorted(found - {0, os.getpid()})


def _process(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        raw = b""
    words = raw.replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return f"process {pid} ({words[:200]})" if words else f"process {pid}"
