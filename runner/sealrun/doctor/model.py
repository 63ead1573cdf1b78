"""The records of a diagnosis, and its one-line summary.

Rules that this module keeps:

- No IO.
- The summary is computed from the checks; it never says more than they found.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

#: How records call the level and the isolation that this version offers.
PROTECTION = "same-user"
TIER = "container"
#: What can be said of the processes that change a file.
NAMED = "named, also those that end at once"
LIVING_NAMED = "named where they live on"
UNNAMED = "not named, alerts say `unavailable`"


class Grade(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what, e.g. ``disk: data``; unique within a diagnosis.
        grade: how it came out.
        detail: what was found, as a phrase.
        fix: what to do about it; None where nothing needs doing.
    """

    name: str
    grade: Grade
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at, summary first."""

    headline: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> bool:
        """Whether something keeps sealrun from working here."""
        return any(check.grade is Grade.FAIL for check in self.checks)


def summarise(checks: tuple[Check, ...], *, in_repository: bool) -> str:
    """Return one line: what is protected here, what is not, and who can be named.

    Args:
        checks: what was found.
        in_repository: the current directory belongs to a repository that can be guarded.
    """
    grades = {check.name: check.grade for check in checks}
    known = next((check.detail for check in checks if check.name == "writers"), UNNAMED)
    writers = f"writers: {known}"
    level = f"level {PROTECTION}, sandbox {TIER}"
    if grades.get("engine") is not Grade.OK:
        return f"nothing can run here: no usable container engine; {writers}"
    if not in_repository:
        return f"runs can be protected here ({level}), but this is no git repository; {writers}"
    gaps: list[str] = []
    if grades.get("file system: workspace") is not Grade.OK:
        gaps.append("events on the workspace (coverage is content-only)")
    if grades.get("inotify") not in {Grade.OK, None}:
        gaps.append("a gapless watch (too few inotify resources)")
    missing = f"; not protected: {', '.join(gaps)}" if gaps else ""
    return (
        "protected: the committed code, in a container, and the workspace by content"
        f"{'' if gaps else ' and events'} ({level}){missing}; {writers}"
    )
