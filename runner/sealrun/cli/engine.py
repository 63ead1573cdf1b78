"""``sealrun engine``: which engine would be used and why; start and stop a private one."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealrun.cli import console
from sealrun.errors import Status

if TYPE_CHECKING:
    from sealrun.engine import Survey
    from sealrun.state import Places


class Action(StrEnum):
    """What to do."""

    UP = "up"
    DOWN = "down"
    STATUS = "status"


def command(
    action: Annotated[Action, typer.Argument(help="What to do.")] = Action.STATUS,
    json: Annotated[bool, typer.Option("--json", help="With status: as a JSON document.")] = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="With down: also remove the private engine's images.")
    ] = False,
) -> Status:
    """Show which container engine is used, or start and stop a private one.

    An engine that answers is used as it is: DOCKER_HOST, the docker context, the usual sockets.
    Where none does, `up` starts a private one, with its own data and network (root on Linux;
    installs Docker on Debian and Ubuntu). `down` stops only what `up` started.

    Where sealrun runs beside an engine's socket at other paths than the engine's host, declare
    them: SEALRUN_PATH_MAP=/inside:/outside[,/inside:/outside...]

    Example:  sealrun engine up
    """
    from sealrun.state import Places

    places = Places.of_user()
    if action is Action.UP:
        return _up(places)
    if action is Action.DOWN:
        return _down(places, purge=purge)
    return _status(places, as_json=json)


def _up(places: Places) -> Status:
    from sealrun.engine import connect, survey
    from sealrun.engine.private import up

    out = console.current()
    found = survey(places)
    if found.error is not None and found.engine is None and not _named(found):
        ours = up(places, out)
        out.say(f"a private engine answers at unix://{ours.socket}")
        out.say(f"its log: {ours.log}", level=1)
    engine = connect(places)
    out.say(f"using {engine.source}: {engine.endpoint}, version {engine.version}")
    return Status.OK


def _named(found: Survey) -> bool:
    """Whether the user named an engine: then no private one stands in for it."""
    return not found.attempts or any(a.candidate.named or not a.problem for a in found.attempts)


def _down(places: Places, *, purge: bool) -> Status:
    from sealrun.engine.private import Private, down

    out = console.current()
    stopped = down(places, purge=purge)
    out.say("the private engine is stopped" if stopped else "no private engine was running")
    ours = Private.of(places)
    if ours.data.is_dir():
        out.say(f"its images stay in {ours.data} (sealrun engine down --purge removes them)")
    return Status.OK


def _status(places: Places, *, as_json: bool) -> Status:
    from sealrun.engine import survey

    out = console.current()
    found = survey(places, fresh=True)
    if as_json:
        out.json(_document(found))
    else:
        for key, value in _rows(found):
            out.data(f"{key + ':':<13}{console.printable(value)}")
    if found.error is not None:
        out.error(found.error)
        return found.error.status
    return Status.OK


def _rows(found: Survey) -> list[tuple[str, str]]:
    rows = [
        ("tried", f"{attempt.candidate.endpoint}: {attempt.problem}")
        for attempt in found.attempts
        if attempt.problem
    ]
    if found.engine is None:
        return [*rows, ("engine", "none")]
    engine = found.engine
    kind = ["private" if engine.private else "", "rootless" if engine.rootless else ""]
    return [
        *rows,
        ("engine", " ".join(filter(None, [engine.endpoint, *kind]))),
        ("why", engine.source),
        ("version", f"{engine.version} (API {engine.api_version})"),
        ("store", f"{engine.store} ({engine.driver})"),
        ("cgroup", engine.cgroup_version),
        ("data", engine.root),
        ("paths", _paths(found)),
    ]


def _paths(found: Survey) -> str:
    probe, engine = found.probe, found.engine
    if probe is None or engine is None:
        return "not probed"
    if probe.trouble is not None:
        return f"not probed: {probe.trouble}"
    if probe.different:
        return f"different: {', '.join(probe.different)}"
    return f"mapped as declared: {engine.mapping}" if engine.mapping.rules else "the same"


def _document(found: Survey) -> dict[str, Any]:
    engine, probe = found.engine, found.probe
    return {
        "usable": found.error is None,
        "error": found.error.message if found.error else None,
        "hint": found.error.hint if found.error else None,
        "tried": [
            {
                "endpoint": attempt.candidate.endpoint,
                "source": attempt.candidate.source,
                "problem": attempt.problem,
            }
            for attempt in found.attempts
        ],
        "engine": None
        if engine is None
        else {
            "id": engine.id,
            "endpoint": engine.endpoint,
            "source": engine.source,
            "version": engine.version,
            "api_version": engine.api_version,
            "store": engine.store,
            "driver": engine.driver,
            "rootless": engine.rootless,
            "cgroup_version": engine.cgroup_version,
            "private": engine.private,
            "root": engine.root,
            "mapping": str(engine.mapping) or None,
        },
        "probe": None
        if probe is None
        else {
            "directories": list(probe.directories),
            "different": list(probe.different),
            "trouble": probe.trouble,
            "agrees": probe.agrees,
        },
    }
