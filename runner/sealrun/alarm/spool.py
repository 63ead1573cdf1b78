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
import json
import os
import stat
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

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
#: Bytes of one of our files.
_LARGEST = 1 << 20
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
        one = _waiting(_load(file))
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
        _replace(self._files / f"{waiting.notice.id}{_ENDING}", content)

    @staticmethod
    def _remove_draft(file: Path) -> None:
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > 60.0:  # noqa: PLR2004 - its writer is dead
                file.unlink()

    # -- what is known of channels -----------------------------------------------------------------

    def states(self) -> dict[str, State]:
        """Return what is known of each channel by name."""
        found = _load(self.directory / _STATES)
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
            _replace(self.directory / _STATES, {n: asdict(s) for n, s in states.items()})
        return state

    def forget(self, but: set[str]) -> None:
        """Forget channels that are not configured any more."""
        if set(self.states()) <= but:
            return
        with self._exclusive():
            kept = {name: asdict(s) for name, s in self.states().items() if name in but}
            _replace(self.directory / _STATES, kept)

    # -- what pages --------------------------------------------------------------------------------

    def tallies(self) -> object:
        """Return what is remembered for paging, as it was written."""
        return _load(self.directory / _TALLIES)

    @contextlib.contextmanager
    def counting(self) -> Generator[Callable[[Mapping[str, Any]], None]]:
        """Hold what is remembered for paging; give a function that writes it anew.

        Raises:
            OSError: another process holds it, or it cannot be written.
        """
        with self._exclusive():
            yield lambda content: _replace(self.directory / _TALLIES, dict(content))

    # -- locks -------------------------------------------------------------------------------------

    def become_sender(self) -> int | None:
        """Return the descriptor that makes this process the sender; None when there is one."""
        descriptor = os.open(self.directory / _SENDER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def has_sender(self) -> bool:
        """Tell whether a process delivers notices."""
        try:
            descriptor = os.open(self.directory / _SENDER, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

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


def _replace(file: Path, content: Mapping[str, Any]) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(draft, flags, 0o600), "w", encoding="ascii") as stream:  # noqa: PTH123 - a descriptor
            json.dump(content, stream, ensure_ascii=True)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _load(file: Path) -> Any:  # noqa: ANN401 - JSON is any of these
    """Return the JSON of a file; None where it is not there or none of ours."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    with open(descriptor, "rb") as stream:  # noqa: PTH123 - a descriptor
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _LARGEST:
            return None
        try:
            return json.loads(stream.read(_LARGEST))
        except (OSError, ValueError, RecursionError):
            return None


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
