"""The process that sees who writes: ``python -I -m sealrun.guard.witness GROUP SOCKET``.

It is a process of its own because a writer may live for less than a millisecond: nothing may stand
between an event and the look at ``/proc``, neither a hash being taken nor an interpreter's lock.

Rules that this module keeps:

- It opens nothing but ``/proc``: it causes no event, and what it reads no workspace can steer.
- Process events are dealt with before file events, so that a writer that is gone is known.
- A pid is believed to be the writer's only if the kernel says so: its pidfd still refers to it, or
  process events told of it last.
- It keeps only the capabilities that looking needs, once everything is open.
- It says what it knows and no more; what was lost is said to be lost. It ends with its guard.
- It never waits for the guard to read: in a storm the guard is busy just when somebody must look.

To the guard it writes one JSON object a line: ``who`` (a list: each a process's serial, it and its
parents, each of those a list of ``Process``'s fields), ``touched`` (directory key in hexadecimal,
name, mask, place in ``who``, how, why; equal ones once, at the place of the last), ``on`` (it goes on
where the line before stopped: the order between the two is as little known as within one), ``lost``,
and ``sync``, the answer to a number that the guard sent: every event of a write before that has been
told. A process that called exec between two events stands in ``who`` once for each program: what was
known for certain of one says nothing of the other.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from sealrun.guard import fanotify, procevents
from sealrun.guard.processes import Known, Process, Recent, brief, look

if TYPE_CHECKING:
    from sealrun.guard.fanotify import Touch

#: Capabilities that looking needs: CAP_SYS_PTRACE for other users' programs and directories in
#: ``/proc``, CAP_SYS_NICE to run ahead again.
KEPT = (19, 23)
#: Bytes asked for in one read.
READ = 1 << 12
#: Nanoseconds for which what was read of a living process that we follow is not read again, and
#: after which a process that nobody told us the end of might be another one of the same pid.
FRESH, STALE = 20_000_000, 1_000_000_000
#: Events in one line, so that writing it takes no longer than a writer lives; different events kept
#: while the guard does not read, beyond which they are lost; and bytes offered to it at once.
ROWS, BACKLOG, CHUNK = 256, 100_000, 1 << 16
#: Milliseconds for which we leave the events of a busy writer alone.
PAUSE = 4
#: Microseconds of computing at once that we may claim ahead of others, seconds for which we may not
#: after that, and our nice value then (setpriority(2)).
RUSH, REST, NICE = 100_000, 1.0, -10


#: A process's serial with its program.
_Who = tuple[int, str | None, tuple[str, ...] | None]
#: Directory, name, mask, process, how and why; see above.
_Row = tuple[str, str, int, _Who, str, str | None]


class Witness:
    """Turns file events and process events into names of writers.

    Args:
        group: descriptor of the fanotify group.
        guard: connected to the guard.
        haste: lets us look in time.
    """

    def __init__(self, group: int, guard: socket.socket, haste: Haste) -> None:
        self._group = group
        self._haste = haste
        self._guard = guard
        self._files = select.poll()
        self._files.register(group, select.POLLIN)
        self._recent = Recent()
        self._ours = {os.getpid(), os.getppid()}
        self._quiet = time.monotonic_ns()
        self._lost: list[str] = []
        self._who: dict[_Who, list[Any]] = {}
        self._touched: dict[_Row, None] = {}
        self._unsent = bytearray()
        self._busy = False
        self._news: socket.socket | None = None
        try:
            self._news = procevents.listen()
        except OSError as error:
            self.deaf = f"process events: {error.strerror}"
        else:
            self.deaf = ""

    def run(self) -> None:
        """Tell the guard what happens until it goes away."""
        everything, others = select.poll(), select.poll()
        everything.register(self._group, select.POLLIN)
        if self._news is not None:
            for poll in (everything, others):
                poll.register(self._news, select.POLLIN)
        self._tell({"ready": self.deaf})
        while True:
            for poll in (everything, others):
                poll.register(self._guard, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            if self._busy:
                others.poll(PAUSE)
            else:
                everything.poll()
            self._see()
            self._haste.renew()
            asked = self._asked()
            if asked is None:
                return
            if asked:
                self._see()
            self._report(asked)

    def _asked(self) -> bytes | None:
        """Return the last number that the guard sent; None when it is gone."""
        try:
            data = self._guard.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        except OSError:
            return None
        return data.split()[-1] if data.strip() else None

    def _report(self, asked: bytes) -> None:
        self._send()
        if self._unsent and not asked:
            return  # what happens meanwhile is told together
        rows, who, lost = list(self._touched), self._who, self._lost
        self._touched, self._who, self._lost = {}, {}, []
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            at = {one: place for place, one in enumerate(dict.fromkeys(row[3] for row in part))}
            message: dict[str, Any] = {
                "who": [[one[0], *who[one]] for one in at],
                "touched": [(*row[:3], at[row[3]], *row[4:]) for row in part],
            }
            self._tell(message | {"on": True} if start else message)
            self._hear()
        last: dict[str, Any] = {"lost": lost} if lost else {}
        if asked:
            last["sync"] = int(asked)
        if last:
            self._tell(last)

    def _tell(self, message: dict[str, Any]) -> None:
        self._unsent += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                sent = self._guard.send(self._unsent[:CHUNK], socket.MSG_DONTWAIT)
                del self._unsent[:sent]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()  # the guard is gone: the next look at it ends us

    # -- seeing ------------------------------------------------------------------------------

    def _see(self) -> None:
        # Events of writers that we follow may wait for each other: the kernel merges them meanwhile.
        self._busy = False
        while True:
            self._hear()
            before = time.monotonic_ns()
            try:
                buffer = os.read(self._group, READ)
            except BlockingIOError:
                self._quiet = before
                break
            for touch in fanotify.parse(buffer):
                try:
                    self._one(touch)
                finally:
                    if touch.pidfd is not None and touch.pidfd >= 0:
                        os.close(touch.pidfd)
            if len(buffer) <= READ - fanotify.LARGEST:
                self._quiet = before  # there was room for another one, so none was left
        self._recent.complete()

    def _hear(self) -> None:
        if self._news is None:
            return
        recent = self._recent
        try:
            news = procevents.receive(self._news)
        except procevents.EventsLost:
            recent.forget()
            self._lost.append(procevents.LOST)
            return
        if any(one.what == procevents.EXEC for one in news):
            before = time.monotonic_ns()
            if not self._files.poll(0):
                self._quiet = before  # what was done before that exec has been seen
        ended = {one.pid for one in news if one.what == procevents.EXIT}
        for one in news:
            if one.what == procevents.EXEC:
                recent.executed(one.pid, one.at, gone=one.pid in ended)
            elif one.what == procevents.FORK:
                recent.forked(one.parent, one.pid)
            else:
                recent.ended(one.pid)

    def _one(self, touch: Touch) -> None:
        if touch.mask & fanotify.OVERFLOW:
            self._lost.append("the queue of file events ran over")
            return
        if touch.pid in self._ours or not touch.directory:
            return
        known, how, why = self._name(touch)
        who = (known.serial, *_program(known.process))
        line = (known.process, *map(brief, known.parents))
        self._who[who] = [_plain(one) for one in line]
        name = touch.name.decode("latin-1")
        row = touch.directory.hex(), name, touch.mask, who, how, why
        self._touched.pop(row, None)
        self._touched[row] = None
        if len(self._touched) > BACKLOG:
            self._touched.clear()
            self._who.clear()
            self._lost.append("the guard was too busy to be told of every event")

    def _name(self, touch: Touch) -> tuple[Known, str, str | None]:
        """Return what is known of an event's process, how, and why not better."""
        if touch.pid == 0:
            return Known(Process(0), ()), "gone", "it runs outside of the guard's pid namespace"
        known = self._recent.get(touch.pid)
        live = False
        if touch.pidfd != fanotify.ENDED:
            known, live = self._look(touch, known)
        elif known is not None and not known.followed and _age(known) > STALE:
            known = None
        if known is None:
            return Known(Process(touch.pid), ()), "gone", "it had ended before anybody could look"
        return known, *_how(known, live=live, quiet=self._quiet)

    def _look(self, touch: Touch, known: Known | None) -> tuple[Known | None, bool]:
        """Look at a process that lived when its event was read; say whether it was read whole."""
        followed = known is not None and known.followed
        if known is not None and followed and not known.alive:
            return known, False  # it is ending; of another process we would have been told
        if known is not None and followed and _age(known) < FRESH:
            self._busy = True
            return known, known.process.complete
        process, parent = look(touch.pid)
        if not _there(touch.pidfd):
            if followed or process.started is None:
                return known if followed else None, False
            return Known(replace(process, exe=None, cmdline=None), ()), False
        known = self._recent.seen(process, parent)
        return known, process.complete


