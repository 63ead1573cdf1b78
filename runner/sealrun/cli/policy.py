"""``sealrun policy``: show, check, compare and approve what judges runs."""

from __future__ import annotations

import json as json_module
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated

import typer

from sealrun.cli import console
from sealrun.errors import Status, UsageError

if TYPE_CHECKING:
    from sealrun.git import Repository
    from sealrun.policy import EffectivePolicy
    from sealrun.state import Places
    from sealrun.tree import CommittedTree

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show, check, compare and approve what judges runs.",
)


@app.command("show")
def show(
    rev: Annotated[str, typer.Option("--rev", help="Of which commit.", metavar="REV")] = "HEAD",
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> int:
    """Print each effective value with its origin.

    Example:  sealrun policy show
    """
    _, _, _, effective = _of_commit(rev)
    voice = console.current()
    if json:
        voice.json(
            {
                "digest": effective.digest,
                "committed": effective.committed,
                "values": effective.values(),
                "origins": dict(effective.origins),
                "loosened": list(effective.loosened()),
            }
        )
        return Status.OK
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("key", "value", "origin"):
        table.add_column(heading)
    for key, value in effective.values().items():
        table.add_row(
            key,
            console.printable(json_module.dumps(value, ensure_ascii=False)),
            console.printable(effective.origins.get(key, "built in")),
        )
    voice.table(table)
    for words in effective.loosened():
        voice.say(f"looser than standard: {words}")
    return Status.OK


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A policy file, e.g. sealrun.toml.")],
) -> int:
    """Validate a policy file before it is committed.

    Example:  sealrun policy check sealrun.toml
    """
    from sealrun.policy import load

    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    effective = load(content, source=str(file))
    console.current().say(f"{file} is valid, level {effective.policy.level.value}")
    for words in effective.loosened():
        console.current().say(f"looser than standard: {words}")
    return Status.OK


@app.command("diff")
def diff(
    rev: Annotated[str, typer.Option("--rev", help="Of which commit.", metavar="REV")] = "HEAD",
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> int:
    """Print what a commit changes against what is approved: values and protected files.

    Example:  sealrun policy diff
    """
    rows = _differences(rev)
    voice = console.current()
    if json:
        voice.json({"changes": [{"what": w, "approved": a, "asked": b} for w, a, b in rows]})
        return Status.OK
    for what, approved, asked in rows:
        voice.data(console.printable(f"{what}: {approved} -> {asked}"))
    if not rows:
        voice.say("nothing that needs a human differs from what is approved")
    return Status.OK


@app.command("approve")
def approve(
    rev: Annotated[str, typer.Option("--rev", help="Which commit.", metavar="REV")] = "HEAD",
) -> int:
    """Approve the policy and the protected files of a commit; for a human at a terminal.

    Shows what changes, asks for a code that it prints, and records who approved.

    Example:  sealrun policy approve
    """
    from sealrun import approvals
    from sealrun.leftovers import writable_ledger

    repository, places, tree, effective = _of_commit(rev)
    rows = _differences(rev)
    if not rows:
        console.current().say(f"commit {tree.commit[:7]} needs no approval: nothing differs")
        return Status.OK
    terminal = _confirm(tree, rows)
    with writable_ledger(repository, places, _identity(repository)) as ledger:
        ledger.append(approvals.event(tree, effective, first=False, terminal=terminal))
    console.current().say(f"approved: the policy and the protected files of {tree.commit[:7]}")
    return Status.OK


def _confirm(tree: CommittedTree, rows: list[tuple[str, str, str]]) -> str:
    """Ask a human; return the terminal's name."""
    from sealrun.cli.human import confirm

    lines = [f"Commit {tree.commit[:12]}: {tree.subject}"]
    lines += [f"  {what}: {approved} -> {asked}" for what, approved, asked in rows]
    return confirm(lines, "approve")


def _identity(repository: Repository) -> str:
    from sealrun.leftovers import identify

    return identify(repository)


def _of_commit(rev: str) -> tuple[Repository, Places, CommittedTree, EffectivePolicy]:
    from sealrun.git import Repository
    from sealrun.policy import committed_policy
    from sealrun.state import Places
    from sealrun.tree import Spool, read_commit

    repository = Repository.here()
    places = Places.of_user()
    spool = Spool(places.spool(_identity(repository)), repository.algorithm)
    tree = read_commit(repository, repository.resolve(rev), spool)
    return repository, places, tree, committed_policy(tree)


def _differences(rev: str) -> list[tuple[str, str, str]]:
    """Return what differs from the approved state: name, approved value, asked value."""
    from sealrun import approvals
    from sealrun.leftovers import writable_ledger

    repository, places, tree, effective = _of_commit(rev)
    with writable_ledger(repository, places, _identity(repository)) as ledger:
        found = approvals.compared(ledger, tree, effective)
        recorded = ledger.approved()
    approved, candidate = found.approved, found.candidate
    if approved is None or recorded is None:
        return []
    rows: list[tuple[str, str, str]] = []
    if approved.policy != candidate.policy:
        old, new = recorded.event.values, effective.values()
        shown = [
            (key, json_module.dumps(old.get(key)), json_module.dumps(new.get(key)))
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        rows += shown or [("sealrun.toml", approved.policy[:12], candidate.policy[:12])]
    for path in sorted(approved.protected.keys() | candidate.protected.keys()):
        before, after = approved.protected.get(path), candidate.protected.get(path)
        if before != after:
            rows.append((path, (before or "absent")[:12], (after or "absent")[:12]))
    return rows
