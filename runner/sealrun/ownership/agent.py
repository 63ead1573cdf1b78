"""Starting an agent as the leader of a session, or making one of a process that runs already.

Rules that this module keeps:

- The agent takes our place by exec: terminal, process group, signals, standard streams, environment
  and exit status are those that its caller gave us, because nothing stands in between.
- The session is on record before the exec, and the guard watches before that: no write of the agent is
  earlier than its session.
- Who notes the end is a process of its own that waits for the leader alone, holds nothing of ours open
  and never speaks. Where it was killed too, whoever reads the record next notices the end.
- Trouble with the guard never keeps an agent from starting; it is said, and each run's coverage shows it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING, NoReturn

from sealrun.errors import GuardError, Refused, SealrunError, UsageError
from sealrun.guard.processes import born, look
from sealrun.ledger.ulid import new_ulid
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sealrun.git import Repository
    from sealrun.ownership.sessions import Session, Sessions
    from sealrun.state import Places

#: Signals that Python ignores on its own account; an agent gets what programs usually get.
_PYTHONS = (signal.SIGPIPE, signal.SIGXFSZ)


def watch_between(repository: Repository, places: Places, identity: str) -> None:
    """Start the guard of a workspace, and its standing watch for what HEAD holds where it has none.

    Args:
        repository: with its workspace.
        places: of the user.
        identity: the repository's id.

    Raises:
        SealrunError: the guard cannot be started, or HEAD cannot be read.
    """
    from sealrun.guard import ensure, write_manifest
    from sealrun.tree import Spool, read_commit
    from sealrun.workspace import checked_out

    with ensure(repository.workspace, places) as guard:
        if guard.status().standing is not None:
            return  # it holds what no run was told of yet
        spool = Spool(places.spool(identity), repository.algorithm)
        try:
            tree = read_commit(repository, repository.resolve(), spool)
            entries = checked_out(tree, repository)
        finally:
            spool.close()
        directory = private(places.between(identity) / new_ulid())
        manifest = directory / "manifest"
        try:
            write_manifest(manifest, tree.algorithm, entries)
        except OSError as error:
            raise GuardError(f"cannot write {manifest}: {error.strerror}") from error
        guard.stand(manifest, directory / "evidence")


def become(
    command: Sequence[str], sessions: Sessions, give_signals_back: Callable[[], None]
) -> NoReturn:
    """Turn this process into an agent, the leader of a new session.

    Args:
        command: program and arguments.
        sessions: where the session is recorded.
        give_signals_back: restores what our caller had set for signals.

    Raises:
        StorageFault: the session cannot be recorded; nothing was started.
        OSError: the program cannot be executed; its session has ended.
    """
    session = sessions.begin(os.getpid(), command)
    environment = _as_given()
    note_the_end(session, sessions)
    give_signals_back()
    for number in _PYTHONS:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), environment)  # noqa: S606 - what the user asked for
    except OSError:
        for number in _PYTHONS:
            signal.signal(number, signal.SIG_IGN)
        sessions.end(session)
        raise


def attach(pid: int, sessions: Sessions) -> tuple[Session, bool]:
    """Make a running process the leader of a session.

    Args:
        pid: of the process.
        sessions: where the session is recorded.

    Returns:
        The session, and whether it is new; a process that belongs to a session stays in it.

    Raises:
        Refused: the caller belongs to a session itself.
        UsageError: there is no such process, or it is another user's.
        StorageFault: the session cannot be recorded.
    """
    own = sessions.of_process(os.getpid())
    if own is not None:
        raise Refused(
            f"this process belongs to session {own.id}: a loop does not say what else is its own",
            hint="Attach from a terminal outside of the agent.",
        )
    known = sessions.of_process(pid) if pid > 1 else None
    if known is not None:
        return known, False
    process, _ = look(pid)
    if process.uid is not None and os.geteuid() not in (0, process.uid):
        raise UsageError(
            f"process {pid} belongs to another user (uid {process.uid})",
            hint="Attach as that user, or as root.",
        )
    session = sessions.begin(pid, process.cmdline or (), attached=True)
    note_the_end(session, sessions)
    return session, True


def note_the_end(session: Session, sessions: Sessions) -> None:
    """Leave a process behind that waits for a session's leader to end, and records it."""
    try:
        leader = os.pidfd_open(session.pid)
    except OSError:
        return  # it has ended, which the next reader notices
    try:
        if born(session.pid) != session.started:
            return
        child = os.fork()
        if child == 0:
            _wait_in_the_background(leader, session, sessions)
        os.waitpid(child, 0)
    finally:
        os.close(leader)


def _wait_in_the_background(leader: int, session: Session, sessions: Sessions) -> NoReturn:
    # No exception may leave: above us stand the frames of a command line that is not ours any more.
    try:
        os.setsid()
        if os.fork() == 0:
            # Our caller waits for the end of its pipes, and may unmount where we stand.
            os.chdir("/")
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nowhere, descriptor)
            leader = os.dup2(leader, 3)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM):
                signal.signal(number, signal.SIG_DFL)
            select.select([leader], [], [])
            with contextlib.suppress(SealrunError):
                sessions.end(session)
    finally:
        os._exit(0)


def _as_given() -> dict[bytes, bytes]:
    """Return the environment that this process was started with, without what was set since."""
    try:
        with open("/proc/self/environ", "rb") as file:  # noqa: PTH123 - no file, a view of ours
            entries = file.read().split(b"\0")
    except OSError:
        return dict(os.environb)
    pairs = (entry.partition(b"=") for entry in entries if b"=" in entry)
    return {name: value for name, _, value in pairs if name}
