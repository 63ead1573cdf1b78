"""Whose the changes around one run are: sessions, foreign tools and intents, joined.

Rules that this module keeps:

- Pure: sessions and intents are read by whoever asks.
- A change is the loop's only if everybody who can have made it is the loop.
- Bytes that the agent's editor is known to have meant for that path at that time are the loop's, also
  where nobody could see who wrote them. Nothing else excuses an unknown writer: who puts an earlier
  version back, as a sync tool does, is not the agent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sealrun.ownership.whose import Whose, classify, of_mutation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sealrun.guard.mutations import GitChange, Mutation, Report
    from sealrun.ownership.sessions import Session
    from sealrun.tree import CommittedTree

#: Seconds between a change and the agent's hook that tells of it.
SOON = 10.0


@dataclass(frozen=True)
class Ownership:
    """Tells whose a mutation is.

    Attributes:
        sessions: those under way and those that ended.
        tools: programs that are foreign whoever starts them.
        intended: path to the sha256 of each content that the agent meant to write there, and when, in
            seconds of wall time.
    """

    sessions: tuple[Session, ...]
    tools: tuple[str, ...]
    intended: Mapping[bytes, tuple[tuple[str, float], ...]] = field(
        default_factory=dict[bytes, tuple[tuple[str, float], ...]]
    )

    def of(self, mutation: Mutation) -> Whose:
        """Return whose a mutation is."""
        found = of_mutation(mutation, self.sessions, self.tools)
        if found.category == "unknown" and self._meant(mutation):
            return Whose("loop", "the agent's editor meant to write these bytes")
        if found.category != "loop":
            return found
        # Whoever wrote before the loop did may have left something that the loop's write kept.
        boot = mutation.first.boot
        others = (
            classify(other, self.sessions, self.tools, boot, at=mutation.first.wall)
            for other in mutation.candidates
        )
        return next((other for other in others if other.category != "loop"), found)

    def of_change(self, change: GitChange) -> Whose:
        """Return whose a change of git's own state is."""
        boot, at = change.at.boot, change.at.wall
        found = Whose("unknown", change.writer.why or "nobody could be seen to write")
        for writer in (change.writer, *change.candidates):
            found = classify(writer, self.sessions, self.tools, boot, at=at)
            if found.category != "loop":
                break
        return found

    def _meant(self, mutation: Mutation) -> bool:
        evidence = mutation.evidence
        if evidence is None or mutation.count != 1:
            return False
        return any(
            sha256 == evidence.sha256 and abs(at - mutation.first.wall) <= SOON
            for sha256, at in self.intended.get(mutation.path, ())
        )


def left_by(report: Report, tree: CommittedTree, path: bytes) -> tuple[Mutation, ...]:
    """Return what was written to a path between runs and is not in the commit.

    Args:
        report: of the time between two runs.
        tree: the commit that the workspace should equal.
        path: relative to the workspace.

    Returns:
        The states of the path since the committed content stood there last, oldest first.
    """
    entry = tree.get(path)
    committed = None if entry is None else f"git-{tree.algorithm}:{entry.oid}"
    states = sorted((m for m in report.mutations if m.path == path), key=lambda m: m.last.monotonic)
    since = max((m.last.monotonic for m in states if m.after == committed), default=float("-inf"))
    return tuple(
        m for m in states if m.after != committed and not m.restored and m.last.monotonic >= since
    )
