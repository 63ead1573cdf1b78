"""``sealrun run``: one experiment, exactly as committed."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import threading
from collections import Counter
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealrun.cli import console
from sealrun.errors import Interrupted, Refused, SealrunError, StorageFault, UsageError

if TYPE_CHECKING:
    from sealrun.course import Finished
    from sealrun.experiment import Experiment
    from sealrun.policy import Tightening
    from sealrun.verdict import Finding

#: Lines of a refusal; an agent that sees no metric reads the last 50 lines.
REFUSAL_LINES = 40
#: Findings of one kind that are told one by one: a formatter may rewrite a hundred files.
TOLD = 3


def command(
    argv: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="What to run.")],
    rev: Annotated[
        str | None, typer.Option("--rev", help="Run another commit than HEAD.", metavar="REV")
    ] = None,
    message: Annotated[
        str | None, typer.Option("-m", "--message", help="The idea that this run tries.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option(help="End it after this time, e.g. 600s; may only tighten.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory at most, e.g. 8GiB; may only tighten.")
    ] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs at most; may only tighten.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="A stricter level: standard or strict.", metavar="LEVEL")
    ] = None,
    snapshot: Annotated[
        bool,
        typer.Option("--snapshot", help="Seal the working directory as it is, without a commit."),
    ] = False,
    fail_on_flag: Annotated[
        bool, typer.Option("--fail-on-flag", help="Exit with 120 when the run is flagged.")
    ] = False,
    result_file: Annotated[
        Path | None,
        typer.Option(
            "--result-file", help="Write verdict and metric there as JSON.", metavar="FILE"
        ),
    ] = None,
) -> int:
    """Run HEAD in a sealed container while the workspace is guarded.

    The output passes byte for byte and the exit status is the command's. sealrun's own:
    2 usage, 120 flagged (with --fail-on-flag), 121 refused, 122 aborted by a mutation,
    124 deadline, 125 trouble of ours (nothing was judged), 130 interrupted.

    Example:  sealrun run -m "wider MLP" -- uv run train.py > run.log 2>&1
    """
    # Loading modules makes thousands of objects and no garbage; the experiment turns it on again.
    gc.disable()
    # The engine's client takes the longest to import and is needed last.
    threading.Thread(target=importlib.import_module, args=("docker",), daemon=True).start()
    from sealrun.course import Asked, exit_status
    from sealrun.experiment import Experiment
    from sealrun.git import Repository
    from sealrun.leftovers import identify
    from sealrun.state import Places

    if result_file is not None:
        result_file = _announced(result_file)
    repository = Repository.here()
    places = Places.of_user()
    if snapshot:
        if rev is not None:
            raise UsageError("--snapshot and --rev exclude each other")
        from sealrun.snapshot import take

        rev = take(repository)
    asked = Asked(
        argv=tuple(_word(number, word) for number, word in enumerate(argv)),
        revision=rev,
        idea=message,
        tightening=_tightening(policy, deadline, memory, cpus),
        make=sys.stderr.isatty() and sys.stdin.isatty(),
        snapshot=snapshot,
    )
    identity = identify(repository)
    experiment = Experiment(asked, repository, identity, places, console.current())
    try:
        finished = experiment.execute()
    except (SealrunError, KeyboardInterrupt) as error:
        if result_file is not None:
            try:
                _write(result_file, _fault(experiment.id, error))
            except StorageFault as also:
                console.current().error(also)
        if isinstance(error, SealrunError):
            _sound_alarm(experiment, error)
        _mirror(experiment)
        raise
    status = exit_status(finished, fail_on_flag=fail_on_flag)
    _tell(finished)
    if finished.outcome == "failed":
        _tell_why(experiment.log)
    if result_file is not None:
        _write(result_file, _result(finished, status))
    _sound_alarm(experiment, finished)
    _mirror(experiment)
    return status


def _mirror(experiment: Experiment) -> None:
    """Have the record copied to where its user wants it; that takes place behind our back."""
    from sealrun.mirror import after_run

    trouble = after_run(experiment.places, experiment.repository, experiment.repository_id)
    if trouble:
        console.current().say(trouble)


def _sound_alarm(experiment: Experiment, ending: Finished | SealrunError) -> None:
    """Tell whoever is to be told how a run ended; trouble with that never changes the run."""
    from sealrun.state import configuration

    if not (configuration() / "alarm.toml").exists():
        return
    from sealrun.alarm import Alarm, of_error, of_finished

    workspace = experiment.repository.workspace
    if isinstance(ending, SealrunError):
        ended = of_error(ending, experiment.id, workspace)
    else:
        ended = of_finished(ending, workspace, experiment.around.told)
    trouble = None if ended is None else Alarm.of_user(experiment.places).ended(ended)
    if trouble:
        console.current().say(trouble)


def _word(number: int, word: str) -> str:
    """Return a word of the command as UTF-8, whatever the caller's locale made of its bytes.

    Raises:
        UsageError: its bytes are not UTF-8.
    """
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"word {number + 1} of the command, {word!r}, is not UTF-8",
            hint="Engines take commands as JSON, which is UTF-8; put such a name into a script.",
        ) from error


def _announced(file: Path) -> Path:
    """Return where the result goes, after trying; what an earlier run left there is removed.

    A run takes hours: its result must not be lost at the end, and nobody may take an old one for it.

    Raises:
        UsageError: nothing can be written there.
    """
    file = file.resolve()
    try:
        if file.exists() and not file.is_file():
            raise UsageError(
                f"--result-file {file} is no regular file",
                hint="Name a new file, or an old result.",
            )
        draft = _draft(file)
        draft.touch()
        draft.unlink()
        file.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"--result-file {file} cannot be written: {error.strerror}",
            hint="Name a file in a directory that exists and that you may write to.",
        ) from error
    return file


def _draft(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}")


def _tightening(
    level: str | None, deadline: str | None, memory: str | None, cpus: float | None
) -> Tightening:
    from sealrun.policy import Level, Tightening, parse_duration, parse_size

    seconds, size = parse_duration(deadline), parse_size(memory)
    if not (seconds is None or isinstance(seconds, float)) or seconds == 0.0:
        raise UsageError(
            f"--deadline {deadline!r} is no duration", hint="For example 600s or 10min."
        )
    if not (size is None or isinstance(size, int)) or size == 0:
        raise UsageError(f"--memory {memory!r} is no size", hint="For example 8GiB or 500MB.")
    if cpus is not None and not 0 < cpus < float("inf"):
        raise UsageError(f"--cpus {cpus:g} is no number of CPUs", hint="For example 1.5.")
    if level is not None and level not in list(Level):
        raise UsageError(f"--policy {level!r} is no level", hint="One of audit, standard, strict.")
    return Tightening(None if level is None else Level(level), seconds, size, cpus)


def _tell(finished: Finished) -> None:
    """Say how a run ended: one line when all is well, the reasons when not."""
    from sealrun.reasons import Severity
    from sealrun.verdict import Kind, severity

    voice = console.current()
    policy = finished.policy.policy
    notable = [
        finding
        for finding in finished.verdict.reasons
        if severity(finding, policy) is not Severity.NOTE
    ]
    if finished.verdict.kind is Kind.REFUSED:
        _tell_refusal(finished, notable)
        return
    _tell_findings(finished, notable)
    for finding in finished.verdict.reasons:
        if finding not in notable:
            voice.say(f"note: {finding.reason}: {finding.detail}".rstrip(": "), level=1)
    parts = [f"run {finished.run_id}", f"commit {finished.commit[:7]}", finished.verdict.kind.value]
    if finished.verdict.kind is Kind.FLAGGED and finished.verdict.harmless:
        parts[-1] += " (the number belongs to the commit)"
    parts.append(finished.outcome.value)
    if finished.metric is not None and finished.metric.value is not None:
        # "=" and not ":": no line of ours may look like the metric line that a loop greps for.
        parts.append(f"{finished.metric.name} = {finished.metric.value:g}, self-reported")
    if finished.seconds is not None:
        parts.append(f"{finished.seconds:.1f} s")
    voice.say(" · ".join(parts))


def _tell_findings(finished: Finished, notable: list[Finding]) -> None:
    voice = console.current()
    told: Counter[str] = Counter()
    for finding in notable:
        told[finding.reason] += 1
        if told[finding.reason] > TOLD:
            continue
        voice.say(f"{finding.reason}: {finding.detail or finding.path or ''}".rstrip(": "))
        for line in finding.diff:
            voice.say(f"  {line}")
    for reason, count in told.items():
        if count > TOLD:
            voice.say(f"{reason}: {count - TOLD} more; sealrun show {finished.run_id} lists them")


def _tell_why(log: Path) -> None:
    from sealrun.diagnosis import TAIL, explain

    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            sentence = explain(file.read(TAIL))
    except OSError:
        return
    if sentence:
        console.current().say(f"hint: {sentence}")


def _tell_refusal(finished: Finished, notable: list[Finding]) -> None:
    voice = console.current()
    impossible = any(finding.reason == "not-sealable" for finding in notable)
    why = "cannot be run" if impossible else "is not what would be tested"
    voice.say(f"refused: nothing was run; commit {finished.commit[:7]} {why}")
    left = REFUSAL_LINES
    for number, finding in enumerate(notable):
        if left <= 0:
            voice.say(f"… and {len(notable) - number} more; sealrun verify lists them all")
            break
        voice.say(f"{finding.reason}: {finding.detail}")
        for line in finding.diff[: max(left, 0)]:
            voice.say(f"  {line}")
        left -= 1 + len(finding.diff)
    for line in _advice(notable):
        voice.say(line)


def _advice(notable: list[Finding]) -> list[str]:
    lines = [f"what to do: {finding.advice}" for finding in notable if finding.advice]
    reasons = {finding.reason.value for finding in notable}
    if "workspace-differs" in reasons:
        lines.append(
            "what to do: if the change is part of the idea, commit it; if you did not make it, "
            "restore the file from the commit (git restore FILE). Then run again."
        )
    if "hidden-from-git" in reasons:
        lines.append(
            "what to do: git update-index --no-assume-unchanged --no-skip-worktree FILE shows the "
            "change to git again; then commit or restore it."
        )
    if reasons & {"policy-changed", "protected-changed"}:
        lines.append(
            "what to do: go back to a commit that leaves the policy and the protected files as "
            "they were. Only the person who owns this loop decides about them."
        )
    return lines or ["what to do: sealrun show with the run's id explains each reason."]


def _result(finished: Finished, status: int) -> dict[str, Any]:
    from sealrun.verdict import severity

    metric = finished.metric
    return {
        "run": finished.run_id,
        "commit": finished.commit,
        "verdict": finished.verdict.kind.value,
        "harmless": finished.verdict.harmless,
        "outcome": finished.outcome.value,
        "exit_status": finished.exit_status,
        "status": int(status),
        "seconds": finished.seconds,
        "metric": None
        if metric is None
        else {
            "name": metric.name,
            "value": metric.value,
            "direction": metric.direction,
            "source": metric.source,
            "problem": metric.problem,
            "self_reported": metric.self_reported,
        },
        "reasons": [
            {
                "code": finding.reason.value,
                "severity": severity(finding, finished.policy.policy).value,
                "detail": finding.detail,
                "path": finding.path,
                "phase": None if finding.phase is None else finding.phase.value,
            }
            for finding in finished.verdict.reasons
        ],
    }


def _fault(run_id: str, error: BaseException) -> dict[str, Any]:
    ours = error if isinstance(error, SealrunError) else Interrupted("interrupted")
    return {
        "run": run_id,
        # No record could be opened for it, and still nothing was run.
        "verdict": "refused" if isinstance(ours, Refused) else None,
        "outcome": "not-started" if isinstance(ours, Refused) else None,
        "status": int(ours.status),
        "fault": ours.message,
    }


def _write(file: Path, document: dict[str, Any]) -> None:
    draft = _draft(file)
    try:
        draft.write_text(
            json.dumps({"schema": console.SCHEMA, **document}, indent=2) + "\n", "ascii"
        )
        draft.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise StorageFault(
            f"cannot write the result file {file}: {error.strerror}",
            hint=f"The run is on record: sealrun show --json {document['run']} prints it.",
        ) from error
