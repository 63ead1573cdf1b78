"""CommittedTree and the spool believe nothing that git says."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _git import Repo
from sealrun.errors import (
    ObjectCorrupt,
    RepositoryError,
    SealRefused,
    StorageFault,
    UsageError,
)
from sealrun.git import Repository
from sealrun.tree import (
    EXECUTABLE,
    FILE,
    SYMLINK,
    Spool,
    blob_id,
    object_id,
    parse_tree,
    read_commit,
)

if TYPE_CHECKING:
    from pathlib import Path


def _object(repo: Repo, oid: str) -> Path:
    return repo.path / ".git" / "objects" / oid[:2] / oid[2:]


def _overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(zlib.compress(content))


def test_a_commit_is_read_byte_for_byte(repo: Repo) -> None:
    """Files, modes, symlinks and names that are not UTF-8 come out exactly as committed."""
    name = os.fsdecode(b"caf\xe9.txt")
    repo.write({"a/b/run.sh": "#!/bin/sh\n", "empty": b"", name: b"\x00\xff\r\n"})
    (repo.path / "a/b/run.sh").chmod(0o755)
    (repo.path / "link").symlink_to("a/b")
    repo.commit({}, "first line\n\nmore")
    tree = repo.tree()
    assert {e.path: (e.mode, tree.read(e)) for e in tree.entries} == {
        b"a/b/run.sh": (EXECUTABLE, b"#!/bin/sh\n"),
        b"caf\xe9.txt": (FILE, b"\x00\xff\r\n"),
        b"empty": (FILE, b""),
        b"link": (SYMLINK, b"a/b"),
    }
    assert tree.subject == "first line"
    assert list(tree.entries) == sorted(tree.entries, key=lambda e: e.path)


def test_another_reader_finds_the_same(repo: Repo) -> None:
    """GitPython, which parses git's objects in Python, reads the same paths, modes, ids and bytes."""
    import git

    repo.write({"a/b/run.sh": "#!/bin/sh\n", "a.py": "x = 1\n", "empty": b"", "a-b": b"\x00\r\n"})
    (repo.path / "a/b/run.sh").chmod(0o755)
    (repo.path / "link").symlink_to("a/b")
    repo.commit({}, "a commit")
    tree = repo.tree()
    ours = {os.fsdecode(e.path): (e.mode, e.oid, tree.read(e)) for e in tree.entries}
    # Its processes stay until it is closed.
    with git.Repo(repo.path) as other:
        theirs = {
            str(found.path): (found.mode, found.hexsha, found.data_stream.read())
            for found in other.commit(tree.commit).tree.traverse()
            if isinstance(found, git.Blob)
        }
    assert theirs == ours


def test_attributes_do_not_touch_the_bytes(repo: Repo) -> None:
    """export-ignore, export-subst and eol change what git archive gives, never what we read."""
    repo.commit(
        {
            ".gitattributes": "* export-subst eol=crlf text\nsecret export-ignore\n",
            "version": "$Format:%H$\n",
            "secret": "kept\n",
        }
    )
    tree = repo.tree()
    content = {entry.path: tree.read(entry) for entry in tree.entries}
    assert content[b"version"] == b"$Format:%H$\n"
    assert content[b"secret"] == b"kept\n"


@pytest.mark.parametrize("kind", ["blob", "tree", "commit"])
def test_an_overwritten_object_is_refused(repo: Repo, kind: str) -> None:
    """Git cat-file serves a planted loose object under its old id; we hash and refuse it."""
    commit = repo.commit({"train.py": "SCALAR_LR = 0.5\n"})
    oids = {
        "commit": commit,
        "tree": repo.git("rev-parse", "HEAD^{tree}"),
        "blob": repo.git("rev-parse", "HEAD:train.py"),
    }
    other = {
        "blob": b"blob 16\0SCALAR_LR = 0.3\n",
        "tree": b"tree 0\0",
        "commit": b"commit %d\0" % len(planted := b"tree " + oids["tree"].encode() + b"\n\nx")
        + planted,
    }
    _overwrite(_object(repo, oids[kind]), other[kind])
    with pytest.raises(ObjectCorrupt, match=oids[kind]):
        repo.tree()


