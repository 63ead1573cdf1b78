"""Seals a committed tree: base layers + environment layer + tree layer = an image.

Rules that this module keeps:

- The image is a pure function of three contents. Same tree, same environment, same base: same
  ``image_id``, whatever the umask, time zone, locale, user, clock, cache, clone or engine.
- What a tree layer holds is decided by paths, modes and bytes; commit and branch are not in the
  image but on the container's labels and in the ledger.
- No engine is asked for anything here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.image.archive import BASE, ENVIRONMENT, TREE
from sealrun.image.config import image_config
from sealrun.image.model import SealedImage
from sealrun.image.store import sha256

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sealrun.image.model import Base, Environment, Layer
    from sealrun.image.tree_layer import TreeLayers
    from sealrun.progress import Progress
    from sealrun.sandbox.protocol import FileState
    from sealrun.tree import CommittedTree


@dataclass(frozen=True)
class Sealed:
    """A sealed tree and what the run needs to know about it.

    Attributes:
        manifest: everything below the workdir, for verify 2.
        bytecode: committed bytecode files, to be flagged with ``Reason.COMMITTED_BYTECODE``.
        reused: the tree layer was in the cache.
        seconds: wall time of each step.
    """

    image: SealedImage
    manifest: tuple[FileState, ...]
    bytecode: tuple[bytes, ...]
    reused: bool
    seconds: Mapping[str, float]


def seal(
    tree: CommittedTree,
    base: Base,
    environment: Environment,
    layers: TreeLayers,
    progress: Progress | None = None,
) -> Sealed:
    """Turn a committed tree into an image.

    Args:
        tree: what the commit holds.
        base: the bottom of the image.
        environment: its middle; its ``layer`` may be None.
        layers: where tree layers of this repository are cached.
        progress: told while the layer is written.

    Raises:
        SealRefused: something in the tree cannot be sealed faithfully; the message names the path.
        StorageFault: the layer cannot be stored, or a spooled blob no longer hashes to its id.
    """
    began = time.perf_counter()
    made = layers.layer(tree, progress)
    image = assemble(base, environment, made.layer)
    seconds = {"seal": time.perf_counter() - began}
    return Sealed(image, made.manifest, made.bytecode, made.reused, seconds)


def assemble(base: Base, environment: Environment, tree_layer: Layer) -> SealedImage:
    """Return the image of three parts, without any IO."""
    middle = (environment.layer,) if environment.layer else ()
    names = (*(BASE for _ in base.layers), *(ENVIRONMENT for _ in middle), TREE)
    diff_ids = [layer.diff_id for layer in (*base.layers, *middle, tree_layer)]
    config = image_config(diff_ids, names, base.platform, environment.variables)
    return SealedImage(sha256(config), config, base, environment, tree_layer)
