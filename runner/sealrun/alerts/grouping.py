"""From mutations to alerts: one program's run is one alert, the same change coming back counts.

Rules that this module keeps:

- Nothing is dropped but what the loop itself wrote to its own files.
- What belongs together is told by the writer and by time, never guessed from names alone: changes
  without a known writer stand together only where they came at one go, and say so.
- The same hunk on the same path by the same program is the same alert, from whichever run.
- An alert is open until a human accepts it; an acceptance covers the bytes that were on record then,
  under whatever commit they come back, and no others.
- Evidence is believed when its sha256 says so; what is missing or was changed is said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sealrun import writers
from sealrun.alerts import cures
from sealrun.alerts.laundering import Foreign, hunk_digests
from sealrun.errors import StorageFault
from sealrun.findings import DIFF_PATHS, diff_of, phase_of, text
from sealrun.ledger import Alert, AlertAccepted, ForeignState, new_ulid, utc
from sealrun.moved import found_at
from sealrun.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from sealrun.git import Repository
    from sealrun.guard.mutations import Evidence, EvidenceStore, Mutation
    from sealrun.guard.processes import Process as Seen
    from sealrun.ledger import Ledger, Recorded, WriterFacts
    from sealrun.ownership.whose import Whose
    from sealrun.tree import CommittedTree, Spool
    from sealrun.verdict import Phase

#: Seconds between two changes of one program's run, and of several without a known writer.
APART, APART_UNKNOWN = 5.0, 1.0
#: States of one alert, and bytes of them in its event, whose lists are bounded: more are another.
MOST_STATES, MOST_BYTES = 500, 900 << 10
#: Hunks of one state that are remembered.
MOST_HUNKS = 64
#: Bytes of kept content that are read.
MOST_KEPT = 1 << 20
#: Parents that two processes of one run may share, nearest first; the first process is everybody's.
_NEAR, _INIT = 2, 1


# -- what is on record ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """One alert as it stands: all of its events together.

    Attributes:
        alert: its latest event.
        states: every foreign state that it told of, each once, oldest first.
        open: those of them that nobody has accepted.
        accepted: the latest acceptance; None where there is none.
        settled: path and digest of each hunk that was accepted.
        runs: ids of the runs in which it was seen, oldest first.
    """

    alert: Recorded[Alert]
    states: tuple[ForeignState, ...]
    open: tuple[ForeignState, ...]
    accepted: Recorded[AlertAccepted] | None = None
    settled: frozenset[tuple[str, str]] = frozenset()
    runs: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Of the alert."""
        return self.alert.event.id

    @property
    def is_open(self) -> bool:
        """Whether it waits for a human; the loop's own changes never do."""
        return bool(self.open) and self.alert.event.writer.category != "loop"

    @property
    def state(self) -> str:
        """Return ``open``, ``accepted``, or ``loop`` where the loop made the change itself."""
        if self.is_open:
            return "open"
        return "loop" if self.open else "accepted"

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths that it was ever about, in order."""
        return tuple(sorted({state.path for state in self.states}))


def standing(ledger: Ledger) -> tuple[Standing, ...]:
    """Return every alert on record as it stands, the newest first.

    They come from the events themselves, which the chain covers.

    Raises:
        LedgerError: an event cannot be read.
    """
    return stand(ledger.events(Alert), ledger.events(AlertAccepted))


def stand(
    events: Iterable[Recorded[Alert]], acceptances: Iterable[Recorded[AlertAccepted]]
) -> tuple[Standing, ...]:
    """Put the events of each alert together; see ``standing``."""
    of_alert: dict[str, list[Recorded[Alert]]] = {}
    for event in events:
        of_alert.setdefault(event.event.id, []).append(event)
    accepted: dict[str, list[Recorded[AlertAccepted]]] = {}
    for one in acceptances:
        accepted.setdefault(one.event.alert, []).append(one)
    found = [_together(seen, accepted.get(alert, [])) for alert, seen in of_alert.items()]
    return tuple(sorted(found, key=lambda one: one.alert.seq, reverse=True))


def _together(seen: list[Recorded[Alert]], accepted: list[Recorded[AlertAccepted]]) -> Standing:
    upto = max((one.event.upto for one in accepted), default=0)
    states: dict[tuple[object, ...], ForeignState] = {}
    contents: set[tuple[object, ...]] = set()
    settled: set[tuple[str, str]] = set()
    for recorded in seen:
        for state in states_of(recorded.event):
            states[_content(state)] = state
            if recorded.seq <= upto:
                contents.add(_content(state))
                settled.update((state.path, digest) for digest in state.hunks)
    return Standing(
        alert=seen[-1],
        states=tuple(states.values()),
        open=tuple(
            state
            for key, state in states.items()
            if key not in contents
            and not (state.hunks and settled.issuperset((state.path, d) for d in state.hunks))
        ),
        accepted=accepted[-1] if accepted else None,
        settled=frozenset(settled),
        runs=tuple(dict.fromkeys(one.event.run for one in seen if one.event.run is not None)),
    )


def _content(state: ForeignState) -> tuple[object, ...]:
    return (state.path, state.change, state.after, state.sha256)


def states_of(alert: Alert) -> tuple[ForeignState, ...]:
    """Return the states of one event; an alert about no file's content has one without bytes."""
    if alert.states:
        return alert.states
    kept = alert.after if alert.evidence else None
    return tuple(
        ForeignState(path=path, change=alert.change, sha256=kept, evidence=alert.evidence)
        for path in dict.fromkeys((alert.path, *alert.paths))
    )


