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
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun import approvals, determinism, facts, leftovers, record
from sealrun import findings as found_by
from sealrun.course import Course, Finished, Stopwatch
from sealrun.data import HashCache, changes
from sealrun.devices.assign import NOTHING, assigned
from sealrun.errors import (
    EngineError,
    ImageDamaged,
    ObjectCorrupt,
    Refused,
    RepositoryError,
    SandboxError,
    SealrunError,
    Status,
)
from sealrun.execution import Execution, aborts
from sealrun.gc.keeping import keeping
from sealrun.image.model import PATH, WORKDIR
from sealrun.interruption import interruption
from sealrun.ledger import RunEnded, new_ulid
from sealrun.metric import read_metric
from sealrun.policy import committed_policy, tighten
from sealrun.reasons import Reason
from sealrun.request import request_for
from sealrun.sandbox.check import ContainerCheck
from sealrun.sandbox.contents import Witnesses
from sealrun.state import private
from sealrun.surroundings import Surroundings
from sealrun.tree import Spool, read_commit
from sealrun.verdict import Finding, Kind, Outcome, Phase
from sealrun.workspace import checked_out, compare, replaced_objects

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from sealrun.caches.start import Given
    from sealrun.course import Asked
    from sealrun.data import Dataset
    from sealrun.engine import Engine
    from sealrun.git import Repository
    from sealrun.guard import Report
    from sealrun.image.model import Loading, SealedImage
    from sealrun.image.seal import Sealed
    from sealrun.ownership.joined import Ownership
    from sealrun.policy import EffectivePolicy
    from sealrun.progress import Listener
    from sealrun.sandbox.protocol import Container, Request, Sandbox
    from sealrun.state import Places
    from sealrun.tree import CommittedTree
    from sealrun.workspace import Comparison


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
        self.removal: threading.Thread | None = None
        self.devices = NOTHING
        self.caches: Given | None = None
        self.id = new_ulid()
        self.directory = places.run(repository_id, self.id)
        self.log = self.directory / "log"
        self.out = self.directory / "outputs" / "out"

    def execute(self) -> Finished:
        """Run from commit to verdict.

        Raises:
            SealrunError: nothing was judged: bad input, or trouble of ours, which is on record.
        """
        # Until all that the image is made of is on record and a container stands on it, sealrun gc
        # leaves spool, layers and images alone.
        with contextlib.ExitStack() as self.kept:
            self.kept.enter_context(keeping(self.places))
            with self.clock.step("resolve"):
                self.tree = self._committed_tree()
                committed = committed_policy(self.tree)
            return self._on_record(committed)

    def _on_record(self, committed: EffectivePolicy) -> Finished:
        with (
            leftovers.lock(self.directory),
            leftovers.writable_ledger(
                self.repository, self.places, self.repository_id
            ) as self.ledger,
            contextlib.ExitStack() as self.until_recorded,
        ):
            leftovers.record_dead(self.ledger, self.places, self.repository_id)
            self._open_record(committed)
            self.around = Surroundings(
                self.id,
                self.repository,
                self.repository_id,
                self.places,
                self.directory,
                self.tree,
                self.policy.policy,
                self.ledger,
                self.course,
            )
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
                found = approvals.compared(self.ledger, self.tree, committed)
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
                    tx.append(approvals.event(self.tree, committed, first=True))
            self.repository.pin(self.id, self.tree.commit)
        if found.approved is not None or not self.asked.snapshot:
            self.course.add(*found_by.from_approvals(found, self.tree.commit))
        self.course.add(
            *(Finding(Reason.SANDBOX_LOOSENED, words) for words in self.policy.loosened())
        )

    def _look_for_keys(self, *, after: bool = False) -> None:
        """Note what looks like a key in the commit and its policy, or in what the run left."""
        from sealrun.secrets import after_run, before_run

        with self.clock.step("keys"):
            if after:
                looks = after_run(self.log, self.directory / "outputs")
            else:
                looks = before_run(self.tree, self.policy.policy, self.datasets, self.places)
        for looked in looks:
            self.course.add(*looked.findings())
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
        with self.clock.step("guard"):
            self.around.look_back(self.guard)
        before = self._verify_1()
        # What was not watched is known already; a policy may refuse to start on it.
        self.course.add(*found_by.from_gaps(self.guard.drain(self.id)))
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
            self.course.add(Finding(Reason.NOT_SEALABLE, refused.message, advice=refused.hint))

    def _may_start(self) -> bool:
        return self.course.judged(self.policy.policy).kind is not Kind.REFUSED

    # -- 3: verify 1: the workspace against the spool, every byte --------------------------------

    def _verify_1(self) -> Comparison | None:
        with self.clock.step("verify 1"):
            self.course.add(*found_by.from_replaced(replaced_objects(self.repository, self.tree)))
            self.around.look_for_foreign_bytes()
            head = self._head()
            asked_for = self.asked.revision is not None and not self.asked.snapshot
            # Whatever it is called: HEAD is what the workspace has to equal.
            if asked_for and head != self.tree.commit:
                self.course.add(
                    Finding(Reason.OTHER_REVISION, f"{self.asked.revision} was asked for"),
                    Finding(Reason.WORKSPACE_NOT_COMPARED),
                )
                self.course.missing.append("the workspace was not compared with this commit")
                return None
            if self.asked.revision is None:
                self.course.add(*found_by.from_head(self.tree.commit, head))
                self.around.compare_with_intents()
            comparison = compare(self.tree, self.repository)
            foreign = self.around.foreign_differences(comparison)
            self.course.add(
                *found_by.from_comparison(
                    comparison, self.tree, self.repository.workspace, foreign
                ),
                *found_by.from_between(
                    self.around.foreign, {d.path for d in comparison.differences}
                ),
            )
            self.course.verified.append(
                f"before the start: {comparison.files} files of the workspace, "
                f"{comparison.size} bytes, by content"
            )
            return comparison

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
        sealed = self._image(engine)
        self.course.add(*found_by.from_bytecode(sealed.bytecode))
        if not self._may_start():
            return
        with self.clock.step("load"):
            loading = load(sealed.image, engine.client, progress=self.listener)
        self._await_devices(engine)
        if not self._may_start():
            return
        if self.devices.waited:
            # For hours, perhaps: sealrun gc was free to clear up meanwhile.
            self.kept.enter_context(keeping(self.places))
            sealed = self._image(engine)
            with self.clock.step("load"):
                loading = load(sealed.image, engine.client, progress=self.listener)
        self.caches = self._caches(sealed.image)
        try:
            self._contained(sandbox, engine, sealed, loading)
        except ImageDamaged as damage:
            # Somebody wrote into the engine's layer store. What we load anew is verified again;
            # without this one changed file would cost an unattended loop its night.
            self.course.add(Finding(Reason.IMAGE_REPAIRED, damage.message))
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
        self.course.add(*self.devices.findings)
        if self.devices.waited:
            report = self.guard.drain(self.id)
            found = found_by.from_report(report, self.tree, None, self.around.owners())
            # The report of the end holds these again; here they count only where they refuse.
            self.course.add(*(one for one in found if aborts(self.policy.policy, one)))

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
        from sealrun.image.load import created

        request = self._request(sealed.image, loading)
        sealed_as = record.sealed(
            self.id,
            engine,
            sealed.image,
            loading,
            request,
            self.datasets,
            self.clock.timings,
            self._passed(),
        )
        begun = self.caches.facts if self.caches else None
        self.ledger.append(replace(sealed_as, caches=begun))
        with self._leaving_none(sandbox):
            with self.clock.step("create"):
                container = created(sandbox, request, sealed.image, engine.client, self.listener)
            try:
                self.kept.close()
                self._inside(container, engine, sealed)
            finally:
                # Beside verify 3: nothing is read from the container any more.
                self.removal = threading.Thread(target=self._remove, args=(container,))
                self.removal.start()

    @contextlib.contextmanager
    def _leaving_none(self, sandbox: Sandbox) -> Generator[None]:
        """Leave no container of ours behind when a signal strikes."""
        try:
            yield
        except KeyboardInterrupt:
            # It may have struck between the container's creation and the first line that knows it.
            with contextlib.suppress(EngineError):
                sandbox.clear(lambda run: run != self.id)
            raise

    def _passed(self) -> Sequence[str]:
        """Return the names of the variables that come from the caller."""
        return self.policy.policy.sandbox.pass_variables

    def _await_removal(self) -> None:
        if self.removal is not None:
            self.removal.join()

    def _remove(self, container: Container) -> None:
        try:
            container.remove()
        except EngineError as error:
            self.listener.say(f"{error.message}; the next run clears the container")

    def _caches(self, image: SealedImage) -> Given | None:
        """Return what the compile caches begin with."""
        if self.policy.policy.sandbox.caches == "fresh":
            return None
        from sealrun.caches.start import for_run

        with self.clock.step("caches"):
            return for_run(self.policy.policy, self._made_of(image), self.places, self.listener)

    def _made_of(self, image: SealedImage) -> Mapping[str, object]:
        """Return what decides whether compiled code is valid here."""
        from sealrun.caches.key import parts

        policy, devices = self.policy.policy, self.devices.access
        return parts(
            self.repository_id, self.tree, self.datasets, image, policy, facts.host(), devices
        )

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
            seed=self.caches.copied if self.caches else None,
        )

    # -- 5: verify 2: the container against the manifests; then the gate -------------------------

    def _inside(self, container: Container, engine: Engine, sealed: Sealed) -> None:
        check = ContainerCheck(
            container,
            sealed.image,
            sealed.manifest,
            [dataset.target for dataset in self.datasets],
            Witnesses(self.places.bases, engine.id),
        )
        with contextlib.closing(check):
            with self.clock.step("verify 2"):
                self._verify_2(container, check)
            if container.command == "ready":
                self._execute(container)
                with self.clock.step("verify 3"):
                    self._verify_3(container, check)
        self.course.verified.extend(check.verified)
        self.course.missing.extend(check.missing)
        if not check.complete:
            self.course.add(Finding(Reason.NOT_REVERIFIED))
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
        if self.caches is not None:
            self.course.verified.append(self.caches.check(container))
        self.course.missing.extend(effective.unseen)
        if container.brought:
            self.course.missing.append(
                f"{len(container.brought)} paths in the container are the GPU driver's, as the "
                "engine's toolkit mounted them: no image holds them to compare them with"
            )

    def _verify_3(self, container: Container, check: ContainerCheck) -> None:
        acts = container.interference()
        self.course.add(*found_by.from_interference(acts))
        # What the engine did not tell us might have been an act of others.
        self.course.add(*(Finding(Reason.EVENTS_LOST, words) for words in container.unseen()))
        try:
            self.course.add(*found_by.from_discrepancies(check.after()))
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

    def _execute(self, container: Container) -> None:
        interrupted = threading.Event()
        # To the end of the record: an impatient second Ctrl-C must not cost the run its verdict.
        self.until_recorded.enter_context(interruption(interrupted))
        with self.clock.step("experiment"):
            Execution(
                self.id,
                self.asked,
                container,
                self.policy.policy,
                self.guard,
                self.around,
                self.course,
                self.listener,
                self.log,
                interrupted,
            ).run()

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
                        self.course.add(
                            Finding(Reason.DATA_CHANGED, change, phase=Phase.DURING_RUN)
                        )
                self.course.verified.extend(
                    f"after the end: {len(d.files)} data files below {d.source}"
                    for d in self.datasets
                )
            course.report = self.guard.disarm(self.id)
            owners = self.around.owners()
            course.add(*found_by.from_report(course.report, self.tree, course.gate, owners))
            if before is not None and course.started:
                self._compare_again(before, course.report)
        if course.started:
            self._look_for_keys(after=True)
        verdict = course.judged(policy)
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
        self._close(finished, owners)
        return finished

    def _compare_again(self, before: Comparison, report: Report) -> None:
        try:
            after = compare(self.tree, self.repository)
        except SealrunError as error:
            # A git directory that went away during the run must not cost the run its verdict.
            words = f"the workspace could not be compared after the end: {error.message}"
            self.course.add(Finding(Reason.NOT_WATCHED, words))
            self.course.missing.append(words)
            return
        self.course.add(*found_by.from_final_comparison(before, after, report))
        self.course.verified.append(
            f"after the end: {after.files} files of the workspace, {after.size} bytes, by content"
        )

    def _close(self, finished: Finished, owners: Ownership) -> None:
        course = self.course
        # Before the outputs are listed: the notes are not the experiment's.
        noted = determinism.take(self.out) if course.started else {}
        ended = course.ended
        with self.ledger.transaction() as tx:
            if course.report is not None:
                self.around.record_alerts(tx.append, course.report.mutations, owners)
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
                    outputs=record.outputs(
                        course.outputs, self.out, self.policy.policy.sandbox.outputs
                    ),
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


def same_open_file(one: int, other: int) -> bool:
    """Tell whether two descriptors lead to the same file, so that order between them counts."""
    try:
        a, b = os.fstat(one), os.fstat(other)
    except OSError:
        return False
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
