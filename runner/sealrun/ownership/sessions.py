"""Sessions on record: the process trees whose writes are the loop's own.

Rules that this module keeps:

- A session is known by its leader: pid, start time and boot together, so that no other process of the
  same pid is ever taken for it. Calling exec changes none of them.
- One JSON file a session, replaced in one step; ended sessions are kept, because they classify earlier
  writers, up to ``KEPT``.
- Reading trusts nothing: no link is followed, nothing that is not a file of ours or root's, or is too
  large or malformed, is a session.
- An end that nobody saw is the moment at which it was noticed, never later than that.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from sealrun.errors import StorageFault, UsageError
from sealrun.guard.filesystem import boot_id
from sealrun.guard.processes import CUT, born, look
from sealrun.ledger.ulid import is_ulid, new_ulid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from sealrun.state import Places

T = TypeVar("T")

#: Ended sessions that are kept, characters of a command, and bytes of a record.
KEPT = 1000
COMMAND = 8192
LARGEST = 1 << 17
#: Parents of a leader that are listed.
_ABOVE = 64
_SUFFIX = ".json"
#: From it everybody descends (pid_namespaces(7)).
INIT = 1


@dataclass(frozen=True)
class Session:
    """One session.

    Attributes:
        id: a ULID.
        pid: of the leader.
        started: the leader's start, in clock ticks since boot (``/proc/PID/stat``, field 22).
        boot: id of the boot.
        uid: effective user of the leader.
        command: the leader's arguments; beyond a bound ``…`` stands for the rest.
        attached: the leader ran already when the session began.
        begun: wall time in seconds.
        ended: wall time in seconds; None while the leader lives.
        above: pids of the leader's parents when the session began; one of them may adopt its orphans.
    """

    id: str
    pid: int
    started: int
    boot: str
    uid: int
    command: tuple[str, ...]
    attached: bool
    begun: float
    ended: float | None = None
    above: tuple[int, ...] = ()


class Sessions:
    """The sessions in a directory.

    Args:
        directory: private to its owner; new sessions are written here.
        others: further directories whose sessions count.
    """

    def __init__(self, directory: Path, *others: Path) -> None:
        self._directory = directory
        self._others = others

    @classmethod
    def of(cls, places: Places, repository: str | None) -> Sessions:
        """Return the sessions that count for a repository: its own, and those begun outside of any.

        Args:
            places: of the user.
            repository: its id; None for those outside of any alone.
        """
        anywhere = places.sessions(None)
        return cls(anywhere) if repository is None else cls(places.sessions(repository), anywhere)

    def begin(self, pid: int, command: Iterable[str], *, attached: bool = False) -> Session:
        """Record that a process is the leader of a session from now on.

        Args:
            pid: of the leader, which must live.
            command: its arguments.
            attached: it ran already.

        Raises:
            UsageError: there is no such process.
            StorageFault: it cannot be recorded.
        """
        started = born(pid) if pid > 0 else None
        process, parent = look(pid)
        if pid == INIT:
            raise UsageError(
                "process 1 cannot lead a session: every process descends from it",
                hint="Name the agent's own process.",
            )
        if started is None or process.started != started:
            raise UsageError(
                f"there is no process {pid}",
                hint="ps -e lists processes with their numbers.",
            )
        session = Session(
            id=new_ulid(),
            pid=pid,
            started=started,
            boot=boot_id(),
            uid=os.geteuid() if process.uid is None else process.uid,
            command=_bounded(command),
            attached=attached,
            begun=time.time(),
            above=tuple(_line(parent)),
        )
        self._write(session)
        self._forget_oldest()
        return session

    def end(self, session: Session) -> None:
        """Record that a session's leader has ended; of several ends the first one stays.

        Raises:
            StorageFault: it cannot be recorded.
        """
        known = _read(self._directory / (session.id + _SUFFIX))
        if known is None or known.ended is None:
            self._write(replace(session, ended=session.ended or time.time()))

    def all(self) -> tuple[Session, ...]:
        """Return every session, ended ones too, in the order in which they began."""
        found: dict[str, Session] = {}
        for directory in (self._directory, *self._others):
            for session in _below(directory):
                if session.ended is None and not is_alive(session):
                    noticed = replace(session, ended=max(session.begun, time.time()))
                    with suppress(StorageFault):
                        Sessions(directory).end(noticed)
                    found[session.id] = noticed
                else:
                    found[session.id] = session
        return tuple(sorted(found.values(), key=lambda session: (session.begun, session.id)))

    def of_process(self, pid: int) -> Session | None:
        """Return the session under way that a process leads or descends from, as ``/proc`` has it."""
        alive = {session.pid: session for session in self.all() if session.ended is None}
        for one in (pid, *_line(look(pid)[1])):
            session = alive.get(one)
            if session is not None and session.started == born(one):
                return session
        return None

    def _write(self, session: Session) -> None:
        target = self._directory / (session.id + _SUFFIX)
        draft = self._directory / f".{secrets.token_hex(8)}"
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                json.dump(asdict(session), file)
            draft.replace(target)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            raise StorageFault(
                f"cannot record the session in {self._directory}: {error.strerror}",
                hint="Free space or fix its permissions, then start the agent again.",
            ) from error

    def _forget_oldest(self) -> None:
        try:
            names = sorted(n for n in os.listdir(self._directory) if _is_record(n))  # noqa: PTH208 - names
        except OSError:
            return
        for name in names[: max(0, len(names) - KEPT)]:
            session = _read(self._directory / name)
            if session is None or session.ended is not None:
                with suppress(OSError):
                    (self._directory / name).unlink()


def is_alive(session: Session) -> bool:
    """Tell whether a session's leader lives; one that waits to be reaped does not."""
    return session.boot == boot_id() and born(session.pid) == session.started


