"""``sealrun log``: the runs of this repository, the newest first.

Rules that this module keeps:

- It reads; it never begins a ledger and changes nothing.
- The best metric is marked only where the record says which direction is better, and only among
  runs that succeeded and whose number belongs to their commit alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sealrun.cli import console
from sealrun.cli.reading import (
    NO_RUNS,
    Here,
    chosen,
    duration,
    local_time,
    metric_value,
    open_here,
    since,
    visible,
)
from sealrun.errors import Status, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from sealrun.ledger import Ledger, RunRecord

#: Digits of a commit id in the table.
_COMMIT = 9
_STYLES = {"clean": "green", "flagged": "yellow", "aborted": "red", "refused": "red"}


def command(
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many, the newest.")] = 20,
    verdict: Annotated[
        list[str] | None,
        typer.Option(help="Only clean, flagged, aborted or refused runs; repeatable."),
    ] = None,
    outcome: Annotated[
        list[str] | None,
        typer.Option(help="Only runs that ended like this, e.g. failed; repeatable."),
    ] = None,
    commit: Annotated[
        str | None, typer.Option(help="Only runs of the commit that begins with this.")
    ] = None,
    since_: Annotated[
        str | None, typer.Option("--since", help="Only newer ones: 12h, 7d, 2026-03-08.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
) -> Status:
    """List the runs of this repository, the newest first.

    Example:  sealrun log -n 50 --verdict flagged --since 12h
    """
    from sealrun.ledger import Filter, document
    from sealrun.ledger.events import OUTCOMES, VERDICTS

    wanted = Filter(
        verdicts=chosen("--verdict", verdict, VERDICTS),
        outcomes=chosen("--outcome", outcome, OUTCOMES),
        commit=_digits(commit),
        since=since(since_) if since_ else None,
        limit=count,
    )
    screen = console.current()
    with open_here() as here:
        records = here.ledger.runs(wanted) if here.ledger else []
        if json:
            screen.json({"runs": [document(one) | {"state": here.state(one)} for one in records]})
        elif here.ledger is None or not here.ledger.head()[0]:
            screen.say(NO_RUNS)
        elif not records:
            screen.say("no run matches")
        else:
            screen.table(table(here, here.ledger, records))
    return Status.OK


def _digits(commit: str | None) -> str | None:
    if commit is not None and (not commit or set(commit.lower()) - set("0123456789abcdef")):
        raise UsageError(
            f"--commit {commit!r} is no commit id", hint="git rev-parse REVISION prints one."
        )
    return commit


def table(here: Here, ledger: Ledger, records: list[RunRecord]) -> Table:
    """Return the runs as a table; every cell is plain text."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "when", "commit", "verdict", "outcome"):
        shown.add_column(name, no_wrap=True)
    shown.add_column("metric", no_wrap=True, justify="right")
    shown.add_column("time", no_wrap=True, justify="right")
    shown.add_column("alerts", no_wrap=True, justify="right")
    shown.add_column("idea", no_wrap=True, overflow="ellipsis")
    best = _best(ledger, records)
    for record in records:
        cells = _cells(here, ledger, record, best=record.run in best)
        shown.add_row(
            *(Text(visible(cell)) for cell in cells[:3]),
            Text(visible(cells[3]), style=_STYLES.get(record.verdict or "", "")),
            *(Text(visible(cell)) for cell in cells[4:]),
        )
    if best:
        shown.caption = Text("* best on record", style="dim")
        shown.caption_justify = "left"
    return shown


def _cells(here: Here, ledger: Ledger, record: RunRecord, *, best: bool) -> list[str | None]:
    ended = record.ended
    metric = ended.metric if ended else None
    value = metric_value(metric.value) if metric else None
    state = here.state(record)
    return [
        ledger.shortest(record.run),
        local_time(record.opened_at),
        record.commit[:_COMMIT],
        record.verdict,
        record.outcome if state == "ended" else {"alive": "running"}.get(state, state),
        f"{value} *" if best else value,
        duration(ended.seconds if ended else None),
        str(len(record.alerts)) if record.alerts else None,
        record.opened.idea,
    ]


def _best(ledger: Ledger, records: list[RunRecord]) -> set[str]:
    asked: set[tuple[str, str]] = set()
    for record in records:
        metric = record.ended.metric if record.ended else None
        if metric is not None and metric.direction is not None:
            asked.add((metric.name, metric.direction))
    found = (ledger.best(name, direction) for name, direction in asked)
    return {run for run in found if run is not None}
