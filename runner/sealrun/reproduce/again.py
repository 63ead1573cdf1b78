"""Runs a recorded run again, from its image, and compares.

Rules that this module keeps:

- A repetition is a run of its own, on record, in the same sandbox with the same checks; it names the
  run that it repeats before anything of it can fail.
- Everything that decides its result comes from the record: commit, image, command, policy,
  variables, thread count; the data is compared with its manifest first.
- Nothing of the workspace enters it, so the workspace is neither compared nor watched; it neither
  asks for nor gives an approval.
- It uses no network, and what it lacks is named, never made anew.
- The caller's keys that no record holds are named before they are passed. A run that came in a bundle
  gets none but those that the caller names: who made the bundle chose its list.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sealrun import determinism, leftovers, record
from sealrun.course import Asked, Finished
from sealrun.data import sha256_of, walk
from sealrun.devices.visible import COUNTS
from sealrun.errors import EnvironmentFault, Interrupted, UsageError
from sealrun.experiment import Experiment
from sealrun.image.archive import stack
from sealrun.image.base import host_platform
from sealrun.ledger import Filter, Reproduced
from sealrun.metric import read_metric
from sealrun.policy import MetricPolicy
from sealrun.reasons import Reason
from sealrun.reproduce.rebuild import (
    Stored,
    data_of,
    missing_layers,
    policy_of,
    rebuild,
    require_image,
    tree_of,
)
from sealrun.reproduce.sameness import (
    Likeness,
    Result,
    Sameness,
    Tolerance,
    compare,
    conditions,
    measured,
    overall,
    threads,
)
from sealrun.sandbox.init import place_init
from sealrun.secrets.withheld import asked_back, given_back
from sealrun.verdict import Finding, Kind

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence

    from sealrun.caches.start import Given
    from sealrun.data import Dataset
    from sealrun.engine import Engine
    from sealrun.guard import GuardClient, Report
    from sealrun.guard.coverage import Moment
    from sealrun.image.model import Loading, SealedImage
    from sealrun.image.seal import Sealed
    from sealrun.ledger import Ledger, RunRecord
    from sealrun.policy import EffectivePolicy
    from sealrun.progress import Listener
    from sealrun.sandbox.protocol import Request
    from sealrun.tree import CommittedTree

#: What autoresearch's summary calls the number of steps.
_STEPS = MetricPolicy(name="num_steps", direction="maximize")
#: Variables that say how many threads numeric libraries use.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_NOT_WATCHED = "the workspace was neither compared nor watched: nothing of it enters a repetition"


@dataclass(frozen=True)
class Repetition:
    """One repetition, compared.

    Attributes:
        record: of the repetition.
    """

    record: RunRecord
    sameness: Sameness


@dataclass(frozen=True)
class Reproduction:
    """A run and what its repetitions came to.

    Attributes:
        original: its record.
        likeness: the worst of the repetitions'.
        tolerance: what was allowed, if anything.
    """

    original: RunRecord
    repetitions: tuple[Repetition, ...]
    likeness: Likeness
    tolerance: Tolerance | None


def reproduce(
    original: RunRecord,
    stored: Stored,
    listener: Listener,
    *,
    times: int = 1,
    tolerance: float | None = None,
    passing: Collection[str] = (),
) -> Reproduction:
    """Run a recorded run again and compare.

    Args:
        original: its record.
        stored: where it is kept.
        listener: hears what happens.
        times: how often; from two on they show a tolerance where none is given.
        tolerance: how far the metric may be from the original's.
        passing: names of the caller's variables that a run from a bundle gets too.

    Raises:
        UsageError: the run never came so far that it had an image, or was not given what it should
            be passed.
        Refused: its data is not what it was, or an object of its commit is missing.
        Fault: it cannot be rebuilt, or trouble of ours.
        Interrupted: the user or a signal ended a repetition.
    """
    require_image(original)
    taken = _taken(original, stored, listener, passing)
    datasets = data_of(original, stored, Path.home(), listener)
    runs: list[str] = []
    with _nowhere() as sink:
        for _ in range(times):
            again = _Again(original, datasets, taken, stored, listener, sink)
            finished = again.execute()
            if finished.interrupted:
                raise Interrupted(f"interrupted; run {again.id} was not compared")
            runs.append(again.id)
    with leftovers.writable_ledger(
        stored.repository, stored.places, stored.repository_id
    ) as ledger:
        made = _compared(original, [ledger.run(run) for run in runs], stored, tolerance)
        with ledger.transaction() as tx:
            for repetition in made.repetitions:
                tx.append(_event(made, repetition))
    return made


def _taken(
    original: RunRecord, stored: Stored, listener: Listener, passing: Collection[str]
) -> tuple[str, ...]:
    """Return the names of the caller's variables that a repetition gets, after saying which."""
    withheld = asked_back(original)
    for name in passing:
        if name not in withheld:
            raise UsageError(
                f"run {original.run} was not given {name} by its caller, or its value is on record",
                hint=f"It was given: {', '.join(withheld) or 'none whose value is not on record'}.",
            )
    foreign = stored.is_imported(original.run)
    allowed = passing if foreign else withheld
    taken = tuple(name for name in withheld if name in allowed and name in os.environ)
    if taken:
        listener.say(f"the repetition gets these variables of yours: {', '.join(taken)}")
    if left := [name for name in withheld if name not in allowed]:
        listener.say(
            f"left out: {', '.join(left)}. The run was recorded elsewhere, and gets no variable of "
            "yours that you do not name; its result may differ because of it"
        )
    if unset := [name for name in withheld if name in allowed and name not in taken]:
        listener.say(
            f"left out: {', '.join(unset)}, which is not set here; its result may differ because "
            "of it"
        )
    return taken


