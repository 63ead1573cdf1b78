"""The kernel's process events (netlink, ``PROC_EVENTS``): who forked, called exec and ended.

Rules that this module keeps:

- Only whole processes count: the filter in the kernel drops threads and everything that is no
  fork, exec or end, before it costs a wake-up.
- Lost events are said to be lost; what was known before must be doubted then.

Layouts are those of linux/connector.h and linux/cn_proc.h; the filter is socket(7)'s
``SO_ATTACH_FILTER``. Listening needs the first network, pid and user namespace, and before Linux
6.6 CAP_NET_ADMIN.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
from dataclasses import dataclass

FORK, EXEC, EXIT = 0x1, 0x2, 0x80000000
_CONNECTOR, _PROC_GROUP, _LISTEN = 11, 1, 1
_ATTACH_FILTER, _RECEIVE_FORCE = 26, 33
#: Bytes for events that nobody has read yet.
ROOM = 4 << 20
#: nlmsghdr, cn_msg (without data): what an event follows.
_HEADER = struct.Struct("=IHHIIIIIIHH")
#: what, cpu, timestamp.
_EVENT = struct.Struct("=IIQ")
_FOUR = struct.Struct("=IIII")
_TWO = struct.Struct("=II")
_WHAT = _HEADER.size
_DATA = _WHAT + _EVENT.size


#: What is said of it: names may be older than the processes, but no write went unheard.
LOST = "process events were lost"


class EventsLost(Exception):
    """The socket's buffer ran over."""


@dataclass(frozen=True)
class Happening:
    """One event of one process.

    Attributes:
        what: ``FORK``, ``EXEC`` or ``EXIT``.
        at: nanoseconds of CLOCK_MONOTONIC.
        pid: of the process; for a fork, of the child.
        parent: for a fork, the process that forked; else 0.
    """

    what: int
    at: int
    pid: int
    parent: int = 0


def listen() -> socket.socket:
    """Return a socket that carries process events and never blocks.

    Raises:
        OSError: EPERM without CAP_NET_ADMIN before Linux 6.6; EPROTONOSUPPORT where the kernel has
            no such events, or not in this network namespace.
    """
    made = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        _CONNECTOR,
    )
    try:
        with contextlib.suppress(OSError):
            made.setsockopt(socket.SOL_SOCKET, _RECEIVE_FORCE, ROOM)
        _filter(made)
        made.bind((0, _PROC_GROUP))
        ask = struct.pack("=I", _LISTEN)
        size = _HEADER.size + len(ask)
        header = _HEADER.pack(*(size, 3, 0, 0, os.getpid()), *(_PROC_GROUP, 1, 0, 0, len(ask), 0))
        made.send(header + ask)
    except OSError:
        made.close()
        raise
    return made


def receive(source: socket.socket) -> list[Happening]:
    """Return everything that has happened by now.

    Raises:
        EventsLost: some of it cannot be told any more; what follows can.
    """
    found: list[Happening] = []
    while True:
        try:
            data = source.recv(4096)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise EventsLost from error
            raise
        happening = parse(data)
        if happening is not None:
            found.append(happening)


def parse(data: bytes) -> Happening | None:
    """Return the event in a message; None for anything else."""
    if len(data) < _DATA + _FOUR.size:
        return None
    what, _, at = _EVENT.unpack_from(data, _WHAT)
    if what == FORK:
        _, parent, child, group = _FOUR.unpack_from(data, _DATA)
        return Happening(FORK, at, child, parent) if child == group else None
    if what not in (EXEC, EXIT):
        return None
    thread, group = _TWO.unpack_from(data, _DATA)
    return Happening(what, at, group) if thread == group else None


def _filter(target: socket.socket) -> None:
    """Let only whole processes' forks, execs and ends through."""
    load, equal, to_x, to_x_equal, give = 0x20, 0x15, 0x07, 0x1D, 0x06

    def swapped(number: int) -> int:
        # The filter loads words as the network has them.
        return int.from_bytes(number.to_bytes(4, sys.byteorder), "big")

    program = (
        (load, 0, 0, _WHAT),
        (equal, 3, 0, swapped(FORK)),
        (equal, 6, 0, swapped(EXEC)),
        (equal, 5, 0, swapped(EXIT)),
        (give, 0, 0, 0),
        (load, 0, 0, _DATA + 8),  # a fork: the child's pid and its thread group
        (to_x, 0, 0, 0),
        (load, 0, 0, _DATA + 12),
        (0x05, 0, 0, 3),
        (load, 0, 0, _DATA),  # an exec or end: pid and thread group
        (to_x, 0, 0, 0),
        (load, 0, 0, _DATA + 4),
        (to_x_equal, 0, 1, 0),
        (give, 0, 0, 0xFFFF),
        (give, 0, 0, 0),
    )
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    held = ctypes.create_string_buffer(code)
    target.setsockopt(
        socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(held))
    )
