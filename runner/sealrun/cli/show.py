"""``sealrun show``: everything on record about one run, or the runs of one commit.

Rules that this module keeps:

- Sections are made by pure functions from a run's record; the command only prints them.
- Labels are honest: a metric is shown with how it came about, an unknown writer as unavailable, and
  what was not verified stands beside what was.
- Every text from outside is made visible, line by line; what was cut is said to be cut.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, cast

import typer

from sealrun.cli import console
from sealrun.cli.reading import (
    COMMIT_DIGITS,
    duration,
    local_time,
    metric_value,
    no_such_run,
    open_here,
    size,
    visible,
)
from sealrun.errors import Status, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sealrun.cli.reading import Here
    from sealrun.ledger import Alert, Because, Ledger, Process, Recorded, RunRecord, WriterFacts

_INDENT = "  "
#: Columns of the names in a section.
_LABEL = 14
#: Files listed below "outputs".
_OUTPUTS = 50
#: Origins of policy values that nobody set.
_DEFAULT_ORIGINS = {"built in", "standard (shipped)"}


def command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's id, its beginning, or a commit id.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
) -> Status:
    """Show everything on record about a run; of a commit, list its runs.

    Example:  sealrun show 01K9ZQ4M
    """
    from sealrun.cli.log import is_narrow, table
    from sealrun.ledger import document

    screen = console.current()
    with open_here() as here:
        if here.ledger is None:
            raise no_such_run(run)
        try:
            found = find(here.ledger, run)
        except UsageError:
            if not show_imported(here, run, json=json):
                raise
            return Status.OK
        states = [here.state(record) for record in found]
        documents = [
            document(record) | {"state": state} for record, state in zip(found, states, strict=True)
        ]
        if json:
            screen.json({"run": documents[0]} if len(found) == 1 else {"runs": documents})
        elif len(found) == 1:
            screen.data("\n".join(sections(found[0], states[0])))
        else:
            screen.say(f"{len(found)} runs of this commit; sealrun show RUN shows one")
            screen.table(table(here, here.ledger, found, narrow=is_narrow()))
    return Status.OK


def show_imported(here: Here, name: str, *, json: bool) -> bool:
    """Show a run that came in a bundle, and say so; return whether there is one."""
    from sealrun.ledger import document
    from sealrun.provenance.bundle import imported

    try:
        found = imported.find(here.places, here.repository, name)
    except UsageError:
        return False
    screen = console.current()
    if json:
        origin = dataclasses.asdict(found.origin)
        screen.json({"run": document(found.record) | {"state": "ended", "imported": origin}})
        return True
    screen.say(f"imported: {imported.words(found.origin)}; its files are in {found.directory}")
    screen.data("\n".join(sections(found.record, "ended")))
    return True


def find(ledger: Ledger, name: str) -> list[RunRecord]:
    """Return the run that a name means, or the runs of a commit; never an empty list.

    Raises:
        UsageError: no run or several have such an id, and no run is of such a commit.
    """
    from sealrun.ledger import Filter

    digits = name.strip().lower()
    if len(digits) >= COMMIT_DIGITS and set(digits) <= set("0123456789abcdef"):
        of_commit = ledger.runs(Filter(commit=digits))
        if of_commit:
            return of_commit
    return [ledger.run(ledger.resolve(name))]


def sections(record: RunRecord, state: str) -> Iterator[str]:
    """Yield the lines of everything on record about a run.

    Args:
        record: of the run.
        state: ``ended``, ``alive`` or ``lost``.
    """
    yield f"run {visible(record.run)}"
    for title, lines in (
        ("verdict", _verdict(record, state)),
        ("code", _code(record)),
        ("command", _command(record)),
        ("end", _end(record, state)),
        ("metric", _metric(record)),
        ("coverage", _coverage(record)),
        ("mutations", _mutations(record)),
        ("image", _image(record)),
        ("policy", _policy(record)),
        ("limits", _limits(record)),
        ("host", _host(record)),
        ("timings", _timings(record)),
        ("outputs", _outputs(record)),
        ("record", _record(record)),
    ):
        body = list(lines)
        if body:
            yield ""
            yield title
            yield from (f"{_INDENT}{line}" for line in body)


def _pair(name: str, value: object) -> str:
    return f"{visible(name):<{_LABEL}} {visible(value)}"


def _pairs(pairs: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Yield a line for each value that is known."""
    for name, value in pairs:
        if value is not None and value not in ((), {}, ""):
            yield _pair(name, value)


