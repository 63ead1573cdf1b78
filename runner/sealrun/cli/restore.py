"""``sealrun restore``: brings a mirrored record back, on this machine or another."""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated

import typer

from sealrun.cli import console
from sealrun.errors import Status, UsageError

if TYPE_CHECKING:
    from sealrun.mirror.restore import Mirror, Restored

#: Files that are named when they were left out.
_NAMED = 10


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A destination's name, a directory, or a git remote."
        ),
    ],
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", help="The clone; the current directory's if not given.", metavar="DIR"
        ),
    ] = None,
    line: Annotated[
        str | None,
        typer.Option("--line", help="Which line, where the mirror holds several.", metavar="LINE"),
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option("--anchor", help="A head that was kept elsewhere (SEQ:HASH).", metavar="HEAD"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> Status:
    """Bring the record back from a mirror into a fresh clone: every run, alert and log.

    Everything is checked before anything is put in place; a mirror that was changed, and a clone
    that has a record of its own, are refused.

    Example:  sealrun restore /mnt/backup
    """
    from sealrun.cli.alerts import parse_anchor
    from sealrun.gc.keeping import keeping
    from sealrun.git import Repository
    from sealrun.mirror import config
    from sealrun.mirror.after import configuration
    from sealrun.mirror.restore import find, restore
    from sealrun.state import Places

    repository = Repository.here() if into is None else Repository.find(into.absolute())
    known = parse_anchor(anchor) if anchor is not None else None
    _, destinations = config.read(configuration())
    mirror = find(source, destinations, os.environ, repository.algorithm)
    name = _line(mirror, line, repository.algorithm)
    screen = console.current()
    places = Places.of_user()
    with keeping(places):
        done = restore(mirror, name, repository, places, known, screen)
    if json:
        screen.json(
            {
                "repository": done.repository,
                "line": name,
                "host": done.host,
                "head": f"{done.seq}:{done.hash}",
                "events": done.seq,
                "runs": done.runs,
                "files": done.files,
                "layers": done.layers,
                "anchored": done.anchored,
                "left_out": [{"path": path, "why": why} for path, why in done.left_out],
                "lost": list(done.lost),
            }
        )
    else:
        _show(done)
    return Status.OK


def _line(mirror: Mirror, wanted: str | None, algorithm: str) -> str:
    from sealrun.mirror.restore import describe

    names = mirror.names
    if wanted is not None:
        found = [name for name in names if name == wanted or wanted in name.split("/")]
        if len(found) == 1:
            return found[0]
        raise UsageError(
            f"the mirror has {'no' if not found else 'more than one'} line {wanted!r}",
            hint=f"It has: {', '.join(names) or 'none'}.",
        )
    if len(names) == 1:
        return names[0]
    if not names:
        raise UsageError("nothing is mirrored there")
    listed = "".join(f"\n  {console.printable(one)}" for one in describe(mirror, algorithm))
    raise UsageError(
        f"the mirror holds {len(names)} lines, of several repositories or machines:{listed}",
        hint="Name one of them with --line.",
    )


def _show(done: Restored) -> None:
    screen = console.current()
    screen.data(
        f"restored {done.runs} runs, {done.seq} events, {done.files} files, {done.layers} layers, "
        f"as {console.printable(done.host)} mirrored them"
    )
    screen.data(f"head {done.seq}:{done.hash}")
    for path, why in done.left_out[:_NAMED]:
        screen.say(f"not in the mirror: {path}: {why}")
    if len(done.left_out) > _NAMED:
        screen.say(f"… and {len(done.left_out) - _NAMED} more files are not in the mirror")
    for run in done.lost[:_NAMED]:
        screen.say(f"the commit of run {run} was gone before it was mirrored")
    if not done.anchored:
        screen.say("the chain holds; that nothing was cut off at its end only --anchor could tell")
