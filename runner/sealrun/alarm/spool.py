"""Notices on their way, on disk: what survives the death of whoever told and whoever sends.

Rules that this module keeps:

- A notice is a file of its own, complete or not there. Tellers make files and touch no others'.
- What becomes of it is written by the one sender, which holds ``sender.lock`` for all its life:
  before a try is made it is on record as begun, so that a death in the middle is known later.
- Everything is bounded: files, bytes of a file, channels remembered.
- No lock is waited for longer than ``PATIENCE``: a stopped process must not stop a run.
- There is no secret in any of these files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sealrun import detached, smallfile
from sealrun.alarm import notice as notices
from sealrun.alarm.notice import Kind
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    from sealrun.alarm.notice import Notice

#: Notices on their way; pages have as much room again.
ROOM = 1000
#: Seconds to wait for another process's lock.
PATIENCE = 1.0
#: Messages of which a channel remembers when they were sent.
_SENT = 1000
_ENDING = ".json"
_SENDER, _LOCK, _STATES, _TALLIES = "sender.lock", "lock", "channels.json", "tallies.json"


@dataclass(frozen=True)
class State:
    """What is known of a channel.

    Attributes:
        delivered: when it last took a message, in seconds since 1970.
        failed: when it last failed.
        failures: tries that failed since it last took a message.
        why: what was wrong then.
        again: when it is tried again.
        given_up: notices that were never delivered.
        sent: when it took messages, pages excepted, oldest first.
    """

    delivered: float | None = None
    failed: float | None = None
    failures: int = 0
    why: str | None = None
    again: float = 0.0
    given_up: int = 0
    sent: tuple[float, ...] = ()


@dataclass
class Waiting:
    """A notice on its way.

    Attributes:
        notice: what is told.
        to: channels that still have to be told; None: nobody has looked yet.
        begun: channels to which it may already be on its way.
        repeated: channels to which a dead sender may have delivered it.
        rejected: how often each channel refused this very notice.
    """

    notice: Notice
    to: set[str] | None = None
    begun: set[str] = field(default_factory=set[str])
    repeated: set[str] = field(default_factory=set[str])
    rejected: dict[str, int] = field(default_factory=dict[str, int])


class Spool:
    """The alarm's directory below the state.

    Raises:
        StorageFault: it cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = private(directory)
        self._files = private(directory / "spool")

    # -- notices ---------------------------------------------------------------------------------

    def put(self, told: Notice) -> bool:
        """Keep a notice; False when there is no room.

        Raises:
            OSError: it cannot be written.
        """
        room = 2 * ROOM if told.kind is Kind.PAGE else ROOM
        if self.count() >= room:
            return False
        self._write(Waiting(told))
        return True

    def count(self) -> int:
        """Return how many notices are on their way."""
        return len(self.ids())

    def ids(self) -> list[str]:
        """Return the ids of the notices on their way, the oldest first."""
        with os.scandir(self._files) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            if not name.endswith(_ENDING):
                self._remove_draft(self._files / name)
        return sorted(name.removesuffix(_ENDING) for name in names if name.endswith(_ENDING))

    def read(self, name: str) -> Waiting | None:
        """Return a notice on its way; None when it is gone, or none of ours and removed.

        Args:
            name: its id.
        """
        file = self._files / f"{name}{_ENDING}"
        one = _waiting(smallfile.read(file))
        if one is None or one.notice.id != name:
            file.unlink(missing_ok=True)
            return None
        return one

    def waiting(self) -> list[Waiting]:
        """Return the notices on their way, the oldest first."""
        return [one for name in self.ids() if (one := self.read(name)) is not None]

    def update(self, waiting: Waiting) -> None:
        """Write what became of a notice; remove it when nobody has to be told any more."""
        if waiting.to is not None and not waiting.to:
            (self._files / f"{waiting.notice.id}{_ENDING}").unlink(missing_ok=True)
        else:
            self._write(waiting)

    def _write(self, waiting: Waiting) -> None:
        content = {
            "notice": notices.document(waiting.notice),
            "to": None if waiting.to is None else sorted(waiting.to),
            "begun": sorted(waiting.begun),
            "repeated": sorted(waiting.repeated),
            "rejected": waiting.rejected,
        }
        smallfile.write(self._files / f"{waiting.notice.id}{_ENDING}", content)

    @staticmethod
    def _remove_draft(file: Path) -> None:
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > 60.0:  # noqa: PLR2004 - its writer is dead
                file.unlink()

    # -- what is known of channels -----------------------------------------------------------------

    def states(self) -> dict[str, State]:
        """Return what is known of each channel by name."""
        found = smallfile.read(self.directory / _STATES)
        return {
            name: state
            for name, value in (found.items() if isinstance(found, dict) else ())
            if (state := _state(value)) is not None
        }

    def change(self, name: str, into: Callable[[State], State]) -> State:
        """Change what is known of a channel, and return it.

        Raises:
            OSError: it cannot be written.
        """
        with self._exclusive():
            states = self.states()
            states[name] = state = into(states.get(name, State()))
            smallfile.write(self.directory / _STATES, {n: asdict(s) for n, s in states.items()})
        return state

    def forget(self, but: set[str]) -> None:
        """Forget channels that are not configured any more."""
        if set(self.states()) <= but:
            return
        with self._exclusive():
            kept = {name: asdict(s) for name, s in self.states().items() if name in but}
            smallfile.write(self.directory / _STATES, kept)

    # -- what pages --------------------------------------------------------------------------------

    def tallies(self) -> object:
        """Return what is remembered for paging, as it was written."""
        return smallfile.read(self.directory / _TALLIES)

    @contextlib.contextmanager
    def counting(self) -> Generator[Callable[[Mapping[str, Any]], None]]:
        """Hold what is remembered for paging; give a function that writes it anew.

        Raises:
            OSError: another process holds it, or it cannot be written.
        """
        with self._exclusive():
            yield lambda content: smallfile.write(self.directory / _TALLIES, dict(content))

    # -- locks -------------------------------------------------------------------------------------

    def become_sender(self) -> int | None:
        """Return the descriptor that makes this process the sender; None when there is one."""
        return detached.become(self.directory / _SENDER)

    def has_sender(self) -> bool:
        """Tell whether a process delivers notices."""
        return detached.lives(self.directory / _SENDER)

    @contextlib.contextmanager
    def _exclusive(self) -> Generator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.directory / _LOCK, flags, 0o600)
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.005)
            yield
        finally:
            os.close(descriptor)


def _waiting(found: object) -> Waiting | None:
    if not isinstance(found, dict):
        return None
    told = notices.of_document(found.get("notice"))
    if told is None:
        return None
    try:
        to = found["to"]
        return Waiting(
            told,
            None if to is None else set(map(str, to)),
            set(map(str, found["begun"])),
            set(map(str, found["repeated"])),
            {str(name): int(count) for name, count in found["rejected"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _state(found: object) -> State | None:
    if not isinstance(found, dict):
        return None
    try:
        return State(
            delivered=_time(found["delivered"]),
            failed=_time(found["failed"]),
            failures=int(found["failures"]),
            why=None if found["why"] is None else str(found["why"]),
            again=float(found["again"]),
            given_up=int(found["given_up"]),
            sent=tuple(float(at) for at in found["sent"])[-_SENT:],
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _time(value: Any) -> float | None:  # noqa: ANN401 - JSON is any of these
    return None if value is None else float(value)
