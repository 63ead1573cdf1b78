"""From what was seen to findings: each observation of a run gets its reason code here.

Rules that this module keeps:

- Pure, but for reading the bytes that a shown diff needs.
- An observation that is not understood becomes a finding too; nothing is dropped.
- Every gap in what was watched or compared is a finding of its own.
- A writer that is named is not yet known to be the loop's or foreign: ``Ownership`` says which, and
  DESIGN section 5 what that means. Whoever is not known to be the loop is not treated as it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun import writers
from sealrun.policy import changed, changed_paths
from sealrun.reasons import Reason
from sealrun.verdict import Finding, Phase
from sealrun.workspace import Kind, diff_lines, unified_diff

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

    from sealrun.alerts.laundering import Laundered
    from sealrun.approvals import Approvals
    from sealrun.guard.mutations import GitChange, GitState, Mutation, Report
    from sealrun.ownership.intents import Match
    from sealrun.ownership.joined import Ownership
    from sealrun.ownership.whose import Whose
    from sealrun.sandbox.contents import Discrepancy
    from sealrun.sandbox.protocol import Interference
    from sealrun.tree import CommittedTree
    from sealrun.workspace import Comparison, Difference

#: Lines of diff kept for one path, and paths that get one: an agent reads the last 50 lines.
DIFF_LINES = 14
DIFF_PATHS = 3
#: Parts of git's own state by which it shows, or does, other things than the commit says.
_MISLEADING = ("configuration", "hooks", "info", "replace")
#: Bytes of evidence that a diff is made from.
EVIDENCE_LIMIT = 1 << 20


def text(path: bytes) -> str:
    """Return a path as text that keeps every byte."""
    return path.decode("utf-8", "surrogateescape")


def from_comparison(
    comparison: Comparison,
    tree: CommittedTree,
    workspace: Path,
    foreign: Mapping[bytes, Mutation],
) -> Iterator[Finding]:
    """Yield a finding for each path that differs from the commit before the start.

    Args:
        foreign: the last change of each path that none but foreign writers changed since the commit.
    """
    for number, difference in enumerate(comparison.differences):
        culprit = foreign.get(difference.path)
        reason = _reason_of(difference, culprit)
        words = f"{text(difference.path)} is {difference.kind}"
        if difference.why:
            words += f": {difference.why}"
        if reason is Reason.HIDDEN_FROM_GIT:
            words += ", and an index flag hides it from git"
        elif reason is Reason.CONVERTED_OTHERWISE:
            words += "; rm FILE && git checkout -- FILE writes it anew"
        diff: tuple[str, ...] = ()
        if number < DIFF_PATHS and difference.kind == "modified":
            diff = unified_diff(tree, workspace, difference.path, lines=DIFF_LINES)
        yield Finding(
            reason,
            words + ("" if culprit is None else _by(culprit)),
            text(difference.path),
            Phase.AFTER_COMMIT,
            diff,
        )
    for configured in comparison.configured:
        yield Finding(
            Reason.BY_CONFIGURATION,
            f"{len(configured.paths)} files are as git checks them out here by {configured.setting}, "
            f"{text(configured.paths[0])} first",
        )


def _reason_of(difference: Difference, culprit: Mutation | None) -> Reason:
    if difference.hidden:
        return Reason.HIDDEN_FROM_GIT
    if difference.kind is Kind.CONVERTED_OTHERWISE:
        return Reason.CONVERTED_OTHERWISE
    if culprit is not None:
        return Reason.WORKSPACE_DIFFERS_FOREIGN
    if difference.kind is Kind.NOT_COMPARABLE:
        return Reason.NOT_COMPARABLE
    return Reason.WORKSPACE_DIFFERS


def from_replaced(replaced: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding where replace refs hide objects of the commit."""
    if replaced:
        yield Finding(
            Reason.REPLACED_OBJECTS,
            f"replace refs hide {len(replaced)} objects of this commit, {replaced[0][:12]} first; "
            "the run uses the true ones, git shows others",
        )


def from_bytecode(paths: Sequence[bytes]) -> Iterator[Finding]:
    """Yield a finding for each compiled file in the commit."""
    for path in paths:
        yield Finding(Reason.COMMITTED_BYTECODE, f"{text(path)} is compiled bytecode", text(path))


def from_approvals(found: Approvals, commit: str) -> Iterator[Finding]:
    """Yield a finding for each thing that only a human may change, or for the first approval."""
    approved, candidate = found.approved, found.candidate
    if approved is None:
        yield Finding(Reason.FIRST_APPROVAL, f"the policy of commit {commit[:7]} is approved by it")
        return
    for reason in changed(approved, candidate):
        if reason is Reason.POLICY_CHANGED:
            yield Finding(
                reason,
                f"this commit's policy is {candidate.policy[:12]}; runs here are judged by "
                f"{approved.policy[:12]}",
                "sealrun.toml",
            )
        else:
            for path in changed_paths(approved, candidate):
                yield Finding(reason, f"{path} is not as the owner of this loop left it", path)


