"""Which Python a run will have, told before anything is made.

Rules that this module keeps:

- Pure, and without network: what only ``sealrun warm`` can find out is said to be its work.
- The words of a repository are read as they are when it is sealed (``image.asked``).
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from sealrun.errors import SealRefused
from sealrun.image import asked
from sealrun.init import draft
from sealrun.init.shape import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sealrun.image.asked import Demand
    from sealrun.init.shape import Found, Shape

PROJECT = "pyproject.toml"
_REQUIRES = re.compile(r'^requires-python = "([^"]*)"', re.MULTILINE)


def note(found: Found, shape: Shape, shipped: Mapping[str, str]) -> str | None:
    """Return which Python a run will have and where it comes from; None: the shape has none.

    Args:
        found: what is there.
        shape: what that was recognised as.
        shipped: the Python of each shipped base, by the base's name.
    """
    base, environment = _image(found, shape)
    if shape.kind is Kind.OTHER or environment == "none":
        return None
    try:
        said = tuple(_demands(found, shape))
    except SealRefused as error:
        return error.message
    return _told(said, base, shipped.get(base))


def _told(said: tuple[Demand, ...], base: str, version: str | None) -> str:
    if version is None and said:
        return f"{asked.told(said)}: the base {base} has it, or warm obtains it through uv"
    unmet = asked.unmet(said, version)
    if not unmet:
        return f"runs have {f'Python {version}' if version else 'the Python'} of the base {base}"
    lacks = f"{asked.told(unmet)}, and the base {base} has {version}"
    if any(demand.allowed is None for demand in unmet):
        return f"{lacks}: only CPython by its version can be obtained, so warm will refuse it"
    return f"{lacks}: warm obtains another one through uv, once, and keeps it"


def _image(found: Found, shape: Shape) -> tuple[str, str]:
    """Return the base and the environment of the policy that is there, or will be proposed."""
    proposed = draft.policy_text(shape)
    text = found.text(draft.POLICY) if draft.POLICY in found.paths else proposed
    try:
        image: Any = tomllib.loads(text).get("image", {})
        return str(image.get("base", draft.BASE)), str(image.get("environment", "auto"))
    except (tomllib.TOMLDecodeError, AttributeError):
        # A policy that cannot be read is told by whoever loads it.
        return draft.BASE, "auto"


def _demands(found: Found, shape: Shape) -> Iterator[Demand]:
    if asked.VERSION_FILE in found.contents:
        demand = asked.version_file(found.text(asked.VERSION_FILE), asked.VERSION_FILE)
        if demand is not None:
            yield demand
    try:
        project: Any = tomllib.loads(found.text(PROJECT)).get("project", {})
        requires = project.get("requires-python")
    except (tomllib.TOMLDecodeError, AttributeError) as error:
        raise SealRefused(f"{PROJECT} cannot be read: {error}") from error
    if requires:
        yield asked.required(str(requires), PROJECT)
    if shape.lock in ("uv.lock", "pylock.toml"):
        head = found.text(shape.lock).split("\n[[", 1)[0]
        if match := _REQUIRES.search(head):
            yield asked.required(match[1], shape.lock)
