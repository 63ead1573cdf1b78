"""Runs an outside tool whose words matter only when it fails.

Rules that this module keeps:

- What the tool prints goes line by line to whoever shows progress, and its last lines into the
  error; control characters are escaped, because package names and indexes are not ours.
- A tool gets the environment that its caller built, never the whole of ours.
- The tool ends when its caller is interrupted, and so does what it started; it gets a while to
  clear up behind itself (mmdebstrap has mounts and an unpacked root). It ends when its caller is
  killed too: the next try must not meet it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections import deque
from typing import TYPE_CHECKING

from sealrun.errors import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sealrun.progress import Task


class ToolFailed(EnvironmentFault):
    """A tool ended with another status than 0; ``words`` are the last lines that it printed."""

    def __init__(self, message: str, words: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.words = words


#: Lines of a failed tool's output that an error shows.
LAST_LINES = 12
_LONGEST_LINE = 400
#: Seconds that an interrupted tool gets to clear up.
_PATIENCE = 10.0
_LIBC = ctypes.CDLL(None)
#: What every tool may see of our environment: where programs, temporary files and proxies are.
_PASSED = ("PATH", "HOME", "TMPDIR", "USER", "LOGNAME")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a small environment for a tool: paths, proxies and a constant locale."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED or name.lower() in _PROXIES
    }
    return {"PATH": os.defpath, **passed, "LC_ALL": "C.UTF-8", "TZ": "UTC", **(extra or {})}


def visible(text: str) -> str:
    """Escape what a terminal would obey, and cut what is too long for a line."""
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text.rstrip()
    )
    return escaped if len(escaped) <= _LONGEST_LINE else escaped[: _LONGEST_LINE - 1] + "…"


def run_tool(
    argv: Sequence[str],
    *,
    task: Task,
    what: str,
    env: Mapping[str, str],
    cwd: Path | None = None,
    hint: str | None = None,
) -> tuple[str, ...]:
    """Run a tool to its end.

    Args:
        argv: the program and its arguments.
        task: is told each line.
        what: what was to be done, for the error: ``making the base debian-python``.
        env: its whole environment (see ``environment``).
        cwd: where it runs.
        hint: what to do when it fails.

    Returns:
        The last lines of its output, escaped.

    Raises:
        ToolFailed: it ended with another status than 0.
        EnvironmentFault: it cannot be started.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        process = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            umask=0o022,
            # A group of its own, so that its children can be ended with it.
            start_new_session=True,
            preexec_fn=_end_with_us,  # noqa: PLW1509 - one system call; nothing else runs beside it
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
        )
    except OSError as error:
        raise EnvironmentFault(
            f"{what}: {argv[0]} cannot be started: {error.strerror}", hint=hint
        ) from error
    with process:
        try:
            for line in process.stdout or ():
                if shown := visible(line):
                    last.append(shown)
                    task.describe(shown)
        except BaseException:
            _end(process)
            raise
    if process.returncode != 0:
        words = "\n".join(f"  {line}" for line in last) or "  (it printed nothing)"
        raise ToolFailed(
            f"{what}: {os.path.basename(argv[0])} ended with status {process.returncode}; "  # noqa: PTH119 - a name, no path
            f"it printed last:\n{words}",
            words,
            hint=hint,
        )
    return tuple(last)


def _end_with_us() -> None:
    """Have the kernel end this process when the one that started it dies, however it dies."""
    # prctl(2): PR_SET_PDEATHSIG is 1. SIGTERM: mmdebstrap has mounts to clear up.
    _LIBC.prctl(1, signal.SIGTERM, 0, 0, 0)


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
