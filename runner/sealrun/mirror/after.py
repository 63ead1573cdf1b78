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
import time
from typing import TYPE_CHECKING, Any

from sealrun import detached, state
from sealrun.errors import SealrunError

if TYPE_CHECKING:
    from pathlib import Path

    from sealrun.git import Repository
    from sealrun.state import Places

#: Name of the user's configuration.
FILE = "mirror.toml"
_LOG = "background.log"


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
        detached.start(
            "sealrun.mirror",
            file,
            log=memory.directory / _LOG,
            variables=_variables(named) | {"SSH_AUTH_SOCK"},
            path=os.environ.get("PATH", os.defpath),
        )
    problem = memory.problem()
    if problem is not None:
        return f"the record is not mirrored: {problem}"
    return memory.trouble(repository_id, set(named))


#: How the AWS client gets out of a closed network, as its manual has it.
_PROXIES = {
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
}


def _variables(destinations: dict[str, Any]) -> frozenset[str]:
    """Return the names of the variables that open the destinations."""
    places = [place for place in destinations.values() if isinstance(place, dict)]
    named = {
        str(place[key]) for place in places for key in ("url_env", "token_env") if key in place
    }
    if any(place.get("type") == "s3" for place in places):
        named |= {name for name in os.environ if name.startswith("AWS_")} | _PROXIES
    return frozenset(named)
