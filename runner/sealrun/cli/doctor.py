"""``sealrun doctor``: what is protected here, what is not, and how to repair it."""

from __future__ import annotations

from typing import Annotated

import typer

from sealrun.cli import console
from sealrun.errors import Status


def command(
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> Status:
    """Say what is protected here, what is not, who can be named; then each check with its fix.

    Looks at the engine, disk, file systems, inotify limits, privileges, git's configuration, data
    mounts, GPUs, and at what would rewrite a tracked file now. Changes nothing. Exits with 125
    when something keeps sealrun from working here.

    Example:  sealrun doctor
    """
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
