"""``sealrun gc``: frees what no recorded run needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sealrun.cli import console
from sealrun.errors import Status, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from sealrun.gc.images import EngineSearch
    from sealrun.gc.model import Collected

#: Seconds that a base or an environment that no run used yet stays.
_UNUSED = "14d"


def command(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and why; remove nothing.")
    ] = False,
    unused: Annotated[
        str,
        typer.Option(
            help="How long a base, environment, fetched item or warmed cache stays that no run used.",
            metavar="TIME",
        ),
    ] = _UNUSED,
    recent: Annotated[
        str,
        typer.Option(
            help="Images used in this time stay in the engine, so that the next run starts at once.",
            metavar="TIME",
        ),
    ] = "0s",
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Whether the engine's copies may go.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print what went as JSON.")] = False,
) -> Status:
    """Free disk: what no recorded run needs, and what can be made again without a network.

    Every run on record stays reproducible: what any of them was made of is kept, whatever became of
    the run. The engine's copies of images go, and are loaded again from what is kept when the next
    run needs them. Only what is this user's is touched, and nothing of a run under way. Where a
    ledger cannot be read, nothing at all is removed.

    Example:  sealrun gc --dry-run
    """
    from sealrun.gc.sweep import Collection
    from sealrun.state import Places

    voice = console.current()
    places = Places.of_user()
    _require_ledger()

    def connect() -> EngineSearch:
        from sealrun.engine import connect as engine
        from sealrun.gc.images import EngineSearch

        return EngineSearch(engine(places).client)

    collection = Collection(
        places,
        voice,
        unused=_seconds("--unused", unused),
        recent=_seconds("--recent", recent),
        connect=connect if images else None,
    )
    done = collection.look() if dry_run else collection.collect()
    if json:
        voice.json(_document(done, dry_run=dry_run))
        return Status.OK
    if done.found:
        voice.table(_table(done))
    for one in done.left:
        voice.say(f"stays: {one.what}: {one.why}")
    verb = "would free" if dry_run else "freed"
    voice.say(f"{verb} {_size(done.size)}" if done.found else "nothing to free")
    return Status.OK


def _require_ledger() -> None:
    """Refuse where this repository has pinned runs whose ledger is gone: they need something."""
    from sealrun.cli.reading import open_here
    from sealrun.errors import RepositoryError

    try:
        with open_here():
            return
    except RepositoryError:
        # gc is about all repositories; it need not be called in one.
        return


def _seconds(option: str, text: str) -> float:
    from sealrun.policy import parse_duration

    days = text.removesuffix("d")
    if text != days and days.isdecimal() and len(days) < 6:  # noqa: PLR2004 - some centuries
        return float(int(days) * 86400)
    found = parse_duration(text)
    if not isinstance(found, float):
        raise UsageError(f"{option} {text!r} is no time", hint="For example 12h, 14d or 0s.")
    return found


def _document(done: Collected, *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "bytes": done.size,
        "found": [
            {"kind": one.kind.value, "name": one.name, "bytes": one.size, "why": one.why}
            for one in done.found
        ],
        "left": [{"what": one.what, "why": one.why} for one in done.left],
    }


def _table(done: Collected) -> Table:
    from rich.table import Table
    from rich.text import Text

    from sealrun.cli.reading import visible

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("kind", "what", "size", "why"):
        shown.add_column(name, no_wrap=name != "why", overflow="fold")
    for one in done.found:
        cells = (one.kind.value, one.name, _size(one.size), one.why)
        shown.add_row(*(Text(visible(cell)) for cell in cells))
    return shown


def _size(amount: int) -> str:
    from sealrun.cli.reading import size

    return size(amount)