def _compared(
    original: RunRecord, again: Iterable[RunRecord], stored: Stored, given: float | None
) -> Reproduction:
    before = result_of(original, stored)
    results = [(one, result_of(one, stored)) for one in again]
    allowed = Tolerance(given) if given is not None else None
    if allowed is None:
        allowed = measured([r.metric for _, r in results if r.metric is not None])
    repetitions = tuple(
        Repetition(one, compare(before, result, allowed)) for one, result in results
    )
    worst = overall(one.sameness.likeness for one in repetitions)
    return Reproduction(original, repetitions, worst, allowed)


def _event(made: Reproduction, repetition: Repetition) -> Reproduced:
    sameness, allowed = repetition.sameness, made.tolerance
    return Reproduced(
        run=repetition.record.run,
        original=made.original.run,
        likeness=sameness.likeness,
        metric=metric_of(made.original),
        repeated=metric_of(repetition.record),
        tolerance=allowed.width if allowed else None,
        tolerance_source=allowed.source if allowed else None,
        outputs_compared=sameness.compared,
        differences=sameness.differences,
        conditions=sameness.conditions,
    )


def metric_of(record: RunRecord) -> float | None:
    """Return what a run reported about itself."""
    metric = record.ended.metric if record.ended else None
    return metric.value if metric else None


# -- the repetition: a run whose inputs come from a record ----------------------------------------


class _Unwatched:
    """Stands in for the guard where nothing of the workspace enters a run."""

    def __init__(self) -> None:
        self._since = _now()

    def on_mutation(self, *_: object) -> None:
        """Never call anybody."""

    def drain(self, run: str) -> Report:
        """Return a report of nothing, after a wait for GPUs."""
        return self.disarm(run)

    def disarm(self, run: str) -> Report:  # noqa: ARG002 - the guard's signature
        """Return a report of nothing."""
        from sealrun.guard.coverage import Coverage
        from sealrun.guard.mutations import Report

        return Report(Coverage(self._since, _now(), self._since, directories=0, watches=0))


