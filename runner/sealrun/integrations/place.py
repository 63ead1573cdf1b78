"""Which repository a file belongs to, found without running git.

Rules that this module keeps:

- A repository counts when it holds sealrun's id (``state.ID_FILE``); without one nothing is
  recorded about it. A submodule's files belong to the repository around it, as in the tree.
- Links in a path are resolved: an editor that follows one writes where it leads.
- Only small regular files are read, and the way up is bounded.
"""
# pathlib costs every hook 4 ms:
# ruff: noqa: PTH112, PTH118, PTH120

from __future__ import annotations

import os

from sealrun.ownership.intentlog import read_file

#: ``state.ID_FILE``; a test holds the two together.
ID_FILE = "sealrun/id"
_DEEPEST = 128
_SMALL = 4096
#: Characters of a path (PATH_MAX).
_LONGEST = 4096


def workspace_around(directory: str) -> tuple[str, str] | None:
    """Return the top of the workspace around a directory, resolved, and its repository's id.

    Args:
        directory: absolute and resolved; need not exist.
    """
    for _ in range(_DEEPEST):
        common = _common_directory(os.path.join(directory, ".git"))
        found = _id(common) if common is not None else None
        if found is not None:
            return directory, found
        above = os.path.dirname(directory)
        if above == directory:
            return None
        directory = above
    return None


def locate(path: str, base: str) -> tuple[str, str, str] | None:
    """Return workspace, repository id, and the path below the workspace, of one file.

    Args:
        path: as the agent names it.
        base: absolute; what a relative path is relative to.

    Returns:
        None for what belongs to no repository of ours, or to git itself.

    Raises:
        ValueError: the path cannot be one: a NUL, what no file name can hold, too long.
    """
    if len(path) > _LONGEST:
        raise ValueError(path[:80])
    resolved = os.path.realpath(os.path.join(base, path))
    os.fsencode(resolved)
    found = workspace_around(os.path.dirname(resolved))
    if found is None:
        return None
    workspace, repository = found
    inside = os.path.relpath(resolved, workspace)
    if ".git" in inside.split("/"):
        return None
    return workspace, repository, inside


def _common_directory(git: str) -> str | None:
    """Return the common git directory that a ``.git`` names (gitrepository-layout(5))."""
    if not os.path.isdir(git):
        text = read_file(git, _SMALL)
        if text is None or not text.startswith(b"gitdir: "):
            return None
        named = os.fsdecode(text[8:].rstrip(b"\n"))
        git = os.path.join(os.path.dirname(git), named)
    common = read_file(os.path.join(git, "commondir"), _SMALL)
    return git if common is None else os.path.join(git, os.fsdecode(common.rstrip(b"\n")))


def _id(common: str) -> str | None:
    text = read_file(os.path.join(common, ID_FILE), _SMALL)
    found = (text or b"").strip().decode("ascii", "replace")
    is_id = len(found) == 32 and set(found) <= set("0123456789abcdef")  # noqa: PLR2004 - 128 bits
    return found if is_id else None
