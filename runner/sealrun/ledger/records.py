"""What readers of the ledger get: events with their place in the chain, and whole runs.

Rules that this module keeps:

- A run's record is made from its events alone, so that what is shown is what the chain covers.
- ``document`` is the JSON of ``--json``, schema 1: the fields of the run's events side by side,
  under the names that ``events`` documents.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from sealrun.ledger.codec import to_document
from sealrun.ledger.events import (
    Alert,
    Event,
    Pin,
    Reproduced,
    RunEnded,
    RunOpened,
    RunProgress,
    Signed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sealrun.ledger.codec import Json
    from sealrun.ledger.events import EngineFacts

E_co = TypeVar("E_co", bound=Event, covariant=True)


@dataclass(frozen=True)
class Recorded(Generic[E_co]):
    """An event with its place in the chain.

    Attributes:
        seq: its number.
        at: when it was recorded; UTC, ISO 8601.
        monotonic_ns: CLOCK_MONOTONIC then, comparable within one ``boot_id``.
        boot_id: of the kernel then.
        hash: hexadecimal.
        event: what happened.
        truncated: field path -> how much there was, of what was too long to keep.
    """

    seq: int
    at: str
    monotonic_ns: int
    boot_id: str
    hash: str
    event: E_co
    truncated: Mapping[str, int]


@dataclass(frozen=True)
class RunRecord:
    """Everything on record about one run.

    Attributes:
        run: its id.
        opened_at: when it was opened; UTC, ISO 8601.
        ended_at: when it ended; None while it has not.
        seq: number of its last event.
        hash: of that event, hexadecimal.
        opened: as what it began.
        progress: how far it came; all its progress events in one.
        ended: how it ended; None while it has not.
        alerts: its mutations, oldest first; of each the latest state.
        pin: the ref that keeps its commit.
        reproduced: how it compares with the run that it repeats; None for any other.
        signed: that a statement about it was signed, the latest; None if none was.
        truncated: field path -> how much there was, of what was too long to keep.
    """

    run: str
    opened_at: str
    ended_at: str | None
    seq: int
    hash: str
    opened: RunOpened
    progress: RunProgress
    ended: RunEnded | None
    alerts: tuple[Recorded[Alert], ...]
    pin: str | None
    truncated: Mapping[str, int]
    reproduced: Reproduced | None = None
    signed: Signed | None = None

    @property
    def engine(self) -> EngineFacts | None:
        """What runs the container, as far as the run came."""
        return self.progress.engine or self.opened.engine

    @property
    def commit(self) -> str:
        """Full id of what ran."""
        return self.opened.commit

    @property
    def outcome(self) -> str:
        """Of the process; ``not-started`` while nothing else is on record."""
        return self.ended.outcome if self.ended else "not-started"

    @property
    def verdict(self) -> str | None:
        """Kind of the verdict; None when nothing was judged, or not yet."""
        return self.ended.verdict.kind if self.ended and self.ended.verdict else None


def merge(events: Iterable[Recorded[Event]]) -> RunRecord | None:
    """Make a run's record from its events, by rising number; None when it was never opened."""
    opened: Recorded[RunOpened] | None = None
    progress = RunProgress()
    ended: Recorded[RunEnded] | None = None
    alerts: dict[str, Recorded[Alert]] = {}
    pin: str | None = None
    reproduced: Reproduced | None = None
    signed: Signed | None = None
    truncated: dict[str, int] = {}
    last: Recorded[Event] | None = None
    for recorded in events:
        event = recorded.event
        last = recorded
        if isinstance(event, Alert):
            alerts[event.id] = cast("Recorded[Alert]", recorded)
            continue
        if isinstance(event, Pin):
            pin = event.ref
            continue
        if isinstance(event, Reproduced):
            reproduced = event
            continue
        if isinstance(event, Signed):
            signed = event
            continue
        if isinstance(event, RunOpened) and opened is None:
            opened = cast("Recorded[RunOpened]", recorded)
        elif isinstance(event, RunProgress):
            progress = _further(progress, event)
        elif isinstance(event, RunEnded) and ended is None:
            ended = cast("Recorded[RunEnded]", recorded)
        else:
            continue
        truncated |= recorded.truncated
    if opened is None or last is None:
        return None
    return RunRecord(
        run=opened.event.run or "",
        opened_at=opened.at,
        ended_at=ended.at if ended else None,
        seq=last.seq,
        hash=last.hash,
        opened=opened.event,
        progress=progress,
        ended=ended.event if ended else None,
        alerts=tuple(alerts.values()),
        pin=pin,
        truncated=truncated,
        reproduced=reproduced,
        signed=signed,
    )


def document(record: RunRecord) -> dict[str, Json]:
    """Return a run as JSON: its own fields, then those of its events side by side.

    A field that an open run lacks is null or empty; ``outcome`` is then ``not-started``.
    ``timings`` holds those of progress and end. Each of ``alerts`` is as ``alert_document`` makes
    it.
    """
    opened, _ = to_document(record.opened)
    progress, _ = to_document(record.progress)
    ended, _ = to_document(record.ended or RunEnded(outcome=record.outcome))
    merged = opened
    for later in (progress, ended):
        merged |= {
            name: value for name, value in later.items() if value is not None or name not in merged
        }
    merged["timings"] = {
        **cast("dict[str, Json]", progress["timings"]),
        **cast("dict[str, Json]", ended["timings"]),
    }
    return {
        "run": record.run,
        "opened_at": record.opened_at,
        "ended_at": record.ended_at,
        "seq": record.seq,
        "hash": record.hash,
        **merged,
        "alerts": [alert_document(alert) for alert in record.alerts],
        "pin": record.pin,
        "reproduction": to_document(record.reproduced)[0] if record.reproduced else None,
        "signed": to_document(record.signed)[0] if record.signed else None,
        "truncated": dict(record.truncated),
    }


def alert_document(alert: Recorded[Alert]) -> dict[str, Json]:
    """Return an alert as JSON: where it stands in the chain, then its own fields."""
    fields, _ = to_document(alert.event)
    return {
        "seq": alert.seq,
        "at": alert.at,
        "run": alert.event.run,
        **fields,
        "truncated": dict(alert.truncated),
    }


def _further(so_far: RunProgress, event: RunProgress) -> RunProgress:
    said = {
        field.name: value
        for field in dataclasses.fields(RunProgress)
        if (value := getattr(event, field.name)) is not None
    }
    said["timings"] = {**so_far.timings, **event.timings}
    return dataclasses.replace(so_far, **said)