# -- the bytes of open alerts --------------------------------------------------------------------


def foreign(
    standings: Iterable[Standing], base_of: Callable[[str], CommittedTree | None]
) -> tuple[tuple[Foreign, ...], tuple[str, ...]]:
    """Return the foreign states of open alerts with their bytes, for ``laundering.contained``.

    Args:
        standings: accepted ones and the loop's own are passed over.
        base_of: gives a commit's tree; asked only where the committed content was not kept too.

    Returns:
        The states, and a sentence for each whose bytes are not as they were kept: such a one is
        looked for by git's id alone.
    """
    found: list[Foreign] = []
    problems: list[str] = []
    for one in standings:
        alert = one.alert.event
        if not one.is_open or alert.reason == Reason.DATA_CHANGED:
            continue
        for state in one.open:
            if state.path.startswith("/") or not _has_content(state):
                continue
            after, problem = read_evidence(state.evidence, state.sha256)
            if problem is not None and state.change != "deleted":
                problems.append(f"alert {one.id}, {state.path}: {problem}")
            found.append(
                Foreign(
                    alert=one.id,
                    path=_raw(state.path),
                    before=_before(state, base_of),
                    after=after,
                    writer=alert.writer,
                    blob=_blob(state.after),
                    base=state.commit,
                    removed=state.change == "deleted",
                    settled=frozenset(d for d in state.hunks if (state.path, d) in one.settled),
                )
            )
    return tuple(found), tuple(problems)


def bases(repository: Repository, spool: Spool) -> Callable[[str], CommittedTree | None]:
    """Return what gives the tree of a commit, each read once; None for one that is not to be had."""
    from sealrun.errors import ObjectCorrupt, RepositoryError
    from sealrun.tree import read_commit

    @functools.cache
    def base_of(commit: str) -> CommittedTree | None:
        try:
            return read_commit(repository, commit, spool)
        except (ObjectCorrupt, RepositoryError):
            return None

    return base_of


def _has_content(state: ForeignState) -> bool:
    if state.change == "deleted":
        return True
    return state.after != state.before if state.after else state.sha256 is not None


def _before(state: ForeignState, base_of: Callable[[str], CommittedTree | None]) -> bytes | None:
    kept, problem = read_evidence(state.before_evidence, state.before_sha256)
    if problem is None or state.commit is None:
        return kept
    tree = base_of(state.commit)
    entry = tree.get(_raw(state.path)) if tree else None
    if tree is None or entry is None or entry.oid != _blob(state.before):
        return None
    return tree.read(entry)


