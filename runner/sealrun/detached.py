"""Processes of ours that nobody waits for: their start, their life, and whether one lives.

Rules that this module keeps:

- Such a process has no terminal, no process group and no descriptor of the caller's; its working directory is
  ``/``, and what it says goes to a log that is begun anew when it is large.
- Of the environment it gets what finds its user's files, and the variables that it was promised.
- It runs isolated Python: nothing of the workspace or of the caller's environment is imported.
- Of those that do one thing there is one: it holds a lock for its life, and the kernel gives the lock
  back however it dies.
- Whatever goes wrong ends it with a line in its log. A line is one JSON object: what it repeats may be
  hostile, and stays one line.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from sealrun.errors import SealrunError

if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from pathlib import Path

#: Bytes of a log.
_LOG_SIZE = 1 << 16
_KEPT = ("HOME", "LOGNAME", "SEALRUN_HOME", "TMPDIR", "TZ", "USER")


def start(module: str, *arguments: Path, log: Path, variables: Container[str], path: str) -> None:
    """Start ``python -I -m MODULE ARGUMENTS…`` and return at once.

    Args:
        module: its name.
        arguments: of its command line; no secret may stand there.
        log: takes its standard error.
        variables: names of variables that it gets too.
        path: where it finds programs.

    Raises:
        OSError: it cannot be started, or the log cannot be opened.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(log, flags, 0o600)
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or name in variables or name.startswith("XDG_")
    }
    try:
        if os.fstat(descriptor).st_size > _LOG_SIZE:
            os.ftruncate(descriptor, 0)
        subprocess.Popen(
            [sys.executable, "-I", "-m", module, *map(os.fspath, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=descriptor,
            cwd="/",
            env={**kept, "PATH": path, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


def live(work: Callable[[], None], what: str) -> int:
    """Do such a process's work; return its exit status.

    Args:
        work: all that it is for.
        what: it is called in its log: ``the sender``.
    """
    # A terminal that closes is no reason to end.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        work()
    except (OSError, SealrunError) as error:
        note(f"{what} ended", why=str(error))
        return 1
    return 0


def note(event: str, **facts: str | int | None) -> None:
    """Write a line to the log of this process: when, what happened, and its facts.

    Args:
        event: what happened, in words that are always the same.
        facts: about it; no secret, for the log is kept.
    """
    # As heavy as all else that such a process imports; a quiet life does without.
    import structlog

    line = structlog.wrap_logger(
        structlog.WriteLogger(sys.stderr),
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
    )
    # A log that cannot be written is no reason to end.
    with contextlib.suppress(OSError):
        line.info(event, **facts)


def become(lock: Path) -> int | None:
    """Return the descriptor that makes this process the one that holds a lock; None: there is one.

    Raises:
        OSError: the lock's file cannot be opened or made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(lock, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def lives(lock: Path) -> bool:
    """Tell whether a process holds such a lock.

    Raises:
        OSError: the lock's file is there and cannot be opened.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