def from_report(
    report: Report, tree: CommittedTree, gate: float | None, owners: Ownership
) -> Iterator[Finding]:
    """Yield a finding for each mutation of an armed interval and each gap in watching it.

    Args:
        gate: CLOCK_MONOTONIC seconds when the gate opened; None when it did not.
        owners: tells whose each mutation is.
    """
    for number, mutation in enumerate(report.mutations):
        finding = from_mutation(mutation, tree, gate, owners)
        yield finding if number < DIFF_PATHS else replace(finding, diff=())
    for rewrite in report.rewrites:
        reason = Reason.IDENTICAL_REWRITE if rewrite.content else Reason.METADATA_ONLY
        yield Finding(
            reason,
            f"{text(rewrite.path)}: {', '.join(rewrite.events)}; the bytes are the committed ones",
            text(rewrite.path),
        )
    yield from from_gaps(report)
    if report.git is not None:
        yield from _git(report.git, owners)


def from_head(commit: str, head: str | None) -> Iterator[Finding]:
    """Yield a finding where HEAD leads elsewhere than when the run's commit was resolved."""
    if head != commit:
        yield Finding(
            Reason.HEAD_MOVED,
            f"HEAD moved from {commit[:12]} to {(head or 'nothing')[:12]} while the run "
            "was being prepared",
            phase=Phase.AFTER_COMMIT,
        )


def phases_between(report: Report, commit: str) -> Callable[[Mutation], Phase]:
    """Return what tells for each change between two runs whether the commit came after it.

    Args:
        report: of the time between the runs.
        commit: that the second run is of.
    """
    made = None
    if report.git is not None:
        moves = [
            c.at.monotonic for c in report.git.changes if c.area == "head" and c.after == commit
        ]
        made = moves[-1] if moves else None

    def phase(mutation: Mutation) -> Phase:
        if made is not None and mutation.first.monotonic < made:
            return Phase.BEFORE_COMMIT
        return Phase.AFTER_COMMIT

    return phase


def from_between(found: Sequence[Mutation], differing: Container[bytes]) -> Iterator[Finding]:
    """Yield a finding for each foreign change between runs that the workspace no longer shows.

    Args:
        found: the foreign ones.
        differing: paths that differ from the commit; those have findings of their own.
    """
    for mutation in found:
        if mutation.path not in differing:
            name = text(mutation.path)
            words = f"{name} was {mutation.kind} between runs"
            yield Finding(Reason.FOREIGN_BETWEEN, words + _by(mutation), name)


def from_git_between(state: GitState | None) -> Iterator[Finding]:
    """Yield a finding for each of git's own files that changed between two runs and can mislead."""
    changes = () if state is None else state.changes
    for name in dict.fromkeys(c.name for c in changes if c.area in _MISLEADING):
        yield Finding(Reason.GIT_CHANGED_BETWEEN, f"git's {name} changed", f".git/{name}")


def from_laundered(found: Iterable[Laundered]) -> Iterator[Finding]:
    """Yield a finding for each place of a commit that holds what a foreign writer wrote."""
    for laundered in found:
        name = text(laundered.path)
        where = f", line {laundered.lines[0]}" if laundered.lines else ""
        by = writers.describe(laundered.writer)
        yield Finding(
            Reason.CONTAINS_FOREIGN,
            f"{name}{where} holds what alert {laundered.alert} is about"
            f"{f', {by}' if by else ''}; this restores it",
            name,
            Phase.BEFORE_COMMIT,
            laundered.restore[:DIFF_LINES],
        )


def from_intents(found: Iterable[Match]) -> Iterator[Finding]:
    """Yield a finding for each path of a commit that is not what the agent meant to write."""
    for match in found:
        if match.kind == "differs":
            name = text(match.path)
            yield Finding(
                Reason.INTENT_DIFFERS,
                f"{name}: {match.why}",
                name,
                Phase.BEFORE_COMMIT,
                match.foreign[:DIFF_LINES],
            )


def _git(state: GitState, owners: Ownership) -> Iterator[Finding]:
    moves = [change for change in state.changes if change.area == "head"]
    if state.head_moved:
        # The list is bounded: it has to lead to where HEAD is now.
        whole = bool(moves) and moves[-1].after == state.head_now
        own = whole and all(owners.of_change(move).category == "loop" for move in moves)
        yield Finding(
            Reason.EDIT_LOOP if own else Reason.HEAD_MOVED,
            f"HEAD moved from {_ref(state.head, state.branch)} to "
            f"{_ref(state.head_now, state.branch_now)}"
            + ("" if own or not moves else _by(moves[-1])),
            phase=Phase.DURING_RUN,
        )
    for change in state.changes:
        if change.area in _MISLEADING:
            own = owners.of_change(change).category == "loop"
            yield Finding(
                Reason.EDIT_LOOP if own else Reason.CONFIGURATION_CHANGED,
                f"git's {change.name} changed" + ("" if own else _by(change)),
                f".git/{change.name}",
                Phase.DURING_RUN,
            )


