"""What was observed and what was not, as a pure function of times and losses.

Rules that this module keeps:

- No IO: moments and losses come in, a ``Coverage`` goes out.
- No watch, no clean run: an interval is complete only when watching began before it and no loss
  touches it. A loss that ended before the interval, or began after it, does not.
- Every gap carries its numbers: a reader must be able to see how bad it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sealrun.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class Moment:
    """One point in time on both clocks.

    Attributes:
        monotonic: ``CLOCK_MONOTONIC`` in seconds; comparable within one boot.
        wall: seconds since the epoch.
        boot: the kernel's boot id (random(4), ``/proc/sys/kernel/random/boot_id``).
    """

    monotonic: float
    wall: float
    boot: str


@dataclass(frozen=True)
class Loss:
    """An interval in which something could not be observed.

    Attributes:
        since: monotonic seconds.
        until: monotonic seconds, or None while it lasts.
    """

    reason: Reason
    text: str
    since: float
    until: float | None = None
    numbers: Mapping[str, int] = field(default_factory=dict[str, int])

    def touches(self, since: float, until: float) -> bool:
        """Whether any part of the interval falls into this loss."""
        return self.since <= until and (self.until is None or self.until >= since)


@dataclass(frozen=True)
class Gap:
    """Why an interval's coverage is not complete."""

    reason: Reason
    text: str
    numbers: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Coverage:
    """What is known of an interval.

    Attributes:
        since: its beginning; for a run, when the run was armed.
        until: its end.
        watching_since: when the guard began to watch this workspace without a break.
        directories: directories that have to be watched.
        watches: directories among them that are.
        hard_linked: guarded files with more than one name. A write through a name outside the
            watched directories makes no event; such files are compared by content in each drain,
            so their final bytes are known and what happened in between is not.
        gaps: empty exactly when coverage is complete.
    """

    since: Moment
    until: Moment
    watching_since: Moment
    directories: int
    watches: int
    hard_linked: int = 0
    gaps: tuple[Gap, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether everything that happened in the interval could be seen."""
        return not self.gaps

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """The codes of the gaps, each once, in order."""
        return tuple(dict.fromkeys(gap.reason for gap in self.gaps))


def gaps(
    since: Moment, until: Moment, watching_since: Moment, losses: Iterable[Loss]
) -> tuple[Gap, ...]:
    """Say why an interval was not completely observed.

    Args:
        since: beginning of the interval.
        until: its end.
        watching_since: when the guard had every watch in place.
        losses: all losses that the guard knows, in order.

    Returns:
        The gaps, oldest first; empty when the interval was observed completely.
    """
    found: list[Gap] = []
    if watching_since.boot != since.boot or watching_since.monotonic > since.monotonic:
        late = watching_since.monotonic - since.monotonic
        found.append(
            Gap(
                Reason.NOT_WATCHED,
                "the guard began to watch after the interval had begun",
                {"milliseconds": max(0, round(late * 1000))},
            )
        )
    found += [
        Gap(loss.reason, loss.text, loss.numbers)
        for loss in losses
        if loss.touches(since.monotonic, until.monotonic)
    ]
    return tuple(found)
