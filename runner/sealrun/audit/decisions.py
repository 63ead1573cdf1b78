"""Judges the keep, discard and crash of each row by the table alone. Pure.

Rules that this module keeps:

- Each decision is held against the best number kept *before* it, in the file's order.
- A number that is 0, or of a crash, is no measurement and is compared with nothing.
- Noise is the caller's figure; nothing here guesses one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sealrun.audit.findings import Code, Found
from sealrun.audit.table import CRASH, DISCARD, KEEP

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sealrun.audit.table import Row


def better(value: float, than: float, *, maximize: bool) -> bool:
    """Tell whether a number is strictly better."""
    return value > than if maximize else value < than


def incumbents(rows: Sequence[Row], *, maximize: bool = False) -> dict[int, Row]:
    """Return for each row the kept row that it was compared with: the best kept before it.

    The first of equals counts. Rows before the first keep have none.
    """
    held: dict[int, Row] = {}
    best: Row | None = None
    value = 0.0
    for row in rows:
        if best is not None:
            held[row.number] = best
        measured = row.measured
        if row.status != KEEP or measured is None:
            continue
        if best is None or better(measured, value, maximize=maximize):
            best, value = row, measured
    return held


def judge(
    rows: Sequence[Row], *, noise: float | None = None, maximize: bool = False
) -> Iterator[Found]:
    """Yield what is inconsistent in a table.

    Args:
        noise: a gain below it could be luck; in the metric's own unit.
        maximize: whether more is better.
    """
    against = incumbents(rows, maximize=maximize)
    for row in rows:
        yield from _number(row)
        best = against.get(row.number)
        if best is not None:
            yield from _decision(row, best, noise, maximize=maximize)
    yield from _repeated(rows)


def _number(row: Row) -> Iterator[Found]:
    if row.status == CRASH and row.value:
        yield Found(
            Code.CRASHED_WITH_NUMBER, row.number, f"a crash, with the number {row.value:.10g}"
        )
    if row.status == KEEP and row.value is None:
        yield Found(Code.KEPT_UNMEASURED, row.number, "kept without a number")
    if row.status in (KEEP, DISCARD) and row.value == 0:
        yield Found(
            Code.ZERO_WITHOUT_CRASH, row.number, f"{row.status} with 0, which stands for a crash"
        )


def _decision(row: Row, best: Row, noise: float | None, *, maximize: bool) -> Iterator[Found]:
    value, before = row.measured, best.measured
    if value is None or before is None:
        return
    # As written: the difference of two six-digit numbers has six digits, whatever floats make of it.
    gain = round(value - before if maximize else before - value, max(row.digits, best.digits, 6))
    beside = f"{value:.10g} against {before:.10g} of row {best.number}"
    if row.status == KEEP and gain <= 0:
        yield Found(Code.KEPT_NO_BETTER, row.number, f"kept at {beside}", best.number)
    elif row.status == KEEP and noise is not None and gain < noise:
        yield Found(
            Code.WITHIN_NOISE,
            row.number,
            f"kept for a gain of {gain:.4g}: {beside}; the noise is {noise:.4g}",
            best.number,
        )
    elif row.status == DISCARD and gain > 0:
        yield Found(Code.DISCARDED_BETTER, row.number, f"discarded at {beside}", best.number)


def _repeated(rows: Sequence[Row]) -> Iterator[Found]:
    first: dict[str, Row] = {}
    for row in rows:
        if not row.has_id:
            continue
        earlier = first.setdefault(row.commit.lower(), row)
        if earlier is row:
            continue
        text = f"the commit of row {earlier.number} once more"
        one, two = earlier.measured, row.measured
        if one is not None and two is not None:
            text += f"; its two numbers differ by {abs(one - two):.4g}"
        yield Found(Code.REPEATED_COMMIT, row.number, text, earlier.number)
