"""``sealrun log``: the runs of this repository, the newest first.

Rules that this module keeps:

- It reads; it never begins a ledger and changes nothing.
- The best metric is marked only where the record says which direction is better, and only among
  runs that succeeded and whose number belongs to their commit alone.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
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

    from sealrun.ledger import Filter, Ledger, RunRecord

#: Digits of a commit id in the table.
_COMMIT = 9
#: The table's columns; on a narrow terminal without some, and those that hold amounts.
_COLUMNS = ("run", "when", "commit", "verdict", "outcome", "metric", "time", "alerts", "idea")
_ONLY_WIDE = {"commit", "time"}
_AMOUNTS = {"metric", "time", "alerts"}
#: Characters of a line from which on a terminal is wide.
_WIDE = 100
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
    imported: Annotated[
        bool, typer.Option("--imported", help="Those that came in bundles instead.")
    ] = False,
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
        if imported:
            list_imported(here, wanted, json=json)
            return Status.OK
        records = here.ledger.runs(wanted) if here.ledger else []
        if json:
            screen.json({"runs": [document(one) | {"state": here.state(one)} for one in records]})
        elif here.ledger is None or not here.ledger.head()[0]:
            screen.say(NO_RUNS)
        elif not records:
            screen.say("no run matches")
        else:
            screen.table(table(here, here.ledger, records, narrow=is_narrow()))
    return Status.OK


def list_imported(here: Here, wanted: Filter, *, json: bool) -> None:
    """List runs that came in bundles, each with where it came from; they are nobody's best."""
    from sealrun.ledger import document
    from sealrun.provenance.bundle.imported import all_runs, words

    found = [
        one
        for one in (all_runs(here.places, here.repository) if here.repository else [])
        if (not wanted.verdicts or one.record.verdict in wanted.verdicts)
        and (not wanted.outcomes or one.record.outcome in wanted.outcomes)
        and one.record.commit.startswith((wanted.commit or "").lower())
        and one.record.opened_at >= (wanted.since or "")
    ][: wanted.limit]
    screen = console.current()
    if json:
        rows = [document(one.record) | {"imported": asdict(one.origin)} for one in found]
        screen.json({"runs": rows})
        return
    if not found:
        screen.say("no imported run")
    for one in found:
        record = one.record
        metric = record.ended.metric if record.ended else None
        value = metric_value(metric.value) if metric else "-"
        cells = (record.run, record.commit[:_COMMIT], record.verdict, record.outcome, value)
        screen.data("  ".join(visible(cell) for cell in (*cells, words(one.origin))))


def is_narrow() -> bool:
    """Tell whether stdout is a terminal without room for a wide table."""
    return sys.stdout.isatty() and shutil.get_terminal_size().columns < _WIDE


def _digits(commit: str | None) -> str | None:
    if commit is not None and (not commit or set(commit.lower()) - set("0123456789abcdef")):
        raise UsageError(
            f"--commit {commit!r} is no commit id", hint="git rev-parse REVISION prints one."
        )
    return commit


def table(here: Here, ledger: Ledger, records: list[RunRecord], *, narrow: bool = False) -> Table:
    """Return the runs as a table; every cell is plain text.

    Args:
        here: where the runs are.
        ledger: that they were read from.
        records: in the order of the rows.
        narrow: leave out what ``show`` tells, so that the rest fits 80 columns.
    """
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    names = [name for name in _COLUMNS if not narrow or name not in _ONLY_WIDE]
    for name in names:
        # A column that may wrap, of text that must not: a terminal's lack of room is all its own.
        shown.add_column(
            name, no_wrap=name != "idea", justify="right" if name in _AMOUNTS else "left"
        )
    best = _best(ledger, records)
    for record in records:
        cells = _cells(here, ledger, record, best=record.run in best)
        style = {"verdict": _STYLES.get(record.verdict or "", "")}
        shown.add_row(
            *(
                Text(visible(cells[name]), style.get(name, ""), no_wrap=True, overflow="ellipsis")
                for name in names
            )
        )
    if best:
        shown.caption = Text("* best on record", style="dim")
        shown.caption_justify = "left"
    return shown


def _cells(here: Here, ledger: Ledger, record: RunRecord, *, best: bool) -> dict[str, str | None]:
    ended = record.ended
    metric = ended.metric if ended else None
    value = metric_value(metric.value) if metric else None
    state = here.state(record)
    return {
        "run": ledger.shortest(record.run),
        "when": local_time(record.opened_at),
        "commit": record.commit[:_COMMIT],
        "verdict": record.verdict,
        "outcome": record.outcome if state == "ended" else {"alive": "running"}.get(state, state),
        "metric": f"{value} *" if best else value,
        "time": duration(ended.seconds if ended else None),
        "alerts": str(len(record.alerts)) if record.alerts else None,
        "idea": record.opened.idea,
    }


def _best(ledger: Ledger, records: list[RunRecord]) -> set[str]:
    asked: set[tuple[str, str]] = set()
    for record in records:
        metric = record.ended.metric if record.ended else None
        if metric is not None and metric.direction is not None:
            asked.add((metric.name, metric.direction))
    found = (ledger.best(name, direction) for name, direction in asked)
    return {run for run in found if run is not None}
