"""One run, from commit to verdict: DESIGN section 3, readable top to bottom.

Rules that this module keeps:

- The order is the guarantee: watch complete → verify 1 → seal → verify 2 → gate → verify 3 → judge.
- The record is opened before anything can fail, and closed by every way out, so that a death at
  any line leaves a trace which the next start finds.
- Trouble of ours raises a ``Fault`` and leaves a record without a verdict; it never becomes an
  outcome of the experiment.
- What judges the run is the approved policy, never the live file.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sealrun import determinism, leftovers, record
from sealrun import findings as found_by
from sealrun.data import HashCache, changes
from sealrun.devices.assign import NOTHING, assigned
from sealrun.errors import (
    EngineError,
    GuardError,
    ImageDamaged,
    ObjectCorrupt,
    Refused,
    RepositoryError,
    SandboxError,
    SealrunError,
    Status,
)
from sealrun.gc.keeping import keeping
from sealrun.image.model import PATH, WORKDIR
from sealrun.ledger import Alert, RunEnded, new_ulid
from sealrun.metric import Metric, read_metric
from sealrun.ownership import intentlog
from sealrun.ownership.joined import Ownership, left_by
from sealrun.ownership.sessions import Sessions
from sealrun.policy import Tightening, committed_policy, tighten
from sealrun.progress import Progress
from sealrun.reasons import Reason
from sealrun.request import request_for
from sealrun.sandbox.check import ContainerCheck
from sealrun.sandbox.contents import Witnesses
from sealrun.state import private
from sealrun.tree import Spool, read_commit
from sealrun.verdict import Finding, Kind, Outcome, Phase, Verdict, judge
from sealrun.workspace import checked_out, compare, replaced_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from types import FrameType

    from sealrun.data import Dataset
    from sealrun.engine import Engine
    from sealrun.git import Repository
    from sealrun.guard import Mutation, Report
    from sealrun.image.model import Loading, SealedImage
    from sealrun.image.seal import Sealed
    from sealrun.ledger import Event
    from sealrun.ownership.intents import Log
    from sealrun.policy import EffectivePolicy
    from sealrun.sandbox.protocol import Container, Ended, FileState, Request, Sandbox
    from sealrun.state import Places
    from sealrun.tree import CommittedTree
    from sealrun.workspace import Comparison

#: Seconds between two looks at the deadline and at what others did to the container.
WATCH_EVERY = 0.05


class Listener(Progress, Protocol):
    """Who hears what a run has to say."""

    def say(self, text: str, *, level: int = 0) -> None:
        """Take a line for the user."""
        ...


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


class Experiment:
    """One run under way. Call ``execute`` once."""

    def __init__(
        self,
        asked: Asked,
        repository: Repository,
        repository_id: str,
        places: Places,
        listener: Listener,
    ) -> None:
        self.asked = asked
        self.repository = repository
        self.repository_id = repository_id
        self.places = places
        self.listener = listener
        self.clock = Stopwatch()
        self.course = Course()
        self.told: list[Alert] = []
        self.removal: threading.Thread | None = None
        self.devices = NOTHING
        self.id = new_ulid()
        self.directory = places.run(repository_id, self.id)
        self.log = self.directory / "log"
        self.out = self.directory / "outputs" / "out"

    def execute(self) -> Finished:
        """Run from commit to verdict.

        Raises:
            SealrunError: nothing was judged: bad input, or trouble of ours, which is on record.
        """
        with self.clock.step("resolve"):
            self.tree = self._committed_tree()
            committed = committed_policy(self.tree)
        with (
            leftovers.lock(self.directory),
            leftovers.writable_ledger(
                self.repository, self.places, self.repository_id
            ) as self.ledger,
            contextlib.ExitStack() as self.until_recorded,
        ):
            leftovers.record_dead(self.ledger, self.places, self.repository_id)
            self._open_record(committed)
            try:
                return self._guarded()
            except BaseException as error:
                self._close_without_verdict(error)
                raise
            finally:
                self._await_removal()

    # -- 1: resolve the commit, open the record, pin, compare what judges it with the approved ---

    def _committed_tree(self) -> CommittedTree:
        commit = self.repository.resolve(
            "HEAD" if self.asked.revision is None else self.asked.revision
        )
        spool = Spool(self.places.spool(self.repository_id), self.repository.algorithm)
        return read_commit(self.repository, commit, spool)

    def _open_record(self, committed: EffectivePolicy) -> None:
        with self.clock.step("record"):
            with self.ledger.transaction() as tx:
                found = record.approvals(self.ledger, self.tree, committed)
                self.policy = tighten(found.policy, self.asked.tightening)
                tx.append(
                    record.opened(
                        self.id,
                        self.asked.argv,
                        self.repository,
                        self.tree,
                        self.policy,
                        revision=self.asked.revision or "HEAD",
                        idea=self.asked.idea,
                    )
                )
                tx.append(record.pin(self.id, self.tree.commit))
                # Nobody committed a snapshot, so nobody stands behind its policy.
                if found.approved is None and not self.asked.snapshot:
                    tx.append(record.approval(self.tree, committed, first=True))
            self.repository.pin(self.id, self.tree.commit)
        if found.approved is not None or not self.asked.snapshot:
            self._add(*found_by.from_approvals(found, self.tree.commit))
        self._add(*(Finding(Reason.SANDBOX_LOOSENED, words) for words in self.policy.loosened()))

    def _add(self, *findings: Finding) -> None:
        self.course.findings.extend(findings)

    def _look_for_keys(self, *, after: bool = False) -> None:
        """Note what looks like a key in the commit and its policy, or in what the run left."""
        from sealrun.secrets import after_run, before_run

        with self.clock.step("keys"):
            if after:
                looks = after_run(self.log, self.directory / "outputs")
            else:
                looks = before_run(
                    self.tree, self.policy.policy, self.datasets, self.places
                )
        for looked in looks:
            self._add(*looked.findings())
            self.course.verified.append(looked.sentence)
            for line in looked.warnings():
                self.listener.say(line)

    # -- 2: the guard watches, completely and from now on ----------------------------------------

    def _guarded(self) -> Finished:
        from sealrun.guard import ensure, write_manifest

        with self.clock.step("guard"), ensure(self.repository.workspace, self.places) as guard:
            self.guard = guard
            self.datasets: tuple[Dataset, ...] = ()
            with self._refusing():
                self.datasets = self._data()
            manifest = self.directory / "manifest"
            write_manifest(manifest, self.tree.algorithm, checked_out(self.tree, self.repository))
            guard.arm(
                self.id,
                manifest,
                self.directory / "evidence",
                tuple(dataset.source for dataset in self.datasets),
                between=self.places.between(self.repository_id) / self.id,
            )
            return self._watched()

    def _data(self) -> tuple[Dataset, ...]:
        """Return what is mounted beside the image: the policy's data and what was fetched for it."""
        cache = HashCache(self.places.cache / "hashes.sqlite")
        policy = self.policy.policy
        found = cache.manifest(policy.data, Path.home(), self.listener)
        if not policy.fetch:
            return found
        from sealrun.fetch.prepare import datasets

        more = datasets(policy, self.tree, self.places, self.listener, make=self.asked.make)
        return (*found, *more)

    def _watched(self) -> Finished:
        self._look_back()
        before = self._verify_1()
        # What was not watched is known already; a policy may refuse to start on it.
        self._add(*found_by.from_gaps(self.guard.drain(self.id)))
        if self._may_start():
            self._look_for_keys()
            with self._refusing():
                self._sealed()
        return self._judged(before)

    @contextlib.contextmanager
    def _refusing(self) -> Generator[None]:
        """Let what cannot be sealed or mounted be a finding: the run ends with a verdict."""
        try:
            yield
        except Refused as refused:
            if self.course.started:
                raise
            self._add(Finding(Reason.NOT_SEALABLE, refused.message, advice=refused.hint))

    def _may_start(self) -> bool:
        verdict = judge(self.course.findings, self.policy.policy, started=False)
        return verdict.kind is not Kind.REFUSED

    def _look_back(self) -> None:
        """Put on record what foreign writers did since the run before."""
        with self.clock.step("guard"):
            self.meant = self._intents()
            self.owners = self._ownership()
            self.between = self.guard.between()
            self.foreign: tuple[Mutation, ...] = ()
            if self.between is None:
                return
            self.foreign = tuple(
                m for m in self.between.mutations if self.owners.of(m).category == "foreign"
            )
            self._add(*found_by.from_git_between(self.between.git))
            self._add(*found_by.from_gaps_between(self.between))
            self.course.missing.extend(
                f"between the runs: {gap.text}" for gap in self.between.coverage.gaps
            )
            if self.foreign:
                # What nobody is known to have done is most often the loop's own editing.
                self._record_alerts(
                    self.ledger.append,
                    self.between.mutations,
                    phase=found_by.phases_between(self.between, self.tree.commit),
                    categories=("foreign",),
                )

    def _intents(self) -> Log | None:
        """Read what the agent's hooks recorded; most repositories have none."""
        directory = self.places.repository(self.repository_id)
        if not (directory / intentlog.DIRECTORY).exists():
            return None
        from sealrun.ownership.intents import read

        return read(directory, self.repository.workspace)

    def _ownership(self) -> Ownership:
        """Return whose changes are whose, as far as is known at this moment."""
        return Ownership(
            Sessions.of(self.places, self.repository_id).all(),
            self.policy.policy.guard.foreign,
            {} if self.meant is None else self.meant.intended(),
        )

    def _record_alerts(
        self,
        append: Callable[[Event], object],
        mutations: Sequence[Mutation],
        *,
        phase: Callable[[Mutation], Phase] | None = None,
        categories: tuple[str, ...] = ("foreign", "unknown", "experiment"),
    ) -> None:
        if not mutations:
            return
        from sealrun.alerts import grouping as alerts
        from sealrun.guard.mutations import EvidenceStore

        for alert in alerts.from_mutations(
            self.id,
            mutations,
            self.tree,
            self.course.gate,
            self.owners.of,
            alerts.standing(self.ledger),
            phase=phase,
            store=EvidenceStore(self.directory / "evidence"),
            categories=categories,
        ):
            append(alert)
            self.told.append(alert)

    # -- 3: verify 1: the workspace against the spool, every byte --------------------------------

    def _verify_1(self) -> Comparison | None:
        with self.clock.step("verify 1"):
            self._add(*found_by.from_replaced(replaced_objects(self.repository, self.tree)))
            self._look_for_foreign_bytes()
            head = self._head()
            asked_for = self.asked.revision is not None and not self.asked.snapshot
            # Whatever it is called: HEAD is what the workspace has to equal.
            if asked_for and head != self.tree.commit:
                self._add(
                    Finding(Reason.OTHER_REVISION, f"{self.asked.revision} was asked for"),
                    Finding(Reason.WORKSPACE_NOT_COMPARED),
                )
                self.course.missing.append("the workspace was not compared with this commit")
                return None
            if self.asked.revision is None:
                self._add(*found_by.from_head(self.tree.commit, head))
                self._compare_with_intents()
            comparison = compare(self.tree, self.repository)
            foreign = self._foreign_differences(comparison)
            self._add(
                *found_by.from_comparison(
                    comparison, self.tree, self.repository.workspace, foreign
                ),
                *found_by.from_between(self.foreign, {d.path for d in comparison.differences}),
            )
            self.course.verified.append(
                f"before the start: {comparison.files} files of the workspace, "
                f"{comparison.size} bytes, by content"
            )
            return comparison

    def _look_for_foreign_bytes(self) -> None:
        """Look in the commit for what open alerts are about, whoever committed it."""
        if not self.ledger.events(Alert):
            return
        from sealrun.alerts import grouping as alerts
        from sealrun.alerts.laundering import contained

        opened = [one for one in alerts.standing(self.ledger) if one.is_open]
        base_of = alerts.bases(self.repository, self.tree.spool)
        foreign, problems = alerts.foreign(opened, base_of)
        found = contained(self.tree, foreign, base_of)
        self._add(*found_by.from_laundered(found))
        self.course.missing.extend(problems)
        self.course.verified.append(
            f"the commit, for the bytes of {len(opened)} open alerts: found in {len(found)} places"
        )

    def _compare_with_intents(self) -> None:
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
        self._add(*found_by.from_intents(found))
        kinds = [match.kind for match in found]
        self.course.verified.append(
            f"{kinds.count(Agreement.MATCH)} of {len(found)} files that the commit changed are as the "
            f"agent meant them, {kinds.count(Agreement.UNKNOWN)} cannot be compared"
        )

    def _foreign_differences(self, comparison: Comparison) -> dict[bytes, Mutation]:
        """Return the last change of each differing path that only foreign writers changed."""
        found: dict[bytes, Mutation] = {}
        for difference in comparison.differences:
            states = (
                () if self.between is None else left_by(self.between, self.tree, difference.path)
            )
            if states and all(self.owners.of(state).category == "foreign" for state in states):
                found[difference.path] = states[-1]
        return found

    def _head(self) -> str | None:
        try:
            return self.repository.resolve()
        except (RepositoryError, ObjectCorrupt):
            return None

    # -- 4: seal, load, create -------------------------------------------------------------------

    def _sealed(self) -> None:
        from sealrun.engine import connect
        from sealrun.image.load import load, reload
        from sealrun.sandbox.docker import DockerSandbox, default_owner

        with self.clock.step("engine"):
            engine = connect(self.places)
            sandbox = DockerSandbox(
                engine.client,
                engine.mapping.translate,
                # Other repositories' runs hold locks that this one's places know nothing of.
                owner=default_owner(self.places.repository(self.repository_id)),
                unenforced=engine.unenforced,
            )
            leftovers.clear_containers(sandbox, self.places, self.repository_id)
        # Until all that the image is made of is on record and a container stands on it.
        self.kept = self.until_recorded.enter_context(contextlib.ExitStack())
        self.kept.enter_context(keeping(self.places))
        sealed = self._image(engine)
        self._add(*found_by.from_bytecode(sealed.bytecode))
        if not self._may_start():
            return
        with self.clock.step("load"):
            loading = load(sealed.image, engine.client, progress=self.listener)
        self._await_devices(engine)
        if not self._may_start():
            return
        if self.devices.waited:
            # Meanwhile the image was nobody's.
            self.kept.enter_context(keeping(self.places))
            loading = load(sealed.image, engine.client, progress=self.listener)
        if self.devices.waited:
            # For hours, perhaps: sealrun gc was free to clear up meanwhile.
            self.kept.enter_context(keeping(self.places))
            sealed = self._image(engine)
            with self.clock.step("load"):
                loading = load(sealed.image, engine.client, progress=self.listener)
        try:
            self._contained(sandbox, engine, sealed, loading)
        except ImageDamaged as damage:
            # Somebody wrote into the engine's layer store. What we load anew is verified again;
            # without this one changed file would cost an unattended loop its night.
            self._add(Finding(Reason.IMAGE_REPAIRED, damage.message))
            if not self._may_start():
                return
            self.kept.enter_context(keeping(self.places))
            with self.clock.step("repair"):
                self._await_removal()
                loading = reload(
                    sealed.image,
                    engine.client,
                    progress=self.listener,
                    tree_only=damage.tree_only,
                )
            self._contained(sandbox, engine, sealed, loading)

    def _await_devices(self, engine: Engine) -> None:
        """Take the GPUs that the caller sees, and look at what happened while others had them."""
        if self.policy.policy.sandbox.gpus == "none":
            return
        with self.clock.step("devices"):
            holding = assigned(engine, self.id, self.listener, self.kept.close)
            # To the end of the record: by then the container is gone.
            self.devices = self.until_recorded.enter_context(holding)
        self._add(*self.devices.findings)
        if self.devices.waited:
            report = self.guard.drain(self.id)
            found = found_by.from_report(report, self.tree, None, self._ownership())
            # The report of the end holds these again; here they count only where they refuse.
            self._add(*(one for one in found if self._aborts(one)))

    def _image(self, engine: Engine) -> Sealed:
        from sealrun.image.prepare import prepare
        from sealrun.image.seal import seal
        from sealrun.image.tree_layer import TreeLayers

        with self.clock.step("prepare"):
            base, environment = prepare(
                self.tree,
                self.policy.policy.image,
                self.places,
                engine,
                self.listener,
                make=self.asked.make,
            )
        with self.clock.step("seal"):
            layers = TreeLayers(self.places.trees(self.repository_id))
            return seal(self.tree, base, environment, layers, self.listener)

    def _contained(
        self, sandbox: Sandbox, engine: Engine, sealed: Sealed, loading: Loading
    ) -> None:
        request = self._request(sealed.image, loading)
        self.ledger.append(
            record.sealed(
                self.id,
                engine,
                sealed.image,
                loading,
                request,
                self.datasets,
                self.clock.timings,
                self.policy.policy.sandbox.pass_variables,
            )
        )
        with self.clock.step("create"):
            container = sandbox.create(request)
        self.kept.close()
        try:
            self._inside(container, engine, sealed)
        finally:
            # Beside verify 3: nothing is read from the container any more.
            self.removal = threading.Thread(target=self._remove, args=(container,))
            self.removal.start()

    def _await_removal(self) -> None:
        if self.removal is not None:
            self.removal.join()

    def _remove(self, container: Container) -> None:
        try:
            container.remove()
        except EngineError as error:
            self.listener.say(f"{error.message}; the next run clears the container")

    def _request(self, image: SealedImage, loading: Loading) -> Request:
        private(self.out)
        return request_for(
            run_id=self.id,
            repository_id=self.repository_id,
            argv=self.asked.argv,
            tree=self.tree,
            policy=self.policy.policy,
            image=image,
            loading=loading,
            datasets=self.datasets,
            out=self.out,
            places=self.places,
            join_stderr=same_open_file(self.asked.stdout, self.asked.stderr),
            devices=self.devices.access,
        )

    # -- 5: verify 2: the container against the manifests; then the gate -------------------------

    def _inside(self, container: Container, engine: Engine, sealed: Sealed) -> None:
        check = ContainerCheck(
            container,
            sealed.image,
            sealed.manifest,
            [*(dataset.target for dataset in self.datasets), *container.brought],
            Witnesses(self.places.bases, engine.id),
        )
        with contextlib.closing(check):
            with self.clock.step("verify 2"):
                self._verify_2(container, check)
            if container.command == "ready":
                self._run(container)
                with self.clock.step("verify 3"):
                    self._verify_3(container, check)
        self.course.verified.extend(check.verified)
        self.course.missing.extend(check.missing)
        if not check.complete:
            self._add(Finding(Reason.NOT_REVERIFIED))
        if container.command != "ready":
            self._command_missing(container.command)
            return
        with self.clock.step("collect"):
            self._collect(container)

    def _verify_2(self, container: Container, check: ContainerCheck) -> None:
        effective = container.effective()
        if effective.problems:
            raise SandboxError(
                f"the container is not what was asked for: {'; '.join(effective.problems)}",
                hint="Nothing was run. sealrun doctor shows what this engine can enforce.",
            )
        discrepancies = check.before(self.listener)
        if discrepancies:
            raise ImageDamaged(
                f"the engine shows other files than were sealed: "
                f"{', '.join(f'{d.path} is {d.what}' for d in discrepancies[:5])}",
                hint="Its layer store was changed or is damaged; loading the image anew did not "
                "help. Look at the disk, and at who can write to the engine's data.",
                tree_only=all(d.path.startswith(f"{WORKDIR}/") for d in discrepancies),
            )
        self.course.missing.extend(effective.unseen)

    def _verify_3(self, container: Container, check: ContainerCheck) -> None:
        acts = container.interference()
        self._add(*found_by.from_interference(acts))
        # What the engine did not tell us might have been an act of others.
        self._add(*(Finding(Reason.EVENTS_LOST, words) for words in container.unseen()))
        try:
            self._add(*found_by.from_discrepancies(check.after()))
        except SandboxError as error:
            if not acts:
                raise
            # Who removed the container took its files along; the verdict says who it was.
            self.course.missing.append(error.message)

    def _command_missing(self, why: str) -> None:
        name = self.asked.argv[0]
        code = Status.NOT_FOUND if why == "not-found" else Status.NOT_EXECUTABLE
        words = "is not in the image" if why == "not-found" else "cannot be executed in the image"
        self.listener.say(f"error: the command {name!r} {words}", level=-1)
        self.listener.say(
            f"hint: commands are looked for in {PATH}; committed scripts are called by their path "
            "(./name, with the executable bit committed), packages come from the commit's lock.",
            level=-1,
        )
        self.course.outcome = Outcome.NOT_STARTED
        self.course.status = int(code)

    # -- 6: the experiment -----------------------------------------------------------------------

    def _run(self, container: Container) -> None:
        course, policy = self.course, self.policy.policy
        over, interrupted, struck = threading.Event(), threading.Event(), threading.Event()
        if not gc.isenabled():
            # Our caller put collections off to start faster, but a run can last for days. Modules
            # never become garbage: looking through them now would cost more than it saved.
            gc.freeze()
            gc.enable()
        # To the end of the record: an impatient second Ctrl-C must not cost the run its verdict.
        self.until_recorded.enter_context(interruption(interrupted))
        with self.clock.step("experiment"):
            container.open_gate()
            course.gate = time.monotonic()
            self._follow(struck)
            watcher = threading.Thread(
                target=self._watch, args=(container, over, interrupted, struck), daemon=True
            )
            watcher.start()
            try:
                container.pump(self.asked.stdout, self.asked.stderr, self.log, policy.limits.log)
                course.ended = ended = container.finish()
            finally:
                over.set()
                struck.set()
                watcher.join()
            course.seconds = time.monotonic() - course.gate
        course.status = ended.exit_status
        course.outcome = outcome_of(ended, course.stopped_for)
        if course.outcome is Outcome.INTERRUPTED and not container.interference():
            raise EngineError(
                "the container ended without a word of its init",
                hint="The engine or the machine ended it; nothing was judged. Run again.",
            )
        if ended.stopped_for == "outputs":
            self.listener.say(
                f"stopped: more than {policy.sandbox.outputs} bytes of new files "
                "([sandbox] outputs in the policy)",
                level=-1,
            )

    def _follow(self, struck: threading.Event) -> None:
        """Notice the first mutation, or the guard's end, that aborts under this run's policy."""

        def mutated(mutation: Mutation) -> None:
            gate, owners = self.course.gate, self._ownership()
            if self._aborts(found_by.from_mutation(mutation, self.tree, gate, owners)):
                struck.set()

        def lost(error: SealrunError) -> None:
            if self._aborts(Finding(Reason.GUARD_DIED, error.message)):
                struck.set()

        try:
            self.guard.on_mutation(self.id, mutated, lost)
        except GuardError as error:
            # It died before the gate opened. The report at the end says so; here only a policy
            # that aborts on it has to know.
            lost(error)

    def _watch(
        self,
        container: Container,
        over: threading.Event,
        interrupted: threading.Event,
        struck: threading.Event,
    ) -> None:
        """End the experiment at its deadline, on a signal, or on a mutation that aborts."""
        limits = self.policy.policy.limits
        deadline = None if limits.deadline is None else time.monotonic() + limits.deadline
        while not over.is_set():
            # Interruption comes from a signal's handler, which may not take this event's lock.
            struck.wait(WATCH_EVERY)
            if over.is_set():
                return
            if interrupted.is_set():
                self.listener.say("interrupted: the experiment is being stopped", level=-1)
                self._stop(container, Outcome.STOPPED)
                return
            if deadline is not None and time.monotonic() > deadline:
                self._stop(container, Outcome.TIMED_OUT)
                return
            acts = container.interference(settled=False)
            if struck.is_set() or self._aborts(*found_by.from_interference(acts)):
                self._stop(container, Outcome.STOPPED)
                return

    def _aborts(self, *findings: Finding) -> bool:
        return judge(findings, self.policy.policy, started=True).kind is Kind.ABORTED

    def _stop(self, container: Container, because: Outcome) -> None:
        self.course.stopped_for = because
        with contextlib.suppress(EngineError):
            # An engine that went away is noticed, and told, by whoever reads from it.
            container.stop(self.policy.policy.limits.grace)

    def _collect(self, container: Container) -> None:
        limit = self.policy.policy.sandbox.outputs
        into = self.directory / "outputs" / "workdir"
        try:
            self.course.outputs = container.collect(WORKDIR, into, limit)
        except SandboxError as error:
            self.course.missing.append(f"outputs: {error.message}")
        except FileNotFoundError:
            self.course.missing.append("outputs: the container's first process is gone")

    # -- 7: verify 3, the verdict, the record ----------------------------------------------------

    def _judged(self, before: Comparison | None) -> Finished:
        course, policy = self.course, self.policy.policy
        with self.clock.step("verify 3"):
            if course.started:
                for dataset in self.datasets:
                    for change in changes(dataset):
                        self._add(Finding(Reason.DATA_CHANGED, change, phase=Phase.DURING_RUN))
                self.course.verified.extend(
                    f"after the end: {len(d.files)} data files below {d.source}"
                    for d in self.datasets
                )
            course.report = self.guard.disarm(self.id)
            self.owners = self._ownership()
            self._add(*found_by.from_report(course.report, self.tree, course.gate, self.owners))
            if before is not None and course.started:
                self._compare_again(before, course.report)
        if course.started:
            self._look_for_keys(after=True)
        verdict = judge(deduplicated(course.findings), policy, started=course.started)
        metric = None
        if course.started:
            metric = read_metric(policy.metric, self.log, self.out)
        finished = Finished(
            run_id=self.id,
            commit=self.tree.commit,
            policy=self.policy,
            verdict=verdict,
            outcome=course.outcome,
            exit_status=course.status,
            metric=metric,
            seconds=course.seconds,
            interrupted=course.stopped_for is Outcome.STOPPED and verdict.kind is not Kind.ABORTED,
        )
        self._close(finished)
        return finished

    def _compare_again(self, before: Comparison, report: Report) -> None:
        try:
            after = compare(self.tree, self.repository)
        except SealrunError as error:
            # A git directory that went away during the run must not cost the run its verdict.
            words = f"the workspace could not be compared after the end: {error.message}"
            self._add(Finding(Reason.NOT_WATCHED, words))
            self.course.missing.append(words)
            return
        self._add(*found_by.from_final_comparison(before, after, report))
        self.course.verified.append(
            f"after the end: {after.files} files of the workspace, {after.size} bytes, by content"
        )

    def _close(self, finished: Finished) -> None:
        course = self.course
        # Before the outputs are listed: the notes are not the experiment's.
        noted = determinism.take(self.out) if course.started else {}
        ended = course.ended
        with self.ledger.transaction() as tx:
            if course.report is not None:
                self._record_alerts(tx.append, course.report.mutations)
            tx.append(
                RunEnded(
                    run=self.id,
                    outcome=finished.outcome,
                    exit_status=finished.exit_status,
                    verdict=record.judgement(finished.verdict, self.policy.policy),
                    metric=record.metric_facts(finished.metric),
                    seconds=finished.seconds,
                    peak_memory=ended.peak_memory if ended else None,
                    cpu_seconds=ended.cpu_seconds if ended else None,
                    coverage=record.coverage(course.report, course.verified, course.missing),
                    timings=dict(self.clock.timings),
                    log=str(self.log) if self.log.exists() else None,
                    outputs_path=str(self.directory / "outputs") if course.started else None,
                    outputs=record.outputs(course.outputs, self.out),
                    limits=record.limits(self.policy.policy),
                    devices=self.devices.uuids if course.started else (),
                    device_facts={**noted, **self.devices.facts},
                )
            )
        self._sign()

    def _sign(self) -> None:
        """Sign what is on record now, if the user has a key; an unsigned run is a run all the same."""
        if not any(self.places.keys.glob("*")):
            return
        from sealrun.provenance import sign_run

        try:
            sign_run(self.id, self.ledger, self.repository, self.places)
        except SealrunError as error:
            self.listener.say(f"not signed: {error.message}", level=-1)

    def _close_without_verdict(self, error: BaseException) -> None:
        if isinstance(error, SealrunError):
            words = error.message
        else:
            stopped = isinstance(error, KeyboardInterrupt)
            words = "interrupted by a signal" if stopped else type(error).__name__
        outcome = Outcome.INTERRUPTED if self.course.started else Outcome.NOT_STARTED
        with contextlib.suppress(SealrunError):
            # A ledger that cannot be written is often the very reason; the next start finds the
            # open record and closes it.
            self.ledger.append(
                RunEnded(
                    run=self.id,
                    outcome=outcome,
                    fault=words,
                    timings=dict(self.clock.timings),
                    log=str(self.log) if self.log.exists() else None,
                )
            )


def outcome_of(ended: Ended, stopped_for: Outcome | None) -> Outcome:
    """Return what became of the process."""
    if stopped_for is not None:
        return stopped_for
    if ended.out_of_memory:
        return Outcome.OUT_OF_MEMORY
    if ended.stopped_for is not None:
        return Outcome.STOPPED if ended.stopped_for == "outputs" else Outcome.INTERRUPTED
    return Outcome.SUCCEEDED if ended.exit_status == 0 else Outcome.FAILED


@contextlib.contextmanager
def interruption(noticed: threading.Event) -> Generator[None]:
    """Turn signals that would end us into a notice, while an experiment has to be ended first."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread gets signals (signal(7) by way of Python's signal module).
        yield
        return

    def notice(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
        noticed.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, notice)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def deduplicated(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings in order, each once."""
    return list(dict.fromkeys(findings))


def same_open_file(one: int, other: int) -> bool:
    """Tell whether two descriptors lead to the same file, so that order between them counts."""
    try:
        a, b = os.fstat(one), os.fstat(other)
    except OSError:
        return False
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
