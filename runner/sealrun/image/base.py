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

import hashlib
import platform as host
import re
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from sealrun.errors import EnvironmentFault, SealRefused
from sealrun.image import recipe
from sealrun.image.model import Base, Platform
from sealrun.image.store import LayerStore, Records
from sealrun.policy import PINS_FILE
from sealrun.state import private
from sealrun.turns import turn

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from sealrun.image import reference
    from sealrun.image.model import Layer, Package
    from sealrun.progress import Progress
    from sealrun.state import Places
    from sealrun.tree import CommittedTree

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64", "amd64": "amd64"}
_DOCKERFILE = "dockerfile:"
_DIGEST = re.compile(r"(?:^|@)sha256:[0-9a-f]{64}$")
#: Counts up when the layer changes that a foreign base gets on top.
_TOP = 1


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
        path = spec.removeprefix(_DOCKERFILE).removeprefix("./")
        from sealrun.image import dockerfile

        taken_in = dockerfile.key(tree, path)
        return Source(Kind.DOCKERFILE, path, f"dockerfile:{path}:{taken_in}:{platform}:{_TOP}")
    if spec in recipe.names() or not any(mark in spec for mark in ":/@"):
        chosen = recipe.load(spec)
        digest = hashlib.sha256(chosen.content).hexdigest()
        return Source(Kind.RECIPE, spec, f"recipe:{spec}:{digest}:{platform}:{recipe.LAYOUT}")
    name = pins(tree).get(spec, spec)
    return Source(Kind.REFERENCE, name, f"reference:{name}:{platform}:{_TOP}")


def pins(tree: CommittedTree) -> dict[str, str]:
    """Return what the commit's ``sealrun.lock`` pins tags to: its table ``[base]``.

    Raises:
        SealRefused: it is malformed, or a pin is not by digest.
    """
    entry = tree.get(PINS_FILE)
    if entry is None:
        return {}
    try:
        table: dict[str, object] = tomllib.loads(tree.read(entry).decode("utf-8")).get("base", {})
        found = {tag: str(pin) for tag, pin in table.items()}
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError) as error:
        raise SealRefused(f"{PINS_FILE.decode()} is not readable: {error}") from error
    for tag, pin in found.items():
        if not _DIGEST.search(pin):
            raise SealRefused(
                f"{PINS_FILE.decode()} pins {tag} to {pin}, which is not a digest",
                hint='A pin looks like "NAME@sha256:..." with 64 hexadecimal digits.',
            )
    return found


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
    engine: Any,  # noqa: ANN401 - docker-py ships no types
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
        shop = _Workshop(places, records.layers, platform, engine, progress)
        base = _make(wanted, tree, shop)
        records.put_base(wanted.key, base)
        return base


@dataclass(frozen=True)
class _Workshop:
    """What making a base needs."""

    places: Places
    layers: LayerStore
    platform: Platform
    engine: Any
    progress: Progress

    @property
    def scratch(self) -> Path:
        return private(self.places.cache / "scratch")


def _make(wanted: Source, tree: CommittedTree, shop: _Workshop) -> Base:
    from sealrun.image import dockerfile

    if wanted.kind is Kind.RECIPE:
        layer, packages = recipe.make(
            recipe.load(wanted.name), shop.platform, shop.layers, shop.scratch, shop.progress
        )
        return _described((layer,), wanted.origin, shop, packages)
    if wanted.kind is Kind.REFERENCE:
        taken = _take(wanted.name, shop)
        return _described(taken.layers, f"{wanted.kind.value}:{taken.pin}", shop, None)
    image, was_there = dockerfile.build(
        tree, wanted.name, shop.platform, shop.engine, shop.scratch, shop.progress
    )
    try:
        taken = _take(image, shop)
    finally:
        if not was_there:
            dockerfile.remove(shop.engine, image)
    return _described(taken.layers, wanted.origin, shop, None)


def _take(name: str, shop: _Workshop) -> reference.Taken:
    from sealrun.image import reference

    return reference.take(
        name, shop.platform, shop.engine, shop.layers, shop.scratch, shop.progress
    )


def _described(
    layers: tuple[Layer, ...], origin: str, shop: _Workshop, packages: tuple[Package, ...] | None
) -> Base:
    """Read what a base holds; one that is not from a recipe gets our directories on top."""
    from sealrun.image import contents, normal, reference

    with contents.reading(layers, origin) as found:
        python = contents.find_python(found)
        libc = contents.find_libc(found, shop.platform.architecture)
        if packages is None:
            packages = contents.find_packages(found)
            layers = (*layers, normal.write_layer(reference.mount_points(found), shop.layers))
    return Base(
        origin=origin,
        platform=shop.platform,
        layers=layers,
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
    with turn(private(places.cache / "locks") / hashlib.sha256(key.encode()).hexdigest()[:32]):
        yield
