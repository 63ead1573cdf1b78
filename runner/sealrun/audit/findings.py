"""The closed set of what an audit can find, and what each code says.

Rules that this module keeps:

- A finding is a fact about a table, a log, a reflog or committed bytes; none says why.
- What cannot be known is not a finding: it is listed apart, and never counted as good or bad.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """What was found."""

    # the table
    KEPT_NO_BETTER = "kept-no-better"
    KEPT_UNMEASURED = "kept-unmeasured"
    WITHIN_NOISE = "within-noise"
    DISCARDED_BETTER = "discarded-better"
    CRASHED_WITH_NUMBER = "crashed-with-number"
    ZERO_WITHOUT_CRASH = "zero-without-crash"
    REPEATED_COMMIT = "repeated-commit"
    # the repository
    MISSING = "commit-missing"
    AMBIGUOUS = "commit-ambiguous"
    DAMAGED = "commit-damaged"
    UNREACHABLE = "commit-unreachable"
    OTHER_PARENT = "other-parent"
    OUT_OF_ORDER = "out-of-order"
    DISCARD_LIVES_ON = "discard-lives-on"
    KEEP_LEFT = "keep-left"
    AMENDED = "amended"
    UNMENTIONED_CHANGE = "unmentioned-change"
    # the logs
    RAN_OTHER_BYTES = "ran-other-bytes"
    CONSTANT_DIFFERS = "constant-differs"
    SAME_CODE_OTHER_FACT = "same-code-other-fact"
    LOG_DIFFERS = "log-differs"
    # a contaminated row
    INHERITS = "inherits"
    DECIDED_ON = "decided-on"


MEANINGS: dict[Code, str] = {
    Code.KEPT_NO_BETTER: "kept, though its number is not better than the best kept before it",
    Code.KEPT_UNMEASURED: "kept without a number",
    Code.WITHIN_NOISE: "kept for a gain smaller than `--noise`",
    Code.DISCARDED_BETTER: "discarded, though its number is better than the best kept before it",
    Code.CRASHED_WITH_NUMBER: "a crash with a number; 0.000000 stands for none",
    Code.ZERO_WITHOUT_CRASH: "discarded or kept with the number that stands for a crash",
    Code.REPEATED_COMMIT: "the commit stands in an earlier row; two numbers of it show the noise",
    Code.MISSING: "the commit is not in this repository any more",
    Code.AMBIGUOUS: "several commits begin with these digits",
    Code.DAMAGED: "git serves other bytes than the commit's id promises",
    Code.UNREACHABLE: "the commit exists, but no branch or tag holds it: git will remove it",
    Code.OTHER_PARENT: "the commit is not made on the last one that was kept",
    Code.OUT_OF_ORDER: "the commit says that it is older than the one of an earlier row",
    Code.DISCARD_LIVES_ON: "discarded or crashed, yet a later kept commit is built on it",
    Code.KEEP_LEFT: "kept, yet the next kept commit is not built on it",
    Code.AMENDED: "the reflog says that the commit was amended, after or into this one",
    Code.UNMENTIONED_CHANGE: "the commit changes a constant that its row's description does not "
    "mention",
    Code.RAN_OTHER_BYTES: "the log prints the hash of a file, and the commit holds other bytes",
    Code.CONSTANT_DIFFERS: "the log prints a constant, and the commit assigns another value",
    Code.SAME_CODE_OTHER_FACT: "two logs of the same code print different facts about the model",
    Code.LOG_DIFFERS: "the log prints another number than the row has",
    Code.INHERITS: "the commit is built on a contaminated one",
    Code.DECIDED_ON: "the row was kept or discarded by comparison with a contaminated number",
}


@dataclass(frozen=True)
class Found:
    """One thing that an audit found.

    Attributes:
        code: of the closed set.
        row: number of the row that it is about.
        text: what exactly, in a sentence without a full stop.
        other: number of the other row, where two are involved.
    """

    code: Code
    row: int
    text: str
    other: int | None = None
