"""Who made a change, in the ledger's words and in a sentence.

Rules that this module keeps:

- No surer than it is known: how a writer was found travels with its name.
- Another user's arguments are shown to root alone; that there were some is not hidden.
- A user of a container is not called by the name that its number has on the host.
"""

from __future__ import annotations

import os
import pwd
import shlex
from pathlib import PurePath
from typing import TYPE_CHECKING

from sealrun.ledger import Process, WriterFacts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealrun.guard.mutations import Writer
    from sealrun.guard.processes import Process as Seen

#: What stands in place of arguments that are not the reader's to see.
HIDDEN = "(arguments hidden)"
#: Characters of a command line in a sentence, and parents in it.
_COMMAND, _PARENTS = 120, 2


def facts(writer: Writer, candidates: Iterable[Writer], viewer: int) -> WriterFacts:
    """Return a writer in the ledger's words.

    Args:
        writer: as the guard found it.
        candidates: who else might have been it.
        viewer: uid of whom the record belongs to.
    """
    process = writer.process
    return WriterFacts(
        how=writer.how,
        why=writer.why,
        category=writer.kind,
        process=None if process is None else _process(process, viewer),
        parents=tuple(_process(parent, viewer) for parent in writer.parents),
        container=None if process is None else process.container,
        candidates=tuple(
            _process(other.process, viewer) for other in candidates if other.process is not None
        ),
    )


def shown(process: Process, viewer: int) -> Process:
    """Return a process without what its reader has no business to see."""
    if viewer in (0, process.uid) or not process.cmdline:
        return process
    return Process(
        pid=process.pid,
        exe=process.exe,
        cmdline=(process.cmdline[0], HIDDEN) if process.cmdline[1:] else process.cmdline,
        cwd=process.cwd,
        uid=process.uid,
        user=process.user,
        started=process.started,
    )


def describe(writer: WriterFacts) -> str | None:
    """Return ``written by …`` for a message; None where nobody can be named."""
    if writer.process is None:
        return None
    words = f"written by pid {writer.process.pid} {_command(writer.process)}"
    if writer.how not in ("live", "cached"):
        words += f" ({writer.how}{f': {writer.why}' if writer.why else ''})"
    if writer.container:
        words += f", in container {writer.container[:12]}"
    for parent in writer.parents[:_PARENTS]:
        words += f", child of {_name(parent)} ({parent.pid})"
    if writer.candidates:
        others = ", ".join(str(other.pid) for other in writer.candidates)
        words += f"; also at that time: pid {others}"
    return words


def _process(process: Seen, viewer: int) -> Process:
    return shown(
        Process(
            pid=process.pid,
            exe=process.exe,
            cmdline=process.cmdline or (),
            cwd=process.cwd,
            uid=process.uid,
            user=None if process.container else _user(process.uid),
            started=process.started,
        ),
        viewer,
    )


def _user(uid: int | None) -> str | None:
    try:
        return None if uid is None else pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _command(process: Process) -> str:
    program = process.exe or (process.cmdline[0] if process.cmdline else "of an unknown program")
    words = " ".join([program, *map(shlex.quote, process.cmdline[1:])])
    flat = words.replace("\n", "\\n")
    return flat if len(flat) <= _COMMAND else flat[: _COMMAND - 1] + "…"


def _name(process: Process) -> str:
    program = process.exe or (process.cmdline[0] if process.cmdline else "")
    return PurePath(os.path.normpath(program)).name if program else "an unknown program"
