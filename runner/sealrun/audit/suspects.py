"""From contaminated numbers to the decisions that rest on them, and what to repeat. Pure.

Rules that this module keeps:

- A number is contaminated when it does not belong to its commit alone. That a *decision* rests on it
  is a fact only where the table or the order of runs shows the comparison.
- A later number is not contaminated by a comparison: the decision is suspect, the number stands. So
  what has to be repeated is the contaminated runs alone, once for each commit.
- A commit that holds foreign bytes passes them on to all that is built on it; no repetition cures
  that, and such runs are listed apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sealrun.audit.decisions import better, incumbents
from sealrun.audit.findings import Code, Found
from sealrun.audit.table import DISCARD, KEEP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from sealrun.audit.lineage import Lineage
    from sealrun.audit.table import Row


# -- a table -------------------------------------------------------------------------------------


def decided_on(
    rows: Sequence[Row], contaminated: Iterable[int], *, maximize: bool = False
) -> Iterator[Found]:
    """Yield each keep or discard of a table that was decided on a contaminated number.

    Args:
        contaminated: numbers of the rows whose numbers do not belong to their commits.
    """
    wrong = set(contaminated)
    against = incumbents(rows, maximize=maximize)
    for row in rows:
        if row.status not in (KEEP, DISCARD) or row.measured is None:
            continue
        best = against.get(row.number)
        if row.number in wrong:
            yield Found(Code.DECIDED_ON, row.number, f"{row.status} on its own contaminated number")
        elif best is not None and best.number in wrong:
            yield Found(
                Code.DECIDED_ON,
                row.number,
                f"{row.status} by comparison with row {best.number}'s contaminated number",
                best.number,
            )


def inherits(lineage: Lineage, contaminated: Iterable[int]) -> Iterator[Found]:
    """Yield each row whose commit is built on that of a contaminated row."""
    sources = [(number, lineage.commits.get(number)) for number in sorted(set(contaminated))]
    for row in lineage.rows:
        commit = lineage.commits.get(row.number)
        for number, source in sources:
            if commit is None or source is None or number == row.number:
                continue
            if source.id in lineage.history.ancestors(commit.id):
                yield Found(
                    Code.INHERITS,
                    row.number,
                    f"its commit is built on row {number}'s, and holds what that one brought in",
                    number,
                )
                break


# -- a ledger ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One run of a ledger that has a number.

    Attributes:
        run: whole id.
        commit: full id.
        metric: name of the number.
        value: finite.
        maximize: whether more is better; None where the record does not say.
        trusted: the number belongs to the commit alone.
        foreign: the commit itself holds foreign bytes.
    """

    run: str
    commit: str
    metric: str
    value: float
    maximize: bool | None
    trusted: bool
    foreign: bool = False


@dataclass(frozen=True)
class Suspects:
    """What rests on contaminated numbers; all in the order of the runs.

    Attributes:
        contaminated: the runs whose numbers do not belong to their commits alone.
        compared: run -> the contaminated run that was the best when it ended: a ratchet compared
            the two.
        inherits: run -> the earlier run whose foreign bytes its commit is built on.
        repeat: the runs to repeat, one for each commit that has no trusted number of that metric.
    """

    contaminated: tuple[str, ...] = ()
    compared: Mapping[str, str] = field(default_factory=dict[str, str])
    inherits: Mapping[str, str] = field(default_factory=dict[str, str])
    repeat: tuple[str, ...] = ()


def suspects(runs: Sequence[Measured], descends: Callable[[str, str], bool]) -> Suspects:
    """Find the runs whose keep or discard was decided on a contaminated number.

    The ledger knows runs, not decisions. It is taken that each number was compared with the best
    one before it, as a ratchet does; a loop that decides otherwise has other suspects.

    Args:
        runs: in the order in which they ended.
        descends: whether the first commit is built on the second.
    """
    ratchets: dict[tuple[str, bool], _Ratchet] = {}
    compared: dict[str, str] = {}
    for run in runs:
        if run.maximize is None:
            continue
        ratchet = ratchets.setdefault((run.metric, run.maximize), _Ratchet(maximize=run.maximize))
        best = ratchet.best
        if best is not None and not best.trusted and best.commit != run.commit:
            compared[run.run] = best.run
        ratchet.add(run)
    trusted = {(run.commit, run.metric) for run in runs if run.trusted}
    repeat: dict[tuple[str, str], str] = {}
    for run in runs:
        if not run.trusted and not run.foreign and (run.commit, run.metric) not in trusted:
            repeat.setdefault((run.commit, run.metric), run.run)
    return Suspects(
        contaminated=tuple(run.run for run in runs if not run.trusted),
        compared=compared,
        inherits=_inherited(runs, descends),
        repeat=tuple(dict.fromkeys(repeat.values())),
    )


class _Ratchet:
    """The best number so far, one for each commit; one that can be trusted replaces one that cannot."""

    def __init__(self, *, maximize: bool) -> None:
        self.maximize = maximize
        self.numbers: dict[str, Measured] = {}
        self.best: Measured | None = None

    def add(self, run: Measured) -> None:
        held = self.numbers.get(run.commit)
        if held is not None and (held.trusted or not run.trusted):
            return
        self.numbers[run.commit] = run
        if held is None:
            self._consider(run)
        else:
            # Measured again, and now it counts; it may be worse than what it replaces.
            self.best = None
            for number in self.numbers.values():
                self._consider(number)

    def _consider(self, run: Measured) -> None:
        best = self.best
        if best is None or better(run.value, best.value, maximize=self.maximize):
            self.best = run


def _inherited(runs: Sequence[Measured], descends: Callable[[str, str], bool]) -> dict[str, str]:
    inherited: dict[str, str] = {}
    sources: dict[str, Measured] = {}
    for run in runs:
        for source in sources.values():
            if run.commit != source.commit and descends(run.commit, source.commit):
                inherited[run.run] = source.run
                break
        if run.foreign:
            sources.setdefault(run.commit, run)
    return inherited
