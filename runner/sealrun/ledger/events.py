"""What can happen, as typed records: the closed set of events that the ledger keeps.

Rules that this module keeps:

- An event is written once and never changed; what is learnt later is a later event.
- New fields get defaults, so that old events can still be read; a new kind of event comes with a
  migration, so that an older sealrun refuses the ledger instead of misreading it.
- Field names are the names of the JSON documents that ``--json`` prints (schema 1): they stay.
- Text from a container, a file name or a process may hold anything; ``codec`` makes it safe and
  bounded. Paths and arguments that are not UTF-8 come as Python's ``os.fsdecode`` gives them.
- What is not known is None, never a guess. Times are UTC, ISO 8601 with microseconds; durations
  are seconds; sizes are bytes; digests are lower-case hexadecimal, ``sha256:`` before them where
  a container engine writes them so.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - codec reads the hints when running
from dataclasses import dataclass, field
from typing import ClassVar

#: Bounds (bytes of one text, bytes in all) of an argument list: what Linux takes (execve(2),
#: MAX_ARG_STRLEN and a quarter of the default stack), so that a command is never cut.
_ARGUMENTS = (128 << 10, 4 << 20)

#: How the process of a run can end (DESIGN, "outcome").
OUTCOMES = (
    "succeeded",
    "failed",
    "timed-out",
    "out-of-memory",
    "stopped",
    "interrupted",
    "not-started",
)
#: How a run can be judged (DESIGN, "verdict").
VERDICTS = ("clean", "flagged", "aborted", "refused")


def _column() -> str | None:
    """Make a field that has a column of its own instead of a place in the payload."""
    return field(default=None, metadata={"column": True})


def _arguments() -> tuple[str, ...]:
    return field(default=(), metadata={"bounds": _ARGUMENTS})


@dataclass(frozen=True, kw_only=True)
class Event:
    """Anything that the ledger keeps.

    Attributes:
        run: id of the run that it belongs to; None between runs.
    """

    kind: ClassVar[str]

    run: str | None = _column()


@dataclass(frozen=True, kw_only=True)
class Controller:
    """The process that runs an experiment.

    Attributes:
        pid: in its own pid namespace.
        started: start time in clock ticks since boot (``/proc/PID/stat``, field 22), which tells
            it from a later process of the same pid.
    """

    pid: int
    started: int | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyFacts:
    """The policy that judged a run.

    Attributes:
        digest: sha256 of its canonical form.
        values: effective value of each key, dotted (``limits.memory``).
        origins: where each value comes from (``default``, ``commit``, ``flag --memory``, …).
        loosened: each way in which it is weaker than the shipped one, as a sentence.
    """

    digest: str
    values: Mapping[str, object] = field(default_factory=dict[str, object])
    origins: Mapping[str, str] = field(default_factory=dict[str, str])
    loosened: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """The machine.

    Attributes:
        hostname: as the machine calls itself.
        system: operating system with its version, e.g. ``Debian GNU/Linux 12``.
        kernel: release, e.g. ``6.1.0-18-amd64``.
        architecture: e.g. ``x86_64``.
        cpus: usable by the caller.
        cpu_model: as ``/proc/cpuinfo`` names it.
        memory: bytes of main memory.
        user: login name of the caller.
        uid: numeric id of the caller.
        details: anything else, by name.
    """

    hostname: str | None = None
    system: str | None = None
    kernel: str | None = None
    architecture: str | None = None
    cpus: int | None = None
    cpu_model: str | None = None
    memory: int | None = None
    user: str | None = None
    uid: int | None = None
    details: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What runs the containers.

    Attributes:
        name: e.g. ``docker``.
        version: of the engine.
        api: version of its interface that we speak.
        endpoint: address of its socket.
        store: kind of image store, ``classic`` or ``containerd``.
        details: anything else, by name (storage driver, cgroup version, …).
    """

    name: str
    version: str | None = None
    api: str | None = None
    endpoint: str | None = None
    store: str | None = None
    details: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, kw_only=True)
