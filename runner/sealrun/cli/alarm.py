"""``sealrun alarm``: who is told, whether it works, and a test."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealrun.cli import console
from sealrun.errors import Status, UsageError

if TYPE_CHECKING:
    from sealrun.alarm.standing import Channel

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="See who is told when something is wrong, and try it.",
)


@app.command("show")
def show(
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> Status:
    """Show each channel, whether it works, what is still on its way, and the file to change.

    Sends nothing, and shows no secret.

    Example:  sealrun alarm show
    """
    from sealrun.alarm import Alarm
    from sealrun.alarm.standing import look
    from sealrun.state import Places

    alarm = Alarm.of_user(Places.of_user())
    standing = look(alarm, os.environ)
    screen = console.current()
    if json:
        screen.json(
            {
                "configuration": str(alarm.file),
                "channels": [_document(one) for one in standing.channels],
                "waiting": standing.waiting,
                "sending": standing.sending,
            }
        )
        return Status.OK
    if not standing.channels:
        screen.say(f"nobody is told: no channel in {alarm.file}")
        return Status.OK
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("channel", "type", "state", "last taken", "waiting", "leads to"):
        table.add_column(name)
    for one in standing.channels:
        cells = (
            one.told.name,
            one.told.channel.type,
            one.health.value,
            _moment(one.state.delivered) or "never",
            str(one.waiting),
            one.told.origin,
        )
        table.add_row(*(Text(console.printable(cell)) for cell in cells))
    screen.table(table)
    for one in standing.channels:
        for words in _trouble(one):
            screen.say(f"{one.told.name}: {words}")
    if standing.waiting:
        sending = "being delivered" if standing.sending else "waiting for the next run to send them"
        screen.say(f"{standing.waiting} notices on their way, {sending}")
    screen.say(f"configured in {alarm.file}", level=1)
    return Status.OK


@app.command("test")
def try_now(
    channel: Annotated[
        str | None, typer.Argument(help="Only this channel; else each.", metavar="[CHANNEL]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> Status:
    """Send a test through each channel now, and say how it went.

    Exits with 125 when a channel did not take it.

    Example:  sealrun alarm test
    """
    from sealrun.alarm import Alarm, config
    from sealrun.alarm.standing import attempt
    from sealrun.alarm.tell import trial
    from sealrun.state import Places

    alarm = Alarm.of_user(Places.of_user())
    channels = config.read(alarm.file)
    if not channels:
        raise UsageError(f"no channel in {alarm.file}", hint="How-to guides, Be told.")
    chosen = [told for told in channels if channel in (None, told.name)]
    if not chosen:
        names = ", ".join(told.name for told in channels)
        raise UsageError(f"there is no channel {channel!r}", hint=f"Channels are: {names}.")
    notice = trial(os.uname().nodename, time.time())
    results = {told.name: attempt(alarm, told, notice, os.environ) for told in chosen}
    screen = console.current()
    if json:
        rows = [
            {"channel": name, "taken": why is None, "why": why} for name, why in results.items()
        ]
        screen.json({"id": notice.id, "channels": rows})
    else:
        for name, why in results.items():
            screen.data(
                console.printable(f"{name}: {'taken' if why is None else f'failed: {why}'}")
            )
    return Status.FAULT if any(results.values()) else Status.OK


def _document(one: Channel) -> dict[str, Any]:
    return {
        "name": one.told.name,
        "type": one.told.channel.type,
        "kinds": [kind.value for kind in one.told.channel.kinds],
        "quiet": one.told.channel.quiet,
        "leads_to": one.told.origin,
        "state": one.health.value,
        "why": one.why,
        "delivered": one.state.delivered,
        "failed": one.state.failed,
        "failures": one.state.failures,
        "given_up": one.state.given_up,
        "waiting": one.waiting,
        "oldest": one.oldest,
    }


def _trouble(one: Channel) -> list[str]:
    words: list[str] = []
    if one.why is not None:
        tries = f", {one.state.failures} tries in a row" if one.state.failures else ""
        words.append(f"{one.why}{tries}")
    if one.state.given_up:
        words.append(f"{one.state.given_up} notices were never delivered")
    return words


def _moment(at: float | None) -> str | None:
    return None if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
