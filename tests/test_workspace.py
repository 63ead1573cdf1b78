"""The workspace is compared by content; git's opinion is not asked."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from sealrun.errors import Refused
from sealrun.snapshot import take
from sealrun.workspace import Kind, compare, replaced_objects, unified_diff

if TYPE_CHECKING:
    from pathlib import Path

    from _git import Repo


def _found(repo: Repo) -> dict[bytes, tuple[Kind, bool]]:
    comparison = compare(repo.tree(), repo.find())
    return {d.path: (d.kind, d.hidden) for d in comparison.differences}


def test_an_untouched_workspace_has_no_difference(repo: Repo) -> None:
    """Files, executables, symlinks and odd names as checked out are equal to the commit."""
    repo.write({"run.sh": "#!/bin/sh\n", os.fsdecode(b"caf\xe9"): "x", "a-b": "1", "a/b": "2"})
    (repo.path / "run.sh").chmod(0o755)
    (repo.path / "link").symlink_to("nowhere")
    repo.commit({})
    assert _found(repo) == {}


def test_a_same_size_edit_with_its_time_put_back_is_found(repo: Repo) -> None:
    """The edit that git status calls clean is a difference here."""
    repo.commit({"train.py": "SCALAR_LR = 0.5\n"})
    file = repo.path / "train.py"
    before = file.stat()
    with file.open("r+b") as handle:
        handle.write(b"SCALAR_LR = 0.3\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _found(repo) == {b"train.py": (Kind.MODIFIED, False)}
    diff = unified_diff(repo.tree(), repo.path, b"train.py")
    assert "-SCALAR_LR = 0.5" in diff
    assert "+SCALAR_LR = 0.3" in diff


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_what_an_index_flag_hides_is_found_and_named(repo: Repo, flag: str) -> None:
    """Git status is clean under these flags; the difference says that it is hidden."""
    repo.commit({"train.py": "x = 1\n"})
    repo.git("update-index", flag, "train.py")
    repo.write({"train.py": "x = 2\n"})
    assert repo.git("status", "--porcelain") == ""
    assert _found(repo) == {b"train.py": (Kind.MODIFIED, True)}


def test_a_sparse_checkout_is_no_difference(repo: Repo) -> None:
    """Files that skip-worktree leaves out on purpose are not missing."""
    repo.commit({"in/a": "1", "out/b": "2"})
    repo.git("sparse-checkout", "set", "in")
    assert not (repo.path / "out").exists()
    assert _found(repo) == {}


def test_every_other_kind_of_difference(repo: Repo) -> None:
    """Deleted, mode, type, and a directory swapped for a link to an equal copy are told apart."""
    repo.commit({"gone": "1", "mode": "2", "type": "3", "dir/file": "4", "fifo": "5", "d2/f": "6"})
    (repo.path / "gone").unlink()
    (repo.path / "mode").chmod(0o755)
    (repo.path / "type").unlink()
    (repo.path / "type").symlink_to("mode")
    (repo.path / "dir").rename(repo.path / "copy")
    (repo.path / "dir").symlink_to("copy")
    (repo.path / "fifo").unlink()
    os.mkfifo(repo.path / "fifo")
    (repo.path / "d2/f").unlink()
    (repo.path / "d2").rmdir()
    (repo.path / "d2").write_text("now a file")
    assert {path: kind for path, (kind, _) in _found(repo).items()} == {
        b"gone": Kind.DELETED,
        b"mode": Kind.MODE_CHANGED,
        b"type": Kind.TYPE_CHANGED,
        b"dir/file": Kind.DELETED,
        b"fifo": Kind.TYPE_CHANGED,
        b"d2/f": Kind.DELETED,
    }


def test_an_identical_rewrite_is_no_difference(repo: Repo) -> None:
    """New inode, new times, same bytes: nothing happened."""
    repo.commit({"train.py": "x = 1\n"})
    file = repo.path / "train.py"
    file.unlink()
    file.write_text("x = 1\n")
    assert _found(repo) == {}


def test_line_endings_that_the_commit_asks_for_are_no_difference(repo: Repo) -> None:
    """With eol=crlf git checks out other bytes than it stores; an edit of such a file is found."""
    repo.commit({".gitattributes": "*.txt text eol=crlf\n", "a.txt": "one\ntwo\n", "b.py": "x\n"})
    for name in ("a.txt", "b.py"):
        (repo.path / name).unlink()
    repo.git("checkout", "-f", "HEAD", "--", ".")
    assert (repo.path / "a.txt").read_bytes() == b"one\r\ntwo\r\n"
    assert _found(repo) == {}
    (repo.path / "b.py").write_bytes(b"x\r\n")
    (repo.path / "a.txt").write_bytes(b"one\r\n2\r\n")
    assert set(_found(repo)) == {b"a.txt", b"b.py"}


def test_attributes_of_the_workspace_excuse_nothing(repo: Repo) -> None:
    """Only the commit's own attributes count: a planted .gitattributes hides no change."""
    repo.commit({"a.txt": "one\n"})
    (repo.path / ".git/info/attributes").write_text("*.txt text eol=crlf\n")
    (repo.path / "a.txt").write_bytes(b"one\r\n")
    repo.write({".gitattributes": "*.txt text eol=crlf\n"})
    assert b"a.txt" in _found(repo)


