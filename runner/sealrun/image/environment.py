"""The middle of an image: what the commit's lock asks for, installed for the base's Python.

Rules that this module keeps:

- ``plan`` decides from the commit's bytes and the base alone; ``find_environment`` looks into
  records alone; ``provision`` does everything slow.
- Resolve first, then key: the same exact files on the same base are the same environment, whatever
  lock named them. What had to be resolved is resolved once and stays on record.
- Files that uv reads come from the commit, in a private copy; never from the working directory.
- An environment is kept as content-addressed data: it rebuilds without network.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from sealrun.errors import SealRefused
from sealrun.image.model import ENVIRONMENT, Environment
from sealrun.image.store import LayerStore, Records
from sealrun.tree import SYMLINK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sealrun.image import lock
    from sealrun.image.asked import Demand
    from sealrun.image.model import Base
    from sealrun.policy import ImagePolicy
    from sealrun.state import Places
    from sealrun.tree import CommittedTree

#: Counts up when the same inputs are installed into other bytes.
LAYOUT = 1
_PYLOCK = re.compile(r"pylock(?:\.[^.]+)?\.toml")
_UV_LOCK = "uv.lock"
PROJECT = "pyproject.toml"
_READ_BY_UV = (b"pyproject.toml", b"uv.toml")
_REQUIRES = re.compile(r'^requires-python = "([^"]*)"', re.MULTILINE)


class Kind(Enum):
    """What kind of lock the commit holds."""

    NONE = "none"
    PYLOCK = "pylock"
    UV = "uv"
    REQUIREMENTS = "requirements"


@dataclass(frozen=True)
class Plan:
    """What has to stand in the environment, as far as the commit's bytes say it.

    Attributes:
        source: the lock's path in the tree, or None.
        key: what the environment is found under: sha256 over the lock, the files that it takes in,
            the base and the platform.
        files: what uv reads, by path in the tree.
        with_uv: the tree is a uv project, so ``uv run`` must work in the container.
        build: source distributions may be built, in a container.
    """

    kind: Kind
    source: str | None
    key: str
    base: Base = field(repr=False)
    with_uv: bool = False
    build: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    tree: CommittedTree | None = field(default=None, repr=False, compare=False)

    @property
    def target(self) -> lock.Target:
        """The Python that is installed for."""
        from sealrun.image import lock

        return lock.Target(self.base.python or "", self.base.libc, self.base.platform)

    @property
    def directory(self) -> str:
        """The lock's directory in the tree; empty for the root."""
        return (self.source or "").rpartition("/")[0]

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that make the layer the active environment, for uv too."""
        if self.kind is Kind.NONE and not self.with_uv:
            return {}
        active = {"VIRTUAL_ENV": ENVIRONMENT}
        if not self.with_uv:
            return active
        offline = {
            "UV_NO_SYNC": "1",
            "UV_OFFLINE": "1",
            "UV_NO_CACHE": "1",
            "UV_PROJECT_ENVIRONMENT": ENVIRONMENT,
            "UV_PYTHON_DOWNLOADS": "never",
        }
        frozen = {"UV_FROZEN": "1"} if self.kind is Kind.UV else {}
        return active | offline | frozen


def plan(tree: CommittedTree, policy: ImagePolicy, base: Base) -> Plan:
    """Decide what environment a commit needs on a base.

    Raises:
        SealRefused: the policy names a lock that is not there or of no known kind, or the base's
            Python is not the one that the commit asks for (see ``interpreter``).
    """
    kind, source = _find_lock(tree, policy.environment)
    project = _project(tree)
    with_uv = policy.environment != "none" and project is not None and base.python is not None
    if policy.environment == "none":
        return Plan(Kind.NONE, None, key_of(["none"]), base)
    if base.python is None and kind is not Kind.NONE:
        raise SealRefused(
            f"{source} asks for Python packages, but the base {base.origin} has no Python",
            hint='Name a base with Python, e.g. [image] base = "debian-python".',
        )
    from sealrun.image import asked, install

    if base.python is not None:
        asked.check(demands(tree, policy), base.python)
    if kind is Kind.NONE and not with_uv:
        return Plan(kind, None, key_of(["none"]), base)

    files = _files(tree, kind, source)
    chosen = Plan(kind, source, "", base, with_uv, policy.build_sdists, files, tree)
    inputs = [
        *(LAYOUT, kind.value, source, with_uv, policy.build_sdists, base_key(base)),
        *(install.pinned_uv(chosen.target).program if with_uv else None,),
        sorted((path, hashlib.sha256(content).hexdigest()) for path, content in files.items()),
    ]
    return replace(chosen, key=key_of(inputs))


def find_environment(chosen: Plan, places: Places) -> Environment | None:
    """Return the environment that was made for a plan, or None: then it is to be made."""
    if chosen.kind is Kind.NONE and not chosen.with_uv:
        return Environment(chosen.key, None, None)
    return records_of(places).environment(chosen.key)


def _find_lock(tree: CommittedTree, named: str) -> tuple[Kind, str | None]:
    if named not in ("auto", "none"):
        if tree.get(named.encode()) is None:
            raise SealRefused(
                f"{named}: [image] environment names this lock, but the commit does not hold it",
                hint="Commit it, or set environment to auto or none.",
            )
        return _kind(named), named
    for name in ("pylock.toml", _UV_LOCK, "requirements.txt"):
        if tree.get(name.encode()) is not None:
            return _kind(name), name
    project = _project(tree)
    if _table(project).get("dependencies"):
        return Kind.REQUIREMENTS, PROJECT
    return Kind.NONE, None


def _kind(path: str) -> Kind:
    name = path.rpartition("/")[2]
    if _PYLOCK.fullmatch(name):
        return Kind.PYLOCK
    if name == _UV_LOCK:
        return Kind.UV
    if name.endswith((".txt", ".in")) or name == PROJECT:
        return Kind.REQUIREMENTS
    raise SealRefused(
        f"{path}: [image] environment must name a pylock.toml, uv.lock or requirements file",
        hint="Other tools export one: poetry, pdm and pixi all write requirements files.",
    )


def _project(tree: CommittedTree) -> dict[str, Any] | None:
    if tree.get(PROJECT.encode()) is None:
        return None
    try:
        return tomllib.loads(text_of(tree, PROJECT))
    except tomllib.TOMLDecodeError as error:
        raise SealRefused(f"{PROJECT} is not readable TOML: {error}") from error


def _table(project: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return what a ``pyproject.toml`` says under ``[project]``.

    Raises:
        SealRefused: that is no table.
    """
    table = (project or {}).get("project", {})
    if not isinstance(table, dict):
        raise SealRefused(f"{PROJECT}: project is no table")
    return cast("Mapping[str, Any]", table)


