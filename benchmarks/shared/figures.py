"""Figures as they are shown: medians, tails, ratios, and CPU time of processes.

Rules: a median and a tail of interleaved rounds, never one measurement; whatever a loaded machine
does to one contender it does to all.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def tail(values: Sequence[float], share: float = 0.99) -> float:
    """Return the value that a share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


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
