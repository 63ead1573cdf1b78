"""What ``sealrun gc`` finds, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Kind(StrEnum):
    """What something is; in the order in which kinds are removed."""

    IMAGE = "image"
    SCRATCH = "scratch"
    ENVIRONMENT = "partial environment"
    TREE_LAYER = "tree layer"
    SPOOL = "spool"
    EVIDENCE = "evidence between runs"
    FETCHED = "fetched item"
    CACHES = "compile caches"
    LAYER = "layer"


@dataclass(frozen=True)
class Finding:
    """Something that can go.

    Attributes:
        name: what it is called where it stands: a file's path below its root, an image's reference.
        size: bytes that removing it frees, as far as can be told beforehand.
        why: what makes it free to go, as a clause.
        paths: what has to be removed, in this order; empty for images.
    """

    kind: Kind
    name: str
    size: int
    why: str
    paths: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Left:
    """Something that was not removed, or not looked at.

    Attributes:
        what: a kind, or what it is called.
        why: a clause.
    """

    what: str
    why: str


@dataclass(frozen=True)
class Collected:
    """What came of a collection.

    Attributes:
        found: what was removed, or would be; in the order of removal.
        left: what stays although one might expect it to go.
    """

    found: tuple[Finding, ...]
    left: tuple[Left, ...]

    @property
    def size(self) -> int:
        """Bytes freed."""
        return sum(one.size for one in self.found)