def test_replace_refs_over_the_commits_objects_are_named(repo: Repo) -> None:
    """Only objects of this commit count; replaced history elsewhere is nobody's business here."""
    repo.commit({"a": "1"}, "old")
    repo.commit({"a": "2"})
    old, blob = repo.git("rev-parse", "HEAD~1:a"), repo.git("rev-parse", "HEAD:a")
    false = repo.git("hash-object", "-w", "--stdin", stdin=b"3")
    repo.git("replace", old, false)
    assert replaced_objects(repo.find(), repo.tree()) == ()
    repo.git("replace", blob, false)
    assert replaced_objects(repo.find(), repo.tree()) == (blob,)


def test_a_snapshot_touches_nothing(repo: Repo) -> None:
    """It holds tracked and untracked files as they are; HEAD, index and files stay as they were."""
    head = repo.commit({"a": "1", ".gitignore": "ignored\n"})
    repo.write({"a": "2", "new": "3", "ignored": "4"})
    index = (repo.path / ".git/index").read_bytes()
    commit = take(repo.find())
    tree = repo.tree(commit)
    assert {e.path: tree.read(e) for e in tree.entries} == {
        b".gitignore": b"ignored\n",
        b"a": b"2",
        b"new": b"3",
    }
    assert repo.git("rev-parse", "HEAD") == head
    assert (repo.path / ".git/index").read_bytes() == index
    assert compare(tree, repo.find()).differences == ()


def test_a_snapshot_works_without_a_commit(repo: Repo) -> None:
    """The first idea need not be committed; what cannot be taken is refused by name."""
    repo.write({"train.py": "x = 1\n"})
    assert repo.tree(take(repo.find())).parents == ()
    os.mkfifo(repo.path / "pipe")
    repo.git("add", "train.py")
    (repo.path / "train.py").unlink()
    os.mkfifo(repo.path / "train.py")
    with pytest.raises(Refused, match=r"train\.py"):
        take(repo.find())


def test_a_mount_over_a_tracked_directory_is_compared(repo: Repo, tmp_path: Path) -> None:
    """A bind mount shows other bytes under an unchanged inode tree; content tells."""
    repo.commit({"src/a.py": "x = 1\n"})
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.py").write_text("x = 2\n")
    subprocess.run(["mount", "--bind", other, repo.path / "src"], check=True)
    try:
        assert _found(repo) == {b"src/a.py": (Kind.MODIFIED, False)}
    finally:
        subprocess.run(["umount", repo.path / "src"], check=True)