def _line(pid: int | None) -> Iterator[int]:
    for _ in range(_ABOVE):
        if not pid:
            return
        yield pid
        pid = look(pid)[1]


def _bounded(command: Iterable[str]) -> tuple[str, ...]:
    kept: list[str] = []
    left = COMMAND
    for argument in command:
        if len(argument) > left:
            return (*kept, argument[:left] + CUT)
        kept.append(argument)
        left -= len(argument) + 1
    return tuple(kept)


def _is_record(name: str) -> bool:
    return name.endswith(_SUFFIX) and is_ulid(name.removesuffix(_SUFFIX))


def _below(directory: Path) -> Iterator[Session]:
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names
    except OSError:
        return
    for name in filter(_is_record, names):
        session = _read(directory / name)
        if session is not None and session.id + _SUFFIX == name:
            yield session


def _read(file: Path) -> Session | None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(file, flags)
        with os.fdopen(fd, "rb") as opened:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()):
                return None
            data = opened.read(LARGEST + 1)
        return None if len(data) > LARGEST else _parsed(json.loads(data))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _parsed(data: dict[str, Any]) -> Session:
    """Return the session in a document.

    Raises:
        KeyError: something is missing.
        TypeError: something is of another type.
        ValueError: something is impossible.
    """
    session = Session(
        id=_of(str, data["id"]),
        pid=_of(int, data["pid"]),
        started=_of(int, data["started"]),
        boot=_of(str, data["boot"]),
        uid=_of(int, data["uid"]),
        command=tuple(_of(str, one) for one in _of(list, data["command"])),
        attached=_of(bool, data["attached"]),
        begun=_time(data["begun"]),
        ended=None if data["ended"] is None else _time(data["ended"]),
        above=tuple(_of(int, one) for one in _of(list, data["above"])),
    )
    if session.pid <= INIT or not is_ulid(session.id):
        raise ValueError(data)
    return session


def _of(kind: type[T], value: Any) -> T:  # noqa: ANN401 - JSON is any of these
    # Exactly: a bool is an int to isinstance.
    if type(value) is not kind:
        raise TypeError(value)
    return value


def _time(value: Any) -> float:  # noqa: ANN401 - JSON is any of these
    if type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError(value)
    return float(value)
