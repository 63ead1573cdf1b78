"""Reads what ``sealrun init`` has to know of a workspace.

Rules that this module keeps:

- Names come from git, its excludes heeded; bytes from regular files alone, opened without following
  a link and bounded in size and number: a repository may be hostile, or huge.
- Nothing is written, and nothing of the repository is run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.image.asked import VERSION_FILE
from sealrun.init import draft
from sealrun.init.interpreter import PROJECT
from sealrun.init.proposal import READ_BY_AGENTS, SKILL
from sealrun.init.shape import LOCKS, PREPARE, PROGRAM, TRAIN, Found
from sealrun.regular import beginning

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealrun.git import Repository

#: What may be changed or is looked into by name.
_NAMED = (
    *(draft.POLICY, PROGRAM, TRAIN, PREPARE, PROJECT, VERSION_FILE),
    *(*LOCKS, *READ_BY_AGENTS, SKILL),
)
#: Bytes of a file, and number of Python sources, that are read. Locks of torch have about 1 MB.
_LARGEST = 4 << 20
_SOURCES = 500


def look(repository: Repository) -> tuple[Found, frozenset[str]]:
    """Return what a workspace holds, and which of its paths no commit and no index holds."""
    tracked = _names(repository, "--cached")
    untracked = _names(repository, "--others", "--exclude-standard") - tracked
    paths = tracked | untracked
    sources = sorted((p for p in paths if p.endswith(".py")), key=lambda p: (p.count("/"), p))
    wanted = dict.fromkeys((*_NAMED, *sources[:_SOURCES]))
    looked = {path: read(repository.workspace, path) for path in wanted}
    contents = {path: text for path, text in looked.items() if text is not None}
    # What stands behind a link counts as there: it is not ours to replace.
    there = {path for path in _NAMED if not is_free(repository.workspace, path)}
    return Found(frozenset(paths | there), contents), frozenset(untracked)


def ignored(repository: Repository, paths: Iterable[str]) -> frozenset[str]:
    """Return those of the paths that git leaves out of ``git add``; a tracked file is not."""
    from sealrun.integrations.install import is_ignored

    return frozenset(path for path in paths if is_ignored(repository, repository.workspace / path))


def missing(sources: Iterable[str]) -> tuple[str, ...]:
    """Return those of some data sources, ``~/…``, that are not there."""
    return tuple(source for source in sources if not Path(source).expanduser().exists())


def read(workspace: Path, path: str) -> bytes | None:
    """Return the content of a small regular file of a workspace that no link leads to, or None."""
    file = workspace / path
    if not _is_direct(workspace, path):
        return None
    found = beginning(file, _LARGEST + 1)
    return found if found is not None and len(found) <= _LARGEST else None


def is_free(workspace: Path, path: str) -> bool:
    """Return whether nothing stands at a path, and no link on the way to it."""
    return not os.path.lexists(workspace / path) and _is_direct(workspace, path)


def _is_direct(workspace: Path, path: str) -> bool:
    above = (workspace / path).parent
    return os.path.realpath(above) == os.path.normpath(
        os.path.realpath(workspace) + f"/{Path(path).parent}"
    )


def _names(repository: Repository, *which: str) -> frozenset[str]:
    output = repository.git.run("ls-files", "-z", "--full-name", *which)
    return frozenset(os.fsdecode(name) for name in output.split(b"\0") if name)
