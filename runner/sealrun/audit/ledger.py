"""From the runs of a ledger to what an audit compares: their numbers, and whether each counts. Pure.

Rules: a run without a number takes no part; whether a number counts is read from its verdict, never
judged anew. A commit that holds what the loop did not choose never counts, however mild its policy
was: the number belongs to the commit, and the commit is contaminated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sealrun.audit.suspects import Measured
from sealrun.ledger.projections import IN_COMMIT, severity
from sealrun.reasons import Severity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealrun.ledger import Judgement, RunRecord

_HARMLESS = {Severity.NOTE, Severity.FLAG_HARMLESS}


def measured(records: Iterable[RunRecord]) -> list[Measured]:
    """Return the runs that have a number, in the order in which they ended."""
    ended = [record for record in records if record.ended is not None]
    ended.sort(key=lambda record: (record.ended_at or "", record.seq))
    found: list[Measured] = []
    for record in ended:
        metric = record.ended.metric if record.ended else None
        judged = record.ended.verdict if record.ended else None
        if metric is None or metric.value is None or judged is None:
            continue
        foreign = any(reason.code in IN_COMMIT for reason in judged.reasons)
        found.append(
            Measured(
                run=record.run,
                commit=record.commit,
                metric=metric.name,
                value=metric.value,
                maximize={"minimize": False, "maximize": True}.get(metric.direction or ""),
                trusted=_counts(judged) and not foreign,
                foreign=foreign,
            )
        )
    return found


def _counts(judged: Judgement) -> bool:
    return judged.kind in {"clean", "flagged"} and all(
        severity(reason.code, reason.severity) in _HARMLESS for reason in judged.reasons
    )
