"""What happened around one run: changes since the run before, open alerts, what the agent meant.

Rules that this module keeps:

- What is found becomes a finding, an alert or a sentence of the coverage; nothing here judges.
- Bytes of foreign changes are looked for in every commit, whoever committed it.
- Whose a change is, is asked anew at each moment of a run: sessions begin while it goes on. What
  is said of one moment, as findings and as alerts, comes of one answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sealrun import findings as found_by
from sealrun.errors import ObjectCorrupt, RepositoryError
from sealrun.ledger import Alert
from sealrun.ownership import intentlog
from sealrun.ownership.joined import Ownership, left_by
from sealrun.ownership.sessions import Sessions
from sealrun.tree import read_commit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sealrun.course import Course
    from sealrun.git import Repository
    from sealrun.guard import GuardClient, Mutation, Report
    from sealrun.ledger import Event, Ledger
    from sealrun.ownership.intents import Log
    from sealrun.policy import Policy
    from sealrun.state import Places
    from sealrun.tree import CommittedTree
    from sealrun.verdict import Phase
    from sealrun.workspace import Comparison


@dataclass
class Surroundings:
    """What is known about changes before and during one run.

    Attributes:
        directory: the run's own, with its evidence.
        meant: what the agent's hooks recorded; None where there are none.
        between: what the guard saw since the run before; None where it saw nothing.
        before: whose the changes in it are, as far as was known then.
        foreign: the changes in it that foreign writers made.
        told: the alerts that were put on record.
    """

    run_id: str
    repository: Repository
    repository_id: str
    places: Places
    directory: Path
    tree: CommittedTree
    policy: Policy
    ledger: Ledger
    course: Course
    meant: Log | None = None
    between: Report | None = None
    before: Ownership | None = None
    foreign: tuple[Mutation, ...] = ()
    told: list[Alert] = field(default_factory=list[Alert])

    def owners(self) -> Ownership:
        """Return whose changes are whose, as far as is known at this moment."""
        return Ownership(
            Sessions.of(self.places, self.repository_id).all(),
            self.policy.guard.foreign,
            {} if self.meant is None else self.meant.intended(),
        )

    def look_back(self, guard: GuardClient) -> None:
        """Put on record what foreign writers did since the run before."""
        self.meant = self._intents()
        self.between = between = guard.between()
        if between is None:
            return
        self.before = owners = self.owners()
        self.foreign = tuple(m for m in between.mutations if owners.of(m).category == "foreign")
        self.course.add(
            *found_by.from_git_between(between.git), *found_by.from_gaps_between(between)
        )
        self.course.missing.extend(f"between the runs: {gap.text}" for gap in between.coverage.gaps)
        if self.foreign:
            # What nobody is known to have done is most often the loop's own editing.
            self.record_alerts(
                self.ledger.append,
                between.mutations,
                owners,
                phase=found_by.phases_between(between, self.tree.commit),
                categories=("foreign",),
            )

    def _intents(self) -> Log | None:
        """Read what the agent's hooks recorded; most repositories have none."""
        directory = self.places.repository(self.repository_id)
        if not (directory / intentlog.DIRECTORY).exists():
            return None
        from sealrun.ownership.intents import read

        return read(directory, self.repository.workspace)

    def record_alerts(
        self,
        append: Callable[[Event], object],
        mutations: Sequence[Mutation],
        owners: Ownership,
        *,
        phase: Callable[[Mutation], Phase] | None = None,
        categories: tuple[str, ...] = ("foreign", "unknown", "experiment"),
    ) -> None:
        """Put mutations on record as alerts.

        Args:
            append: takes the events.
            mutations: what the guard reported.
            owners: says whose they are.
            phase: of a mutation, where it is not told by the gate's opening.
            categories: of writers whose changes become alerts.
        """
        if not mutations:
            return
        from sealrun.alerts import grouping as alerts
        from sealrun.guard.mutations import EvidenceStore

        for alert in alerts.from_mutations(
            self.run_id,
            mutations,
            self.tree,
            self.course.gate,
            owners.of,
            alerts.standing(self.ledger),
            phase=phase,
            store=EvidenceStore(self.directory / "evidence"),
            categories=categories,
        ):
            append(alert)
            self.told.append(alert)

    def look_for_foreign_bytes(self) -> None:
        """Look in the commit for what open alerts are about, whoever committed it."""
        if not self.ledger.events(Alert):
            return
        from sealrun.alerts import grouping as alerts
        from sealrun.alerts.laundering import contained

        opened = [one for one in alerts.standing(self.ledger) if one.is_open]
        base_of = alerts.bases(self.repository, self.tree.spool)
        foreign, problems = alerts.foreign(opened, base_of)
        found = contained(self.tree, foreign, base_of)
        self.course.add(*found_by.from_laundered(found))
        self.course.missing.extend(problems)
        self.course.verified.append(
            f"the commit, for the bytes of {len(opened)} open alerts: found in {len(found)} places"
        )

    def compare_with_intents(self) -> None:
        """Compare what the commit changed with what the agent's hooks say that it meant."""
        if self.meant is None:
            return
        from sealrun.ownership.intents import Agreement, commit_time
        from sealrun.ownership.intents import compare as compare_with

        try:
            before = self.repository.resolve(f"{self.tree.commit}^")
            parent = read_commit(self.repository, before, self.tree.spool)
        except (RepositoryError, ObjectCorrupt):
            parent = None
        found = compare_with(self.meant, self.tree, parent, committed_at=commit_time(self.tree))
        self.course.add(*found_by.from_intents(found))
        kinds = [match.kind for match in found]
        self.course.verified.append(
            f"{kinds.count(Agreement.MATCH)} of {len(found)} files that the commit changed are as the "
            f"agent meant them, {kinds.count(Agreement.UNKNOWN)} cannot be compared"
        )

    def foreign_differences(self, comparison: Comparison) -> dict[bytes, Mutation]:
        """Return the last change of each differing path that only foreign writers changed."""
        if self.between is None or self.before is None:
            return {}
        found: dict[bytes, Mutation] = {}
        for difference in comparison.differences:
            states = left_by(self.between, self.tree, difference.path)
            if states and all(self.before.of(state).category == "foreign" for state in states):
                found[difference.path] = states[-1]
        return found
