"""What ``sealrun init`` would write into a workspace, and what it has to say about it.

Rules that this module keeps:

- Pure: what was looked at comes in, changes and notes go out, in an order that does not vary.
- An existing policy stays. What git ignores is its owner's own and stays too: a section goes into a
  file that a commit can hold.
- Nothing is proposed twice: what is there already is no change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.init import draft, program, teaching
from sealrun.init.changes import Change
from sealrun.init.shape import PROGRAM, Kind, recognise

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from sealrun.init.shape import Found, Shape

#: Where agents look for instructions (agents.md; Claude Code reads its own name).
READ_BY_AGENTS = ("AGENTS.md", "CLAUDE.md")
#: Where they look for skills, when those names are not a commit's.
SKILL = ".claude/skills/sealrun/SKILL.md"


@dataclass(frozen=True)
class Proposal:
    """What would be written.

    Attributes:
        shape: what the repository was recognised as.
        changes: in the order in which they are shown and written.
        notes: what a human should know before saying yes, one sentence each.
    """

    shape: Shape
    changes: tuple[Change, ...]
    notes: tuple[str, ...]


def propose(
    found: Found,
    ignored: Collection[str],
    missing: Collection[str],
    untracked: Collection[str],
    hooks: Mapping[str, Change],
) -> Proposal:
    """Return what would be written.

    Args:
        found: what is there; ``contents`` holds the files that may be changed, if they exist.
        ignored: of the files that may be written, those that git ignores.
        missing: of the shape's data, what is not there yet.
        untracked: paths that no commit holds yet.
        hooks: the change of each agent's settings that would be made.
    """
    shape = recognise(found)
    changes: list[Change] = []
    notes: list[str] = []
    if draft.POLICY in found.paths:
        notes.append(f"{draft.POLICY} is there already and stays as it is")
    else:
        changes.append(Change(draft.POLICY, None, draft.policy_text(shape).encode()))
        if draft.POLICY in ignored:
            notes.append(f"git ignores {draft.POLICY}: it judges nothing until a commit holds it")
    instructions = found.contents.get(PROGRAM)
    commands: tuple[bytes, ...] = ()
    if shape.kind is Kind.AUTORESEARCH and instructions is not None:
        commands = program.run_commands(instructions)
        after = program.with_sealrun(instructions)
        if after != instructions:
            changes.append(Change(PROGRAM, instructions, after))
        elif program.WORDS not in instructions:
            notes.append(
                f"{PROGRAM} names no run command whose output goes to a file: put sealrun run -- "
                "in front of it by hand"
            )
    body = teaching.section(_command(shape, commands), (*shape.protected, draft.POLICY))
    taught = tuple(_teach(found, ignored, body))
    if not taught:
        notes.append("git ignores every file that agents read: no section was added")
    changes += [change for change in taught if change.before != change.after]
    changes += hooks.values()
    notes += _notes(shape, missing, untracked, hooks, ignored)
    return Proposal(shape, tuple(changes), tuple(notes))


def _teach(found: Found, ignored: Collection[str], body: str) -> Iterator[Change]:
    """Yield a change for each file that agents read, also where it holds the section already."""
    there = [name for name in READ_BY_AGENTS if name in found.contents and name not in ignored]
    for name in there:
        text = found.contents[name]
        if any(f"@{other}".encode() in text for other in there if other != name):
            # It takes the other one in (Claude Code, "CLAUDE.md imports").
            continue
        yield Change(name, text, teaching.with_section(text, body))
    if there:
        return
    # A name that exists without readable content is a link or a directory: not ours to replace.
    if READ_BY_AGENTS[0] not in found.paths and READ_BY_AGENTS[0] not in ignored:
        yield Change(READ_BY_AGENTS[0], None, teaching.with_section(None, body))
    elif SKILL in found.contents:
        yield Change(SKILL, found.contents[SKILL], found.contents[SKILL])
    elif SKILL not in ignored and SKILL not in found.paths:
        yield Change(SKILL, None, teaching.skill(body))


def _command(shape: Shape, commands: tuple[bytes, ...]) -> str:
    if commands:
        return commands[0].decode("utf-8", "replace")
    if shape.kind is Kind.OTHER:
        return "COMMAND > run.log 2>&1"
    runner = "uv run" if shape.kind in (Kind.UV, Kind.AUTORESEARCH) else "python3"
    return f"{runner} {shape.script or 'SCRIPT.py'} > run.log 2>&1"


def _notes(
    shape: Shape,
    missing: Collection[str],
    untracked: Collection[str],
    hooks: Mapping[str, Change],
    ignored: Collection[str],
) -> Iterator[str]:
    if shape.metric is not None and shape.metric.direction is None:
        yield (
            f"the metric seems to be {shape.metric.name}, but nothing says whether less or more of "
            f"it is better: write [metric] in {draft.POLICY} yourself"
        )
    if shape.lock is None and shape.kind in (Kind.UV, Kind.SCRIPT):
        yield (
            "no lock: a run has Python's standard library, and what pyproject.toml names; uv lock "
            "or a requirements.txt names the rest"
        )
    elif shape.lock is not None and (shape.lock in untracked or shape.lock in ignored):
        yield f"{shape.lock} is in no commit yet: a run takes its packages from the committed one"
    for source in missing:
        yield f"{source} is not there yet: prepare the data before the first run"
    if shape.kernels:
        names = ", ".join(kernel.repository for kernel in shape.kernels)
        yield (
            f"{shape.script} loads executable code from a hub ({names}), and a run has no network: "
            "[[fetch]] names it; where it names no revision, the newest is pinned by the first warm"
        )
    for change in hooks.values():
        if change.before is None and change.path not in ignored:
            yield f"git does not ignore {change.path}: keep it uncommitted"
