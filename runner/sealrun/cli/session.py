"""``sealrun session``: which process tree's writes are the loop's own.

Rules that this module keeps:

- Where an agent starts, nothing of ours is printed unless something is wrong.
- ``list`` starts nothing and makes no repository id.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sealrun.cli import console
from sealrun.errors import RepositoryError, SealrunError, Status

if TYPE_CHECKING:
    from sealrun.git import Repository
    from sealrun.ownership.sessions import Session


class _StartsByDefault(TyperGroup):
    """Takes ``sealrun session -- COMMAND`` for ``sealrun session start -- COMMAND``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's context
        """Read the arguments of a call."""
        return super().parse_args(ctx, ["start", *args] if args[:1] == ["--"] else args)


app = typer.Typer(
    cls=_StartsByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Say which process tree's writes are the loop's own.\n\n"
    "Example:  sealrun session -- claude",
)


@app.command("start", context_settings={"allow_interspersed_args": False})
def start(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="The agent and its arguments.")
    ],
) -> int:
    """Start an agent in the foreground; what it and its descendants write is the loop's own.

    It takes this process's place: terminal, signals and exit status are the agent's.

    Example:  sealrun session -- claude
    """
    from sealrun import cli
    from sealrun.ownership.agent import become, watch_between
    from sealrun.ownership.sessions import Sessions
    from sealrun.state import Places, repository_id

    places, repository = Places.of_user(), _repository()
    identity = None if repository is None else repository_id(repository.common_dir)
    sessions = Sessions.of(places, identity)
    screen = console.current()
    if repository is not None and identity is not None:
        try:
            watch_between(repository, places, identity)
        except SealrunError as error:
            screen.say(f"nothing is watched between runs: {error.message}", level=-1)
            if error.hint:
                screen.say(f"hint: {error.hint}", level=-1)
    else:
        screen.say("not in a git repository: no workspace is watched", level=1)
    try:
        become(command, sessions, cli.give_signals_back)
    except (FileNotFoundError, NotADirectoryError) as error:
        screen.say(f"error: cannot start {command[0]!r}: {error.strerror}", level=-1)
        return Status.NOT_FOUND
    except OSError as error:
        screen.say(f"error: cannot start {command[0]!r}: {error.strerror}", level=-1)
        return Status.NOT_EXECUTABLE


@app.command("attach")
def attach_command(
    pid: Annotated[int, typer.Argument(help="Number of the agent's process.")],
) -> int:
    """Make a process that runs already the leader of a session, e.g. an agent's.

    Example:  sealrun session attach 4711
    """
    from sealrun.ownership.agent import attach, watch_between
    from sealrun.ownership.sessions import Sessions
    from sealrun.state import Places, repository_id

    places, repository = Places.of_user(), _repository()
    identity = None if repository is None else repository_id(repository.common_dir)
    session, new = attach(pid, Sessions.of(places, identity))
    screen = console.current()
    screen.say(
        f"session {session.id}: what process {session.pid} and its descendants write is the loop's own"
        if new
        else f"process {pid} belongs to session {session.id} already"
    )
    if repository is not None and identity is not None:
        watch_between(repository, places, identity)
    return Status.OK


@app.command("list")
def list_command(
    json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
) -> int:
    """List the sessions of this repository, those that ended too.

    Example:  sealrun session list
    """
    from sealrun.ownership.sessions import Sessions
    from sealrun.state import Places, repository_id

    repository = _repository()
    identity = None if repository is None else repository_id(repository.common_dir, create=False)
    sessions = Sessions.of(Places.of_user(), identity).all()
    screen = console.current()
    if json:
        screen.json({"sessions": [_document(session) for session in sessions]})
    elif sessions:
        _show(sessions)
    else:
        screen.say("no session yet")
        screen.say("hint: sealrun session -- COMMAND starts an agent as the loop.")
    return Status.OK


def _repository() -> Repository | None:
    from sealrun.git import Repository

    try:
        return Repository.here()
    except RepositoryError:
        return None


def _document(session: Session) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(session) | {"command": list(session.command), "above": list(session.above)}


def _show(sessions: tuple[Session, ...]) -> None:
    import shlex

    from rich.table import Table
    from rich.text import Text

    from sealrun.cli.reading import visible

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("session", "pid", "began", "ended", "how", "command"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for session in sessions:
        own = os.geteuid() in (0, session.uid)
        cells = (
            session.id,
            session.pid,
            _clock(session.begun),
            None if session.ended is None else _clock(session.ended),
            "attached" if session.attached else "started",
            shlex.join(session.command) if own else "(hidden)",
        )
        table.add_row(*(Text(visible(cell)) for cell in cells))
    console.current().table(table)


def _clock(seconds: float) -> str | None:
    from datetime import datetime

    try:
        return f"{datetime.fromtimestamp(seconds).astimezone():%m-%d %H:%M:%S}"
    except (OSError, OverflowError, ValueError):
        return None
