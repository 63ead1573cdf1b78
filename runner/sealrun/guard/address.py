"""Where a guard's socket is, and who sits at its other end.

Rules: the kernel says who calls (SO_PEERCRED, unix(7)); no path is ever too long for a socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

#: Name of the socket in a guard's private directory.
SOCKET = "socket"


def peer(connection: socket.socket) -> int:
    """Return the effective uid of the process at the other end, as of its connecting."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", data)[1])


@contextlib.contextmanager
def nearby(directory: Path) -> Generator[str]:
    """Give a short name to a directory: a socket's path holds 108 bytes (unix(7))."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
