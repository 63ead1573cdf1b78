"""``sealrun guard``: the process that watches this workspace.

Rules that this module keeps:

- ``status`` never starts a guard: what it shows is what was there.
- ``stop`` never takes a guard away from a run that it guards.
"""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from sealrun.cli import console
from sealrun.errors import Status

if TYPE_CHECKING:
    from pathlib import Path

    from sealrun.guard import GuardStatus


class Action(StrEnum):
    """What to do with the guard."""

    STATUS = "status"
    START = "start"
    STOP = "stop"


def command(
    action: Annotated[Action, typer.Argument(help="What to do.")] = Action.STATUS,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
) -> Status:
    """Show, start or stop the process that watches this workspace, also between runs.

    Example:  sealrun guard status
    """
    from sealrun.git import Repository
    from sealrun.guard import ensure, find
    from sealrun.state import Places

    workspace = Repository.here().workspace
    places = Places.of_user()
    client = ensure(workspace, places) if action is Action.START else find(workspace, places)
    if client is None:
        _nobody(workspace, json=json)
        return Status.OK
    with client:
        if action is Action.STOP:
            client.stop("asked to on the command line")
            _nobody(workspace, json=json)
        else:
            _show(client.status(), json=json)
    return Status.OK


def _nobody(workspace: Path, *, json: bool) -> None:
    screen = console.current()
    if json:
        screen.json({"guard": None, "workspace": os.fspath(workspace)})
        return
    screen.say(f"no guard watches {workspace}")
    screen.say("hint: sealrun guard start begins to watch; each run does so by itself.")


def _show(status: GuardStatus, *, json: bool) -> None:
    from sealrun.guard.messages import plain

    screen = console.current()
    if json:
        screen.json({"guard": plain(status), "workspace": status.workspace})
        return
    from datetime import datetime

    from rich.table import Table
    from rich.text import Text

    from sealrun.cli.reading import visible

    table = Table(box=None, pad_edge=False, show_header=False)
    coverage = status.coverage
    since = datetime.fromtimestamp(status.watching_since.wall).astimezone()
    gaps = "; ".join(f"{gap.reason.value}: {gap.text}" for gap in coverage.gaps)
    rows = (
        ("workspace", status.workspace),
        ("watching since", f"{since:%Y-%m-%d %H:%M:%S}"),
        ("directories", f"{status.watches} of {status.directories} watched"),
        ("coverage", gaps or "complete"),
        ("guards runs", ", ".join(armed.run_id for armed in status.armed) or "none now"),
        ("between runs", _standing(status)),
        ("remembers", f"{status.remembered} events on tracked files and git's state"),
        ("process", f"{status.pid}, sealrun {status.version}"),
        ("ends", f"after {status.idle_after / 3600:g} h without runs"),
    )
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(visible(value)))
    screen.table(table)


def _standing(status: GuardStatus) -> str:
    standing = status.standing
    if standing is None:
        return "nothing yet: the first run or session begins it"
    return f"{standing.files} files, {standing.mutations} states found"
