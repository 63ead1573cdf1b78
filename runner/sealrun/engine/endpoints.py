"""Where an engine may be listening, in the order in which the places are tried.

Rules that this module keeps:

- What the user named (``DOCKER_HOST``, ``DOCKER_CONTEXT``, the current docker context) is the only
  candidate: a named engine that does not answer is never replaced by another one in silence.
- Otherwise: the system's socket, the rootless one, Docker Desktop's, then our private engine's.
- Files of docker's client are read as its documentation describes them: ``config.json`` and
  ``contexts/meta/<sha256 of the name>/meta.json`` (docker context, "Docker contexts").
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sealrun.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEM_SOCKET = Path("/var/run/docker.sock")


@dataclass(frozen=True)
class Tls:
    """The files that secure a TCP endpoint; absent ones are None."""

    ca: Path | None
    certificate: Path | None
    key: Path | None
    verify: bool


@dataclass(frozen=True)
class Candidate:
    """A place where an engine may listen.

    Attributes:
        endpoint: ``unix:///path`` or ``tcp://host:port``.
        source: why it is tried, for people.
        named: the user named it, so that no other engine may stand in.
        private: it is the socket of the engine that ``sealrun engine up`` starts.
    """

    endpoint: str
    source: str
    named: bool = False
    private: bool = False
    tls: Tls | None = None

    @property
    def socket(self) -> Path | None:
        """The socket's path, or None where the endpoint is not a local socket."""
        prefix = "unix://"
        return Path(self.endpoint[len(prefix) :]) if self.endpoint.startswith(prefix) else None


def candidates(environment: Mapping[str, str], home: Path, private: Path) -> tuple[Candidate, ...]:
    """Return the places to try, first to last.

    Args:
        environment: the caller's variables.
        home: the caller's home directory.
        private: the socket of the private engine.

    Raises:
        EngineUnavailable: a named context does not exist or cannot be read.
    """
    if host := environment.get("DOCKER_HOST"):
        endpoint = _normal(host)
        tls = None
        if environment.get("DOCKER_TLS_VERIFY") and not endpoint.startswith("unix:"):
            folder = Path(environment.get("DOCKER_CERT_PATH") or home / ".docker")
            tls = _tls(folder, verify=True)
        own = endpoint == f"unix://{private}"
        return (Candidate(endpoint, "DOCKER_HOST", named=True, private=own, tls=tls),)
    folder = Path(environment.get("DOCKER_CONFIG") or home / ".docker")
    name, source = environment.get("DOCKER_CONTEXT"), "DOCKER_CONTEXT"
    if not name:
        name, source = _current_context(folder), "the current docker context"
    if name and name != "default":
        return (_context(folder, name, source),)
    places = [Candidate(f"unix://{SYSTEM_SOCKET}", "the default socket")]
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        places.append(Candidate(f"unix://{runtime}/docker.sock", "the rootless socket"))
    places.append(Candidate(f"unix://{home}/.docker/run/docker.sock", "Docker Desktop's socket"))
    places.append(Candidate(f"unix://{private}", "sealrun's private engine", private=True))
    return tuple(places)


def _normal(host: str) -> str:
    if host.startswith("/"):
        return f"unix://{host}"
    return host if "://" in host else f"tcp://{host}"


def _current_context(folder: Path) -> str | None:
    document = _read(folder / "config.json")
    name = document.get("currentContext") if document else None
    return name if isinstance(name, str) else None


def _context(folder: Path, name: str, source: str) -> Candidate:
    key = hashlib.sha256(name.encode()).hexdigest()
    file = folder / "contexts" / "meta" / key / "meta.json"
    described = _read(file)
    hint = "`docker context ls` lists the contexts; `docker context use` picks one."
    if described is None:
        raise EngineUnavailable(f"{source} names {name!r}, and {file} does not exist", hint=hint)
    try:
        docker: dict[str, Any] = described["Endpoints"]["docker"]
        host = str(docker["Host"])
    except (KeyError, TypeError) as error:
        raise EngineUnavailable(f"{file} names no endpoint of an engine", hint=hint) from error
    store = folder / "contexts" / "tls" / key / "docker"
    tls = None
    if store.is_dir():
        tls = _tls(store, verify=not docker.get("SkipTLSVerify", False))
    return Candidate(_normal(host), f"{source}, {name!r}", named=True, tls=tls)


def _tls(folder: Path, *, verify: bool) -> Tls:
    def there(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    return Tls(there("ca.pem"), there("cert.pem"), there("key.pem"), verify)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        document: object = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EngineUnavailable(
            f"{file} cannot be read: {error}",
            hint="Repair the file, or name an engine: DOCKER_HOST.",
        ) from error
    return cast("dict[str, Any]", document) if isinstance(document, dict) else None
