"""How the alarm stands: who would be told, which channels work, what is still on its way.

Rules that this module keeps:

- Looking changes nothing and sends nothing; trying a channel sends one test and notes how it went.
- A channel that never carried anything is not called working.
- No secret is part of what is shown.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sealrun.alarm import config
from sealrun.alarm.sender import failed, succeeded
from sealrun.alarm.spool import Spool, State
from sealrun.alarm.tries import Try
from sealrun.alarm.wording import Message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sealrun.alarm.config import Told
    from sealrun.alarm.notice import Notice
    from sealrun.alarm.tell import Alarm


class Health(StrEnum):
    """Whether a channel carries what it is given."""

    WORKS = "works"
    UNTRIED = "untried"
    FAILS = "fails"
    UNUSABLE = "unusable"


@dataclass(frozen=True)
class Channel:
    """One channel as it stands.

    Attributes:
        told: as configured.
        health: whether it carries what it is given.
        why: what is wrong, in a few words.
        state: what is known of it.
        waiting: notices that it still has to carry.
        oldest: when the first of them happened, in seconds since 1970.
    """

    told: Told
    health: Health
    why: str | None
    state: State
    waiting: int
    oldest: float | None


@dataclass(frozen=True)
class Standing:
    """The alarm as it stands.

    Attributes:
        channels: in the order of the configuration.
        waiting: notices on their way.
        sending: whether a process delivers them now.
    """

    channels: tuple[Channel, ...]
    waiting: int
    sending: bool


def look(alarm: Alarm, environment: Mapping[str, str]) -> Standing:
    """Return how the alarm stands.

    Args:
        alarm: whose.
        environment: where the variables of secrets are looked up.

    Raises:
        AlarmError: the configuration cannot be used.
        StorageFault: the spool cannot be made.
    """
    channels = config.read(alarm.file)
    spool = Spool(alarm.directory) if alarm.directory.is_dir() else None
    states = spool.states() if spool else {}
    waiting = spool.waiting() if spool else []
    rows: list[Channel] = []
    for told in channels:
        mine = [
            one.notice.at
            for one in waiting
            if (
                told.wants(one.notice.kind, quiet=one.notice.quiet)
                if one.to is None
                else told.name in one.to
            )
        ]
        state = states.get(told.name, State())
        health, why = _health(told, state, environment)
        rows.append(Channel(told, health, why, state, len(mine), min(mine, default=None)))
    return Standing(tuple(rows), len(waiting), spool is not None and spool.has_sender())


def attempt(alarm: Alarm, told: Told, notice: Notice, environment: Mapping[str, str]) -> str | None:
    """Send one notice through one channel now, wait for the end, and note how it went.

    Returns:
        What is wrong, in a few words; None when it was taken.

    Raises:
        OSError: what is known of the channel cannot be written.
    """
    result = Try(told, Message((notice,)), environment).result()
    spool, now, why = Spool(alarm.directory), time.time(), result.why
    if why is None:
        spool.change(told.name, lambda state: succeeded(state, now, counts=False))
    else:
        first = told.sending.retry
        spool.change(told.name, lambda state: failed(state, now, why, first=first))
    return why


def _health(told: Told, state: State, environment: Mapping[str, str]) -> tuple[Health, str | None]:
    if why := config.trouble(told, environment):
        return Health.UNUSABLE, why
    if state.failures:
        return Health.FAILS, state.why
    return (Health.UNTRIED if state.delivered is None else Health.WORKS), None
