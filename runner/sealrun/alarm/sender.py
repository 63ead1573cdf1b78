"""Delivers what the spool holds, through every channel, and ends when there is nothing left.

Rules that this module keeps:

- One sender at a time; a try is on record as begun before it is made. What a sender that died had
  begun is sent again with the same id and marked as a possible duplicate: never lost, never silently
  twice.
- Channels are independent: each has its own tries and its own failures, and one that is dead holds
  up no other.
- A failing channel is tried until its notices are too old; then they are given up, on record. Each
  failure is a line in the sender's log.
- A sender that has nothing to try but channels that cannot be used as configured ends; the notices
  wait for the next one.
- The configuration is read again when it changes, and then everything is tried at once.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sealrun import detached
from sealrun.alarm import config, schedule
from sealrun.alarm.config import AlarmError
from sealrun.alarm.notice import Kind
from sealrun.alarm.spool import State
from sealrun.alarm.tries import Try, wait
from sealrun.alarm.wording import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sealrun.alarm.config import Told
    from sealrun.alarm.spool import Spool, Waiting
    from sealrun.alarm.tries import Result

#: Seconds between two looks for new notices and for another configuration.
LOOK = 1.0
#: How often one channel may refuse one notice that it says it will never take.
_REJECTIONS = 3
#: Times of messages kept per channel.
_SENT = 1000


def send(spool: Spool, file: Path, environment: Mapping[str, str]) -> None:
    """Be the sender until the spool is empty; return at once where there is one already.

    Args:
        spool: what to deliver.
        file: the configuration.
        environment: where the variables of secrets are looked up.

    Raises:
        OSError: the spool cannot be written.
    """
    while True:
        lock = spool.become_sender()
        if lock is None:
            return
        try:
            left = _Sender(spool, file, environment, lock).work()
        finally:
            os.close(lock)
        # Who told in between saw the lock held and started nobody.
        if {one.notice.id for one in spool.waiting()} <= left:
            return


class _Sender:
    """One sender's life."""

    def __init__(self, spool: Spool, file: Path, environment: Mapping[str, str], lock: int) -> None:
        self._spool, self._file, self._environment, self._lock = spool, file, environment, lock
        self._channels: dict[str, Told] = {}
        self._seen: object = ()
        self._is_readable = False
        self._waiting: dict[str, Waiting] = {}
        self._tries: dict[str, Try] = {}
        self._states: dict[str, State] = {}

    def work(self) -> set[str]:
        """Deliver; return the ids of what cannot be delivered by this process."""
        while True:
            usable = self._configure()
            if self._is_readable:
                self._take_in()
            wake = self._begin(usable)
            if not self._tries and wake is None:
                return set(self._spool.ids() if not self._is_readable else self._waiting)
            pause = LOOK if wake is None else min(wake - time.time(), LOOK)
            if self._tries:
                self._finish(max(pause, 0.01))
            else:
                time.sleep(max(pause, 0.01))

    def _configure(self) -> set[str]:
        """Read the configuration where it changed; return the channels that can be tried."""
        self._states = self._spool.states()
        seen = _identity(self._file)
        if seen != self._seen:
            try:
                channels = {told.name: told for told in config.read(self._file)}
            except AlarmError:
                # Whoever looks (show, doctor, the next run) reads it themselves and says so.
                channels, self._is_readable = {}, False
            else:
                self._is_readable = True
                self._spool.forget(set(channels))
                if self._seen != ():
                    for name in channels:
                        self._note(name, lambda state: replace(state, again=0.0))
            self._channels, self._seen = channels, seen
        return {name for name, told in self._channels.items() if self._is_usable(told)}

    def _is_usable(self, told: Told) -> bool:
        why = config.trouble(told, self._environment)
        if why is not None and told.name not in self._tries and self._state(told.name).why != why:
            now = time.time()
            self._note(told.name, lambda state: replace(state, failed=now, why=why))
        return why is None

    def _take_in(self) -> None:
        """Learn of new notices; give up what is too old; drop channels that are gone."""
        present = self._spool.ids()
        for name in set(self._waiting) - set(present):
            del self._waiting[name]
        for name in present:
            one = self._waiting.get(name) or self._spool.read(name)
            if one is None:
                continue
            if name not in self._waiting and one.begun:
                # A sender died while it was sending this.
                one.repeated |= one.begun
                one.begun.clear()
                self._spool.update(one)
            self._waiting[name] = one
            to = one.to
            if to is None:
                to = {
                    told.name
                    for told in self._channels.values()
                    if told.wants(one.notice.kind, quiet=one.notice.quiet)
                }
            kept = {channel for channel in to if channel in self._channels}
            for channel in list(kept):
                if channel not in self._tries and self._is_too_old(one, self._channels[channel]):
                    kept.discard(channel)
                    self._note(channel, lambda s: replace(s, given_up=s.given_up + 1))
            if kept != one.to:
                one.to = kept
                self._spool.update(one)
            if not kept:
                del self._waiting[name]

    @staticmethod
    def _is_too_old(one: Waiting, told: Told) -> bool:
        refused = one.rejected.get(told.name, 0) >= _REJECTIONS
        return refused or time.time() - one.notice.at > told.sending.give_up

    def _begin(self, usable: set[str]) -> float | None:
        """Start the tries that are due; return when the next one is."""
        wakes: list[float] = []
        for name in sorted(usable - set(self._tries)):
            told, state, now = self._channels[name], self._state(name), time.time()
            mine = [one for _, one in sorted(self._waiting.items()) if one.to and name in one.to]
            if not mine:
                continue
            # A time that is further off than any pause was made by a clock that was put back.
            if now < state.again <= now + schedule.LONGEST_WISH:
                wakes.append(state.again)
                continue
            due = schedule.due([one.notice for one in mine], state.sent, told.limit, now)
            if not due.notices:
                wakes.append(now + LOOK if due.wake is None else due.wake)
                continue
            self._try(told, [self._waiting[notice.id] for notice in due.notices])
        return min(wakes, default=None)

    def _try(self, told: Told, together: list[Waiting]) -> None:
        for one in together:
            one.begun.add(told.name)
            self._spool.update(one)
        message = Message(
            tuple(one.notice for one in together),
            frozenset(one.notice.id for one in together if told.name in one.repeated),
        )
        close = [self._lock, *(other.fileno() for other in self._tries.values())]
        self._tries[told.name] = Try(told, message, self._environment, close)

    def _finish(self, pause: float) -> None:
        ended = set(wait(self._tries.values(), pause))
        for name in [name for name, one in self._tries.items() if one in ended]:
            attempt = self._tries.pop(name)
            self._settle(self._channels.get(name), name, attempt.message, attempt.result())

    def _settle(self, told: Told | None, name: str, message: Message, result: Result) -> None:
        now = time.time()
        if result.why is None:
            counts = message.gravest is not Kind.PAGE
            self._note(name, lambda state: succeeded(state, now, counts=counts))
        elif told is not None:
            first, why, wish = told.sending.retry, result.why, result.wish
            self._note(name, lambda state: failed(state, now, why, first=first, wish=wish))
            detached.note("not delivered", channel=name, notices=len(message.notices), why=why)
        for notice in message.notices:
            one = self._waiting.get(notice.id)
            if one is None or one.to is None:
                continue
            one.begun.discard(name)
            if result.why is None:
                one.to.discard(name)
                one.repeated.discard(name)
            elif result.rejected:
                one.rejected[name] = one.rejected.get(name, 0) + 1
            self._spool.update(one)
            if not one.to:
                del self._waiting[notice.id]

    def _state(self, name: str) -> State:
        return self._states.get(name) or State()

    def _note(self, name: str, into: Callable[[State], State]) -> State:
        state = self._spool.change(name, into)
        self._states[name] = state
        return state


def succeeded(state: State, now: float, *, counts: bool) -> State:
    """Return what is known of a channel after it took a message.

    Args:
        state: before.
        now: when.
        counts: against the channel's limit; pages do not.
    """
    sent = (*state.sent, now)[-_SENT:] if counts else state.sent
    return replace(state, delivered=now, failures=0, why=None, again=0.0, sent=sent)


def failed(state: State, now: float, why: str, *, first: float, wish: float | None = None) -> State:
    """Return what is known of a channel after a try that failed.

    Args:
        state: before.
        now: when.
        why: in a few words.
        first: seconds until the second try.
        wish: seconds that the receiver asked for.
    """
    failures = state.failures + 1
    again = now + schedule.delay(failures, first, wish)
    return replace(state, failed=now, failures=failures, why=why, again=again)


def _identity(file: Path) -> object:
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_mode