def _verdict(record: RunRecord, state: str) -> Iterator[str]:
    ended = record.ended
    if ended is None:
        yield {
            "alive": "none yet: the run is under way",
            "lost": "none: the controller died; the next sealrun run clears up",
        }.get(state, "none")
        return
    if ended.verdict is None:
        yield "none: nothing was judged"
    else:
        yield visible(ended.verdict.kind)
        for reason in ended.verdict.reasons:
            yield from _reason(reason)
    if ended.fault:
        yield _pair("our trouble", ended.fault)


def _reason(reason: Because) -> Iterator[str]:
    from sealrun.reasons import MEANINGS, Reason

    try:
        meaning = MEANINGS[Reason(reason.code)]
    except ValueError:
        yield f"- {visible(reason.code)}"
    else:
        yield f"- {reason.code} ({reason.severity or meaning.severity}): {meaning.text}"
    if reason.detail:
        yield from (f"    {visible(line)}" for line in reason.detail.split("\n"))
    yield from (f"    {visible(path)}" for path in reason.paths)


def _code(record: RunRecord) -> Iterator[str]:
    opened = record.opened
    yield from _pairs(
        (
            ("idea", opened.idea),
            ("commit", opened.commit),
            ("tree", opened.tree),
            ("asked for", opened.revision),
            ("branch", opened.ref or "none: HEAD was detached"),
            ("workspace", opened.workspace),
            ("kept by", record.pin),
            ("repeats", opened.reproduces),
            ("compared", record.reproduced and record.reproduced.likeness),
        )
    )


def _command(record: RunRecord) -> Iterator[str]:
    yield visible(shlex.join(record.opened.command)) if record.opened.command else "-"


def _end(record: RunRecord, state: str) -> Iterator[str]:
    ended = record.ended
    yield _pair("opened", local_time(record.opened_at, seconds=True))
    if ended is None:
        yield _pair("state", "running" if state == "alive" else "lost: its controller is gone")
        return
    yield _pair("ended", local_time(record.ended_at, seconds=True))
    yield _pair("outcome", ended.outcome)
    yield _pair("exit status", ended.exit_status)
    yield _pair("process", duration(ended.seconds))
    yield _pair("peak memory", size(ended.peak_memory))
    yield _pair("CPU", duration(ended.cpu_seconds))


def _metric(record: RunRecord) -> Iterator[str]:
    metric = record.ended.metric if record.ended else None
    if metric is None:
        return
    trust = visible(metric.trust)
    yield f"{visible(metric.name):<{_LABEL}} {metric_value(metric.value)} ({trust})"
    yield from _pairs(
        (("better", metric.direction), ("read from", metric.source), ("problem", metric.problem))
    )


def _coverage(record: RunRecord) -> Iterator[str]:
    coverage = record.ended.coverage if record.ended else None
    if coverage is None:
        if record.ended is not None:
            yield "nothing is on record: what was verified and observed is not known"
        return
    yield "complete" if coverage.complete else "NOT complete"
    if coverage.since:
        yield _pair("watching since", local_time(coverage.since, seconds=True))
    for name, sentences in (
        ("verified", coverage.verified),
        ("observed", coverage.observed),
        ("not covered", coverage.missing),
    ):
        for sentence in sentences:
            yield _pair(name, sentence)


def _mutations(record: RunRecord) -> Iterator[str]:
    for alert in record.alerts:
        yield from mutation(alert)
    if not record.alerts and record.ended is not None:
        yield "none on record"


