"""The base debian-python for tests, made once on a machine and then linked into each test's places.

Rules: it is made by the real recipe and kept outside any test's places, under
``SEALRUN_TEST_CACHE`` or ``~/.cache/sealrun-tests``; a test's places get hard links (or copies) of
its layers, which the store keeps read-only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.image.base import host_platform, make_base, source
from sealrun.image.store import LayerStore, Records
from sealrun.progress import Silent
from sealrun.state import Places, private
from sealrun.tree import CommittedTree

if TYPE_CHECKING:
    from sealrun.image.model import Base


#: How many listings of an engine's files a test's places are given.
_RECENT = 20


def shared_cache() -> Path:
    """Return the directory that outlives test runs."""
    named = os.environ.get("SEALRUN_TEST_CACHE")
    return private(Path(named) if named else Path.home() / ".cache" / "sealrun-tests")


def shared_places() -> Places:
    """Return places inside the shared cache."""
    root = shared_cache()
    return Places(root / "state", root / "data", root / "cache", root / "runtime")


def no_tree() -> CommittedTree:
    """Return a commit without files: recipes do not look into the commit."""
    return CommittedTree(
        commit="0" * 40,
        tree="4b825dc642cb6eb9a060e54bf8d69288fbee4904",
        algorithm="sha1",
        entries=(),
        trees=frozenset(),
        submodules=(),
        subject="",
        parents=(),
        spool=None,  # type: ignore[arg-type]  # nothing is ever read from an empty tree
    )


def shared_base(places: Places, name: str = "debian-python") -> Base:
    """Put the base of a shipped recipe into ``places`` and return it; made at most once a machine.

    ``find_base(name, …, places, …)`` finds it afterwards.
    """
    tree, platform = no_tree(), host_platform()
    made = make_base(name, tree, shared_places(), platform, None, Silent())
    for layer in made.layers:
        target = places.layers / layer.path.name
        if target.exists():
            continue
        try:
            os.link(layer.path, target)
        except OSError:
            shutil.copyfile(layer.path, target)
    records = Records(places.bases, LayerStore(places.layers))
    key = source(name, tree, platform).key
    records.put_base(key, made)
    found = records.base(key)
    assert found is not None
    _copy_witnesses(shared_places(), places)
    return found


def keep_witnesses(places: Places) -> None:
    """Let later tests' first runs know which files of the engine a run has compared by content.

    What has changed since is compared again, as in any home.
    """
    # A test may have left anything in the way of its home's records.
    with contextlib.suppress(OSError):
        _copy_witnesses(places, shared_places())


def _copy_witnesses(source: Places, target: Places) -> None:
    known = (source.data / "records").glob("witness-*.json")
    for file in sorted(known, key=lambda one: one.stat().st_mtime)[-_RECENT:]:
        draft = target.bases / f"{file.name}.{os.getpid()}"
        shutil.copyfile(file, draft)
        draft.replace(target.bases / file.name)