class RunOpened(Event):
    """A run has an id and may start; until it has ended its outcome is ``not-started``.

    Attributes:
        commit: full id.
        tree: full id.
        revision: what was asked for, e.g. ``HEAD``.
        ref: full name of the branch that HEAD is on; None when detached.
        workspace: absolute path.
        command: the committed command, untouched.
        idea: what the loop said that it tries.
        idea_source: ``message`` (``-m``) or ``subject`` (of the commit).
        policy: effective.
        host: the machine.
        engine: what runs the container.
        protection: ``same-user`` or ``separated`` (DESIGN section 1).
        tier: ``container``, ``namespace`` or ``process``: how strong the isolation is.
        controller: the process that runs it.
        version: sealrun's own.
        reproduces: id of the run that this one repeats from its record; None for any other.
    """

    kind: ClassVar[str] = "run-opened"

    commit: str
    tree: str
    revision: str = "HEAD"
    ref: str | None = None
    workspace: str | None = None
    command: tuple[str, ...] = _arguments()
    idea: str | None = None
    idea_source: str | None = None
    policy: PolicyFacts | None = None
    host: HostFacts | None = None
    engine: EngineFacts | None = None
    protection: str | None = None
    tier: str | None = None
    controller: Controller | None = None
    version: str | None = None
    reproduces: str | None = None


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """One layer of a run's image.

    Attributes:
        role: ``base``, ``environment`` or ``tree``.
        diff_id: ``sha256:…`` of the uncompressed tar.
        size: bytes of it.
    """

    role: str
    diff_id: str
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class LoadingFacts:
    """How the image came to be in the engine.

    Attributes:
        way: ``present``, ``hybrid`` or ``full``.
        sent: bytes.
        engine_image: what this engine calls the image.
        manifest_digest: of the OCI manifest that we wrote, where one was.
        fallback: why the hybrid way was given up, if it was.
    """

    way: str
    sent: int = 0
    engine_image: str | None = None
    manifest_digest: str | None = None
    fallback: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """A data mount, by its manifest.

    Attributes:
        source: path on the host.
        target: path in the container.
        digest: sha256 over the sorted ``sha256  path`` lines of its files.
        files: how many.
        hashed: how many of them were hashed for this run; the others' hashes were known by device,
            inode, size, mtime and ctime.
    """

    source: str
    target: str
    digest: str
    files: int
    hashed: int


@dataclass(frozen=True, kw_only=True)
class CacheFacts:
    """What the compile caches of a run began with: the copy of a seed.

    Attributes:
        digest: sha256 of the seed's manifest.
        files: how many.
        size: bytes in all.
        commit: whose code filled it.
        command: that was run to fill it.
        ended: how that command ended, in a clause.
        made: when, ISO 8601.
    """

    digest: str
    files: int
    size: int
    commit: str
    command: tuple[str, ...] = _arguments()
    ended: str = ""
    made: str = ""


@dataclass(frozen=True, kw_only=True)
class RunProgress(Event):
    """A run has come further; fields that are None say nothing, later ones replace earlier ones.

    Attributes:
        step: what was just done, e.g. ``sealed``, ``loaded``, ``created``, ``gate-opened``.
        image_id: digest of the image config.
        base: origin of the base, e.g. ``recipe:debian-python``.
        environment: key of the environment.
        environment_source: path of the lock in the tree.
        inventory: digest of the environment's list of packages.
        layers: from the bottom up.
        loading: how the image came to be in the engine.
        container: the engine's id of the container.
        init: digest of the container's PID 1.
        engine: what runs the container.
        data: what is mounted from outside the repository.
        caches: what the compile caches began with; None where they were empty.
        variables: environment variables of the container.
        device_facts: the GPUs that the container gets, who else is on them, their driver.
        timings: seconds of each step so far.
    """

    kind: ClassVar[str] = "run-progress"

    step: str | None = None
    image_id: str | None = None
    base: str | None = None
    environment: str | None = None
    environment_source: str | None = None
    inventory: str | None = None
    layers: tuple[LayerFacts, ...] | None = None
    loading: LoadingFacts | None = None
    container: str | None = None
    init: str | None = None
    engine: EngineFacts | None = None
    data: tuple[DataFacts, ...] | None = None
    caches: CacheFacts | None = None
    variables: Mapping[str, str] | None = None
    device_facts: Mapping[str, object] | None = None
    timings: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True)
