"""What is asked of a run, what has been seen of it so far, and what came of it.

Rules: no IO but the clock; the verdict is a function of a run's course.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sealrun.errors import Status
from sealrun.policy import Tightening
from sealrun.verdict import Finding, Kind, Outcome, Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from sealrun.guard import Report
    from sealrun.metric import Metric
    from sealrun.policy import EffectivePolicy, Policy
    from sealrun.sandbox.protocol import Ended, FileState


@dataclass(frozen=True)
class Asked:
    """A run as asked for on the command line.

    Attributes:
        argv: the committed command.
        revision: None for HEAD; another one is not compared with the workspace.
        idea: what the loop says that it tries; None takes the commit's subject.
        snapshot: the revision is a snapshot of the workspace, taken for this run.
        make: whether a missing base or environment may be made now (somebody is waiting).
        stdout: descriptor that the experiment's output goes to; likewise ``stderr``.
    """

    argv: tuple[str, ...]
    revision: str | None = None
    idea: str | None = None
    tightening: Tightening = field(default_factory=Tightening)
    snapshot: bool = False
    make: bool = False
    stdout: int = 1
    stderr: int = 2


@dataclass(frozen=True)
class Finished:
    """A run as it ended and was judged.

    Attributes:
        exit_status: of the experiment's process; None when it never ended by itself.
        seconds: from the gate's opening to the end of the process.
        interrupted: the user or a signal ended it.
    """

    run_id: str
    commit: str
    policy: EffectivePolicy
    verdict: Verdict
    outcome: Outcome
    exit_status: int | None = None
    metric: Metric | None = None
    seconds: float | None = None
    interrupted: bool = False


def exit_status(finished: Finished, *, fail_on_flag: bool) -> int:
    """Return what ``sealrun run`` exits with (DESIGN section 5)."""
    kind = finished.verdict.kind
    ours = (
        (kind is Kind.REFUSED, Status.REFUSED),
        (kind is Kind.ABORTED, Status.ABORTED),
        (finished.interrupted, Status.INTERRUPTED),
        (finished.outcome is Outcome.TIMED_OUT, Status.DEADLINE),
        (finished.exit_status is None, Status.FAULT),
    )
    for applies, status in ours:
        if applies:
            return status
    if not finished.exit_status and fail_on_flag and kind is Kind.FLAGGED:
        return Status.FLAGGED
    return finished.exit_status or 0


class Stopwatch:
    """Seconds of each step of one run."""

    def __init__(self) -> None:
        self.timings: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Generator[None]:
        """Time a step; one that is entered twice adds up."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self.timings[name] = round(self.timings.get(name, 0.0) + spent, 6)


@dataclass
class Course:
    """What has been seen of a run so far; the verdict is a function of it.

    Attributes:
        gate: CLOCK_MONOTONIC seconds when the gate opened.
        seconds: from the gate to the end of the process.
        stopped_for: why we ended the experiment, if we did.
    """

    findings: list[Finding] = field(default_factory=list[Finding])
    verified: list[str] = field(default_factory=list[str])
    missing: list[str] = field(default_factory=list[str])
    report: Report | None = None
    outcome: Outcome = Outcome.NOT_STARTED
    ended: Ended | None = None
    gate: float | None = None
    seconds: float | None = None
    stopped_for: Outcome | None = None
    status: int | None = None
    outputs: Sequence[FileState] = ()

    @property
    def started(self) -> bool:
        """Whether the gate was opened."""
        return self.gate is not None

    def add(self, *findings: Finding) -> None:
        """Take findings."""
        self.findings.extend(findings)

    def judged(self, policy: Policy) -> Verdict:
        """Return the verdict over all that was found up to now, each finding once."""
        return judge(dict.fromkeys(self.findings), policy, started=self.started)


def outcome_of(ended: Ended, stopped_for: Outcome | None) -> Outcome:
    """Return what became of the process."""
    if stopped_for is not None:
        return stopped_for
    if ended.out_of_memory:
        return Outcome.OUT_OF_MEMORY
    if ended.stopped_for is not None:
        return Outcome.STOPPED if ended.stopped_for == "outputs" else Outcome.INTERRUPTED
    return Outcome.SUCCEEDED if ended.exit_status == 0 else Outcome.FAILED
