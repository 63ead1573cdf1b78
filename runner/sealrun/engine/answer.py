"""Asks an engine who it is: one request, within two seconds.

Rules that this module keeps:

- One ``GET /info`` tells everything (Engine API v1.41, "System"); the API version is in a header
  of every response. A local socket is asked without docker-py, whose import costs more than all
  the rest.
- No answer is a fact with a reason, not an exception: the caller decides what it means.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pathlib import Path

    from sealrun.engine.endpoints import Candidate, Tls

#: Seconds within which an engine must answer.
PATIENCE = 2.0
#: Bytes of an answer that we are willing to read; a real one has about four thousand.
_MOST = 8 << 20
#: What ``/info`` says of each limit (Engine API v1.41, "SystemInfo"), and our word for it.
_LIMITS = (("MemoryLimit", "memory"), ("PidsLimit", "processes"), ("CpuCfsQuota", "CPU time"))


@dataclass(frozen=True)
class Answer:
    """What an engine says about itself.

    Attributes:
        id: the engine's own; it stays when the engine starts again.
        api_version: the newest that it speaks.
        store: ``classic`` or ``containerd``; the latter names images by manifest digest.
        root: the engine's data directory, in its own words.
        podman: it is podman, which speaks Docker's API.
        system: what the engine runs on, in its own words, e.g. ``Docker Desktop``.
        unenforced: the limits that it cannot enforce here; empty where it says nothing of them.
    """

    id: str
    name: str
    version: str
    api_version: str
    store: str
    driver: str
    rootless: bool
    cgroup_version: str
    root: str
    architecture: str
    podman: bool
    system: str
    unenforced: tuple[str, ...]


class NoAnswer(Exception):
    """Nobody answers at an endpoint, with the reason as a phrase."""


def ask(candidate: Candidate, timeout: float = PATIENCE) -> Answer:
    """Ask the engine at an endpoint who it is.

    Args:
        candidate: where.
        timeout: seconds for connecting, and again for each read.

    Raises:
        NoAnswer: nobody answers there, or not as an engine does.
    """
    try:
        if path := candidate.socket:
            info, api_version = _ask_socket(path, timeout)
        else:
            info, api_version = _ask_remote(candidate.endpoint, candidate.tls, timeout)
        return _understand(info, api_version)
    except FileNotFoundError:
        raise NoAnswer("no such socket") from None
    except PermissionError:
        raise NoAnswer("permission denied") from None
    except ConnectionRefusedError:
        raise NoAnswer("nobody listens there") from None
    except TimeoutError:
        raise NoAnswer(f"no answer within {timeout:g} s") from None
    except (OSError, HTTPException, ValueError) as error:
        raise NoAnswer(f"not an engine's answer: {error}") from error


class _SocketConnection(HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def _ask_socket(path: Path, timeout: float) -> tuple[dict[str, Any], str]:
    connection = _SocketConnection(path, timeout)
    try:
        connection.request("GET", "/info")
        response = connection.getresponse()
        body = response.read(_MOST)
        if response.status != 200:  # noqa: PLR2004 - HTTP's OK
            raise ValueError(f"status {response.status}")
        return json.loads(body), response.getheader("Api-Version", "")
    finally:
        connection.close()


def _ask_remote(endpoint: str, tls: Tls | None, timeout: float) -> tuple[dict[str, Any], str]:
    import docker.errors
    import requests

    try:
        client = open_client(endpoint, tls, "1.41", timeout)
        try:
            version = client.version(api_version=False)
            return client.info(), str(version.get("ApiVersion", ""))
        finally:
            client.close()
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise NoAnswer(f"no answer: {error}") from error


def open_client(endpoint: str, tls: Tls | None, version: str, timeout: float) -> Any:  # noqa: ANN401 - docker-py ships no types
    """Return docker-py's low-level client; this imports docker-py (about 100 ms)."""
    import docker
    import docker.tls

    secured: Any = False
    if tls is not None:
        secured = docker.tls.TLSConfig(
            client_cert=(str(tls.certificate), str(tls.key))
            if tls.certificate and tls.key
            else None,
            ca_cert=str(tls.ca) if tls.ca else None,
            verify=tls.verify,
        )
    # Its annotation says int; it hands the number to requests, which takes fractions.
    patience: Any = timeout
    return docker.APIClient(base_url=endpoint, version=version, timeout=patience, tls=secured)


def _understand(info: object, api_version: str) -> Answer:
    if not isinstance(info, dict):
        raise ValueError("not an object")  # noqa: TRY004 - what an engine said, not a type of ours
    facts = cast("dict[str, Any]", info)
    if not facts.get("ServerVersion") or not api_version:
        raise ValueError("no version in it")
    status = dict(pair for pair in facts.get("DriverStatus") or [] if len(pair) == 2)  # noqa: PLR2004 - pairs
    snapshotter = str(status.get("driver-type", "")).startswith("io.containerd.snapshotter")
    return Answer(
        id=str(facts.get("ID") or facts.get("Name") or ""),
        name=str(facts.get("Name") or ""),
        version=str(facts["ServerVersion"]),
        api_version=api_version,
        store="containerd" if snapshotter else "classic",
        driver=str(facts.get("Driver") or ""),
        rootless="name=rootless" in (facts.get("SecurityOptions") or []),
        cgroup_version=str(facts.get("CgroupVersion") or "1"),
        root=str(facts.get("DockerRootDir") or ""),
        architecture=str(facts.get("Architecture") or ""),
        # podman fills in Docker's structure and adds the version of the library that it builds with.
        podman="BuildahVersion" in facts,
        system=str(facts.get("OperatingSystem") or ""),
        unenforced=tuple(word for key, word in _LIMITS if facts.get(key) is False),
    )
