"""When trouble repeats: what wakes somebody up.

Rules that this module keeps:

- Pure: what was seen before comes in, what was seen goes out; nothing here knows a clock or a file.
- Two refusals in a row page, and so do three alerts of one kind within a day. An agent that goes on
  all night pages again at twice the number, and again at twice that: seldom, but never for ever
  silent.
- Trouble of ours neither counts as a refusal nor ends a row of them: nothing was judged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Refusals in a row, and alerts of one kind, that page.
REFUSALS, ALERTS = 2, 3
#: Seconds for which an alert counts.
DAY = 24 * 3600.0
#: Kinds remembered, and times of each.
_KINDS, _TIMES = 100, 1000


@dataclass(frozen=True)
class Tally:
    """What one repository has seen lately.

    Attributes:
        refusals: runs refused in a row, up to now.
        causes: of each kind of alert, when it was seen: seconds since 1970, oldest first.
    """

    refusals: int = 0
    causes: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])


@dataclass(frozen=True)
class Happening:
    """What a run's ending means for paging.

    Attributes:
        at: seconds since 1970.
        refused: whether the run was refused; None where nothing was judged.
        causes: the kinds of its alerts, each once however many files it touched.
    """

    at: float
    refused: bool | None
    causes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """Why somebody is woken up.

    Attributes:
        count: of refusals in a row, or of alerts of one kind within a day.
        cause: kind of the alerts; None for refusals.
    """

    count: int
    cause: str | None = None


def decide(tally: Tally, happening: Happening) -> tuple[Tally, tuple[Page, ...]]:
    """Return what is remembered from now on, and what pages now."""
    pages: list[Page] = []
    refusals = tally.refusals
    if happening.refused is not None:
        refusals = refusals + 1 if happening.refused else 0
        if happening.refused and _is_due(refusals, REFUSALS):
            pages.append(Page(refusals))
    causes = {
        cause: kept
        for cause, times in tally.causes.items()
        # A clock that was put back makes times of the future: they count for nothing.
        if (kept := tuple(t for t in times if happening.at - DAY < t <= happening.at))
    }
    for cause in dict.fromkeys(happening.causes):
        times = (*causes.pop(cause, ()), happening.at)[-_TIMES:]
        causes[cause] = times
        if _is_due(len(times), ALERTS):
            pages.append(Page(len(times), cause))
    newest = dict(list(causes.items())[-_KINDS:])
    return Tally(refusals, newest), tuple(pages)


def _is_due(count: int, first: int) -> bool:
    times, rest = divmod(count, first)
    return rest == 0 and times > 0 and times & (times - 1) == 0


def document(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """Return tallies by repository as JSON."""
    return {
        name: {"refusals": t.refusals, "causes": {c: list(at) for c, at in t.causes.items()}}
        for name, t in tallies.items()
    }


def of_document(found: object) -> dict[str, Tally]:
    """Return what ``document`` made; what is not of its making is forgotten."""
    tallies: dict[str, Tally] = {}
    for name, value in _items(found):
        try:
            causes = {c: tuple(float(t) for t in times) for c, times in _items(value["causes"])}
            tallies[name] = Tally(int(value["refusals"]), causes)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
    return tallies


def _items(found: object) -> Iterable[tuple[str, Any]]:
    return found.items() if isinstance(found, dict) else ()
