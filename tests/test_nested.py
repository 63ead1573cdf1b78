"""Directories that are nested deeper than Python nests calls, wherever strangers can nest them."""

from __future__ import annotations

import os
import resource
import stat
from typing import TYPE_CHECKING

import pytest

from sealrun import nested
from sealrun.audit.reflog import moves
from sealrun.sandbox.contents import listing_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _git import Repo

#: Deeper than Python nests calls, and still within what one path can name.
DEEP = 1200
#: Deeper than that.
DEEPER = 3000


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    """A directory that is gone at the end, however deep it has become."""
    top = tmp_path / "top"
    yield top
    nested.remove(top)


def test_a_walk_is_as_deep_as_the_directories(top: Path) -> None:
    """Every directory is named once, and links are files that are not followed."""
    nested.make(top.joinpath(*["d"] * DEEP))
    (top / "to-a-directory").symlink_to("d")
    (top / "to-nothing").symlink_to("nothing")
    found = list(nested.walk(top))
    assert len(found) == 1 + DEEP
    assert found[0][0] == str(top)
    assert found[0][1] == ["d"]
    assert sorted(found[0][2]) == ["to-a-directory", "to-nothing"]
    assert all(not files for _, _, files in found[1:])


def test_a_walk_leaves_out_what_its_caller_takes_out(top: Path) -> None:
    """Paths of bytes come back as bytes, in the order of the list that the caller was given."""
    for name in ("a/x", "b/x", "c/x"):
        nested.make(top / name)
    seen: list[bytes] = []
    for at, names, _ in nested.walk(os.fsencode(top)):
        names[:] = sorted(set(names) - {b"b"}, reverse=True)
        seen.append(os.path.relpath(at, os.fsencode(top)))
    assert seen == [b".", b"c", b"c/x", b"a", b"a/x"]


def test_what_is_deeper_than_a_path_can_say_is_removed(top: Path, tmp_path: Path) -> None:
    """Its directories may be closed, and where links lead stays as it is."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    top.mkdir()
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(top)
        for _ in range(DEEPER):
            os.mkdir("d")  # noqa: PTH102 - no path says where
            os.chdir("d")
        os.symlink(kept, "link")  # noqa: PTH211 - likewise
        os.mkdir("closed", 0)  # noqa: PTH102 - likewise
    finally:
        os.fchdir(here)
        os.close(here)
    nested.remove(top)
    assert not top.exists()
    assert (kept / "file").exists()
    nested.remove(top)


def test_a_link_and_a_file_are_removed_as_such(tmp_path: Path) -> None:
    """Neither needs to be a directory."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(".")
    nested.remove(tmp_path / "link")
    nested.remove(tmp_path / "file")
    assert not list(tmp_path.iterdir())
    assert stat.S_ISDIR(tmp_path.stat().st_mode)


def test_a_repository_with_deep_logs_is_audited(repo: Repo) -> None:
    """What moved is read, whatever else stands beside it."""
    repo.commit({"a": "1"})
    deep = repo.path / ".git" / "logs" / "refs"
    nested.make(deep.joinpath(*["d"] * DEEP))
    try:
        assert "commit" in moves(repo.find())[-1].message
    finally:
        nested.remove(deep / "d")


def test_an_image_with_deep_directories_is_listed(top: Path) -> None:
    """A change at its very end changes the digest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * DEEP)), hard))
    end = top.joinpath(*["d"] * DEEP)
    nested.make(end)
    before = listing_digest(top, ())
    assert listing_digest(top, ()) == before
    (end / "file").touch()
    assert listing_digest(top, ()) != before
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
