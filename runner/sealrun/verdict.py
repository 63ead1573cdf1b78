"""From findings to a verdict. Pure: no IO, no clock, no randomness.

Rules that this module keeps:

- A verdict is the worst answer that the policy gives to any finding; nothing outweighs anything.
- ``clean`` needs complete coverage: what was not observed or not compared is itself a finding.
- A finding that could only refuse before the start can only abort after it.
- The table of DESIGN section 5 is ``reasons.MEANINGS`` and ``Policy.react``; nothing else decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sealrun.reasons import MEANINGS, Reason, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealrun.policy import Policy


class Kind(StrEnum):
    """The four verdicts."""

    CLEAN = "clean"
    FLAGGED = "flagged"
    ABORTED = "aborted"
    REFUSED = "refused"


class Outcome(StrEnum):
    """What became of the process; independent of the verdict."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    OUT_OF_MEMORY = "out-of-memory"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    NOT_STARTED = "not-started"


class Phase(StrEnum):
    """When a mutation happened."""

    BEFORE_COMMIT = "before-commit"
    AFTER_COMMIT = "after-commit"
    DURING_RUN = "during-run"
    IN_CONTAINER = "in-container"


@dataclass(frozen=True)
class Finding:
    """One thing that was found, and the code that names it.

    Attributes:
        detail: a sentence about this case; the code's general meaning is in ``MEANINGS``.
        path: the path that it is about, as text with surrogates escaped.
        diff: lines of a unified diff, where one helps.
        advice: what to do about it, where that depends on the case; it is said, not recorded.
    """

    reason: Reason
    detail: str = ""
    path: str | None = None
    phase: Phase | None = None
    diff: tuple[str, ...] = ()
    advice: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The judgement of one run.

    Attributes:
        reasons: every finding, notes included, the gravest first.
        harmless: the number still belongs to the commit alone, and was observed to.
    """

    kind: Kind
    reasons: tuple[Finding, ...]
    harmless: bool


_ORDER = (
    Severity.NOTE,
    Severity.FLAG_HARMLESS,
    Severity.FLAG,
    Severity.ABORT,
    Severity.REFUSE,
)


def severity(finding: Finding, policy: Policy) -> Severity:
    """Return what a policy does about a finding."""
    return policy.react(finding.reason, MEANINGS[finding.reason].severity)


def judge(findings: Iterable[Finding], policy: Policy, *, started: bool) -> Verdict:
    """Judge a run by all that was found.

    Args:
        started: whether the gate was opened; what would abort a run refuses to start one.
    """
    ranked = sorted(
        ((severity(finding, policy), finding) for finding in findings),
        key=lambda pair: -_ORDER.index(pair[0]),
    )
    worst = ranked[0][0] if ranked else Severity.NOTE
    if worst in (Severity.REFUSE, Severity.ABORT):
        kind = Kind.ABORTED if started else Kind.REFUSED
    elif worst in (Severity.FLAG, Severity.FLAG_HARMLESS):
        kind = Kind.FLAGGED
    else:
        kind = Kind.CLEAN
    return Verdict(
        kind,
        tuple(finding for _, finding in ranked),
        harmless=worst in (Severity.NOTE, Severity.FLAG_HARMLESS),
    )
