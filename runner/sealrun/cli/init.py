"""``sealrun init``: make an existing repository ready, shown as one diff first."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from sealrun.cli import console
from sealrun.errors import Refused, SealrunError, Status
from sealrun.integrations.agents import Agent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealrun.git import Repository
    from sealrun.init.changes import Change
    from sealrun.init.proposal import Proposal
    from sealrun.state import Places


def command(
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Write what is shown, without a question.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take back exactly what init wrote here.")
    ] = False,
    agent: Annotated[
        list[Agent] | None,
        typer.Option(
            help="Whose hooks to install; by default those of the agents found here.",
            show_default=False,
        ),
    ] = None,
    hooks: Annotated[
        bool, typer.Option("--hooks/--no-hooks", help="Whether to install an agent's hooks.")
    ] = True,
) -> int:
    """Write a policy, the run command and a section for agents, all shown as one diff first.

    Commits nothing. Without a terminal and without --yes it only shows.

    Example:  sealrun init
    """
    from sealrun.git import Repository
    from sealrun.init import written
    from sealrun.state import Places

    repository, places = Repository.here(), Places.of_user()
    voice = console.current()
    if undo:
        for path in written.undo(repository.workspace, places):
            voice.say(f"as it was before: {path}")
        return Status.OK
    asked = (agent or _agents(repository)) if hooks else []
    settings = _hooks(repository, places, dict.fromkeys(asked))
    proposal = _propose(repository, settings)
    _show(proposal)
    if not proposal.changes:
        voice.say("nothing to write: all of it is there")
        return Status.OK
    if not yes and not _agreed():
        voice.say("nothing was written; sealrun init --yes writes it")
        return Status.OK
    if settings:
        from sealrun.state import repository_id

        # Hooks record only for a repository that has an id.
        repository_id(repository.common_dir)
    written.write(repository.workspace, places, proposal.changes, settings)
    voice.say("written, not committed; sealrun init --undo takes it back")
    paths = [change.path for change in proposal.changes if change not in settings.values()]
    if paths:
        voice.say(f"next: git add {' '.join(paths)} && git commit, then sealrun warm")
    return Status.OK


def _propose(repository: Repository, settings: dict[Agent, Change]) -> Proposal:
    from dataclasses import replace

    from sealrun.image.recipe import shipped_pythons
    from sealrun.init import draft, interpreter, look, proposal, shape

    found, untracked = look.look(repository)
    recognised = shape.recognise(found)
    candidates = {draft.POLICY, *proposal.READ_BY_AGENTS, proposal.SKILL}
    candidates |= {change.path for change in settings.values()}
    if recognised.lock is not None:
        candidates.add(recognised.lock)
    made = proposal.propose(
        found,
        look.ignored(repository, sorted(candidates)),
        look.missing(recognised.data),
        untracked,
        {agent.value: change for agent, change in settings.items()},
    )
    python = interpreter.note(found, recognised, shipped_pythons())
    return replace(made, notes=(python, *made.notes)) if python else made


def _show(proposal: Proposal) -> None:
    from sealrun.init.changes import diff

    voice = console.current()
    shape = proposal.shape
    lock = f", packages from {shape.lock}" if shape.lock else ""
    voice.say(f"recognised: {shape.kind.value}{lock}")
    for line in diff(proposal.changes):
        # A tab is what a table of results is made of: no terminal is fooled by it.
        voice.data("\t".join(console.printable(part) for part in line.split("\t")))
    for note in proposal.notes:
        voice.say(f"note: {note}")


def _agreed() -> bool:
    """Ask at the terminal; without one the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write(f"{console.PREFIX}Write this? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _agents(repository: Repository) -> list[Agent]:
    """Return the agents that this user or this repository has."""
    import shutil

    from sealrun.integrations.install import settings_file

    found: list[Agent] = []
    for agent, program in ((Agent.CLAUDE_CODE, "claude"), (Agent.CODEX, "codex")):
        places = (settings_file(agent, where).parent for where in (repository.workspace, None))
        if shutil.which(program) or any(place.is_dir() for place in places):
            found.append(agent)
    return found


def _hooks(repository: Repository, places: Places, agents: Iterable[Agent]) -> dict[Agent, Change]:
    """Return the change of each agent's settings; what cannot be changed is said and left."""
    from sealrun.errors import UsageError
    from sealrun.init.changes import Change
    from sealrun.init.look import is_free, read
    from sealrun.integrations.install import preview_settings

    workspace = repository.workspace
    found: dict[Agent, Change] = {}
    for agent in agents:
        if agent is Agent.GIT:
            raise UsageError(
                "git's own hooks are no settings that a diff could show",
                hint="sealrun hook install git puts them before those that are there.",
            )
        try:
            planned = preview_settings(agent, places, workspace)
            if planned is None:
                continue
            file, before, after = planned
            path = str(file.relative_to(workspace))
            if read(workspace, path) != before or (before is None and not is_free(workspace, path)):
                raise Refused(f"{file} is a link, or stands behind one")
        except SealrunError as error:
            console.current().say(f"note: no hooks for {agent.value}: {error.message}")
            continue
        found[agent] = Change(path, before, after)
    return found
