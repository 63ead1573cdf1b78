"""``sealrun hook``: install, remove and show the hooks of coding agents and of git."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealrun.cli import console
from sealrun.errors import RepositoryError, Status
from sealrun.integrations.agents import Agent

if TYPE_CHECKING:
    from sealrun.git import Repository
    from sealrun.integrations.install import Installed
    from sealrun.state import Places

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Let agents and git report what they write, so that a commit can be compared with it.",
)

_Agent = Annotated[Agent, typer.Argument(help="Whose hooks.")]
_Everywhere = Annotated[
    bool,
    typer.Option(
        "--global/--project",
        help="The user's settings for every project, or those of this project on this machine.",
    ),
]


@app.command("install")
def install(agent: _Agent, everywhere: _Everywhere = False) -> int:
    """Add hooks that record what the agent meant to write, or what git's own hooks change.

    What is there already stays and goes on running.

    Example:  sealrun hook install claude-code
    """
    from sealrun.integrations import install as hooks

    places, repository = _here(needed=agent is Agent.GIT or not everywhere)
    voice = console.current()
    if agent is Agent.GIT and repository is not None:
        where, changed = hooks.install_git(places, repository)
    else:
        workspace = None if everywhere or repository is None else repository.workspace
        where, changed = hooks.install_settings(agent, places, workspace)
        if workspace is not None and repository and not hooks.is_ignored(repository, where):
            voice.say(f"git does not ignore {where.relative_to(workspace)}: keep it uncommitted")
    voice.say(f"{agent.value} hooks {'installed in' if changed else 'already in'} {where}")
    if changed and agent is Agent.CLAUDE_CODE:
        voice.say("hint: they work from the agent's next session on.")
    if changed and agent is Agent.CODEX:
        voice.say(
            "hint: Codex asks its user to review and trust new hooks (/hooks) before it runs them."
        )
    return Status.OK


@app.command("uninstall")
def uninstall(agent: _Agent, everywhere: _Everywhere = False) -> int:
    """Take the hooks out again; what else is in the settings stays as it is.

    Example:  sealrun hook uninstall claude-code
    """
    from sealrun.integrations import install as hooks

    places, repository = _here(needed=agent is Agent.GIT or not everywhere)
    if agent is Agent.GIT and repository is not None:
        where, changed = hooks.uninstall_git(repository)
    else:
        workspace = None if everywhere or repository is None else repository.workspace
        where, changed = hooks.uninstall_settings(agent, places, workspace)
    words = "removed from" if changed else "were not in"
    console.current().say(f"{agent.value} hooks {words} {where}")
    return Status.OK


@app.command("status")
def status(
    json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
) -> int:
    """Show where hooks are installed, and what they have recorded of this workspace.

    Example:  sealrun hook status
    """
    from sealrun.integrations import install as hooks
    from sealrun.ownership import intents
    from sealrun.state import repository_id

    places, repository = _here(needed=False)
    found: list[Installed] = []
    log = intents.Log()
    for agent in (Agent.CLAUDE_CODE, Agent.CODEX):
        if repository is not None:
            found.append(hooks.status_settings(agent, places, repository.workspace))
        found.append(hooks.status_settings(agent, places, None))
    if repository is not None:
        found += hooks.status_git(places, repository)
        known = repository_id(repository.common_dir, create=False)
        if known is not None:
            log = intents.read(places.repository(known), repository.workspace)
    _show(found, log, json=json)
    return Status.OK


def _show(found: list[Installed], log: Any, *, json: bool) -> None:  # noqa: ANN401 - intents.Log
    from datetime import datetime

    from sealrun.ownership import intents

    recorded = [event for event in log.events if isinstance(event, intents.Intent)]
    last = recorded[-1].at if recorded else None
    voice = console.current()
    if json:
        rows = [{"agent": i.agent.value, "file": str(i.file), "state": i.state} for i in found]
        voice.json({"hooks": rows, "intents": len(recorded), "last": last})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("whose", "state", "where"):
        table.add_column(heading)
    for one in found:
        table.add_row(
            one.agent.value, one.state, Text(console.printable(str(one.file)), overflow="fold")
        )
    voice.table(table)
    if last is None:
        voice.say("nothing is recorded of this workspace yet")
    else:
        when = datetime.fromtimestamp(last).astimezone()
        voice.say(f"{len(recorded)} edits recorded, the last {when:%Y-%m-%d %H:%M:%S}")


def _here(*, needed: bool) -> tuple[Places, Repository | None]:
    """Return the places and the repository around us, which sealrun then knows by an id."""
    from sealrun.git import Repository
    from sealrun.state import Places, repository_id

    places = Places.of_user()
    try:
        repository = Repository.here()
    except RepositoryError:
        if needed:
            raise
        return places, None
    if needed:
        repository_id(repository.common_dir)
    return places, repository
