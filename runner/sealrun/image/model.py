"""What an image is made of: plain records that the other modules of this package pass around.

Rules that this module keeps:

- A layer is named by its ``diff_id``: the sha256 of its *uncompressed* tar (OCI image
  specification, "Layer DiffID"), however it is kept.
- An image is base layers + environment layer + tree layer, in this order; its ``image_id`` is the
  sha256 of its config, whatever an engine calls it.
- Nothing here does IO.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Where committed files stand in a container.
WORKDIR = "/workspace"
#: Where the environment layer stands in a container: a virtual environment of the base's Python.
ENVIRONMENT = "/opt/env"
#: The only PATH of an image; what a base brings is dropped.
PATH = f"{ENVIRONMENT}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: The one modification time of everything that we put into a layer, in seconds: 1980-01-01, the
#: earliest that a ZIP archive can hold, so that wheels can still be built from such files.
MTIME = 315532800


@dataclass(frozen=True)
class Layer:
    """One layer as stored.

    Attributes:
        diff_id: ``sha256:`` and 64 hexadecimal digits.
        size: bytes of the uncompressed tar.
        path: the tar in the content-addressed store, which may be compressed (``store.open_layer``).
    """

    diff_id: str
    size: int
    path: Path


@dataclass(frozen=True)
class Package:
    """One installed package of a base or an environment: Debian's or Python's.

    Attributes:
        sha256: of the archive it came from, where known.
    """

    name: str
    version: str
    sha256: str | None = None


@dataclass(frozen=True)
class Platform:
    """An OCI platform, e.g. ``linux/amd64``."""

    os: str = "linux"
    architecture: str = "amd64"

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}"


@dataclass(frozen=True)
class Base:
    """The bottom of an image.

    Attributes:
        origin: what the policy asked for, e.g. ``recipe:debian-python`` or ``reference:name@sha256:…``.
        layers: from the bottom up; never empty.
        python: version of the base's ``python3`` (``3.11.2``), or None where it has none.
        python_path: its absolute path inside the base, e.g. ``/usr/bin/python3``.
        libc: ``glibc-2.36`` or ``musl-1.2``, which decides what wheels fit; None if unknown.
        packages: inventory, sorted by name.
    """

    origin: str
    platform: Platform
    layers: tuple[Layer, ...]
    python: str | None
    python_path: str | None
    libc: str | None
    packages: tuple[Package, ...] = ()


@dataclass(frozen=True)
class Environment:
    """The middle of an image: what the commit's lock file asks for, installed.

    Attributes:
        key: sha256 over resolved lock hashes, base, platform and the layout version.
        source: the lock's path in the tree, e.g. ``uv.lock``; None where the tree has none.
        layer: None where there is nothing to install and the base's own Python is used.
        variables: environment variables that the layer needs (``UV_NO_SYNC`` and the like).
        packages: inventory, sorted by name.
    """

    key: str
    source: str | None
    layer: Layer | None
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    packages: tuple[Package, ...] = ()


@dataclass(frozen=True)
class SealedImage:
    """An image, completely determined: the same inputs give the same bytes on any machine.

    Attributes:
        image_id: ``sha256:…`` of ``config``.
        config: OCI image config, as canonical JSON.
        layers: bottom up, tree layer last.
    """

    image_id: str
    config: bytes
    base: Base
    environment: Environment
    tree_layer: Layer

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers from the bottom up."""
        middle = (self.environment.layer,) if self.environment.layer else ()
        return (*self.base.layers, *middle, self.tree_layer)


@dataclass(frozen=True)
class Loading:
    """How an image came to be in an engine.

    Attributes:
        way: ``present`` (nothing sent), ``hybrid`` (missing layers only) or ``full``.
        sent: bytes sent to the engine.
        engine_image: the name to create containers from: what *this* engine calls the image (the
            config digest in a classic store, the manifest digest in a containerd store).
        manifest_digest: of the OCI manifest that we wrote, where one was.
        fallback: why the hybrid way was given up, if it was.
    """

    way: str
    sent: int
    engine_image: str
    manifest_digest: str | None = None
    fallback: str | None = None
