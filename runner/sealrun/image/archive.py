"""What travels to an engine: an image archive that holds only the layers that are missing there.

Rules that this module keeps:

- One archive speaks both languages: ``manifest.json`` for classic image stores (``docker save``'s
  format, moby ``image/tarexport``) and ``oci-layout`` + ``index.json`` for containerd's (OCI image
  layout), over the same blobs. An engine that has a layer does not look for its blob.
- What names the image comes last: an archive that breaks off, or whose layer proves damaged on the
  way, never becomes an image.
- Layers are streamed from the store and hashed on the way; the size is known beforehand. To an
  engine that unpacks on its own disk before it looks they travel as they are stored, compressed.
- The manifest follows from config and layers alone, so its digest, which is what a containerd store
  calls the image, is known before anything is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sealrun.image import tar
from sealrun.image.config import canonical, image_config
from sealrun.image.store import chunks, sha256, stored_chunks, stored_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sealrun.image.model import Layer, Platform, SealedImage

_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_BLOB_MODE = 0o644

BASE = "sealrun base"
ENVIRONMENT = "sealrun environment"
TREE = "sealrun tree"


@dataclass(frozen=True)
class Stack:
    """Layers and the config that names them: a whole image, or the lower part of one.

    Attributes:
        config: OCI image config.
        layers: from the bottom up.
        reference: ``name:tag`` that it gets in an engine.
    """

    config: bytes
    layers: tuple[Layer, ...]
    reference: str

    @cached_property
    def image_id(self) -> str:
        """The config's digest."""
        return sha256(self.config)

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Digests of the layers, from the bottom up."""
        return tuple(layer.diff_id for layer in self.layers)

    @cached_property
    def manifest(self) -> bytes:
        """The OCI manifest."""
        return canonical(
            {
                "config": _descriptor(_CONFIG_TYPE, self.image_id, len(self.config)),
                "layers": [_descriptor(_LAYER_TYPE, x.diff_id, x.size) for x in self.layers],
                "mediaType": _MANIFEST_TYPE,
                "schemaVersion": 2,
            }
        )

    @cached_property
    def manifest_digest(self) -> str:
        """The OCI manifest's digest."""
        return sha256(self.manifest)


def stack(image: SealedImage, reference: str | None = None) -> Stack:
    """Return a sealed image as a stack; the default reference holds its id."""
    return Stack(image.config, image.layers, reference or tree_reference(image.image_id))


def tree_reference(image_id: str) -> str:
    """Return what an engine calls the image with an id, if nobody chose another name."""
    return f"sealrun-tree:{image_id.removeprefix('sha256:')[:24]}"


def foundations(image: SealedImage) -> tuple[Stack, ...]:
    """Return what is kept in an engine as images of their own, from the bottom up.

    Tree images come and go. Base, and base with environment, are tagged by themselves, so that
    their layers stay, and nothing but a tree layer has to be sent for the next commit.
    """
    base, environment = image.base.layers, image.environment.layer
    diff_ids = [layer.diff_id for layer in base]
    middle = None if environment is None else environment.diff_id
    layers = [base] if environment is None else [base, (*base, environment)]
    lower = _lower(diff_ids, middle, image.base.platform)
    return tuple(
        Stack(config, some, name) for (config, name), some in zip(lower, layers, strict=True)
    )


def lower_references(
    base: Sequence[str], environment: str | None, platform: Platform
) -> tuple[str, ...]:
    """Return what an engine calls the images below a tree's, from the bottom up.

    Args:
        base: digests of the base's layers, from the bottom up.
        environment: digest of the environment's layer, if it has one.
        platform: of the base.
    """
    return tuple(name for _, name in _lower(base, environment, platform))


def _lower(
    base: Sequence[str], environment: str | None, platform: Platform
) -> list[tuple[bytes, str]]:
    """Return config and reference of each image below a tree's."""
    names = (BASE,) * len(base)
    parts: list[tuple[str, list[str], tuple[str, ...]]] = [("sealrun-base", list(base), names)]
    if environment is not None:
        parts.append(("sealrun-env", [*base, environment], (*names, ENVIRONMENT)))
    configs = [(where, image_config(ids, what, platform, {})) for where, ids, what in parts]
    return [
        (config, f"{where}:{sha256(config).removeprefix('sha256:')[:12]}")
        for where, config in configs
    ]


class Archive:
    """The archive of a stack; iterate over it to get its bytes.

    Args:
        what: the stack.
        layers: those of its layers that travel.
        as_stored: whether compressed layers travel compressed; the manifest for containerd's stores
            names plain ones.
    """

    def __init__(self, what: Stack, layers: Sequence[Layer], *, as_stored: bool = False) -> None:
        self._layers = {layer.diff_id: layer for layer in layers}
        self._as_stored = as_stored
        self._rest = _names(what)

    def __len__(self) -> int:
        """Return the size in bytes (an HTTP client sends it as the content's length)."""
        layers = sum(tar.BLOCK + _padded(self._size(one)) for one in self._layers.values())
        rest = sum(tar.BLOCK + _padded(len(content)) for _, content in self._rest)
        return layers + rest + len(tar.END)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the archive's bytes.

        Raises:
            StorageFault: a layer is missing or damaged.
        """
        for diff_id, layer in self._layers.items():
            size = self._size(layer)
            yield tar.header(_blob(diff_id), tar.FILE, _BLOB_MODE, size)
            yield from stored_chunks(layer) if self._as_stored else chunks(layer)
            yield tar.padding(size)
        for name, content in self._rest:
            yield tar.header(name, tar.FILE, _BLOB_MODE, len(content))
            yield content + tar.padding(len(content))
        yield tar.END

    def _size(self, layer: Layer) -> int:
        return stored_size(layer) if self._as_stored else layer.size


def _names(what: Stack) -> list[tuple[bytes, bytes]]:
    """Return the small files of an archive: name and content."""
    docker = {
        "Config": _blob(what.image_id).decode(),
        "Layers": [_blob(diff_id).decode() for diff_id in what.diff_ids],
        "RepoTags": [what.reference],
    }
    _, _, tag = what.reference.rpartition(":")
    entry = {
        **_descriptor(_MANIFEST_TYPE, what.manifest_digest, len(what.manifest)),
        "annotations": {
            "io.containerd.image.name": f"docker.io/library/{what.reference}",
            "org.opencontainers.image.ref.name": tag,
        },
    }
    index = {"manifests": [entry], "mediaType": _INDEX_TYPE, "schemaVersion": 2}
    return [
        (_blob(what.image_id), what.config),
        (_blob(what.manifest_digest), what.manifest),
        (b"oci-layout", canonical({"imageLayoutVersion": "1.0.0"})),
        (b"index.json", canonical(index)),
        (b"manifest.json", canonical([docker])),
    ]


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"digest": digest, "mediaType": media_type, "size": size}


def _blob(digest: str) -> bytes:
    return b"blobs/sha256/" + digest.removeprefix("sha256:").encode()


def _padded(size: int) -> int:
    return size + -size % tar.BLOCK
