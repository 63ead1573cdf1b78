"""What a run does for the mirror when it ends: leave a request, and see to it that somebody works.

Rules that this module keeps:

- It never raises, never waits for a network or a lock, and never fails a run: what is wrong comes
  back as a sentence.
- Where nobody configured a mirror it is one look for a file; nothing is written or started.
- The process that mirrors inherits no descriptor, no terminal and no process group; of the
  environment only what it needs to find its files and keys, and the variables that the
  configuration names.
- Nothing heavy is imported: every run comes through here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from sealrun import state
from sealrun.errors import SealrunError

if TYPE_CHECKING:
    from pathlib import Path

    from sealrun.git import Repository
    from sealrun.state import Places

#: Name of the user's configuration.
FILE = "mirror.toml"
_LOG = "background.log"
#: Bytes of the log; it is begun anew beyond that.
_LOG_SIZE = 1 << 16
_KEPT = ("HOME", "LOGNAME", "SEALRUN_HOME", "SSH_AUTH_SOCK", "TMPDIR", "TZ", "USER")


def configuration() -> Path:
    """Return where the user's configuration is, or would be."""
    return state.configuration() / FILE


def after_run(places: Places, repository: Repository, repository_id: str) -> str | None:
    """Ask for a repository to be mirrored; to be called when a run has ended.

    Args:
        places: of the calling user.
        repository: that the run was in.
        repository_id: its id.

    Returns:
        What is wrong with its mirrors, in a sentence; None where nothing is known to be.
    """
    file = configuration()
    try:
        if not file.is_file():
            return None
        return _asked(places, repository, repository_id, file)
    except SealrunError as error:
        return f"the record is not mirrored: {error.message}"
    except OSError as error:
        return f"the record is not mirrored: {error.strerror or error}"
    except Exception as error:  # noqa: BLE001 - a mirror that fails must not fail a run
        return f"the record is not mirrored: unforeseen {type(error).__name__}"


def _asked(places: Places, repository: Repository, repository_id: str, file: Path) -> str | None:
    from sealrun import ownfile
    from sealrun.mirror.memory import Due, Memory

    found = ownfile.read(file, "the mirror's configuration")
    values = found.values() if found else {}
    named = values.get("destination")
    if not isinstance(named, dict) or not named:
        return None
    memory = Memory(places)
    memory.ask(Due(repository_id, os.fspath(repository.workspace), time.time()))
    if not memory.has_background():
        _start(memory.directory, file, _variables(named))
    problem = memory.problem()
    if problem is not None:
        return f"the record is not mirrored: {problem}"
    return memory.trouble(repository_id, set(named))


def _variables(destinations: dict[str, Any]) -> frozenset[str]:
    """Return the names of the variables that hold secrets."""
    return frozenset(
        str(place[key])
        for place in destinations.values()
        if isinstance(place, dict)
        for key in ("url_env", "token_env")
        if key in place
    )


def _start(directory: Path, file: Path, variables: frozenset[str]) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    log = os.open(directory / _LOG, flags, 0o600)
    try:
        if os.fstat(log).st_size > _LOG_SIZE:
            os.ftruncate(log, 0)
        subprocess.Popen(
            [sys.executable, "-I", "-m", "sealrun.mirror", os.fspath(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd="/",
            env=_environment(variables),
            start_new_session=True,
        )
    finally:
        os.close(log)


def _environment(variables: frozenset[str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or name in variables or name.startswith("XDG_")
    }
    return {**kept, "PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