class _Again(Experiment):
    """A run whose inputs come from the record of another. Call ``execute`` once."""

    def __init__(
        self,
        original: RunRecord,
        datasets: tuple[Dataset, ...],
        taken: tuple[str, ...],
        stored: Stored,
        listener: Listener,
        sink: int,
    ) -> None:
        asked = Asked(
            argv=original.opened.command, revision=original.commit, stdout=sink, stderr=sink
        )
        super().__init__(asked, stored.repository, stored.repository_id, stored.places, listener)
        self.original = original
        self.stored = stored
        self.datasets = datasets
        self.taken = taken
        self.withheld = asked_back(original)
        self.policy = policy_of(original)

    def _committed_tree(self) -> CommittedTree:
        return tree_of(self.original, self.stored)

    def _open_record(self, committed: EffectivePolicy) -> None:
        del committed  # what judges the repetition is what judged the original
        opened = record.opened(
            self.id,
            self.asked.argv,
            self.repository,
            self.tree,
            self.policy,
            revision=self.original.commit,
            idea=self.original.opened.idea,
        )
        recorded = self.original.opened.policy
        if opened.policy is not None and recorded is not None:
            # Which of its variables are a caller's, whoever repeats the repetition has to know too.
            policy = replace(opened.policy, values=recorded.values)
            opened = replace(opened, policy=policy)
        with self.clock.step("record"):
            with self.ledger.transaction() as tx:
                tx.append(replace(opened, reproduces=self.original.run))
                tx.append(record.pin(self.id, self.tree.commit))
            self.repository.pin(self.id, self.tree.commit)
        self.course.add(
            *(Finding(Reason.SANDBOX_LOOSENED, words) for words in self.policy.loosened())
        )

    def _guarded(self) -> Finished:
        # Not armed: the guard's manifest is the loop's commit, and must not become another one's.
        self.guard = cast("GuardClient", _Unwatched())
        # Nobody of this workspace meant or wrote what is repeated: nothing is looked back at.
        self.course.add(
            Finding(Reason.OTHER_REVISION, f"run {self.original.run} is repeated"),
            Finding(Reason.WORKSPACE_NOT_COMPARED),
        )
        self.course.missing.append(_NOT_WATCHED)
        self.course.missing.extend(
            f"the variable {name}, which run {self.original.run} was given, was left out"
            for name in self.withheld
            if name not in self.taken
        )
        self._sealed()
        return self._judged(None)

    def _image(self, engine: Engine) -> Sealed:
        from sealrun.image.load import EngineImages

        with self.clock.step("rebuild"):
            sealed = rebuild(self.original, self.tree, self.stored, self.listener)
            if sealed.image.base.platform != host_platform():
                raise EnvironmentFault(
                    f"run {self.original.run} was made for {sealed.image.base.platform}",
                    hint="Reproduce it on a machine of that architecture.",
                )
            lacking = missing_layers(self.original, self.stored)
            present = EngineImages(engine.client, self.listener).find(stack(sealed.image))
            if lacking and present is None:
                raise EnvironmentFault(
                    f"run {self.original.run} cannot be rebuilt: {'; '.join(lacking)}",
                    hint="Bring back sealrun's data directory, or import the run from a bundle "
                    "that holds its layers.",
                )
            return sealed

    def _caches(self, image: SealedImage) -> Given | None:
        recorded = self.original.progress.caches
        if recorded is None:
            return None
        from sealrun.caches.start import again

        policy, key = self.policy.policy, self._made_of(image)
        with self.clock.step("caches"):
            given = again(recorded, policy, key, self.places, self.listener)
        if given is None:
            self.course.missing.append(
                f"the compile caches began empty, not with {recorded.digest[:12]} as in the original"
            )
        return given

    def _passed(self) -> Sequence[str]:
        """Return the names of the variables that come from the caller."""
        # Not self.policy's: that passes nothing, so that nothing new comes in.
        return self.taken

    def _request(self, image: SealedImage, loading: Loading) -> Request:
        request = super()._request(image, loading)
        variables = self.original.progress.variables
        if variables is None:
            # Recorded before variables were: what the policy gives is what it gave then.
            return replace(request, environment=self._same_threads(request.environment))
        given = given_back(variables, self.withheld, self.taken)
        for name in COUNTS:
            # What a program counts has to fit the GPUs that it gets now.
            given.pop(name, None)
            if name in request.environment:
                given[name] = request.environment[name]
        request = replace(request, environment=self._same_threads(given))
        if "SEALRUN_DETERMINISM" in variables:
            init = place_init(self.places.init, platform.machine(), determinism.module())
            request = replace(request, init=init.path)
        return request

    def _same_threads(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Set the original's thread count where this machine would give another."""
        then = threads(self.original)
        here = determinism.usable_cpus(self.policy.policy)
        if not isinstance(then, int) or any(name in variables for name in _THREADS):
            return dict(variables)
        noted = "torch" in (self.original.ended.device_facts if self.original.ended else {})
        host = self.original.opened.host
        if not noted or host is None or host.cpus == here:
            return dict(variables)
        return {**variables, **dict.fromkeys(_THREADS, str(then))}


# -- what a run came to, from its record and what it left ------------------------------------------


def result_of(record: RunRecord, stored: Stored) -> Result:
    """Return what a run came to: from its record, and from its files where that holds no digest."""
    ended = record.ended
    if ended is None:
        return Result("not-started", disturbed="never ended")
    directory = stored.directory(record.run)
    log = directory / "log"
    steps = read_metric(_STEPS, log, directory) if log.exists() else None
    return Result(
        outcome=ended.outcome,
        exit_status=ended.exit_status,
        metric=metric_of(record),
        outputs=_outputs(record, directory / "outputs"),
        # An empty one says nothing.
        log=sha256_of(log) if log.exists() and log.stat().st_size else None,
        steps=steps.value if steps else None,
        disturbed=_disturbed(record),
        conditions=conditions(record),
    )


def _disturbed(record: RunRecord) -> str | None:
    ended = record.ended
    if ended is None or ended.verdict is None:
        return f"was interrupted ({ended.fault})" if ended and ended.fault else "was interrupted"
    if ended.verdict.kind == Kind.ABORTED:
        return "was aborted because of a mutation"
    if ended.outcome == "stopped":
        return "was stopped"
    return None


def _outputs(record: RunRecord, directory: Path) -> dict[str, str | None]:
    listed = record.ended.outputs if record.ended else ()
    found: dict[str, str | None] = {one.path: one.sha256 for one in listed}
    for path, digest in _left(directory, {p for p, d in found.items() if d is not None}):
        # What is on record counts: the file may have been changed since.
        found.setdefault(path, digest)
        found[path] = found[path] or digest
    return found


def _left(directory: Path, known: set[str]) -> Iterator[tuple[str, str | None]]:
    with contextlib.suppress(OSError):
        for raw, _ in walk(directory):
            path = raw.decode("utf-8", "surrogateescape")
            if path not in known:
                yield path, sha256_of(directory / path)


# -- which runs -------------------------------------------------------------------------------------


def find(ledger: Ledger, named: str) -> RunRecord:
    """Return the run that is named by its id, or by its commit where that has one run.

    Raises:
        UsageError: there is none, or a commit has several; the message lists them.
    """
    digits = named.lower()
    if len(digits) >= 4 and set(digits) <= set("0123456789abcdef"):  # noqa: PLR2004 - git's minimum
        of_commit = originals(ledger, digits)
        if len(of_commit) == 1:
            return of_commit[0]
        if of_commit:
            lines = "".join(f"\n  {line}" for line in map(described, of_commit))
            raise UsageError(
                f"commit {named} has {len(of_commit)} runs:{lines}",
                hint="Name one of them by its id.",
            )
    return ledger.run(ledger.resolve(named))


def described(run: RunRecord) -> str:
    """Return one line about a run: id, when, verdict, outcome, metric."""
    value = metric_of(run)
    number = "no metric" if value is None else f"{value:.10g}"
    return f"{run.run}  {run.opened_at[:16]}  {run.verdict or '-'}  {run.outcome}  {number}"


def originals(ledger: Ledger, commit: str | None = None) -> list[RunRecord]:
    """Return every run that can be repeated and is no repetition itself, oldest first."""
    found = [
        run
        for run in ledger.runs(Filter(commit=commit))
        if run.progress.image_id is not None
        and run.ended is not None
        and run.opened.reproduces is None
    ]
    return found[::-1]


def kept(ledger: Ledger, table: bytes) -> tuple[list[RunRecord], list[str]]:
    """Return the run of each row that a loop's table keeps, in its order.

    Of several runs of a commit it is the newest that reported the row's number, else the newest that
    succeeded.

    Args:
        ledger: that holds the runs.
        table: content of ``results.tsv``.

    Returns:
        The runs, and a sentence for each kept row that has none.
    """
    from sealrun.audit.table import KEEP, parse

    found: list[RunRecord] = []
    without: list[str] = []
    for row in parse(table).rows:
        if row.status != KEEP:
            continue
        runs = originals(ledger, row.commit.lower()) if row.has_id else []
        ended = [run for run in runs if run.outcome == "succeeded"]
        agreeing = [
            run
            for run in ended
            if row.value is not None
            and (value := metric_of(run)) is not None
            and f"{value:.{row.digits}f}" == f"{row.value:.{row.digits}f}"
        ]
        chosen = (agreeing or ended or runs)[-1:]
        if not chosen:
            without.append(f"line {row.line}: no run of commit {row.commit[:40]!r} is on record")
        found += [run for run in chosen if run.run not in {one.run for one in found}]
    return found, without


@contextlib.contextmanager
def _nowhere() -> Generator[int]:
    sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield sink
    finally:
        os.close(sink)


def _now() -> Moment:
    from sealrun.guard.coverage import Moment

    return Moment(time.monotonic(), time.time(), "")