def mutation(recorded: Recorded[Alert]) -> Iterator[str]:
    """Yield the lines of one alert: what, when, by whom, the diff and where the evidence is."""
    alert = recorded.event
    yield f"{visible(alert.path)}: {visible(alert.change)}, {visible(alert.phase)}"
    details = [
        ("reason", alert.reason),
        ("detail", alert.detail),
        ("seen", _seen(alert)),
        ("writer", writer_in_words(alert.writer)),
        ("  works in", alert.writer.process.cwd if alert.writer.process else None),
        *(("  started by", _process(parent)) for parent in alert.writer.parents),
        *(("  perhaps", _process(candidate)) for candidate in alert.writer.candidates),
        *(("also", path) for path in alert.paths if path != alert.path),
        ("before", alert.before),
        ("after", alert.after),
        ("evidence", alert.evidence),
        ("cure", alert.cure),
    ]
    yield from (f"{_INDENT}{line}" for line in _pairs(details))
    if alert.diff:
        yield from (
            f"{_INDENT}| {visible(line)}" for line in alert.diff.removesuffix("\n").split("\n")
        )
    yield from (f"{_INDENT}{line}" for line in _cut(recorded.truncated))


def _seen(alert: Alert) -> str:
    words = "once" if alert.count == 1 else f"{alert.count} times"
    if alert.first_at:
        words += f", first {local_time(alert.first_at, seconds=True)}"
    if alert.last_at and alert.count > 1:
        words += f", last {local_time(alert.last_at, seconds=True)}"
    if alert.restored is not None:
        words += "; the committed bytes are back" if alert.restored else "; still there"
    return words


def writer_in_words(writer: WriterFacts) -> str:
    """Return who made a change, no surer than it is known."""
    known = f" ({writer.how}{': ' + writer.why if writer.why else ''})"
    if writer.process is None:
        return f"unavailable{f' ({writer.why})' if writer.why else ''}"
    container = f", in container {writer.container}" if writer.container else ""
    return f"{writer.category}: {_process(writer.process)}{container}{known}"


def _process(process: Process) -> str:
    from sealrun.writers import shown

    process = shown(process, os.geteuid())
    name = shlex.join(process.cmdline) if process.cmdline else process.exe or "unknown program"
    pid = "" if process.pid is None else f"pid {process.pid}, "
    owner = process.user or process.uid
    return f"{pid}{name}" + ("" if owner is None else f", of {owner}")


def _image(record: RunRecord) -> Iterator[str]:
    progress, ended = record.progress, record.ended
    inventory = (ended.inventory if ended else None) or progress.inventory
    yield from _pairs(
        (
            ("image", progress.image_id),
            ("base", progress.base),
            ("environment", progress.environment),
            ("lock", progress.environment_source),
            ("inventory", inventory),
            ("init", progress.init),
            ("container", progress.container),
        )
    )
    for layer in progress.layers or ():
        yield _pair(f"{layer.role} layer", f"{layer.diff_id} ({size(layer.size)})")
    for data in progress.data or ():
        yield _pair(
            "data",
            f"{visible(data.source)} at {visible(data.target)}: {data.files} files, "
            f"{data.hashed} hashed now, sha256 {data.digest}",
        )
    if progress.caches is not None:
        given = progress.caches
        yield _pair(
            "caches",
            f"began with {given.files} files ({size(given.size)}) that commit {given.commit[:7]} "
            f"compiled by {shlex.join(given.command)}, {local_time(given.made)}: "
            f"sha256 {given.digest}",
        )
    loading = progress.loading
    if loading is not None:
        yield _pair("loaded", f"{loading.way}, {size(loading.sent)} sent")
        yield from _pairs(
            (
                ("in engine as", loading.engine_image),
                ("manifest", loading.manifest_digest),
                ("fallback", loading.fallback),
            )
        )


def _policy(record: RunRecord) -> Iterator[str]:
    policy = record.opened.policy
    if policy is None:
        return
    yield _pair("digest", policy.digest)
    own = {key: value for key, value in policy.values.items() if _was_set(policy.origins, key)}
    if not own:
        yield "every value is the shipped one"
    for key, value in sorted(own.items()):
        yield f"{visible(key)} = {visible(value)}  (from {visible(policy.origins.get(key))})"
    for sentence in policy.loosened:
        yield _pair("loosened", sentence)


