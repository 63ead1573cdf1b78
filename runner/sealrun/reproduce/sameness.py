"""How alike a run and its repetition are. Pure: no IO, no clock, no randomness.

Rules that this module keeps:

- What is identical needs no excuse: equal outputs and equal metrics count on any machine.
- What differs counts as ``different`` only where everything that decides results was the same; else
  the two are ``incomparable``, and what was not the same is named.
- A number of steps that differs between equal commits shows a budget of time: how far it reaches is
  the machine's speed, not the commit.
- Where neither outputs nor a metric are there to compare, that is said; equal silence is no proof.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, cast

from sealrun.secrets.withheld import marked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sealrun.ledger import RunRecord

#: Paths that are named when outputs differ.
_NAMED = 5
#: 99.5 % quantiles of Student's t distribution for 1 to 30 degrees of freedom (NIST/SEMATECH
#: e-Handbook of Statistical Methods, 1.3.6.7.2), and of the normal distribution beyond.
_QUANTILES = (
    *(63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169),
    *(3.106, 3.055, 3.012, 2.977, 2.947, 2.921, 2.898, 2.878, 2.861, 2.845),
    *(2.831, 2.819, 2.807, 2.797, 2.787, 2.779, 2.771, 2.763, 2.756, 2.750),
)
_NORMAL = 2.576
#: Fewest repetitions that show a spread.
_SPREAD = 2


class Likeness(StrEnum):
    """How a repetition compares, the closest first."""

    OUTPUTS_IDENTICAL = "outputs-identical"
    METRIC_IDENTICAL = "metric-identical"
    WITHIN_TOLERANCE = "within-tolerance"
    INCOMPARABLE = "incomparable"
    DIFFERENT = "different"


@dataclass(frozen=True)
class Result:
    """What a run came to, and under which conditions.

    Attributes:
        outcome: of the process.
        exit_status: of the process.
        metric: None where there is none.
        outputs: path to sha256; None where its bytes are not known any more.
        log: sha256 of the kept output; None where there is none.
        steps: how many steps the experiment printed that it made.
        disturbed: why the run did not come to its own end, in a clause.
        conditions: what decides results beside the image and the command, by name.
    """

    outcome: str
    exit_status: int | None = None
    metric: float | None = None
    outputs: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    log: str | None = None
    steps: float | None = None
    disturbed: str | None = None
    conditions: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True)
class Tolerance:
    """How far a metric may be from the original's.

    Attributes:
        width: largest difference that is allowed; not negative.
        centre: what the original is compared with; None for the repetition's own metric.
        source: where it comes from.
    """

    width: float
    centre: float | None = None
    source: str = "given"


@dataclass(frozen=True)
class Sameness:
    """What a comparison came to.

    Attributes:
        differences: what differs in the results, as a clause each.
        conditions: what differs in what decides them, likewise.
        compared: how many output files were compared by content.
    """

    likeness: Likeness
    differences: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    compared: int = 0


def compare(original: Result, repeated: Result, tolerance: Tolerance | None = None) -> Sameness:
    """Judge one repetition."""
    ends, outputs, compared = _ends(original, repeated), *_outputs(original, repeated)
    number = _metric(original, repeated)
    differences = (*ends, *number, *outputs)
    alike = not ends and not number
    has_outputs = bool(original.outputs or repeated.outputs)
    same_log = original.log is not None and original.log == repeated.log
    if alike and (compared if has_outputs else same_log) and not outputs:
        return Sameness(Likeness.OUTPUTS_IDENTICAL, compared=compared)
    if alike and original.metric is not None:
        return Sameness(Likeness.METRIC_IDENTICAL, differences, compared=compared)
    conditions = tuple(_conditions(original, repeated))
    if not ends and _is_within(original.metric, repeated.metric, tolerance):
        likeness = Likeness.WITHIN_TOLERANCE
    elif conditions:
        likeness = Likeness.INCOMPARABLE
    elif alike and not outputs:
        likeness = Likeness.INCOMPARABLE
        conditions = (f"both {_ended(repeated)}, and there is neither an output nor a metric",)
    else:
        likeness = Likeness.DIFFERENT
    return Sameness(likeness, differences, conditions, compared)


def overall(likenesses: Iterable[Likeness]) -> Likeness:
    """Return the worst of several; ``different`` is worse than ``incomparable``."""
    order = list(Likeness)
    return max(likenesses, key=order.index)


def measured(metrics: Sequence[float]) -> Tolerance | None:
    """Return the tolerance that several repetitions show; None for fewer than two.

    It is the 99 % prediction interval for one more value of a normal distribution (NIST/SEMATECH
    e-Handbook, 7.2.6.3 and the references there): mean ± t · s · √(1 + 1/n).
    """
    count = len(metrics)
    if count < _SPREAD:
        return None
    freedom = count - 1
    quantile = _QUANTILES[freedom - 1] if freedom <= len(_QUANTILES) else _NORMAL
    width = quantile * statistics.stdev(metrics) * math.sqrt(1 + 1 / count)
    return Tolerance(width, statistics.fmean(metrics), f"measured by {count} repetitions")


def _is_within(original: float | None, repeated: float | None, allowed: Tolerance | None) -> bool:
    if original is None or repeated is None or allowed is None:
        return False
    centre = repeated if allowed.centre is None else allowed.centre
    return abs(original - centre) <= allowed.width


def _ends(original: Result, repeated: Result) -> tuple[str, ...]:
    then = (original.outcome, original.exit_status)
    now = (repeated.outcome, repeated.exit_status)
    return () if then == now else (f"it {_ended(original)} then, {_ended(repeated)} now",)


def _ended(result: Result) -> str:
    status = "" if result.exit_status is None else f" with status {result.exit_status}"
    return f"ended {result.outcome}{status}"


def _metric(original: Result, repeated: Result) -> tuple[str, ...]:
    if original.metric == repeated.metric:
        return ()
    then, now = (
        "none" if value is None else repr(value) for value in (original.metric, repeated.metric)
    )
    return (f"the metric was {then}, it is {now}",)


def _outputs(original: Result, repeated: Result) -> tuple[tuple[str, ...], int]:
    before, now = original.outputs, repeated.outputs
    shared = before.keys() & now.keys()
    known = {path for path in shared if before[path] is not None and now[path] is not None}
    groups = (
        ("missing now", before.keys() - now.keys()),
        ("new", now.keys() - before.keys()),
        ("other bytes", {path for path in known if before[path] != now[path]}),
        ("bytes not kept, so not compared", shared - known),
    )
    return tuple(
        f"{len(found)} outputs: {what}: {_few(found)}" for what, found in groups if found
    ), len(known)


def _few(paths: Iterable[str]) -> str:
    names = sorted(paths)
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _conditions(original: Result, repeated: Result) -> Iterable[str]:
    for which, result in (("original", original), ("repetition", repeated)):
        if result.disturbed is not None:
            yield f"the {which} {result.disturbed}"
        elif result.outcome == "timed-out":
            yield f"its deadline ended the {which}: how far it came is the machine's speed"
    if original.steps != repeated.steps and original.steps and repeated.steps:
        yield (f"the budget is one of time: {original.steps:g} steps then, {repeated.steps:g} now")
    for name, then in original.conditions.items():
        now = repeated.conditions.get(name)
        if then is not None and now is not None and then != now:
            yield f"{name}: {_shown(then)} then, {_shown(now)} now"


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in cast("Sequence[object]", value)) or "none"
    return str(value)


def conditions(record: RunRecord) -> dict[str, object]:
    """Return what decided a run's results beside its image and command, as far as it is known."""
    host, ended = record.opened.host, record.ended
    noted = ended.device_facts if ended else {}
    torch = noted.get("torch")
    library = cast("Mapping[str, object]", torch) if isinstance(torch, dict) else {}
    found: dict[str, object] = {}
    if host is not None:
        found |= {
            "architecture": host.architecture,
            "CPU": host.cpu_model,
            "instruction sets": _tuple(host.details.get("instruction_sets")),
        }
    found |= {
        "CPU capability of torch": library.get("cpu_capability"),
        "GPUs": _devices(library.get("devices")) or _tuple(noted.get("gpus")),
        "GPU driver": noted.get("driver"),
        "number of GPUs": len(ended.devices) if ended else None,
        "others on the GPUs": ("some" if noted.get("in_use_by") else "none")
        if noted.get("assigned")
        else None,
        "threads": threads(record),
        "compile caches begin": _caches(record),
        # Their names alone: what they held is on record nowhere.
        "keys of the caller": marked(record.progress.variables or {}),
    }
    return {name: value for name, value in found.items() if value is not None}


def _caches(record: RunRecord) -> str:
    # Kept timings may choose other code, whose sums have another order.
    given = record.progress.caches
    return "empty" if given is None else f"as {given.digest[:12]} of commit {given.commit[:7]}"


def threads(record: RunRecord) -> object:
    """Return how many threads numeric libraries had: as noted, as set, or one a CPU."""
    torch = record.ended.device_facts.get("torch") if record.ended else None
    noted = cast("Mapping[str, object]", torch).get("threads") if isinstance(torch, dict) else None
    if isinstance(noted, int):
        return noted
    asked = (record.progress.variables or {}).get("OMP_NUM_THREADS", "")
    if asked.isascii() and asked.isdigit():
        return int(asked)
    return record.opened.host.cpus if record.opened.host else None


def _tuple(value: object) -> tuple[object, ...] | None:
    return tuple(cast("Sequence[object]", value)) if isinstance(value, list | tuple) else None


def _devices(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list | tuple):
        return None
    devices = [one for one in cast("Sequence[object]", value) if isinstance(one, dict)]
    found = [cast("Mapping[str, object]", device) for device in devices]
    return tuple(f"{one.get('name')} ({one.get('capability')})" for one in found) or None
