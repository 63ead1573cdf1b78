"""Where a guard's socket is, and who sits at its other end.

Rules: the kernel says who calls (SO_PEERCRED, unix(7)); no path is ever too long for a socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

#: Name of the socket in a guard's private directory.
SOCKET = "socket"


def peer(connection: socket.socket) -> int:
    """Return the effective uid of the process at the other end, as of its connecting."""
    return _credentials(connection)[1]


def peer_pid(connection: socket.socket) -> int:
    """Return the pid of the process at the other end, as of its connecting."""
    return _credentials(connection)[0]


def is_stopped(connection: socket.socket) -> bool:
    """Tell whether the process at the other end stands still; see ``stands_still``."""
    return stands_still(peer_pid(connection))


def stands_still(pid: int) -> bool:
    """Tell whether a process is stopped (SIGSTOP) or traced into standing still.

    Returns:
        False also where the process cannot be seen from here.
    """
    try:
        # The name in the second field may hold anything, the last parenthesis included.
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in (b"T", b"t")


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", data)
    return pid, uid, gid


@contextlib.contextmanager
def nearby(directory: Path) -> Generator[str]:
    """Give a short name to a directory: a socket's path holds 108 bytes (unix(7))."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
