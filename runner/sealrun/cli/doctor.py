"""``sealrun doctor``: what is protected here, what is not, and how to repair it."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import Annotated

import typer

from sealrun.cli import console
from sealrun.errors import Status, UsageError


def command(
    reproducible: Annotated[
        bool,
        typer.Option(
            "--reproducible", help="Say for every kept run whether it could be rebuilt today."
        ),
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            help="With --reproducible: the loop's table; only what it keeps is looked at.",
            metavar="FILE",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> Status:
    """Say what is protected here, what is not, who can be named; then each check with its fix.

    Looks at the engine, disk, file systems, inotify limits, privileges, git's configuration, data
    mounts, GPUs, and at what would rewrite a tracked file now. Changes nothing. Exits with 125
    when something keeps sealrun from working here.

    With --reproducible it hashes what the recorded runs are made of and assembles their images anew:
    each run that could not be rebuilt is listed with what is missing. Runs that nothing is known to
    have kept or discarded count as kept.

    Example:  sealrun doctor
    """
    if reproducible:
        return _reproducible(results, json=json)
    if results is not None:
        raise UsageError(
            "--results goes with --reproducible",
            hint="Give --reproducible, or leave the table out.",
        )
    from sealrun.doctor import Grade, examine
    from sealrun.doctor.model import PROTECTION, TIER
    from sealrun.git import current_directory
    from sealrun.state import Places

    out = console.current()
    with out.task("examining this machine and this repository"):
        found = examine(Places.of_user(), current_directory())
    if json:
        out.json(
            {
                "summary": found.headline,
                "protection": PROTECTION,
                "tier": TIER,
                "writers": next((c.detail for c in found.checks if c.name == "writers"), None),
                "checks": [
                    {"name": c.name, "status": c.grade.value, "detail": c.detail, "fix": c.fix}
                    for c in found.checks
                ],
            }
        )
    else:
        out.data(console.printable(found.headline))
        width = max(len(check.name) for check in found.checks)
        for check in found.checks:
            name = console.printable(check.name)
            out.data(f"  {check.grade.value:<8}{name:<{width}}  {console.printable(check.detail)}")
            if check.fix and check.grade is not Grade.OK:
                out.data(f"  {'':<8}{'':<{width}}  fix: {console.printable(check.fix)}")
    return Status.FAULT if found.failed else Status.OK


def _reproducible(results: Path | None, *, json: bool) -> Status:
    from sealrun.cli.reading import open_here
    from sealrun.cli.reproduce import kept_by
    from sealrun.doctor.reproducible import examine_runs
    from sealrun.git import Repository
    from sealrun.reproduce.again import originals
    from sealrun.reproduce.rebuild import Stored

    out = console.current()
    with open_here() as here:
        if here.ledger is None:
            runs = []
        elif results is None:
            runs = originals(here.ledger)
        else:
            runs = kept_by(here.ledger, results)
        stored = Stored(Repository.here(), here.repository, here.places)
        with out.task("hashing what runs are made of", len(runs)) as task:
            found = []
            for one in examine_runs(runs, stored):
                found.append(one)
                task.advance(1)
    lost = [one for one in found if one.missing]
    if json:
        out.json(
            {
                "runs": [
                    {
                        "run": one.run.run,
                        "commit": one.run.commit,
                        "image_id": one.run.progress.image_id,
                        "rebuildable": not one.missing,
                        "missing": list(one.missing),
                    }
                    for one in found
                ]
            }
        )
    else:
        out.data(f"{len(found) - len(lost)} of {len(found)} runs could be rebuilt today")
        for one in lost:
            out.data(f"  run {one.run.run}, commit {one.run.commit[:9]}")
            for words in one.missing:
                out.data(f"    {console.printable(words)}")
    return Status.FAULT if lost else Status.OK
