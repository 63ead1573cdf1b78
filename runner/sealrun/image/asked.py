"""Which Python a commit asks for, and which of those that can be had it gets: pure decisions.

Rules that this module keeps:

- Every word of the commit counts: ``.python-version``, the project's ``requires-python`` and the
  lock's. A Python that satisfies one of them and not another is never taken.
- What is asked for is CPython, by version. Another implementation or a variant is not understood as
  something else: nothing satisfies it.
- Among several that would do, the nearest minor version to the base's is taken, and of that the
  newest patch: an open range gives the same minor version whenever it is asked.
- No IO.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from sealrun.errors import SealRefused
from sealrun.image.tool import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: What uv and pyenv read at the top of a project.
VERSION_FILE = ".python-version"
#: What is obtained for a base without any Python where a range is open: the shipped bases' minor.
_USUAL = (3, 11)
_NUMBER = re.compile(r"(?:(?:cpython|python)[-@]?)?(\d{1,3}(?:\.\d{1,3}){0,2})")
_HINT = (
    "Name a base with that Python in sealrun.toml, e.g. [image] base = "
    '"python:3.X-slim@sha256:...", or ask for the Python that the base has.'
)


@dataclass(frozen=True)
class Demand:
    """One place where a commit says which Python it needs.

    Attributes:
        where: the file.
        words: what it says, as a clause: ``.python-version asks for Python 3.10``.
        allowed: the versions that satisfy it; None: no CPython does.
    """

    where: str
    words: str
    allowed: SpecifierSet | None

    def admits(self, version: str) -> bool:
        """Tell whether a full version satisfies it."""
        return self.allowed is not None and self.allowed.contains(version, prereleases=True)


def required(requires: str, where: str) -> Demand:
    """Read a ``requires-python`` ("Core metadata specifications", Requires-Python).

    Args:
        requires: as it is written.
        where: the file, and the package where it is one's.

    Raises:
        SealRefused: it is malformed.
    """
    try:
        allowed = SpecifierSet(requires)
    except InvalidSpecifier as error:
        raise SealRefused(f"{where}: requires-python {requires!r} is malformed") from error
    return Demand(where, f"{where} requires Python {visible(requires)}", allowed)


def version_file(text: str, where: str) -> Demand | None:
    """Read a ``.python-version``: its first line, as pyenv and uv do; None: it asks for nothing.

    Raises:
        SealRefused: it is a malformed range.
    """
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    wanted = next((line for line in lines if line), "")
    if not wanted or wanted in ("cpython", "system"):
        return None
    if re.match(r"[<>=!~]", wanted):
        return required(wanted, where)
    allowed = None
    if number := _NUMBER.fullmatch(wanted):
        exact = number[1].count(".") == 2  # noqa: PLR2004 - major, minor, patch
        allowed = SpecifierSet(f"=={number[1]}" if exact else f"=={number[1]}.*")
    return Demand(where, f"{where} asks for Python {visible(wanted)}", allowed)


def unmet(demands: Iterable[Demand], version: str | None) -> tuple[Demand, ...]:
    """Return the demands that a base's Python does not satisfy; None: it has no Python."""
    return tuple(d for d in demands if version is None or not d.admits(version))


def check(demands: Iterable[Demand], version: str) -> None:
    """Check demands against the Python of a base.

    Raises:
        SealRefused: one is not satisfied.
    """
    for demand in unmet(demands, version):
        raise SealRefused(f"{demand.words}, but the base has {version}", hint=_HINT)


def told(demands: Sequence[Demand]) -> str:
    """Return some demands as one clause."""
    return " and ".join(dict.fromkeys(demand.words for demand in demands))


def choose(
    offered: Mapping[str, str], demands: Sequence[Demand], near: str | None
) -> tuple[str, str] | None:
    """Choose what to obtain.

    Args:
        offered: full versions by name.
        demands: all of the commit's.
        near: the base's version, if it has a Python.

    Returns:
        Name and version; None: nothing that is offered satisfies all demands.
    """
    major, minor = Version(near).release[:2] if near else _USUAL
    ranked: list[tuple[tuple[int, ...], str, str]] = []
    for name, text in offered.items():
        try:
            version = Version(text)
        except InvalidVersion:
            continue
        if version.is_prerelease or not all(demand.admits(text) for demand in demands):
            continue
        away = (abs(version.major - major), abs(version.minor - minor))
        # Of two that are as near, the older: more packages have wheels for it.
        ranked.append(((*away, version.minor, -version.micro), name, text))
    return min(ranked)[1:] if ranked else None


def span(versions: Iterable[str]) -> str:
    """Return the minor versions that are offered, as words: ``3.8, 3.9``; ``none``."""
    found: set[tuple[int, int]] = set()
    for text in versions:
        try:
            version = Version(text)
        except InvalidVersion:
            continue
        if not version.is_prerelease:
            found.add((version.major, version.minor))
    return ", ".join(f"{major}.{minor}" for major, minor in sorted(found)) or "none"
