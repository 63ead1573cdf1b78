"""``sealrun mirror``: where the record is kept besides here, and whether it is whole."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealrun.cli import console
from sealrun.errors import Status, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sealrun.mirror.config import Destination
    from sealrun.mirror.status import Mirrored

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="See where the record is kept besides here, and bring it up to date.",
)


@app.command("status")
def status(
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> Status:
    """Show each destination, what it holds, and whether the record here continues that.

    Exits with 125 when a mirror cannot be reached, was changed, or when the record here was cut
    or written anew since.

    Example:  sealrun mirror status
    """
    from sealrun.cli.reading import open_here
    from sealrun.git import Repository
    from sealrun.mirror import config
    from sealrun.mirror.after import configuration
    from sealrun.mirror.memory import Memory
    from sealrun.mirror.status import Health, look

    _, destinations = config.read(configuration())
    screen = console.current()
    repository = Repository.here()
    with open_here() as here:
        memory = Memory(here.places)
        found = (
            look(
                here.places,
                repository,
                here.repository,
                here.ledger,
                memory,
                destinations,
                os.environ,
            )
            if here.repository
            else []
        )
    if json:
        screen.json(
            {
                "configuration": str(configuration()),
                "repository": here.repository,
                "machine": memory.machine(),
                "destinations": [_document(one) for one in found],
            }
        )
    elif not destinations:
        screen.say(f"the record is kept here alone: no destination in {configuration()}")
    elif not found:
        screen.say("nothing is on record here yet")
    else:
        _show(found)
    good = (Health.WHOLE, Health.BEHIND, Health.NEW)
    sound = all(one.health in good for one in found)
    return Status.OK if sound else Status.FAULT


@app.command("now")
def now(
    name: Annotated[
        str | None, typer.Argument(help="Only this destination; else each.", metavar="[NAME]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> Status:
    """Bring each mirror up to date now, and say how it went.

    Exits with 125 when one could not be brought up to date.

    Example:  sealrun mirror now
    """
    from sealrun.git import Repository
    from sealrun.mirror import config
    from sealrun.mirror.after import configuration
    from sealrun.mirror.memory import Memory
    from sealrun.mirror.work import mirror
    from sealrun.state import Places, repository_id

    mirroring, destinations = config.read(configuration())
    chosen = _chosen(destinations, name)
    repository = Repository.here()
    identity = repository_id(repository.common_dir, create=False)
    screen = console.current()
    if identity is None:
        screen.say("nothing is on record here yet")
        return Status.OK
    places = Places.of_user()
    found = mirror(places, repository, identity, Memory(places), chosen, mirroring, os.environ)
    if json:
        rows = [
            {"name": one.name, "whole": one.why is None, "why": one.why, "events": one.seq}
            for one in found.values()
        ]
        screen.json({"destinations": rows})
    else:
        for one in found.values():
            words = f"{one.seq} events" if one.why is None else f"failed: {one.why}"
            screen.data(console.printable(f"{one.name}: {words}"))
            if one.why is not None and one.hint:
                screen.say(f"hint: {one.hint}")
    return Status.FAULT if any(one.why for one in found.values()) else Status.OK


def _chosen(destinations: Sequence[Destination], name: str | None) -> list[Destination]:
    from sealrun.mirror.after import configuration

    if not destinations:
        raise UsageError(
            f"no destination in {configuration()}",
            hint="How-to guides, Survive the loss of the machine.",
        )
    chosen = [one for one in destinations if name in (None, one.name)]
    if not chosen:
        names = ", ".join(one.name for one in destinations)
        raise UsageError(f"there is no destination {name!r}", hint=f"Destinations are: {names}.")
    return chosen


def _show(found: Sequence[Mirrored]) -> None:
    from rich.table import Table
    from rich.text import Text

    from sealrun.cli.reading import local_time

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("destination", "type", "state", "events", "written", "leads to"):
        table.add_column(name)
    for one in found:
        cells = (
            one.destination.name,
            one.destination.place.type,
            one.health.value,
            str(one.seq),
            local_time(one.written_at),
            one.destination.origin,
        )
        table.add_row(*(Text(console.printable(cell)) for cell in cells))
    screen = console.current()
    screen.table(table)
    for one in found:
        if one.seq:
            screen.data(f"{one.destination.name} head {one.seq}:{one.hash}")
        if one.why:
            screen.say(f"{one.destination.name}: {one.why}")
        if one.hint:
            screen.say(f"hint: {one.hint}")


def _document(one: Mirrored) -> dict[str, Any]:
    return {
        "name": one.destination.name,
        "type": one.destination.place.type,
        "leads_to": one.destination.origin,
        "state": one.health.value,
        "events": one.seq,
        "head": f"{one.seq}:{one.hash}" if one.seq else None,
        "written_at": one.written_at,
        "why": one.why,
        "succeeded": one.standing.succeeded,
        "failed": one.standing.failed,
        "failures": one.standing.failures,
        "left_out": one.standing.left_out,
    }
