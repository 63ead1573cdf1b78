"""Shows whether a path of ours means the same file to the engine.

Rules that this module keeps:

- A random nonce, written here, is read back through the engine: only equal bytes count.
- Nothing runs: a container is created with the directory mounted, and never started; the engine
  mounts what a container has when it is asked for an archive of it (Engine API, ContainerArchive).
- The container is removed whatever happens, by the next probe where this one is killed; the image,
  one empty directory, stays for next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import secrets
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sealrun.engine.find import Engine

_IMAGE = "sealrun/probe:1"
_LABEL = "sealrun.probe"
_TARGET = "probe"
_NONCE = "nonce"
#: Bytes of an archive that we are willing to read: a nonce takes two blocks of 10 KiB at most.
_MOST = 1 << 16
#: Seconds after which a probe's container is a dead one's: a probe takes a few milliseconds.
_LONGEST = 300.0


@dataclass(frozen=True)
class Probe:
    """What a probe found.

    Attributes:
        directories: what was probed, as we see it.
        different: those that the engine does not see, or sees otherwise.
        trouble: why the probe could not be carried out, or None.
        cached: the result is an earlier one of this boot.
    """

    directories: tuple[str, ...]
    different: tuple[str, ...]
    trouble: str | None
    cached: bool = False

    @property
    def agrees(self) -> bool:
        """Whether every directory is the same file tree to the engine."""
        return not self.different and self.trouble is None


def run_probe(engine: Engine, directories: Sequence[Path]) -> Probe:
    """Write a nonce into each directory and read it back through the engine.

    Args:
        engine: whose paths are in question.
        directories: existing directories that we may write to.
    """
    import docker.errors
    import requests

    asked = tuple(map(str, directories))
    try:
        different = tuple(str(d) for d in directories if not _same(engine, d))
        _clear(engine.client)
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        return Probe(asked, (), str(error))
    return Probe(asked, different, None)


def _clear(client: Any) -> None:  # noqa: ANN401 - docker-py ships no types
    """Remove the containers of probes that were killed."""
    import docker.errors

    for found in client.containers(all=True, filters={"label": _LABEL}):
        if time.time() - found["Created"] > _LONGEST:
            with contextlib.suppress(docker.errors.APIError):
                client.remove_container(found["Id"], force=True, v=True)


def _same(engine: Engine, directory: Path) -> bool:
    """Return whether one directory is the same to the engine; uncovered by the mapping is not."""
    import docker.errors

    nonce = secrets.token_hex(32).encode()
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=directory) as folder:
        Path(folder, _NONCE).write_bytes(nonce)
        try:
            source = engine.mapping.translate(Path(folder))
        except EngineUnavailable:
            return False
        try:
            container = _create(engine.client, source)
        except docker.errors.APIError as error:
            # The engine refuses a mount source that does not exist on its side.
            if _is_about(str(error), source):
                return False
            raise
        try:
            return _read_back(engine.client, container) == nonce
        finally:
            with contextlib.suppress(docker.errors.APIError):
                engine.client.remove_container(container, force=True, v=True)


def _is_about(message: str, source: str) -> bool:
    return source in message or "bind source path" in message


def _create(client: Any, source: str) -> str:  # noqa: ANN401 - docker-py ships no types
    import docker.errors

    body = {
        "Image": _IMAGE,
        "Cmd": ["/never-started"],
        "Labels": {_LABEL: "1"},
        "NetworkDisabled": True,
        "HostConfig": {
            "Mounts": [
                {"Type": "bind", "Source": source, "Target": f"/{_TARGET}", "ReadOnly": True}
            ]
        },
    }
    try:
        return str(client.create_container_from_config(body, None)["Id"])
    except docker.errors.ImageNotFound:
        for _ in client.load_image(_archive()):
            pass
        return str(client.create_container_from_config(body, None)["Id"])


def _read_back(client: Any, container: str) -> bytes | None:  # noqa: ANN401 - docker-py ships no types
    import docker.errors

    try:
        chunks, _ = client.get_archive(container, f"/{_TARGET}/{_NONCE}")
        with tarfile.open(fileobj=io.BytesIO(_bounded(chunks))) as archive:
            member = archive.extractfile(_NONCE)
            return member.read() if member else None
    except docker.errors.NotFound:
        return None
    except (KeyError, tarfile.TarError):
        return None


def _bounded(chunks: Iterable[bytes]) -> bytes:
    content = b""
    for chunk in chunks:
        content += chunk
        if len(content) > _MOST:
            break
    return content


def _archive() -> bytes:
    """Return the probe's image as ``docker load`` takes it: one layer with one directory."""
    layer = _tar({_TARGET: None})
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": {_LABEL: "1"}},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            "history": [{"created_by": "sealrun: path probe"}],
        }
    ).encode()
    name = hashlib.sha256(config).hexdigest()
    manifest = [{"Config": f"{name}.json", "RepoTags": [_IMAGE], "Layers": [f"{digest}.tar"]}]
    return _tar(
        {
            f"{name}.json": config,
            f"{digest}.tar": layer,
            "manifest.json": json.dumps(manifest).encode(),
        }
    )


def _tar(members: dict[str, bytes | None]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            else:
                entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content or b""))
    return packed.getvalue()
