"""What is known of processes: read from ``/proc`` while they live, remembered when they are gone.

Rules that this module keeps:

- A fact is what ``/proc`` said of that very process; what was not read in time stays None.
- A process that was forked and has not called exec runs its parent's program: that is knowledge,
  not a guess. After an exec that nobody could read in time it runs something unknown.
- Parents are those that forked, also when they ended and the kernel gave their children to init.
- Memory is bounded: the oldest of ``REMEMBERED`` processes is forgotten first, arguments are cut.
- No path but ``/proc``'s is ever opened here.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from itertools import count
from time import monotonic_ns as clock

#: Processes remembered, parents listed of one, and bytes read of one's arguments, of parents' less.
REMEMBERED = 4096
PARENTS = 12
ARGUMENTS, PARENTS_ARGUMENTS = 8192, 512
#: What stands in place of arguments beyond ``ARGUMENTS`` bytes.
CUT = "…"
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True)
class Process:
    """A process as it was seen; None is not known.

    Attributes:
        pid: in our pid namespace.
        exe: path of its program.
        cmdline: its arguments; beyond a bound ``CUT`` stands for the rest.
        cwd: its working directory.
        uid: its effective user.
        started: clock ticks since boot (``/proc/PID/stat``, field 22).
        container: the id that its cgroup bears, of 64 digits as container engines give them.
    """

    pid: int
    exe: str | None = None
    cmdline: tuple[str, ...] | None = None
    cwd: str | None = None
    uid: int | None = None
    started: int | None = None
    container: str | None = None

    @property
    def complete(self) -> bool:
        """Whether its program, its arguments and its user are known."""
        return None not in (self.exe, self.cmdline, self.uid)


def look(pid: int) -> tuple[Process, int | None]:
    """Read what ``/proc`` says of a process now, what disappears first at first.

    Returns:
        The process, and its parent's pid, None where that could not be read.
    """
    place = f"/proc/{pid}/"
    exe, cwd = _link(place + "exe"), _link(place + "cwd")
    cmdline = _arguments(_read(place + "cmdline", ARGUMENTS))
    parent, started = _stat(_read(place + "stat", 4096))
    status = _read(place + "status", 4096)
    found = re.search(rb"^Uid:\s*\d+\s+(\d+)", status, re.MULTILINE)
    uid = None if found is None else int(found[1])
    return Process(pid, exe, cmdline, cwd, uid, started, container_of(pid)), parent


def glance(pid: int, uid: int | None) -> Process:
    """Read at once what tells a process that has just called exec; ``look`` takes five times as long.

    Args:
        pid: of the process.
        uid: its user before that exec.
    """
    place = f"/proc/{pid}"
    exe, cwd = _link(place + "/exe"), _link(place + "/cwd")
    cmdline = _arguments(_read(place + "/cmdline", ARGUMENTS))
    try:
        owner: int | None = os.stat(place).st_uid  # noqa: PTH116 - three times as fast
    except OSError:
        owner = None
    # proc(5): root owns the directory also where the process may not be dumped.
    return Process(pid, exe, cmdline, cwd, owner if owner or not uid else None)


def container_of(pid: int) -> str | None:
    """Read the container that a process is in; None where it is in none, or gone."""
    found = _CONTAINER.search(_read(f"/proc/{pid}/cgroup", 4096).decode("ascii", "replace"))
    return found[0] if found else None


def _read(path: str, limit: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, limit)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115 - a name, as records hold it
    except OSError:
        return None


def _arguments(data: bytes) -> tuple[str, ...] | None:
    if not data:
        return None
    parts = tuple(map(os.fsdecode, data.rstrip(b"\0").split(b"\0")))
    return (*parts, CUT) if len(data) >= ARGUMENTS else parts


def _stat(data: bytes) -> tuple[int | None, int | None]:
    # The name in parentheses may hold anything, parentheses and spaces included (proc(5)).
    fields = data.rpartition(b") ")[2].split()
    try:
        return int(fields[1]), int(fields[19])
    except (IndexError, ValueError):
        return None, None


_serials = count(1)


@dataclass
class Known:
    """What is remembered of one pid's present process.

    Attributes:
        process: as it was read last, or its parent's facts where it has not called exec.
        parents: nearest first, as they were when they forked.
        alive: it has not been seen to end.
        followed: we were told of its fork or exec, so that another exec would not escape us.
        executed: monotonic nanoseconds of its last exec, 0 where it is not known.
        before: what it ran before that exec.
        looked: monotonic nanoseconds at which ``/proc`` was read last; 0 for never.
        serial: no other process has it.
    """

    process: Process
    parents: tuple[Process, ...]
    alive: bool = True
    followed: bool = False
    executed: int = 0
    before: Process | None = None
    looked: int = 0
    serial: int = field(default_factory=lambda: next(_serials))


class Recent:
    """The processes of late, fed by process events."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, Known] = OrderedDict()
        self._entered: list[int] = []

    def get(self, pid: int) -> Known | None:
        """Return what is remembered of a pid."""
        return self._known.get(pid)

    def forget(self) -> None:
        """Forget everything: events were lost, so that any of it may be out of date."""
        self._known.clear()

    def forked(self, parent: int, child: int) -> None:
        """A process made a child, which runs the same program until it calls exec."""
        known = self._known.get(parent)
        if known is None or not known.alive:
            known = self.seen(*look(parent))
        process = replace(known.process, pid=child, started=None)
        line = (known.process, *known.parents)[:PARENTS]
        self._keep(child, Known(process, line, followed=True))

    def executed(self, pid: int, at: int, *, gone: bool) -> None:
        """A process runs another program now.

        Args:
            pid: of the process.
            at: monotonic nanoseconds.
            gone: it has ended since, so that looking is in vain.
        """
        known = self._known.get(pid)
        if known is None:
            process, parent = look(pid)
            known = Known(process, self.line(parent))
        else:
            known.before = before = known.process
            if gone:
                known.process = Process(pid, uid=before.uid, container=before.container)
            else:
                read = glance(pid, before.uid)
                known.process = replace(read, container=before.container)
                self._entered.append(pid)
        known.followed, known.executed, known.looked = True, at, clock()
        self._keep(pid, known)

    def complete(self) -> None:
        """Find out at leisure what can wait of the processes that called exec of late."""
        for pid in self._entered:
            known = self._known.get(pid)
            if known is None or not known.alive:
                continue
            container = known.process.container or container_of(pid)
            started = known.process.started or _stat(_read(f"/proc/{pid}/stat", 4096))[1]
            known.process = replace(known.process, container=container, started=started)
        self._entered.clear()

    def ended(self, pid: int) -> None:
        """A process ended; what is known of it stays."""
        known = self._known.get(pid)
        if known is not None:
            known.alive = False

    def seen(self, process: Process, parent: int | None) -> Known:
        """A living process was read; remember it together with what was known of it."""
        known = self._known.get(process.pid)
        if known is None or not known.alive:
            return self._keep(process.pid, Known(process, self.line(parent), looked=clock()))
        known.looked = clock()
        known.process = merged(process, known.process)
        known.parents = known.parents or self.line(parent)
        return known

    def line(self, parent: int | None) -> tuple[Process, ...]:
        """Return a process and those above it, nearest first."""
        found: list[Process] = []
        while parent and len(found) < PARENTS:
            known = self._known.get(parent)
            if known is not None and known.alive and known.followed:
                return (*found, known.process, *known.parents)[:PARENTS]
            process, parent = look(parent)
            if process.started is None:
                break
            found.append(process)
        return tuple(found)

    def _keep(self, pid: int, known: Known) -> Known:
        self._known[pid] = known
        self._known.move_to_end(pid)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return known


def brief(process: Process) -> Process:
    """Return a process with the beginning of its arguments: enough to recognise it by."""
    kept: list[str] = []
    left = PARENTS_ARGUMENTS
    for argument in process.cmdline or ():
        if len(argument) > left:
            return replace(process, cmdline=(*kept, CUT))
        kept.append(argument)
        left -= len(argument) + 1
    return process


def merged(fresh: Process, known: Process) -> Process:
    """Return a process as read now, with what was known of it where reading came too late."""
    if fresh.started is not None and known.started not in (None, fresh.started):
        return fresh  # the pid belongs to another process by now
    return Process(
        fresh.pid,
        fresh.exe or known.exe,
        fresh.cmdline or known.cmdline,
        fresh.cwd or known.cwd,
        known.uid if fresh.uid is None else fresh.uid,
        fresh.started or known.started,
        fresh.container or known.container,
    )
