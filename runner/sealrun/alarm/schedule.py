"""When a channel is tried again, and how much it is told at once.

Rules that this module keeps:

- Pure: times come in as seconds since 1970, decisions go out.
- A channel that fails is tried again after twice the time, at most ``SLOWEST``; a receiver that
  asks for more patience gets it, up to ``LONGEST_WISH``.
- A channel that people read gets so many messages in so much time, pages excepted; what is over
  that waits and comes as one message.
- A page goes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.alarm.notice import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sealrun.alarm.notice import Notice

#: Seconds between two tries of a dead channel at most, so that it is soon known to live again.
SLOWEST = 300.0
#: Seconds that a receiver may ask us to wait (RFC 9110, Retry-After).
LONGEST_WISH = 3600.0
#: Notices in one message.
TOGETHER = 200


@dataclass(frozen=True)
class Limit:
    """How many messages a channel gets, in how many seconds."""

    messages: int
    per: float


@dataclass(frozen=True)
class Due:
    """What a channel has to do.

    Attributes:
        notices: to be sent now, as one message; empty: nothing yet.
        wake: when to ask again; None where that depends on others.
    """

    notices: tuple[Notice, ...] = ()
    wake: float | None = None


def delay(failures: int, first: float, wish: float | None = None) -> float:
    """Return the seconds until the next try.

    Args:
        failures: in a row, this one included.
        first: seconds after the first failure.
        wish: seconds that the receiver asked for.
    """
    # A float holds 2**1000, but nobody waits so long.
    own = min(first * 2.0 ** min(failures - 1, 60), SLOWEST)
    return max(own, min(wish or 0.0, LONGEST_WISH))


def due(waiting: Sequence[Notice], sent: Sequence[float], limit: Limit | None, now: float) -> Due:
    """Decide what a working channel sends now.

    Args:
        waiting: oldest first.
        sent: when it sent messages, oldest first; pages do not count.
        limit: None for a channel that only machines read.
        now: the present.
    """
    if not waiting:
        return Due()
    page = next((one for one in waiting if one.kind is Kind.PAGE), None)
    if page is not None:
        return Due((page,))
    if limit is None:
        return Due((waiting[0],))
    # Times of the future are those of a clock that was put back.
    recent = [at for at in sent if at <= now < at + limit.per]
    free = limit.messages - len(recent)
    if free <= 0:
        return Due(wake=recent[-limit.messages] + limit.per)
    if free == 1:
        return Due(tuple(waiting[:TOGETHER]))
    return Due((waiting[0],))
