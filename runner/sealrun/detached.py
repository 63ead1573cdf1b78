"""Starts a process of ours that nobody waits for.

Rules that this module keeps:

- It has no terminal, no process group and no descriptor of the caller's; its working directory is
  ``/``, and what it says goes to a log that is begun anew when it is large.
- Of the environment it gets what finds its user's files, and the variables that it was promised.
- It runs isolated Python: nothing of the workspace or of the caller's environment is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container
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
