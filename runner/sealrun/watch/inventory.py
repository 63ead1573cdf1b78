# ruff: noqa: PTH118 - paths are bytes here, which pathlib does not speak
"""What stands in a workspace: its directories, its files, and its environments apart.

Rules that this module keeps:

- No link is followed, and nothing but names is read.
- Git's own directories are left out at any depth; folders that tools fill are watched themselves and
  not entered.
- What an installer filled is an environment: told by its name, or by what marks it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sealrun.importable import ENVIRONMENT_MARKS, OUTPUTS, is_environment, module_name

if TYPE_CHECKING:
    from collections.abc import Container

_GIT = b".git"


@dataclass
class Inventory:
    """The names of one moment; all paths are relative to the workspace.

    Attributes:
        directories: to be watched, environments' included; the workspace itself is ``b""``.
        files: files and links outside environments.
        environments: by the path of each: its files and links.
    """

    directories: set[bytes] = field(default_factory=set[bytes])
    files: list[bytes] = field(default_factory=list[bytes])
    environments: dict[bytes, list[bytes]] = field(default_factory=dict[bytes, list[bytes]])

    def installed(self) -> frozenset[str]:
        """Return the importable names at the top of the environments' package directories."""
        found: set[str] = set()
        for paths in self.environments.values():
            for path in paths:
                _, marker, below = path.rpartition(b"/site-packages/")
                name = module_name(below.partition(b"/")[0]) if marker else None
                if name is not None:
                    found.add(name)
        return frozenset(found)


def take(root: bytes) -> Inventory:
    """List what stands below a workspace now; what cannot be listed is not in it."""
    made = Inventory()
    _enter(root, made)
    return made


def environment_of(path: bytes, environments: Container[bytes]) -> bytes | None:
    """Return the environment that a relative path is in; None where it is in none."""
    at = path
    while at:
        if at in environments or is_environment(at.rpartition(b"/")[2]):
            return at
        at = at.rpartition(b"/")[0]
    return None


def _enter(root: bytes, made: Inventory) -> None:
    pending: list[tuple[bytes, bytes | None]] = [(b"", None)]
    while pending:
        at, unit = pending.pop()
        try:
            with os.scandir(os.path.join(root, at) if at else root) as entries:
                listed = [entry for entry in entries if entry.name != _GIT]
        except OSError:
            continue
        made.directories.add(at)
        if at and unit is None and any(entry.name in ENVIRONMENT_MARKS for entry in listed):
            unit = at
        files = made.files if unit is None else made.environments.setdefault(unit, [])
        for entry in listed:
            path = os.path.join(at, entry.name)
            if not entry.is_dir(follow_symlinks=False):
                files.append(path)
            elif unit is not None:
                pending.append((path, unit))
            elif entry.name in OUTPUTS:
                made.directories.add(path)
            else:
                pending.append((path, path if is_environment(entry.name) else None))
