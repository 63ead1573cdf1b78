"""What is known of processes: read from ``/proc`` while they live, remembered when they are gone.

Rules that this module keeps:

- A fact is what ``/proc`` said of that very process; what was not read in time stays None.
- A process that was forked and has not called exec runs its parent's program: that is knowledge,
  not a guess. After an exec that nobody could read in time it runs something unknown.
- Parents are those that forked, also when they ended and the kernel gave their children to init;
  where ``/proc`` alone named a parent, the record says so.
- Memory is bounded: the oldest of ``LIVING`` and of ``ENDED`` processes is forgotten first, so that
  no number of short-lived ones makes us forget who started a daemon. Arguments are cut.
- No path but ``/proc``'s is ever opened here.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from itertools import count
from time import monotonic_ns as clock

#: Processes remembered that live and that ended, parents listed of one (an agent that runs a test
#: suite that runs a build is some twenty deep), and bytes read of one's arguments, of parents' less.
LIVING, ENDED = 8192, 4096
PARENTS = 32
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
        forked: an event told who forked it, so that the next of its parents did; else ``/proc`` named
            that one, which is init or another reaper once the true parent has ended.
    """

    pid: int
    exe: str | None = None
    cmdline: tuple[str, ...] | None = None
    cwd: str | None = None
    uid: int | None = None
    started: int | None = None
    container: str | None = None
    forked: bool = False

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


def born(pid: int) -> int | None:
    """Return the clock ticks since boot at which a process began; None where none of the pid lives."""
    data = _read(f"/proc/{pid}/stat", 4096)
    state = data.rpartition(b") ")[2][:1]
    return None if state in (b"", b"Z", b"X") else _stat(data)[1]


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
class Birth:
    """When one process began, shared by all who name it as their parent; it may be read later."""

    started: int | None = None


@dataclass
class Known:
    """What is remembered of one pid's present process.

    Attributes:
        process: as it was read last, or its parent's facts where it has not called exec.
        line: its parents, nearest first, as they were when they forked.
        alive: it has not been seen to end.
        followed: we were told of its fork or exec, so that another exec would not escape us.
        executed: monotonic nanoseconds of its last exec, 0 where it is not known.
        before: what it ran before that exec.
        looked: monotonic nanoseconds at which ``/proc`` was read last; 0 for never.
        birth: when it began.
        serial: no other process has it.
    """

    process: Process
    line: tuple[tuple[Process, Birth], ...]
    alive: bool = True
    followed: bool = False
    executed: int = 0
    before: Process | None = None
    looked: int = 0
    birth: Birth = field(default_factory=Birth)
    serial: int = field(default_factory=lambda: next(_serials))

    def __post_init__(self) -> None:
        self.birth.started = self.process.started

    @property
    def parents(self) -> tuple[Process, ...]:
        """Its parents, nearest first, with what was learned of them since."""
        return tuple(
            process if process.started else replace(process, started=birth.started)
            for process, birth in self.line
        )

    def learn(self, process: Process) -> None:
        """Take over what was read of the process."""
        self.process = process
        self.birth.started = process.started or self.birth.started


class Recent:
    """The processes of late, fed by process events."""

    def __init__(self) -> None:
        self._living: OrderedDict[int, Known] = OrderedDict()
        self._ended: OrderedDict[int, Known] = OrderedDict()
        self._entered: dict[int, bool] = {}

    def get(self, pid: int) -> Known | None:
        """Return what is remembered of a pid."""
        return self._living.get(pid) or self._ended.get(pid)

    def forget(self) -> None:
        """Forget everything: events were lost, so that any of it may be out of date."""
        self._living.clear()
        self._ended.clear()

    def forked(self, parent: int, child: int) -> None:
        """A process made a child, which runs the same program until it calls exec."""
        known = self._living.get(parent)
        if known is None:
            known = self.seen(*look(parent))
        process = replace(known.process, pid=child, started=None, forked=True)
        line = ((known.process, known.birth), *known.line)[:PARENTS]
        self._keep(child, Known(process, line, followed=True))
        self._entered.setdefault(child, False)

    def executed(self, pid: int, at: int, *, gone: bool) -> None:
        """A process runs another program now.

        Args:
            pid: of the process.
            at: monotonic nanoseconds.
            gone: it has ended since, so that looking is in vain.
        """
        known = self._living.get(pid)
        if known is None:
            process, parent = look(pid)
            known = Known(process, self.line(parent))
        else:
            known.before = before = known.process
            read = Process(pid, uid=before.uid) if gone else glance(pid, before.uid)
            known.learn(
                replace(
                    read,
                    container=before.container,
                    started=before.started,
                    forked=before.forked,
                )
            )
            self._entered[pid] = True
        known.followed, known.executed, known.looked = True, at, clock()
        self._keep(pid, known)

    def complete(self) -> None:
        """Find out at leisure what can wait of the processes that began or called exec of late."""
        for pid, executed in self._entered.items():
            known = self._living.get(pid)
            if known is None:
                continue
            process = known.process
            container = process.container or (container_of(pid) if executed else None)
            started = process.started or _stat(_read(f"/proc/{pid}/stat", 4096))[1]
            known.learn(replace(process, container=container, started=started))
        self._entered.clear()

    def ended(self, pid: int) -> None:
        """A process ended; what is known of it stays."""
        known = self._living.pop(pid, None)
        if known is None:
            return
        known.alive = False
        self._ended[pid] = known
        while len(self._ended) > ENDED:
            self._ended.popitem(last=False)

    def seen(self, process: Process, parent: int | None) -> Known:
        """A living process was read; remember it together with what was known of it."""
        known = self._living.get(process.pid)
        if known is None:
            return self._keep(process.pid, Known(process, self.line(parent), looked=clock()))
        known.looked = clock()
        known.learn(merged(process, known.process))
        known.line = known.line or self.line(parent)
        return known

    def line(self, parent: int | None) -> tuple[tuple[Process, Birth], ...]:
        """Return a process and those above it, nearest first."""
        found: list[tuple[Process, Birth]] = []
        while parent and len(found) < PARENTS:
            known = self._living.get(parent)
            if known is not None and known.followed:
                return (*found, (known.process, known.birth), *known.line)[:PARENTS]
            process, parent = look(parent)
            if process.started is None:
                break
            found.append((process, Birth(process.started)))
        return tuple(found)

    def _keep(self, pid: int, known: Known) -> Known:
        self._ended.pop(pid, None)
        self._living[pid] = known
        self._living.move_to_end(pid)
        while len(self._living) > LIVING:
            self._living.popitem(last=False)
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
        known.forked,
    )
