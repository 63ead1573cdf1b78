"""``sealrun ps``: the runs of this repository that have not ended.

Rules that this module keeps:

- Alive means that the run's controller holds its lock; a pid on record proves nothing.
- A lost run is shown, not cleared: the next ``sealrun run`` does that, and records it.
"""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from sealrun.cli import console
from sealrun.cli.reading import local_time, open_here, visible
from sealrun.errors import Status


def command(
    json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
) -> Status:
    """List the runs that are under way, and those whose controller died.

    Example:  sealrun ps
    """
    from rich.table import Table
    from rich.text import Text

    from sealrun.ledger import document

    screen = console.current()
    with open_here() as here:
        records = here.ledger.open_runs() if here.ledger else []
        if json:
            screen.json({"runs": [document(one) | {"state": here.state(one)} for one in records]})
            return Status.OK
        if here.ledger is None or not records:
            screen.say("no run is under way")
            return Status.OK
        shown = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("run", "state", "step", "since", "pid", "commit", "command"):
            shown.add_column(name, no_wrap=True, overflow="ellipsis")
        for record in records:
            controller = record.opened.controller
            cells = (
                here.ledger.shortest(record.run),
                here.state(record),
                record.progress.step or "opened",
                local_time(record.opened_at, seconds=True),
                controller.pid if controller else None,
                record.commit[:9],
                shlex.join(record.opened.command),
            )
            shown.add_row(*(Text(visible(cell)) for cell in cells))
        screen.table(shown)
    return Status.OK
