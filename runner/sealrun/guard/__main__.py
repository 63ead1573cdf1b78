"""The guard's process: ``python -I -m sealrun.guard WORKSPACE DIRECTORY``; ``ensure`` starts it.

Rules that this module keeps:

- It says ``ready`` on the descriptor that it was given once every watch is in place, or what went
  wrong; nobody waits in vain.
- It holds a lock for its whole life: there is one guard per workspace.
- Whatever a dead guard left behind is cleaned away under that lock.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import signal
import sys
from pathlib import Path

from sealrun.errors import GuardError, SealrunError
from sealrun.guard.address import SOCKET
from sealrun.guard.client import LOCK, LOG
from sealrun.guard.core import Guard
from sealrun.guard.messages import encode
from sealrun.guard.server import Server

#: Bytes of log after which a start begins a new one.
LONGEST_LOG = 1 << 20
#: Seconds after which the interpreter hands over between threads: the reader must not wait for 5 ms
#: while a file is hashed or a report is built.
SWITCH = 0.0005
#: Our nice value where we may choose it (setpriority(2)): the kernel's queue of events must not run
#: over because the experiment keeps every core busy. What we compute stays the same.
NICE = -10


def main() -> int:
    """Guard until there is nothing to guard; return the process's exit status."""
    parser = argparse.ArgumentParser(prog="sealrun-guard")
    parser.add_argument("--ready", type=int, required=True)
    parser.add_argument("--idle", type=float, required=True)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    with contextlib.suppress(OSError):
        if (options.directory / LOG).stat().st_size > LONGEST_LOG:
            os.truncate(options.directory / LOG, 0)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s"
    )
    try:
        return _guard(options.workspace, options.directory, options.idle, options.ready)
    except SealrunError as error:
        _say(options.ready, {"error": error.message, "hint": error.hint})
        logging.getLogger("sealrun.guard").error("%s", error.message)  # noqa: TRY400 - no trace
        return int(error.status)


def _guard(workspace: Path, directory: Path, idle: float, ready: int) -> int:
    sys.setswitchinterval(SWITCH)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)  # before threads: they inherit it
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise GuardError(f"another guard of {workspace} is running") from error
    guard = Guard(workspace, directory, idle_after=idle)
    guard.start()
    server = Server(guard, directory)
    server.start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: guard.end(signal.Signals(number).name))
    _say(ready, {"ok": {"pid": os.getpid()}})
    why = guard.run()
    logging.getLogger("sealrun.guard").info("ended: %s", why)
    # Nobody may connect to a guard that no longer looks; clients see their connections close.
    (directory / SOCKET).unlink(missing_ok=True)
    (directory / "cookie").unlink(missing_ok=True)
    return 0


def _say(ready: int, message: dict[str, object]) -> None:
    with contextlib.suppress(OSError):
        os.write(ready, encode(message))
        os.close(ready)


if __name__ == "__main__":
    sys.exit(main())