def _ref(commit: str | None, branch: str | None) -> str:
    return f"{(commit or 'nothing')[:12]} on {branch or 'no branch'}"


def from_gaps(report: Report) -> Iterator[Finding]:
    """Yield a finding for each part of an interval that was not observed."""
    for gap in report.coverage.gaps:
        yield Finding(gap.reason, gap.text)


def from_gaps_between(report: Report) -> Iterator[Finding]:
    """Yield a finding where nobody could tell foreign writers from the loop between two runs.

    What they wrote may be in the commit, as the loop's own.
    """
    for gap in report.coverage.gaps:
        if gap.reason is Reason.WRITERS_LOST:
            yield Finding(gap.reason, f"between the runs: {gap.text}")


def from_mutation(
    mutation: Mutation, tree: CommittedTree, gate: float | None, owners: Ownership
) -> Finding:
    """Return the finding of one mutation; see ``from_report``."""
    name = text(mutation.path)
    phase = phase_of(mutation, gate)
    if mutation.area == "data":
        return Finding(Reason.DATA_CHANGED, f"{name}: {mutation.kind}", name, phase)
    if mutation.area != "tracked":
        return Finding(Reason.CONFIGURATION_CHANGED, f"{name}: {mutation.kind}", name, phase)
    words = f"{name} was {mutation.kind}"
    if mutation.count > 1:
        words += f" {mutation.count} times"
    if mutation.restored:
        words += "; the committed bytes are back"
    reason = reason_of(mutation, owners.of(mutation))
    return Finding(reason, words + _by(mutation), name, phase, diff_of(mutation, tree))


def reason_of(mutation: Mutation, whose: Whose) -> Reason:
    """Return what a mutation during a run is called."""
    if mutation.area == "data":
        return Reason.DATA_CHANGED
    if mutation.area != "tracked":
        return Reason.CONFIGURATION_CHANGED
    by = {"loop": Reason.EDIT_LOOP, "foreign": Reason.EDIT_FOREIGN}
    return by.get(whose.category, Reason.EDIT_UNATTRIBUTED)


def _by(change: Mutation | GitChange) -> str:
    facts = writers.facts(change.writer, change.candidates, os.geteuid())
    writer = writers.describe(facts)
    return f"; {writer}" if writer else ""


def phase_of(mutation: Mutation, gate: float | None) -> Phase:
    """Return whether a mutation was first seen before or after the gate opened."""
    if gate is None or mutation.first.monotonic < gate:
        return Phase.AFTER_COMMIT
    return Phase.DURING_RUN


def diff_of(mutation: Mutation, tree: CommittedTree) -> tuple[str, ...]:
    """Return a diff from the committed bytes to the kept evidence; empty where none can be made."""
    entry = tree.get(mutation.path)
    evidence = mutation.evidence
    if entry is None or evidence is None or evidence.file is None:
        return ()
    if evidence.kept < evidence.size or max(entry.size, evidence.size) > EVIDENCE_LIMIT:
        return ()
    try:
        after = Path(evidence.file).read_bytes()
    except OSError:
        return ()
    if hashlib.sha256(after).hexdigest() != evidence.sha256:
        return (f"{text(mutation.path)}: the kept bytes were changed after they were taken",)
    return diff_lines(tree.read(entry), after, mutation.path, lines=DIFF_LINES)


def from_final_comparison(
    before: Comparison, after: Comparison, report: Report
) -> Iterator[Finding]:
    """Yield a finding for each path that differs at the end and that no event told of.

    Args:
        report: its mutations are findings already; what it merely notes is none.
    """
    told = {text(m.path) for m in report.mutations} | {text(d.path) for d in before.differences}
    for difference in after.differences:
        name = text(difference.path)
        if name not in told:
            yield Finding(
                Reason.EDIT_UNATTRIBUTED,
                f"{name} is {difference.kind} at the end of the run; no event told of it",
                name,
                Phase.DURING_RUN,
            )


def from_discrepancies(found: Sequence[Discrepancy]) -> Iterator[Finding]:
    """Yield a finding for each path in the container that is not what its layers hold."""
    for discrepancy in found:
        yield Finding(
            Reason.IN_CONTAINER,
            f"{discrepancy.path} is {discrepancy.what}",
            discrepancy.path,
            Phase.IN_CONTAINER,
        )


def from_interference(found: Sequence[Interference]) -> Iterator[Finding]:
    """Yield a finding for each act of others on the container through the engine."""
    for act in found:
        yield Finding(
            Reason.ENGINE_INTERFERENCE,
            f"{act.action} by somebody else through the engine",
            phase=Phase.IN_CONTAINER,
        )
