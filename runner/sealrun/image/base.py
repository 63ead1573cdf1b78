"""The bottom of an image: from a shipped recipe, an image reference, or a Dockerfile in the commit.

Rules that this module keeps:

- ``find_base`` looks into records alone and is fast; ``make_base`` does everything slow.
- A base is kept as content-addressed data, not cache: what was made once is used from then on, so
  that a mirror or a registry that moves on changes nothing until somebody asks for a new one.
- What an image brings beside its files (ENTRYPOINT, VOLUME, ENV, HEALTHCHECK, ONBUILD) is dropped.
- A tag is resolved once. The pin counts when the commit holds it in ``sealrun.lock``; otherwise it
  is the record.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform as host
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from sealrun.errors import EnvironmentFault, SealRefused
from sealrun.image import contents, recipe
from sealrun.image.model import Base, Platform
from sealrun.image.store import LayerStore, Records
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path
    from typing import Any

    from sealrun.progress import Progress
    from sealrun.state import Places
    from sealrun.tree import CommittedTree

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64", "amd64": "amd64"}
_DOCKERFILE = "dockerfile:"


class Kind(Enum):
    """Where a base comes from."""

    RECIPE = "recipe"
    REFERENCE = "reference"
    DOCKERFILE = "dockerfile"


@dataclass(frozen=True)
class Source:
    """What the policy's ``[image] base`` asks for, read together with the commit.

    Attributes:
        name: a recipe's name, a reference (its pin already applied), or a path in the tree.
        key: what the base is kept under.
    """

    kind: Kind
    name: str
    key: str

    @property
    def origin(self) -> str:
        """How records call it: ``recipe:debian-python``."""
        return f"{self.kind.value}:{self.name}"


def host_platform() -> Platform:
    """Return this host's platform.

    Raises:
        EnvironmentFault: we make no images for its architecture.
    """
    machine = host.machine()
    if machine not in _ARCHITECTURES:
        raise EnvironmentFault(
            f"this machine's architecture {machine} is not supported",
            hint="Bases exist for x86-64 and arm64.",
        )
    return Platform(architecture=_ARCHITECTURES[machine])


def source(spec: str, tree: CommittedTree, platform: Platform) -> Source:
    """Read ``[image] base`` together with the commit; decides what the base is kept under.

    Raises:
        UsageError: there is no such recipe.
        SealRefused: the Dockerfile or the pins in the commit cannot be used.
    """
    if spec.startswith(_DOCKERFILE):
        path = spec.removeprefix(_DOCKERFILE)
        entry = tree.get(path.encode())
        if entry is None:
            raise SealRefused(
                f"{path}: [image] base names this Dockerfile, but the commit does not hold it",
                hint="Commit it, or name another base.",
            )
        # The whole tree is the build's context, so the whole tree is in the key.
        return Source(
            Kind.DOCKERFILE, path, f"dockerfile:{path}:{tree.algorithm}:{tree.tree}:{platform}"
        )
    if spec in recipe.names() or not any(mark in spec for mark in ":/@"):
        chosen = recipe.load(spec)
        digest = hashlib.sha256(chosen.content).hexdigest()
        return Source(Kind.RECIPE, spec, f"recipe:{spec}:{digest}:{platform}:{recipe.LAYOUT}")
    return Source(Kind.REFERENCE, spec, f"reference:{spec}:{platform}")


def find_base(spec: str, tree: CommittedTree, places: Places, platform: Platform) -> Base | None:
    """Return the base that was made for this policy and commit, or None: then it is to be made.

    Args:
        spec: the policy's ``[image] base``.
        platform: see ``host_platform``.

    Raises:
        UsageError: there is no such recipe.
        SealRefused: what the commit says about its base cannot be used.
    """
    return _records(places).base(source(spec, tree, platform).key)


def make_base(
    spec: str,
    tree: CommittedTree,
    places: Places,
    platform: Platform,
    engine: Any,
    progress: Progress,
) -> Base:
    """Make the base for this policy and commit, or return the one that is there.

    Args:
        spec: the policy's ``[image] base``.
        engine: a docker-py ``APIClient``; None where no engine answers (recipes need none).
        progress: is told how far it is.

    Raises:
        EnvironmentFault: it cannot be made.
        UsageError: there is no such recipe.
        SealRefused: what the commit says about its base cannot be used.
    """
    wanted = source(spec, tree, platform)
    records = _records(places)
    with alone(places, wanted.key):
        if found := records.base(wanted.key):
            return found
        base = _make(wanted, tree, records.layers, places, platform, engine, progress)
        records.put_base(wanted.key, base)
        return base


def _make(
    wanted: Source,
    tree: CommittedTree,
    layers: LayerStore,
    places: Places,
    platform: Platform,
    engine: Any,
    progress: Progress,
) -> Base:
    scratch = private(places.cache / "scratch")
    layer, packages = recipe.make(recipe.load(wanted.name), platform, layers, scratch, progress)
    with contents.reading((layer,), wanted.origin) as found:
        python = contents.find_python(found)
        libc = contents.find_libc(found, platform.architecture)
    return Base(
        origin=wanted.origin,
        platform=platform,
        layers=(layer,),
        python=python.version if python else None,
        python_path=python.path if python else None,
        libc=libc,
        packages=packages,
    )


def _records(places: Places) -> Records:
    return Records(places.bases, LayerStore(places.layers))


@contextmanager
def alone(places: Places, key: str) -> Generator[None]:
    """Hold the lock of one key, so that two ``warm`` at once do the work once."""
    path: Path = private(places.cache / "locks") / hashlib.sha256(key.encode()).hexdigest()[:32]
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