def test_a_spooled_object_outlives_its_corruption_in_git(repo: Repo) -> None:
    """What was verified once is served from the spool with the right bytes."""
    repo.commit({"train.py": "SCALAR_LR = 0.5\n"})
    tree = repo.tree()
    _overwrite(_object(repo, tree.entries[0].oid), b"blob 16\0SCALAR_LR = 0.3\n")
    again = repo.tree()
    assert again.read(again.entries[0]) == b"SCALAR_LR = 0.5\n"


def test_a_damaged_spool_is_noticed(repo: Repo) -> None:
    """The spool's bytes are hashed each time they are read; damage costs one run, no more."""
    repo.commit({"train.py": "SCALAR_LR = 0.5\n"})
    tree = repo.tree()
    file = repo.spools / "objects-sha1"
    file.write_bytes(file.read_bytes().replace(b"0.5", b"0.3"))
    with pytest.raises(StorageFault, match="damaged"):
        tree.read(tree.entries[0])
    again = repo.tree()
    assert again.read(again.entries[0]) == b"SCALAR_LR = 0.5\n"


def test_a_spool_that_was_cut_off_is_filled_again(repo: Repo) -> None:
    """Rows that point beyond the end of the bytes give way to the objects read anew."""
    repo.commit({"train.py": "SCALAR_LR = 0.5\n"})
    repo.tree()
    os.truncate(repo.spools / "objects-sha1", 10)
    for _ in range(2):
        tree = repo.tree()
        assert tree.read(tree.entries[0]) == b"SCALAR_LR = 0.5\n"


def test_a_broken_index_of_the_spool_is_made_again(repo: Repo) -> None:
    """The spool is a cache: garbage in its index costs time and nothing else."""
    repo.commit({"a": "1\n"})
    repo.tree()
    (repo.spools / "index-sha1.sqlite").write_bytes(b"garbage" * 1000)
    tree = repo.tree()
    assert tree.read(tree.entries[0]) == b"1\n"


def test_a_missing_object_is_refused_with_its_path(repo: Repo) -> None:
    """The message names the file, so that its owner knows what to restore."""
    repo.commit({"deep/train.py": "x = 1\n"})
    _object(repo, repo.git("rev-parse", "HEAD:deep/train.py")).unlink()
    with pytest.raises(ObjectCorrupt, match=r"deep/train\.py.*missing"):
        repo.tree()