def text_of(tree: CommittedTree, path: str) -> str:
    """Return a committed file as text.

    Raises:
        SealRefused: it is not in the commit, is a symlink, or is not UTF-8.
    """
    try:
        return _bytes(tree, path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SealRefused(f"{path} is not UTF-8: {error}") from error


def _bytes(tree: CommittedTree, path: str) -> bytes:
    entry = tree.get(path.encode())
    if entry is None:
        raise SealRefused(f"{path} is not in the commit", hint="Commit it.")
    if entry.mode == SYMLINK:
        raise SealRefused(f"{path} is a symlink", hint="Commit the file itself.")
    return tree.read(entry)


def _files(tree: CommittedTree, kind: Kind, source: str | None) -> dict[str, bytes]:
    """Return the files that decide what is installed: the lock and what it takes in."""
    found: dict[str, bytes] = {}
    if source is None:
        return found
    found[source] = _bytes(tree, source)
    if kind is Kind.REQUIREMENTS and source.rpartition("/")[2] != PROJECT:
        _include(tree, source, found)
    # Members of a workspace, path dependencies and committed wheels, wherever they stand.
    above = str(PurePosixPath(source).parent)
    for entry in tree.entries:
        name = entry.path.rpartition(b"/")[2]
        if entry.mode == SYMLINK or not (name in _READ_BY_UV or name.endswith(b".whl")):
            continue
        path = entry.path.decode("utf-8", "surrogateescape")
        if above == "." or path.startswith(f"{above}/") or path == PROJECT:
            found[path] = tree.read(entry)
    return found


def _include(tree: CommittedTree, source: str, found: dict[str, bytes]) -> None:
    """Add what a requirements file includes, and what that includes."""
    from sealrun.image import lock

    waiting = [source]
    while waiting:
        path = waiting.pop()
        for name in lock.includes(text_of(tree, path)):
            if "://" in name:
                raise SealRefused(
                    f"{path} includes {name}, which is not in the commit",
                    hint="Commit a copy and include that.",
                )
            included = tree_path(str(PurePosixPath(path).parent), name)
            if included not in found:
                found[included] = _bytes(tree, included)
                waiting.append(included)


def tree_path(above: str, path: str) -> str:
    """Return a path of the tree that is written relative to one of its directories."""
    parts: list[str] = []
    for part in f"{above}/{path}".split("/"):
        if part == ".." and not parts:
            raise SealRefused(f"{path} leads out of the commit")
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def demands(tree: CommittedTree, policy: ImagePolicy) -> tuple[Demand, ...]:
    """Return where a commit says which Python it needs; a policy without environment asks nothing.

    Raises:
        SealRefused: one of its files cannot be read.
    """
    from sealrun.image import asked

    if policy.environment == "none":
        return ()
    kind, source = _find_lock(tree, policy.environment)
    found: list[Demand | None] = []
    if tree.get(asked.VERSION_FILE.encode()) is not None:
        text = text_of(tree, asked.VERSION_FILE)
        found.append(asked.version_file(text, asked.VERSION_FILE))
    if requires := _table(_project(tree)).get("requires-python"):
        found.append(asked.required(str(requires), PROJECT))
    if source and kind in (Kind.UV, Kind.PYLOCK):
        head = _bytes(tree, source).decode("utf-8", "replace").split("\n[[", 1)[0]
        if match := _REQUIRES.search(head):
            found.append(asked.required(match[1], source))
    return tuple(demand for demand in found if demand is not None)


def base_key(base: Base) -> list[Any]:
    """Return what of a base decides how packages are installed on it."""
    layers = [layer.diff_id for layer in base.layers]
    return [layers, base.python, base.python_path, base.libc, str(base.platform)]


def key_of(parts: object) -> str:
    """Return one digest over JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def records_of(places: Places) -> Records:
    """Return the records of environments that were made."""
    return Records(places.bases, LayerStore(places.layers))