class Because:
    """One reason of a verdict.

    Attributes:
        code: of the closed set in ``sealrun.reasons``.
        severity: under the policy of the run: ``note``, ``flag-harmless``, ``flag``, ``abort`` or
            ``refuse``; None means the code's own.
        detail: what exactly, in a sentence.
        paths: what it is about.
    """

    code: str
    severity: str | None = None
    detail: str | None = None
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict of a run.

    Attributes:
        kind: ``clean``, ``flagged``, ``aborted`` or ``refused``.
        reasons: notes included; a clean run may have notes.
    """

    kind: str
    reasons: tuple[Because, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MetricFacts:
    """The number that the experiment reported about itself.

    Attributes:
        name: e.g. ``val_bpb``.
        value: None when it was not found or is no number.
        direction: ``minimize`` or ``maximize``: which is better; None when not known.
        source: where it was read, e.g. ``output, line 812`` or ``/out/result.json``.
        trust: ``self-reported`` until an evaluator of ours measures it.
        problem: why there is no value, in a sentence.
    """

    name: str
    value: float | None = None
    direction: str | None = None
    source: str | None = None
    trust: str = "self-reported"
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What was verified and observed, and what was not; each a sentence.

    Attributes:
        complete: nothing that the verdict rests on is missing.
        since: when the guard began to watch.
        verified: content that was compared with the commit.
        observed: what was watched, and for how long.
        missing: what was not verified or not observed, and why.
    """

    complete: bool
    since: str | None = None
    verified: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """A file that the experiment left.

    Attributes:
        path: below the outputs directory.
        size: bytes.
        sha256: of its content.
        kind: ``file``, ``directory``, ``symlink`` or ``other``.
    """

    path: str
    size: int | None = None
    sha256: str | None = None
    kind: str = "file"


