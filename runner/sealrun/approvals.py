"""What a commit asks a human to approve, beside what is approved here.

Rules that this module keeps:

- What judges a commit is the approved policy; its own only where that is the approved one, or where
  nothing is approved yet.
- An approval is an event by a user, at a terminal or with the first run; nothing else makes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun import facts
from sealrun.ledger import Approval
from sealrun.policy import Approvable, approvable, approved_policy

if TYPE_CHECKING:
    from sealrun.ledger import Ledger
    from sealrun.policy import EffectivePolicy
    from sealrun.tree import CommittedTree


@dataclass(frozen=True)
class Approvals:
    """What a commit asks for, beside what is approved here.

    Attributes:
        approved: None before the first run.
        candidate: what this commit asks a human to approve.
        policy: what judges the commit: the approved policy, and its own only where that is the
            approved one or nothing is approved yet.
    """

    approved: Approvable | None
    candidate: Approvable
    policy: EffectivePolicy


def compared(ledger: Ledger, tree: CommittedTree, committed: EffectivePolicy) -> Approvals:
    """Compare a commit's policy and protected files with the approved ones.

    Raises:
        PolicyError: the approved policy on record cannot be read by this version.
    """
    recorded = ledger.approved()
    if recorded is None:
        return Approvals(None, approvable(tree, committed), committed)
    approval = recorded.event
    patterns = approval.values.get("guard.protected", ())
    names = tuple(str(p) for p in patterns) if isinstance(patterns, list | tuple) else ()
    approved = Approvable(approval.policy, dict(approval.protected), names)
    judging = committed
    if approval.policy != committed.digest:
        judging = approved_policy(approval.policy, approval.values)
    return Approvals(approved, approvable(tree, committed, names), judging)


def event(
    tree: CommittedTree, policy: EffectivePolicy, *, first: bool, terminal: str | None = None
) -> Approval:
    """Return the event of an approval by the calling user."""
    host = facts.host()
    asked = approvable(tree, policy)
    return Approval(
        policy=asked.policy,
        protected=dict(asked.protected),
        commit=tree.commit,
        first=first,
        uid=host.uid,
        login=host.user,
        terminal=terminal,
        values=policy.values(),
    )
