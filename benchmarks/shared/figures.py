"""Figures as they are shown: medians, tails, ratios, and CPU time of processes.

Rules: a median and a tail of interleaved rounds, never one measurement; whatever a loaded machine
does to one contender it does to all.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def tail(values: Sequence[float], share: float = 0.99) -> float:
    """Return the value that a share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return an interval for the median of what the values come from, and how surely it holds.

    Both ends are values themselves, so that nothing is assumed about how they are spread; each pair
    of ends holds with a binomial probability. The narrowest that reaches the confidence is returned,
    else the widest there is, with what it reaches.
    """
    ordered, count = sorted(values), len(values)
    below = [math.comb(count, n) / 2**count for n in range(count + 1)]
    narrowest = (ordered[0], ordered[-1], 1 - 2 * below[0])
    for left in range(1, count // 2):
        covers = 1 - 2 * sum(below[: left + 1])
        if covers < confidence:
            break
        narrowest = (ordered[left], ordered[count - 1 - left], covers)
    return narrowest


def spread(seconds: Sequence[float]) -> str:
    """Return median and tail in milliseconds."""
    return f"p50 {statistics.median(seconds) * 1000:8.2f} ms, p99 {tail(seconds) * 1000:8.2f} ms"


def compare(measured: Mapping[str, Sequence[float]], against: str) -> None:
    """Print each contender's spread and how it compares with one of them."""
    base = measured[against]
    for name, seconds in measured.items():
        middle = statistics.median(seconds) / statistics.median(base)
        far = tail(seconds) / tail(base)
        print(f"{name:>34}  {spread(seconds)}, ratios {middle:.2f} and {far:.2f}")


def cpu(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU seconds that processes have used so far."""
    return sum(times.user + times.system for times in (p.cpu_times() for p in processes))


def family(pid: int) -> list[psutil.Process]:
    """Return a process and those that it started."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]