def _age(known: Known) -> int:
    return time.monotonic_ns() - known.looked


def _there(pidfd: int | None) -> bool:
    """Whether a process has not been reaped, so that its pid is still its own."""
    if pidfd is None:
        return True  # an old kernel; the pid is all that there is
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _how(known: Known, *, live: bool, quiet: int) -> tuple[str, str | None]:
    """Say how a process is known, and why not better.

    Args:
        known: the process.
        live: it was read while it lived.
        quiet: monotonic nanoseconds at which no file event was left; the event came later.
    """
    process, before = known.process, known.before
    if before is not None and known.executed > quiet and _program(before) != _program(process):
        return "partial", f"it began that program at about that time; before, it ran {before.exe}"
    if process.complete:
        return ("live" if live else "cached"), None
    if process.exe or process.cmdline or known.parents:
        return "partial", "it ended before it could be looked at"
    return "gone", "it had ended before anybody could look"


def _program(process: Process) -> tuple[str | None, tuple[str, ...] | None]:
    return process.exe, process.cmdline


def _plain(process: Process) -> list[Any]:
    return [getattr(process, field.name) for field in fields(Process)]


class Haste:
    """The right to run ahead of ordinary processes: a writer may live for half a millisecond.

    Whoever computes for ``RUSH`` without waiting loses it for ``REST`` (setrlimit(2),
    RLIMIT_RTTIME): a storm of events must not take a core away from the experiment.
    """

    def __init__(self) -> None:
        self._until: float | None = None
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_RTTIME, (RUSH, resource.RLIM_INFINITY))
            signal.signal(signal.SIGXCPU, self._lose)
            self._take()
            return
        self._nice()

    def renew(self) -> None:
        """Take the right again once the time without it is over."""
        if self._until is not None and time.monotonic() > self._until:
            self._until = None
            with suppress(OSError):
                self._take()

    def _take(self) -> None:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    def _lose(self, *_: object) -> None:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        self._until = time.monotonic() + REST
        self._nice()

    def _nice(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, NICE)


def reduce() -> None:
    """Keep no capability but those that looking needs (capabilities(7), capset(2))."""
    version_3, words = 0x20080522, [0, 0]
    for number in KEPT:
        words[number // 32] |= 1 << number % 32
    header = struct.pack("=Ii", version_3, 0)
    data = b"".join(struct.pack("=III", word, word, 0) for word in words)
    if ctypes.CDLL(None, use_errno=True).capset(header, data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main() -> int:
    """See until the guard goes away; return the process's exit status."""
    group, guard = map(int, sys.argv[1:])
    witness = Witness(group, socket.socket(fileno=guard), Haste())
    with suppress(OSError):  # we have fewer than those already
        reduce()
    gc.collect()
    gc.freeze()
    witness.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
