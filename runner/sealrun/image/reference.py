"""Takes the layers of an image out of an engine: a reference by digest or tag, or a local image id.

Rules that this module keeps:

- Only files are taken. The image's config is read for its ``diff_ids``, which every layer must hash
  to, and dropped: ENV, ENTRYPOINT, VOLUME, USER, HEALTHCHECK and ONBUILD do not exist for us.
- An image that the engine has is used; otherwise it is pulled, for the wanted platform.
- Both layouts of an exported image are read: Docker's (``manifest.json``) and OCI's (``index.json``,
  image layout specification). Compressed layers are unpacked with a bound.
- The export is hostile input: nothing is extracted to the file system, only read.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sealrun.errors import EnvironmentFault, SealrunError
from sealrun.image import normal, recipe, tool
from sealrun.image.store import CHUNK

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from sealrun.image.contents import Contents
    from sealrun.image.model import Layer, Platform
    from sealrun.image.store import LayerStore
    from sealrun.progress import Progress, Task

#: Bytes of the largest layer that is taken over, uncompressed.
LARGEST_LAYER = 64 << 30
_SMALL = 16 << 20
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_OPAQUE = b".wh..wh..opq"


@dataclass(frozen=True)
class Taken:
    """What was taken out of an engine.

    Attributes:
        pin: what names exactly this image: ``name@sha256:…`` where a registry knows it, else the
            image's id.
        layers: from the bottom up.
    """

    pin: str
    layers: tuple[Layer, ...]


def take(
    name: str,
    platform: Platform,
    engine: Any,  # noqa: ANN401 - docker-py ships no types
    layers: LayerStore,
    scratch: Path,
    progress: Progress,
) -> Taken:
    """Take an image's layers into the store.

    Args:
        name: a reference (by digest or tag) or a local image id ``sha256:…``.
        engine: docker-py's low-level client.
        scratch: a directory with room for the exported image.

    Raises:
        EnvironmentFault: the image cannot be had, is for another platform, or is damaged.
    """
    if engine is None:
        raise EnvironmentFault(
            f"the base {name} needs a container engine, and none answers",
            hint="sealrun engine up starts one.",
        )
    with progress.task(f"taking over {name}") as task, engine_words(f"taking over {name}"):
        document = _find(name, platform, engine, task)
        architecture = document.get("Architecture")
        if architecture != platform.architecture:
            raise EnvironmentFault(
                f"the image {name} is for {architecture}, not for {platform.architecture}",
                hint="Name an image, or a digest of a manifest, for this machine's architecture.",
            )
        with tempfile.TemporaryFile(dir=scratch) as spooled:
            for chunk in engine.get_image(document["Id"]):
                spooled.write(chunk)
                task.advance(len(chunk))
            spooled.seek(0)
            found = read_export(spooled, platform, layers, name)
    digests: list[str] = document.get("RepoDigests") or []
    wanted = name.partition("@")[0].partition(":")[0].rpartition("/")[2]
    ours = [d for d in digests if d == name or d.partition("@")[0].rpartition("/")[2] == wanted]
    return Taken(ours[0] if ours else str(document["Id"]), found)


def _find(name: str, platform: Platform, engine: Any, task: Task) -> Mapping[str, Any]:  # noqa: ANN401 - docker-py ships no types
    from docker.errors import ImageNotFound

    try:
        document: Mapping[str, Any] = engine.inspect_image(name)
    except ImageNotFound:
        if name.startswith("sha256:"):
            raise EnvironmentFault(
                f"the engine has no image {name}",
                hint="Load it into the engine, or name it by its registry and digest.",
            ) from None
        _pull(name, platform, engine, task)
        document = engine.inspect_image(name)
    return document


def _pull(name: str, platform: Platform, engine: Any, task: Task) -> None:  # noqa: ANN401 - docker-py ships no types
    repository, _, digest = name.partition("@")
    tag: str | None = digest or None
    if not digest and ":" in repository.rpartition("/")[2]:
        repository, _, tag = repository.rpartition(":")
    lines = engine.pull(
        repository, tag=tag or "latest", stream=True, decode=True, platform=str(platform)
    )
    for line in lines:
        if "error" in line:
            raise EnvironmentFault(
                f"{name} cannot be pulled: {tool.visible(str(line['error']))}",
                hint="Check the name, the network and the engine's registry login, or load the "
                "image into the engine by hand.",
            )
        task.describe(tool.visible(str(line.get("status", ""))))


@contextmanager
def engine_words(what: str) -> Generator[None]:
    """Turn what docker-py and the connection raise into an error of ours.

    Raises:
        EnvironmentFault: with the engine's own words, escaped.
    """
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except SealrunError:
        raise
    except (DockerException, RequestException) as error:
        raise EnvironmentFault(
            f"{what}: {tool.visible(str(error))}", hint="sealrun doctor checks the engine."
        ) from error


def read_export(
    spooled: BinaryIO, platform: Platform, layers: LayerStore, where: str
) -> tuple[Layer, ...]:
    """Read an exported image's layers into the store, each checked against the image's config.

    Raises:
        EnvironmentFault: the export is damaged, or compressed in a way that we cannot read.
    """
    try:
        with tarfile.open(fileobj=spooled, mode="r:") as archive:
            config_name, names = _manifest(archive, platform)
            config = json.loads(_small(archive, config_name))
            diff_ids = [str(d) for d in config["rootfs"]["diff_ids"]]
            if len(diff_ids) != len(names):
                raise ValueError(f"{len(names)} layers, but the config names {len(diff_ids)}")
            return tuple(
                _layer(archive, name, diff_id, layers)
                for name, diff_id in zip(names, diff_ids, strict=True)
            )
    except (tarfile.TarError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise EnvironmentFault(
            f"the engine's export of {where} cannot be read: {error}",
            hint="Pull or build the image again.",
        ) from error


def _manifest(archive: tarfile.TarFile, platform: Platform) -> tuple[str, list[str]]:
    names = set(archive.getnames())
    if "manifest.json" in names:
        (entry,) = json.loads(_small(archive, "manifest.json"))
        return str(entry["Config"]), [str(name) for name in entry["Layers"]]
    document = json.loads(_small(archive, "index.json"))
    while "manifests" in document:
        fitting = [
            m
            for m in document["manifests"]
            if m.get("platform", {}).get("architecture", platform.architecture)
            == platform.architecture
            and _blob(m["digest"]) in names
        ]
        document = json.loads(_small(archive, _blob(fitting[0]["digest"])))
    return _blob(document["config"]["digest"]), [_blob(x["digest"]) for x in document["layers"]]


def _blob(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    return f"blobs/{algorithm}/{value}"


def _small(archive: tarfile.TarFile, name: str) -> bytes:
    info = archive.getmember(name)
    file = archive.extractfile(info)
    if file is None or info.size > _SMALL:
        raise ValueError(f"{name} is no small file")
    return file.read()


def _layer(archive: tarfile.TarFile, name: str, diff_id: str, layers: LayerStore) -> Layer:
    # Docker's older exports hold a layer once and link to it: tarfile follows inside the archive.
    raw = archive.extractfile(archive.getmember(name))
    if raw is None:
        raise ValueError(f"{name} is no file")
    start = raw.read(4)
    raw.seek(0)
    if start == _ZSTD:
        raise ValueError(f"{name} is compressed by zstd; export it uncompressed or by gzip")
    with layers.writer() as writer:
        source: Any = gzip.GzipFile(fileobj=raw) if start[:2] == _GZIP else raw
        while chunk := source.read(CHUNK):
            writer.write(chunk)
            if writer.size > LARGEST_LAYER:
                raise ValueError(f"{name} unpacks to more than {LARGEST_LAYER} bytes")
        layer = writer.commit()
    if layer.diff_id != diff_id:
        layers.discard(layer)
        raise ValueError(f"{name} hashes to {layer.diff_id}, not to {diff_id}")
    return layer


def mount_points(contents: Contents) -> dict[bytes, normal.Member]:
    """Return a layer that gives a foreign base the directories that our containers need.

    What such a base has in a directory of ours is hidden: a container's workdir and environment
    hold what we put there, and nothing else.
    """
    found = recipe.mount_points()
    for path in recipe.OURS:
        if contents.names(path.decode()):
            marker = path + b"/" + _OPAQUE
            found[marker] = normal.file(marker, b"")
    return found