def read_evidence(file: str | None, sha256: str | None) -> tuple[bytes | None, str | None]:
    """Read kept bytes and hash them again.

    Returns:
        The bytes, or None and why they cannot be believed, as a clause.
    """
    if file is None or sha256 is None:
        return None, "its bytes were not kept"
    try:
        fd = os.open(found_at(file), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as stream:
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
            content = stream.read(MOST_KEPT + 1) if regular else b""
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return None, f"its evidence is missing ({why})"
    if hashlib.sha256(content).hexdigest() == sha256:
        return content, None
    if file.endswith(".head"):
        return None, "it was too large to be kept whole"
    return None, "its evidence was changed after it was taken"


def _blob(digest: str | None) -> str | None:
    kind, _, value = (digest or "").partition(":")
    return value if kind.startswith("git-") and value else None


def _raw(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


# -- from mutations to alerts --------------------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    """One mutation with what is said of it.

    Attributes:
        program: what its writer runs, by one word; None where nobody is known.
        family: pid and start of the writer and of its nearest parents.
    """

    mutation: Mutation
    phase: Phase
    reason: Reason
    writer: WriterFacts
    program: str | None
    family: frozenset[tuple[int, int | None]]
    state: ForeignState

    @property
    def kind(self) -> tuple[str, str, str, str | None]:
        """What changes of one alert have in common."""
        return self.phase, self.reason, self.writer.category, self.program

    @property
    def size(self) -> int:
        """Bytes that it takes in an event, roughly and rather too many."""
        state = self.state
        texts = (state.path, state.evidence or "", state.before_evidence or "")
        return 1000 + 4 * sum(map(len, texts)) + 64 * len(state.hunks)


def from_mutations(  # noqa: PLR0913 - each is another fact of the same report
    run: str | None,
    mutations: Iterable[Mutation],
    tree: CommittedTree,
    gate: float | None,
    classify: Callable[[Mutation], Whose],
    known: Iterable[Standing] = (),
    *,
    phase: Callable[[Mutation], Phase] | None = None,
    store: EvidenceStore | None = None,
    categories: Container[str] = ("foreign", "unknown", "experiment"),
) -> tuple[Alert, ...]:
    """Return the alerts that mutations make, ready for the ledger; the oldest first.

    Args:
        run: id of the run that they belong to; None between runs.
        mutations: of one report, all of them: what stood before a change may be the loop's own.
        tree: the commit that they were compared with.
        gate: CLOCK_MONOTONIC seconds when the gate opened; None when it did not.
        classify: says whose a mutation is. What the loop did to tracked files makes no alert.
        known: alerts on record, accepted ones too: one that comes back keeps its id and counts.
        phase: of each; found from the gate when not given.
        categories: whose changes make alerts.
        store: keeps the committed bytes beside the foreign ones, so that an alert can be read and
            looked for without the repository.
    """
    changes: list[_Change] = []
    mutations = tuple(mutations)
    for mutation in mutations:
        found = classify(mutation)
        if found.category not in categories and mutation.area == "tracked":
            continue
        writer = writers.facts(mutation.writer, mutation.candidates, os.geteuid())
        writer = dataclasses.replace(
            writer, category=found.category, why=writer.why or found.why or None
        )
        changes.append(
            _Change(
                mutation=mutation,
                phase=phase(mutation) if phase else phase_of(mutation, gate),
                reason=_reason(mutation, found.category),
                writer=writer,
                program=cures.program(writer.process),
                family=_family(mutation),
                state=_state(mutation, _earlier(mutation, mutations), tree, store),
            )
        )
    before = Known(known)
    alerts: list[Alert] = []
    for group in grouped(changes):
        alerts.append(alert := before.recur(_alert(run, group, tree)))
        # The next group of this report may be the same once more.
        before.add(alert, states_of(alert))
    return tuple(alerts)


def _reason(mutation: Mutation, category: str) -> Reason:
    if mutation.area == "data":
        return Reason.DATA_CHANGED
    if mutation.area != "tracked":
        return Reason.CONFIGURATION_CHANGED
    return Reason.EDIT_FOREIGN if category == "foreign" else Reason.EDIT_UNATTRIBUTED


def _family(mutation: Mutation) -> frozenset[tuple[int, int | None]]:
    writer = mutation.writer
    near: tuple[Seen | None, ...] = (writer.process, *writer.parents[:_NEAR])
    return frozenset((one.pid, one.started) for one in near if one is not None and one.pid != _INIT)


def _earlier(mutation: Mutation, mutations: Iterable[Mutation]) -> Mutation | None:
    """Return the state of a path that a mutation was made to; None for the expected content.

    Somebody may have saved the file before: only what came on top of that is the writer's.
    """
    began = mutation.first.monotonic
    before = [
        other
        for other in mutations
        if (other.path, other.area) == (mutation.path, mutation.area)
        and other.first.monotonic < began
        and other.after != mutation.after
        and (mutation.restored or not other.restored)
    ]
    return max(before, key=lambda other: min(other.last.monotonic, began), default=None)


def _state(
    mutation: Mutation,
    earlier: Mutation | None,
    tree: CommittedTree,
    store: EvidenceStore | None,
) -> ForeignState:
    evidence = mutation.evidence
    digest = mutation.before if earlier is None else earlier.after
    before, kept = _stood_before(digest, earlier, tree, store)
    sha256 = None if evidence is None else evidence.sha256
    after, _ = read_evidence(None if evidence is None else evidence.file, sha256)
    digests: tuple[str, ...] = ()
    if before is not None and after is not None:
        digests = hunk_digests(before, after)
    return ForeignState(
        path=text(mutation.path),
        change=mutation.kind,
        commit=tree.commit,
        before=digest,
        after=mutation.after,
        before_sha256=None if kept is None else kept.sha256,
        before_evidence=None if kept is None else kept.file,
        sha256=sha256,
        evidence=None if evidence is None else evidence.file,
        # Some of many would settle, or count, what is not the same: then the whole content does.
        hunks=digests if len(digests) <= MOST_HUNKS else (),
        count=mutation.count,
        restored=mutation.restored,
    )


def _stood_before(
    digest: str | None, earlier: Mutation | None, tree: CommittedTree, store: EvidenceStore | None
) -> tuple[bytes | None, Evidence | None]:
    if earlier is not None:
        kept = earlier.evidence
        return (None if kept is None else read_evidence(kept.file, kept.sha256)[0]), kept
    content: bytes | None = None
    # Of an earlier commit too: what was expected between two runs is what the last one held.
    with contextlib.suppress(KeyError, StorageFault):
        if (blob := _blob(digest)) is not None and tree.spool.size(blob) <= MOST_KEPT:
            content = tree.spool.read(blob, "blob")
    if content is None or store is None:
        return content, None
    return content, store.keep(hashlib.sha256(content).hexdigest(), len(content), content)


def grouped(changes: Iterable[_Change]) -> list[list[_Change]]:
    """Put changes that one program's run made together, by time; the oldest group first."""
    groups: list[_Group] = []
    for change in sorted(changes, key=lambda one: (one.mutation.first.monotonic, one.state.path)):
        group = next((g for g in reversed(groups) if g.takes(change)), None)
        if group is None:
            groups.append(group := _Group())
        group.add(change)
    return [group.changes for group in groups]


class _Group:
    """Changes of one alert so far."""

    def __init__(self) -> None:
        self.changes: list[_Change] = []
        self.size = 0

    def add(self, change: _Change) -> None:
        self.changes.append(change)
        self.size += change.size

    def takes(self, change: _Change) -> bool:
        """Tell whether a later change is of the same run of the same program."""
        last = self.changes[-1]
        one, other = last.mutation.first, change.mutation.first
        if change.kind != last.kind or one.boot != other.boot:
            return False
        if len(self.changes) >= MOST_STATES or self.size + change.size > MOST_BYTES:
            return False
        apart = other.monotonic - one.monotonic
        if change.program is None:
            return apart <= APART_UNKNOWN
        return apart <= APART and bool(change.family & last.family)


def _alert(run: str | None, group: Sequence[_Change], tree: CommittedTree) -> Alert:
    first = group[0]
    states = tuple(change.state for change in group)
    paths = tuple(dict.fromkeys(state.path for state in states))
    mutations = [change.mutation for change in group]
    diffs = ["\n".join(diff_of(mutation, tree)) for mutation in mutations[:DIFF_PATHS]]
    changes = {state.change for state in states}
    return Alert(
        run=run,
        id=new_ulid(),
        path=first.state.path,
        paths=paths if len(paths) > 1 else (),
        phase=first.phase,
        change=first.state.change if len(changes) == 1 else "modified",
        reason=first.reason,
        detail=_detail(first.writer, paths, max(state.count for state in states)),
        diff="\n".join(filter(None, diffs)) or None,
        before=first.state.before,
        after=first.state.sha256 or first.state.after,
        evidence=first.state.evidence,
        writer=first.writer,
        first_at=_utc(min(mutation.first.wall for mutation in mutations)),
        last_at=_utc(max(mutation.last.wall for mutation in mutations)),
        count=max(state.count for state in states),
        restored=all(state.restored for state in states),
        states=states,
        cure=cures.cure(first.writer, paths),
    )


def _detail(writer: WriterFacts, paths: Sequence[str], count: int) -> str | None:
    """Return ``9th time, ruff from the editor's server; 40 paths``, as far as it applies."""
    words: list[str] = []
    if count > 1:
        words.append(f"{ordinal(count)} time")
    if (name := cures.named(writer)) is not None:
        words.append(name)
    sentence = ", ".join(words)
    if len(paths) > 1:
        many = f"{len(paths)} paths"
        if writer.process is None:
            many += " at one go; whether one program wrote them all is not known"
        sentence = f"{sentence}; {many}" if sentence else many
    return sentence or None


def ordinal(number: int) -> str:
    """Return a number as ``1st``, ``2nd``, ``3rd``, ``11th``."""
    teen = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


# -- the same again ------------------------------------------------------------------------------


class Known:
    """Alerts on record, found by what was done, where, and by which program.

    Args:
        standings: the newest first; accepted ones too.
    """

    def __init__(self, standings: Iterable[Standing]) -> None:
        self._by_mark: dict[_Mark, Alert] = {}
        for one in reversed(tuple(standings)):
            self.add(one.alert.event, one.states)

    def add(self, alert: Alert, states: Iterable[ForeignState]) -> None:
        """Remember an alert as the newest with its marks."""
        self._by_mark.update(dict.fromkeys(_marks(alert, states), alert))

    def recur(self, alert: Alert) -> Alert:
        """Return an alert as the next occasion of the one that it repeats, or as it is."""
        marks = _marks(alert, states_of(alert))
        earlier = next((self._by_mark[mark] for mark in marks if mark in self._by_mark), None)
        if earlier is None:
            return alert
        count = earlier.count + alert.count
        return dataclasses.replace(
            alert,
            id=earlier.id,
            count=count,
            first_at=earlier.first_at or alert.first_at,
            detail=_detail(alert.writer, alert.paths or (alert.path,), count),
        )


#: Program, reason code, path, and a digest of what was done there.
_Mark = tuple["str | None", str, str, str]


def _marks(alert: Alert, states: Iterable[ForeignState]) -> list[_Mark]:
    name = cures.program(alert.writer.process)
    return [
        (name, alert.reason, state.path, mark)
        for state in states
        for mark in state.hunks or (f"{state.change} {state.after or state.sha256}",)
    ]


def _utc(wall: float) -> str:
    return utc(datetime.fromtimestamp(wall, UTC))
