"""``sealrun sync``: what a run logged offline, uploaded to its tracker from here.

Rules that this module keeps:

- What would be uploaded is said before it is: how much, where to, what is left out, and what looks
  like a key. With a key among it, a person decides at the terminal.
- The verdict that goes along is the one on record.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealrun.cli import console
from sealrun.cli.reading import no_such_run, open_here, size, visible
from sealrun.errors import Status, StorageFault, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sealrun.ledger import RunRecord
    from sealrun.trackers.taking import Outputs
    from sealrun.trackers.tracker import Judged, Logged, Target

#: Places that are named one by one.
_NAMED = 5


def command(
    name: Annotated[str, typer.Argument(metavar="TRACKER", help="wandb.")],
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id or its beginning.")],
    project: Annotated[
        str | None, typer.Option("--project", help="Upload to this project.", metavar="NAME")
    ] = None,
    entity: Annotated[
        str | None, typer.Option("--entity", help="Of this user or team.", metavar="NAME")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be uploaded; upload nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> Status:
    """Upload what a run logged offline, with your own client and login of the tracker.

    A checked copy is uploaded: links that lead elsewhere, artifacts and files that were changed
    since are not. Commit, image and verdict of the record go along in its config and tags.

    Example:  sealrun sync wandb 01K9ZQ4M
    """
    from sealrun import trackers
    from sealrun.state import private
    from sealrun.trackers.tracker import Target

    found = trackers.find(name)
    with open_here() as here:
        if here.ledger is None:
            raise no_such_run(run)
        record = here.ledger.run(here.ledger.resolve(run))
    outputs = _outputs(record)
    scratch = private(here.places.cache / "scratch")
    with tempfile.TemporaryDirectory(dir=scratch, prefix="sync-") as into:
        logged = found.copy(outputs, _judged(record), Path(into))
        if not logged:
            raise UsageError(
                f"run {record.run} left nothing that {name} could upload",
                hint="sealrun outputs lists what it left.",
            )
        target = Target(project, entity)
        _tell(logged, target)
        if not dry_run:
            _decide(logged)
            found.upload(logged, target)
    if json:
        rows = [_row(one) for one in logged]
        console.current().json({"run": record.run, "uploaded": not dry_run, "logged": rows})
    else:
        for one in logged:
            verb = "would upload" if dry_run else "uploaded"
            console.current().data(f"{verb} {one.name}: {one.files} files, {size(one.size)}")
    return Status.OK


def _outputs(record: RunRecord) -> Outputs:
    from sealrun.trackers.taking import Outputs

    if record.ended is None or record.ended.outputs_path is None:
        raise UsageError(f"run {record.run} left no outputs", hint="sealrun ps lists running ones.")
    root = Path(record.ended.outputs_path)
    if not root.is_dir():
        raise StorageFault(
            f"the outputs of run {record.run} are gone: {visible(root)}",
            hint="Restore them from a backup or a mirror, or run it again: sealrun reproduce.",
        )
    recorded = {one.path: one.sha256 for one in record.ended.outputs if one.sha256}
    return Outputs(root, recorded)


def _judged(record: RunRecord) -> Judged:
    """Return what goes along: what the record says, and nothing that the experiment said."""
    from sealrun.trackers.tracker import Judged

    verdict = record.ended.verdict if record.ended else None
    kind = verdict.kind if verdict else "not judged"
    reasons = sorted({one.code for one in verdict.reasons}) if verdict else []
    return Judged(
        {
            "run": record.run,
            "commit": record.commit,
            "image": record.progress.image_id,
            "verdict": kind,
            "reasons": reasons,
        },
        (f"sealrun-{kind.replace(' ', '-')}",),
    )


def _tell(logged: Sequence[Logged], target: Target) -> None:
    screen = console.current()
    for one in logged:
        project = target.project or one.project or "the client's own project"
        entity = target.entity or one.entity or "your own account"
        screen.say(visible(f"{one.name}: {size(one.size)} to {project}, of {entity}"))
        for path, why in one.left_out[:_NAMED]:
            screen.say(visible(f"left out: {path}: {why}"))
        if len(one.left_out) > _NAMED:
            screen.say(f"left out: {len(one.left_out) - _NAMED} more; --json lists them")
        for found in one.keys:
            screen.say(visible(f"warning: {one.name}: {found.words()}"))


def _decide(logged: Sequence[Logged]) -> None:
    """Have a person decide where something looks like a key.

    Raises:
        Refused: nobody is there, or they said no.
    """
    count = sum(len(one.keys) for one in logged)
    if count:
        from sealrun.cli.human import confirm

        confirm(
            (f"{count} places of what would be uploaded hold what looks like a key.",), "upload"
        )


def _row(one: Logged) -> dict[str, Any]:
    return {
        "name": one.name,
        "project": one.project,
        "entity": one.entity,
        "files": one.files,
        "size": one.size,
        "left_out": [{"path": path, "why": why} for path, why in one.left_out],
        "keys": [found.words() for found in one.keys],
    }