@dataclass(frozen=True, kw_only=True)
class RunEnded(Event):
    """A run is over and, unless the trouble was ours, judged.

    Attributes:
        outcome: of the process: one of ``OUTCOMES``.
        exit_status: of the process, as a shell shows it; None when it never ended by itself.
        verdict: None when nothing was judged (trouble of ours).
        fault: what trouble of ours there was, in a sentence.
        metric: what the experiment said about itself.
        seconds: of the process alone.
        peak_memory: bytes, of the whole container.
        cpu_seconds: of the whole container.
        coverage: what was verified and observed.
        timings: seconds of each step.
        log: path of the kept output.
        outputs_path: directory of what was collected.
        outputs: what was collected.
        limits: in force, by name; None means as the caller.
        devices: ids of the GPUs that the container had.
        device_facts: driver, model and the like, by name.
        inventory: digest of the environment's list of packages.
    """

    kind: ClassVar[str] = "run-ended"

    outcome: str
    exit_status: int | None = None
    verdict: Judgement | None = None
    fault: str | None = None
    metric: MetricFacts | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    cpu_seconds: float | None = None
    coverage: Coverage | None = None
    timings: Mapping[str, float] = field(default_factory=dict[str, float])
    log: str | None = None
    outputs_path: str | None = None
    outputs: tuple[OutputFile, ...] = ()
    limits: Mapping[str, object] = field(default_factory=dict[str, object])
    devices: tuple[str, ...] = ()
    device_facts: Mapping[str, object] = field(default_factory=dict[str, object])
    inventory: str | None = None


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process as it was seen; None is not known.

    Attributes:
        pid: in our pid namespace.
        exe: path of its program.
        cmdline: its arguments.
        cwd: its working directory.
        uid: its effective user.
        user: name of that user.
        started: clock ticks since boot.
    """

    pid: int | None = None
    exe: str | None = None
    cmdline: tuple[str, ...] = _arguments()
    cwd: str | None = None
    uid: int | None = None
    user: str | None = None
    started: int | None = None


@dataclass(frozen=True, kw_only=True)
class WriterFacts:
    """Who made a change, as far as it is known.

    Attributes:
        how: how it was found: ``live``, ``cached``, ``partial``, ``gone`` or ``unavailable``.
        why: why it is not known better, in a few words.
        category: ``loop``, ``experiment``, ``foreign`` or ``unknown``.
        process: the writer itself.
        parents: nearest first.
        container: id of the container that it was in.
        candidates: processes that might have been it; never more than that.
    """

    how: str = "unavailable"
    why: str | None = None
    category: str = "unknown"
    process: Process | None = None
    parents: tuple[Process, ...] = ()
    container: str | None = None
    candidates: tuple[Process, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ForeignState:
    """What a writer left at one path.

    Attributes:
        path: below the workspace, or absolute outside it.
        change: ``modified``, ``created``, ``deleted``, ``mode-changed``, …
        commit: full id of the commit that the path was compared with.
        before: digest of the committed content with its algorithm (``git-sha1:…``); None if none.
        after: digest of what was left, in the same algorithm; None if it has no content.
        before_sha256: of the kept copy of the committed content.
        before_evidence: path of that copy.
        sha256: of what was left.
        evidence: path of the kept bytes, which are its beginning where it was large.
        hunks: digests of what was done to it, wherever in the file (``alerts.hunk_digests``).
        count: how often it was seen on this occasion.
        restored: whether the committed content was back at the last look.
    """

    path: str
    change: str
    commit: str | None = None
    before: str | None = None
    after: str | None = None
    before_sha256: str | None = None
    before_evidence: str | None = None
    sha256: str | None = None
    evidence: str | None = None
    hunks: tuple[str, ...] = ()
    count: int = 1
    restored: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Alert(Event):
    """A change that somebody made, on record. The same one seen again is a later event of its id.

    One program's run over many files is one alert. Each event tells of one occasion; what an alert
    is about is all of its events.

    Attributes:
        id: ULID of the alert; its first event may belong to an earlier run.
        path: below the workspace; the first, where one change touched several.
        paths: all of them, where one change touched several.
        phase: ``before-commit``, ``after-commit``, ``during-run`` or ``in-container``.
        change: what was done: ``modified``, ``created``, ``deleted``, ``mode``, ``moved``, …
        reason: the reason code that it leads to.
        detail: what exactly, in a sentence.
        diff: unified, from the committed to the found bytes; None for binary content.
        before: sha256 of the bytes before.
        after: sha256 of the bytes found.
        evidence: path of the kept bytes.
        writer: who did it.
        first_at: when it was first seen, on any occasion.
        last_at: when it was last seen.
        count: how often it was seen, this and all earlier occasions together.
        restored: whether the committed bytes were back at the last look.
        states: what was left at each path on this occasion; empty in alerts of older versions.
        cure: what keeps it from happening again, in a sentence.
    """

    kind: ClassVar[str] = "alert"

    id: str
    path: str
    paths: tuple[str, ...] = ()
    phase: str
    change: str
    reason: str
    detail: str | None = None
    diff: str | None = None
    before: str | None = None
    after: str | None = None
    evidence: str | None = None
    writer: WriterFacts = field(default_factory=WriterFacts)
    first_at: str | None = None
    last_at: str | None = None
    count: int = 1
    restored: bool | None = None
    states: tuple[ForeignState, ...] = ()
    cure: str | None = None


@dataclass(frozen=True, kw_only=True)
class AlertAccepted(Event):
    """A human accepted what an alert told of until then; the same bytes are not foreign any more.

    Attributes:
        alert: its id.
        upto: number of the alert's last event that was accepted; later ones may tell of other bytes.
        reason: in the human's words.
        uid: who accepted.
        login: who accepted, by name.
        terminal: where, e.g. ``/dev/pts/3``.
    """

    kind: ClassVar[str] = "alert-accepted"

    alert: str
    upto: int
    reason: str
    uid: int | None = None
    login: str | None = None
    terminal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Approval(Event):
    """A policy and the protected files were approved, by a human or by being the first.

    Attributes:
        policy: digest of the approved policy.
        protected: path -> digest of each protected file.
        commit: where they stood.
        first: approved because the repository had no run yet; nobody was asked.
        uid: who approved.
        login: who approved, by name.
        terminal: where, e.g. ``/dev/pts/3``.
        values: effective value of each policy key, dotted.
    """

    kind: ClassVar[str] = "approval"

    policy: str
    protected: Mapping[str, str] = field(default_factory=dict[str, str])
    commit: str | None = None
    first: bool = False
    uid: int | None = None
    login: str | None = None
    terminal: str | None = None
    values: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, kw_only=True)
class BaseMade(Event):
    """A base was made or obtained.

    Attributes:
        origin: what the policy asked for.
        platform: e.g. ``linux/amd64``.
        layers: from the bottom up.
        python: version of its Python.
        packages: how many.
        inventory: digest of the list of packages.
        seconds: how long it took.
    """

    kind: ClassVar[str] = "base-made"

    origin: str
    platform: str | None = None
    layers: tuple[LayerFacts, ...] = ()
    python: str | None = None
    packages: int | None = None
    inventory: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class EnvironmentMade(Event):
    """An environment was made.

    Attributes:
        key: of the environment.
        source: path of the lock in the tree.
        base: origin of the base that it is for.
        layer: what was made; None where there was nothing to install.
        packages: how many.
        inventory: digest of the list of packages.
        seconds: how long it took.
    """

    kind: ClassVar[str] = "environment-made"

    key: str
    source: str | None = None
    base: str | None = None
    layer: LayerFacts | None = None
    packages: int | None = None
    inventory: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pin(Event):
    """A commit is kept from garbage collection.

    Attributes:
        ref: full name.
        commit: what it points at.
    """

    kind: ClassVar[str] = "pin"

    ref: str
    commit: str


@dataclass(frozen=True, kw_only=True)
class Reproduced(Event):
    """A run that repeats another one was compared with it; ``run`` is the repetition.

    Attributes:
        original: id of the run that was repeated.
        likeness: ``outputs-identical``, ``metric-identical``, ``within-tolerance``, ``different``
            or ``incomparable``.
        metric: what the original reported.
        repeated: what the repetition reported.
        tolerance: largest difference of the two that was allowed; None where none was given.
        tolerance_source: ``given``, or how it was measured.
        outputs_compared: how many output files were compared by content.
        differences: what differs in the results, as a sentence each.
        conditions: what differs in what decides results (GPU, CPU, threads, …), likewise.
    """

    kind: ClassVar[str] = "reproduced"

    original: str
    likeness: str
    metric: float | None = None
    repeated: float | None = None
    tolerance: float | None = None
    tolerance_source: str | None = None
    outputs_compared: int = 0
    differences: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Signed(Event):
    """A statement about a run was signed.

    Attributes:
        statement: sha256 of the statement, which is the envelope's payload.
        envelope: sha256 of the envelope's file.
        key: id of the key.
        late: it was signed some time after the run's end, on demand.
    """

    kind: ClassVar[str] = "signed"

    statement: str
    envelope: str
    key: str
    late: bool = False


@dataclass(frozen=True, kw_only=True)
class Imported(Event):
    """Runs of another ledger were taken from a bundle; they never become runs of this one.

    Attributes:
        bundle: sha256 of the bundle's file.
        repository: id of the repository that the runs were made in.
        runs: their ids.
        keys: ids of the keys that signed their statements.
    """

    kind: ClassVar[str] = "imported"

    bundle: str
    repository: str
    runs: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """Anything else worth keeping.

    Attributes:
        code: short and stable, e.g. ``journal``.
        text: a sentence.
        details: by name.
    """

    kind: ClassVar[str] = "note"

    code: str
    text: str = ""
    details: Mapping[str, object] = field(default_factory=dict[str, object])


#: Each kind of event by its name.
KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        RunOpened,
        RunProgress,
        RunEnded,
        Alert,
        AlertAccepted,
        Approval,
        BaseMade,
        EnvironmentMade,
        Pin,
        Reproduced,
        Signed,
        Imported,
        Note,
    )
}
