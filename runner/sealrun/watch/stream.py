"""The machine stream's objects, and the same for people: what is printed, from what was found. Pure.

Rules that this module keeps:

- A detection has the fields of DESIGN section 5 and no other; what is not known is null.
- Another user's arguments are shown to root alone.
- The verdict is ``clean`` only where nothing was detected and everything was observed.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sealrun import writers
from sealrun.reasons import MEANINGS, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sealrun.guard import Coverage, Mutation

READY: dict[str, Any] = {"event": "ready"}
#: Reason codes of a mutation by its area; of tracked and extra files it depends on more.
_REASONS = {
    "tracked": Reason.EDIT_UNATTRIBUTED,
    "extra": Reason.EXTRA_FILE,
    "environment": Reason.EXTRA_FILE,
    "bytecode": Reason.EXTRA_FILE,
    "link": Reason.EDIT_UNATTRIBUTED,
    "head": Reason.HEAD_MOVED,
    "replace": Reason.REPLACED_OBJECTS,
    "objects": Reason.REPLACED_OBJECTS,
    "index": Reason.HIDDEN_FROM_GIT,
    "staged": Reason.HIDDEN_FROM_GIT,
}


@dataclass(frozen=True)
class Detection:
    """One mutation as it was found.

    Attributes:
        path: absolute.
        kinds: what happened, in words; the first says how, the others to what.
        at_start: it stood so when the watch began.
        final: the last verification found it.
    """

    mutation: Mutation
    path: bytes
    kinds: tuple[str, ...]
    at_start: bool = False
    final: bool = False

    @property
    def reason(self) -> Reason:
        """The code that a verdict cites for it."""
        area = self.mutation.area
        if self.at_start and area == "tracked":
            return Reason.WORKSPACE_DIFFERS
        if area == "tracked" and self.mutation.writer.kind == "foreign":
            return Reason.EDIT_FOREIGN
        return _REASONS.get(area, Reason.CONFIGURATION_CHANGED)

    def document(self, viewer: int) -> dict[str, Any]:
        """Return the object of the machine stream.

        Args:
            viewer: uid of whom it is shown to.
        """
        mutation = self.mutation
        facts = writers.facts(mutation.writer, (), viewer)
        process = facts.process
        return {
            "event": "detection",
            "t": mutation.last.monotonic,
            "path": os.fsdecode(self.path),
            "kind": list(self.kinds),
            "phase": "after-commit" if self.at_start else "during-run",
            "pid": process.pid if process else None,
            "exe": process.exe if process else None,
            "cmdline": list(process.cmdline) if process and process.cmdline else None,
            "uid": process.uid if process else None,
            "how": facts.how,
            "final": self.final,
        }

    def line(self, viewer: int) -> str:
        """Return the same for people."""
        who = writers.describe(
            writers.facts(self.mutation.writer, self.mutation.candidates, viewer)
        )
        when = "at the end: " if self.final else "at the start: " if self.at_start else ""
        words = f"{when}{shlex.quote(os.fsdecode(self.path))}: {', '.join(self.kinds)}"
        return f"{words}; {who}" if who else words


@dataclass(frozen=True)
class Conclusion:
    """The end of a watch.

    Attributes:
        coverage: None where the guard died, so that nobody knows.
        detections: each that was told, the loop's own left out.
        trouble: further reasons why not everything was observed.
        notes: what is worth knowing and changes nothing.
        environments: path, digest and number of files of each unit.
        evidence: directory of the kept bytes; None where none were kept.
    """

    workspace: str
    commit: str | None
    coverage: Coverage | None
    detections: Sequence[Detection]
    trouble: Sequence[tuple[Reason, str]] = ()
    notes: Sequence[dict[str, Any]] = ()
    environments: Sequence[dict[str, Any]] = ()
    writers: str | None = None
    evidence: str | None = None
    at: float = 0.0

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """Why not everything was observed; empty where it was."""
        found: list[dict[str, Any]] = [
            {"reason": reason.value, "text": text, "numbers": {}} for reason, text in self.trouble
        ]
        if self.coverage is None:
            text = MEANINGS[Reason.GUARD_DIED].text
            return [{"reason": Reason.GUARD_DIED.value, "text": text, "numbers": {}}, *found]
        return found + [
            {"reason": gap.reason.value, "text": gap.text, "numbers": dict(gap.numbers)}
            for gap in self.coverage.gaps
        ]

    @property
    def clean(self) -> bool:
        """Whether nothing was detected and everything was observed."""
        return not self.detections and not self.gaps

    def document(self) -> dict[str, Any]:
        """Return the last object of the machine stream."""
        coverage = self.coverage
        gaps = self.gaps
        return {
            "event": "verdict",
            "t": self.at,
            "verdict": "clean" if self.clean else "flagged",
            "reasons": list(_reasons(self.detections))
            + [{"reason": gap["reason"], "text": gap["text"], "paths": []} for gap in gaps],
            "coverage": {
                "complete": not gaps,
                "gaps": gaps,
                "directories": coverage.directories if coverage else None,
                "watches": coverage.watches if coverage else None,
                "hard_linked": coverage.hard_linked if coverage else None,
                "since": coverage.since.monotonic if coverage else None,
                "until": coverage.until.monotonic if coverage else None,
            },
            "detections": len(self.detections),
            "mutations": len({detection.mutation.number for detection in self.detections}),
            "workspace": self.workspace,
            "compared_with": "commit" if self.commit else "start",
            "commit": self.commit,
            "writers": self.writers,
            "environments": list(self.environments),
            "notes": list(self.notes),
            "evidence": self.evidence,
        }

    def line(self) -> str:
        """Return the same for people."""
        against = f"commit {self.commit[:12]}" if self.commit else "the state at the start"
        if self.clean:
            return f"clean: {self.workspace} was {against} throughout"
        paths = len({detection.path for detection in self.detections})
        words = f"flagged: {paths} paths were not as {against} has them" if paths else "flagged"
        return "; ".join([words, *(f"{gap['reason']}: {gap['text']}" for gap in self.gaps)])


#: Paths that one reason lists; the detections list all.
_PATHS = 100
#: What a code means where there is no image and no run.
_TEXTS = {
    Reason.EXTRA_FILE: "a file outside the commit that could be imported or read as configuration",
    Reason.EDIT_UNATTRIBUTED: "a guarded file changed; whose change it is, is not known",
    Reason.EDIT_FOREIGN: "a foreign writer changed a guarded file",
    Reason.HIDDEN_FROM_GIT: "git's index hides a tracked file, or holds bytes of it that stand "
    "nowhere else",
    Reason.HEAD_MOVED: "HEAD leads elsewhere than at the start",
    Reason.REPLACED_OBJECTS: "git shows or serves other objects than the commit holds",
    Reason.CONFIGURATION_CHANGED: "git's hooks, configuration or attributes, the root or a mount "
    "changed",
}


def _reasons(detections: Iterable[Detection]) -> Iterable[dict[str, Any]]:
    grouped: dict[Reason, dict[str, None]] = {}
    for detection in detections:
        paths = grouped.setdefault(detection.reason, {})
        paths[os.fsdecode(detection.path)] = None
    for reason, paths in grouped.items():
        text = _TEXTS.get(reason, MEANINGS[reason].text)
        yield {"reason": reason.value, "text": text, "paths": list(paths)[:_PATHS]}