def _was_set(origins: Mapping[str, str], key: str) -> bool:
    return origins.get(key, "built in") not in _DEFAULT_ORIGINS


def _limits(record: RunRecord) -> Iterator[str]:
    ended = record.ended
    if ended is not None:
        for name, value in ended.limits.items():
            yield _pair(name, "as the caller" if value is None else value)
        yield from _pairs((("devices", ", ".join(ended.devices)),))
    yield from _devices(
        {**(record.progress.device_facts or {}), **(ended.device_facts if ended else {})}
    )


def _devices(facts: Mapping[str, object]) -> Iterator[str]:
    """Yield what is on record of the GPUs: a line for each, and for each process that was on one."""
    rest = {k: v for k, v in facts.items() if k not in {"assigned", "in_use_by", "gpus"}}
    for each in _rows(facts.get("assigned")):
        memory = each.get("memory")
        words = (
            each.get("name"),
            each.get("uuid"),
            size(memory) if isinstance(memory, int) else None,
            f"at {each['bus']}" if each.get("bus") else None,
            f"instance {each.get('mig')} of {each['mig_of']}" if each.get("mig_of") else None,
        )
        yield _pair(f"GPU {each.get('index')}", ", ".join(str(word) for word in words if word))
    for user in _rows(facts.get("in_use_by")):
        yield _pair(
            "in use by", f"pid {user.get('pid')}, {user.get('name')}, on {user.get('uuid')}"
        )
    if "assigned" not in facts:
        rest |= {k: v for k, v in facts.items() if k == "gpus"}
    yield from _pairs(rest.items())


def _rows(value: object) -> list[Mapping[str, object]]:
    rows = cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()
    return [cast("Mapping[str, object]", row) for row in rows if isinstance(row, Mapping)]


def _host(record: RunRecord) -> Iterator[str]:
    opened = record.opened
    yield _pair("protection", opened.protection)
    yield _pair("sandbox", opened.tier)
    host, engine, controller = opened.host, record.engine, opened.controller
    if host is not None:
        cpus = None if host.cpus is None else f"{host.cpus} x {host.cpu_model or 'unknown'}"
        memory = None if host.memory is None else size(host.memory)
        yield from _pairs(
            (
                ("host", host.hostname),
                ("system", host.system),
                ("kernel", host.kernel),
                ("architecture", host.architecture),
                ("CPUs", cpus),
                ("memory", memory),
                ("user", host.user if host.uid is None else f"{host.user} (uid {host.uid})"),
                *host.details.items(),
            )
        )
    if engine is not None:
        yield from _pairs(
            (
                ("engine", f"{engine.name} {engine.version or ''}".strip()),
                ("API", engine.api),
                ("endpoint", engine.endpoint),
                ("image store", engine.store),
                *engine.details.items(),
            )
        )
    yield from _pairs(
        (("sealrun", opened.version), ("controller", controller and f"pid {controller.pid}"))
    )


def _timings(record: RunRecord) -> Iterator[str]:
    timings = {**record.progress.timings, **(record.ended.timings if record.ended else {})}
    for step, seconds in timings.items():
        yield _pair(step, duration(seconds))


def _outputs(record: RunRecord) -> Iterator[str]:
    ended = record.ended
    if ended is None:
        return
    yield from _pairs((("log", ended.log), ("directory", ended.outputs_path)))
    for output in ended.outputs[:_OUTPUTS]:
        kind = "" if output.kind == "file" else f", {visible(output.kind)}"
        yield f"{visible(output.path)} ({size(output.size)}{kind})"
    if len(ended.outputs) > _OUTPUTS:
        yield f"and {len(ended.outputs) - _OUTPUTS} more; --json lists them all"


def _record(record: RunRecord) -> Iterator[str]:
    yield _pair("last event", f"{record.seq}, {record.hash}")
    yield from _cut(record.truncated)


def _cut(truncated: Mapping[str, int]) -> Iterator[str]:
    for field, amount in truncated.items():
        yield f"{visible(field)} was too long to keep whole: it had {amount} bytes or elements"