def test_a_partial_clone_is_never_fetched_silently(repo: Repo, tmp_path: Path) -> None:
    """A blob that only the promisor has is refused; nothing is fetched behind the user's back."""
    repo.commit({"train.py": "x = 1\n"})
    repo.git("config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "clone"
    subprocess.run(
        ["git", "clone", "-q", "--filter=blob:none", "--no-checkout", f"file://{repo.path}", clone],
        check=True,
    )
    repository = Repository.find(clone)
    spools = tmp_path / "other"
    spools.mkdir()
    with pytest.raises(ObjectCorrupt, match="missing"):
        read_commit(repository, repository.resolve(), Spool(spools, "sha1"))
    packs = list((clone / ".git/objects").rglob("*.promisor"))
    assert len(packs) <= 1


def test_replace_refs_do_not_reach_us(repo: Repo) -> None:
    """Git show follows refs/replace; we read the true object."""
    repo.commit({"train.py": "SCALAR_LR = 0.5\n"})
    true = repo.git("rev-parse", "HEAD:train.py")
    false = repo.git("hash-object", "-w", "--stdin", stdin=b"SCALAR_LR = 0.3\n")
    repo.git("replace", true, false)
    assert repo.git("show", "HEAD:train.py") == "SCALAR_LR = 0.3"
    tree = repo.tree()
    assert tree.read(tree.entries[0]) == b"SCALAR_LR = 0.5\n"


def test_sha256_repositories_work(tmp_path: Path) -> None:
    """GitPython and pygit2 fail here; our own reading does not."""
    repo = Repo.create(tmp_path, "--object-format=sha256")
    repo.commit({"train.py": "x = 1\n", "d/e": "2\n"})
    tree = repo.tree()
    assert (tree.algorithm, len(tree.commit)) == ("sha256", 64)
    assert tree.read(tree.entries[1]) == b"x = 1\n"


def test_a_submodule_is_part_of_the_tree(repo: Repo, tmp_path: Path) -> None:
    """A submodule that is checked out is sealed with its own commit's files; a missing one is not."""
    other = Repo.create(tmp_path / "other")
    other.commit({"lib.py": "y = 2\n"})
    repo.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", str(other.path), "sub")
    repo.commit({})
    tree = repo.tree()
    assert [e.path for e in tree.entries] == [b".gitmodules", b"sub/lib.py"]
    repo.git("submodule", "deinit", "-q", "-f", "sub")
    with pytest.raises(SealRefused, match="submodule"):
        repo.tree()


def test_names_that_git_would_not_check_out_are_refused(repo: Repo) -> None:
    """A tree made by hand cannot smuggle .git or .. into an image."""
    blob = repo.git("hash-object", "-w", "--stdin", stdin=b"x")
    for name in (b".git", b".GIT", b".."):
        content = b"100644 " + name + b"\0" + bytes.fromhex(blob)
        with pytest.raises(SealRefused):
            parse_tree(content, "sha1", b"")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser_of_trees(content: bytes) -> None:
    """Whatever a tree object holds, the parser returns entries or says what is wrong."""
    with contextlib.suppress(ObjectCorrupt, SealRefused):
        parse_tree(content, "sha1", b"")


@given(st.binary(max_size=2000))
def test_blob_ids_are_gits(content: bytes) -> None:
    """Our id of a blob is the hash of its header and bytes, as git's own is."""
    assert blob_id(content) == object_id("blob", content, "sha1")


def test_where_there_is_nothing_to_run(tmp_path: Path, repo: Repo) -> None:
    """No repository, no commit, a bare one, an unknown revision: each says so and what to do."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RepositoryError, match="not in a git repository"):
        Repository.find(empty)
    with pytest.raises(RepositoryError, match="no commit yet"):
        repo.find().resolve()
    repo.commit({"a": "1"})
    with pytest.raises(UsageError, match="not known"):
        repo.find().resolve("no-such-branch")
    with pytest.raises(UsageError, match="not known"):
        repo.find().resolve("--all")
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "bare"], check=True)
    with pytest.raises(RepositoryError, match="bare"):
        Repository.find(tmp_path / "bare")
    with pytest.raises(RepositoryError, match="inside a git directory"):
        Repository.find(repo.path / ".git")


def test_a_detached_head_and_a_worktree_are_fine(repo: Repo, tmp_path: Path) -> None:
    """HEAD need not be on a branch; a linked worktree shares the repository's id and objects."""
    commit = repo.commit({"a": "1"})
    repo.git("checkout", "-q", "--detach")
    assert repo.find().branch is None
    repo.git("worktree", "add", "-q", str(tmp_path / "linked"))
    linked = Repository.find(tmp_path / "linked")
    assert linked.common_dir == repo.find().common_dir
    assert linked.resolve() == commit


def test_hostile_configuration_runs_nothing(repo: Repo, tmp_path: Path) -> None:
    """fsmonitor, hooks, filters and pagers of a repository stay unused in our own calls."""
    trap = tmp_path / "sprung"
    script = tmp_path / "trap.sh"
    script.write_text(f"#!/bin/sh\ntouch {trap}\ncat\n")
    script.chmod(0o755)
    repo.commit({".gitattributes": "* filter=trap\n", "a": "1\n"})
    for key in ("core.fsmonitor", "core.pager", "filter.trap.smudge", "filter.trap.clean"):
        repo.git("config", key, str(script))
    hook = repo.path / ".git/hooks/reference-transaction"
    hook.write_bytes(script.read_bytes())
    hook.chmod(0o755)
    repository = repo.find()
    repo.tree()
    repository.pin("01ABC", repository.resolve())
    assert repository.pinned() == ("01ABC",)
    assert not trap.exists()


def test_a_spool_that_was_removed_is_said(repo: Repo) -> None:
    """Clearing up may take the spool of a repository where nothing runs: again, it is there again."""
    repo.commit({"train.py": "A = 1\n"})
    tree = repo.tree()
    shutil.rmtree(tree.spool.directory)
    with pytest.raises(StorageFault, match="was removed meanwhile") as told:
        tree.read(tree.entries[0])
    assert "Repeat the command" in (told.value.hint or "")
    tree.spool.directory.mkdir()
    again = repo.tree()
    assert again.read(again.entries[0]) == b"A = 1\n"
