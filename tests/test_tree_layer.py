"""The tree layer: exact bytes, refusals, and the cache."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from _image import (
    AWKWARD,
    EXECUTABLE,
    FILE,
    GITLINK,
    SYMLINK,
    Content,
    Workshop,
    commit,
    committed,
    git,
    repository,
)
from sealrun.errors import SealRefused, StorageFault
from sealrun.image import tree_layer
from sealrun.image.model import MTIME
from sealrun.image.tree_layer import (
    KEPT,
    USED_RECENTLY,
    TreeLayers,
    check,
    decode,
    encode,
    is_lfs_pointer,
    leaves,
)
from sealrun.sandbox.protocol import FileState
from sealrun.tree import Entry

if TYPE_CHECKING:
    from collections.abc import Mapping


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Return an empty workshop."""
    return Workshop(tmp_path)


def _members(path: Path) -> dict[bytes, tarfile.TarInfo]:
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as archive:
        return {os.fsencode(member.name): member for member in archive}


def _content(path: Path, name: bytes) -> bytes:
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as archive:
        file = archive.extractfile(os.fsdecode(name))
        assert file is not None
        return file.read()


def test_every_byte_mode_and_link_is_the_commits(workshop: Workshop) -> None:
    """Bytes, exec bits, links, odd and long names stand in the layer as committed."""
    layer = workshop.trees.layer(workshop.tree(AWKWARD)).layer
    members = _members(layer.path)
    for path, content in AWKWARD.items():
        mode, data = content if isinstance(content, tuple) else (FILE, content)
        member = members[b"workspace/" + path]
        if mode == SYMLINK:
            assert member.issym()
            assert os.fsencode(member.linkname) == data
        else:
            assert member.isreg()
            assert member.mode == (0o755 if mode == EXECUTABLE else 0o644)
            assert _content(layer.path, b"workspace/" + path) == data
    plain = [m for m in members.values() if not m.isdir()]
    assert len(plain) == len(AWKWARD)


def test_attributes_do_not_touch_a_byte(workshop: Workshop) -> None:
    """What export-ignore, export-subst and eol do to git archive is not done here."""
    tree = workshop.tree(AWKWARD)
    exported = git(workshop.root / "repository-1", "archive", "HEAD")
    layer = workshop.trees.layer(tree).layer
    assert b"git archive would drop this" not in exported
    assert b"$Format:%H$" not in exported
    assert _content(layer.path, b"workspace/ignored") == AWKWARD[b"ignored"]
    assert _content(layer.path, b"workspace/subst") == b"$Format:%H$\n"
    assert _content(layer.path, b"workspace/lines.eol") == b"git archive would add CR\n"


def test_nothing_of_this_machine_is_in_the_layer(workshop: Workshop) -> None:
    """Owner, time and names are constant; parents stand before children, paths in order."""
    layer = workshop.trees.layer(workshop.tree(AWKWARD)).layer
    members = _members(layer.path)
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members.values()} == {
        (0, 0, "", "", MTIME)
    }
    assert next(iter(members)) == b"workspace"
    seen: set[bytes] = {b""}
    for path, member in members.items():
        assert path.rpartition(b"/")[0] in seen
        if member.isdir():
            assert member.mode == 0o1777
            seen.add(path)
    files = [path for path, member in members.items() if not member.isdir()]
    assert files == sorted(files)


def test_the_manifest_lists_everything_below_the_workdir(workshop: Workshop) -> None:
    """Each file, link and directory stands in it with mode, size and hash, and nothing else."""
    made = workshop.trees.layer(workshop.tree(AWKWARD))
    states = {state.path: state for state in made.manifest}
    members = _members(made.layer.path)
    assert {b"workspace/" + path for path in states} == set(members) - {b"workspace"}
    for path, content in AWKWARD.items():
        mode, data = content if isinstance(content, tuple) else (FILE, content)
        kind, bits = {
            FILE: ("file", 0o644),
            EXECUTABLE: ("file", 0o755),
            SYMLINK: ("symlink", 0o777),
        }[mode]
        digest = hashlib.sha256(data).hexdigest()
        assert states[path] == FileState(path, kind, bits, len(data), digest)
    assert states[b"deep/0"] == FileState(b"deep/0", "directory", 0o1777, 0, None)


def test_an_empty_tree_is_an_empty_workdir(workshop: Workshop) -> None:
    """A commit without files is sealed as a layer that holds the workdir alone."""
    made = workshop.trees.layer(workshop.tree({}))
    assert list(_members(made.layer.path)) == [b"workspace"]
    assert made.manifest == ()
    assert workshop.trees.layer(workshop.tree({})).reused


def test_a_file_larger_than_any_buffer_is_exact(workshop: Workshop) -> None:
    """Several mebibytes that are no multiple of a block come back the same."""
    data = os.urandom(3 * (1 << 20) + 77)
    made = workshop.trees.layer(workshop.tree({b"big": data, b"after": b"x"}))
    assert _content(made.layer.path, b"workspace/big") == data
    assert _content(made.layer.path, b"workspace/after") == b"x"


def test_committed_bytecode_is_reported(workshop: Workshop) -> None:
    """Compiled files are named, when the layer is written and when it is reused."""
    files = {b"a/__pycache__/x.cpython-311.pyc": b"\0", b"b.pyo": b"", b"c.py": b""}
    tree = workshop.tree(files)
    expected = (b"a/__pycache__/x.cpython-311.pyc", b"b.pyo")
    assert workshop.trees.layer(tree).bytecode == expected
    again = workshop.trees.layer(tree)
    assert again.reused
    assert again.bytecode == expected


_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)

_REFUSED: dict[str, tuple[Mapping[bytes, Content], bytes, str]] = {
    "absolute link": ({b"a/l": (SYMLINK, b"/etc/passwd")}, b"a/l", "leads out of the tree"),
    "absolute link into the workdir": (
        {b"l": (SYMLINK, b"/workspace/x"), b"x": b""},
        b"l",
        "leads out of the tree",
    ),
    "link above the root": ({b"a/l": (SYMLINK, b"../../x")}, b"a/l", "leads out of the tree"),
    "link out and in again": ({b"a/l": (SYMLINK, b"../../workspace")}, b"a/l", "leads out"),
    "link through another": (
        {b"a/b/up": (SYMLINK, b"../.."), b"l": (SYMLINK, b"a/b/up/../x")},
        b"l",
        "leads out of the tree",
    ),
    "LFS pointer": ({b"data/model.bin": _POINTER}, b"data/model.bin", "Git LFS pointer"),
    "LFS pointer with extensions": (
        {b"m": _POINTER.replace(b"oid", b"ext-0-foo sha256:" + b"a" * 64 + b"\noid", 1)},
        b"m",
        "Git LFS pointer",
    ),
    "whiteout": ({b"a/.wh.b": b""}, b"a/.wh.b", "removed file"),
    "opaque directory": ({b"a/.wh..wh..opq": b""}, b"a/.wh..wh..opq", "removed file"),
    "whiteout as a directory": ({b".wh.a/b": b""}, b".wh.a/b", "removed file"),
    "name too long": ({b"a/" + b"n" * 256: b""}, b"n" * 256, "longer than 255"),
    "path too long": ({b"/".join([b"d" * 200] * 21): b""}, b"d" * 200, "too long for Linux"),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_what_cannot_be_sealed_faithfully_is_refused(workshop: Workshop, case: str) -> None:
    """The refusal names the path and says what to do; nothing stays in the store."""
    files, path, words = _REFUSED[case]
    tree = workshop.tree(files)
    with pytest.raises(SealRefused, match=words) as caught:
        workshop.trees.layer(tree)
    assert path.decode() in caught.value.message
    assert caught.value.hint
    assert list(workshop.trees.directory.iterdir()) == []


def test_links_that_stay_inside_are_sealed(workshop: Workshop) -> None:
    """Dangling, circular, upward and chained links inside the tree are fine."""
    files: Mapping[bytes, Content] = {
        b"a/up": (SYMLINK, b".."),
        b"a/through": (SYMLINK, b"up/x"),
        b"dangling": (SYMLINK, b"nowhere/at/all"),
        b"loop": (SYMLINK, b"loop"),
        b"one": (SYMLINK, b"two"),
        b"two": (SYMLINK, b"one/../x"),
        b"x": b"",
    }
    made = workshop.trees.layer(workshop.tree(files))
    assert {s.path for s in made.manifest if s.kind == "symlink"} == set(files) - {b"x"}


def test_a_file_that_only_mentions_lfs_is_sealed(workshop: Workshop) -> None:
    """The pointer's first line alone, later, or in a large file is no pointer."""
    line = _POINTER.splitlines()[0]
    files = {b"a": line + b"\n", b"b": b"# " + _POINTER, b"c": _POINTER + b" " * 1024}
    workshop.trees.layer(workshop.tree(files))
    assert is_lfs_pointer(_POINTER)
    assert not any(is_lfs_pointer(content) for content in files.values())


def test_a_submodule_that_is_not_there_is_refused(workshop: Workshop) -> None:
    """A gitlink without its checkout never becomes an empty directory."""
    with pytest.raises(SealRefused, match="sub"):
        workshop.tree({b"sub": (GITLINK, b"1" * 40)})
    with pytest.raises(SealRefused, match="160000"):
        check([Entry(b"sub", 0o160000, "1" * 40, 0)])


@pytest.mark.parametrize(
    "paths",
    [
        [b"a", b"a"],
        [b"a", b"a/b"],
        [b"../a"],
        [b"a/./b"],
        [b"a//b"],
        [b".git/config"],
        [b"a/.GIT/hooks/x"],
        [b"a\0b"],
        [b"b", b"a"],
    ],
)
def test_paths_that_no_git_would_check_out_are_refused(paths: list[bytes]) -> None:
    """Duplicates, files that are directories, and ways out never reach a layer."""
    with pytest.raises(SealRefused):
        check([Entry(path, 0o100644, "0" * 40, 0) for path in paths])


_NAMES = st.sampled_from([b"a", b"b", b"c"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map(b"/".join)
_TARGETS = st.lists(st.sampled_from([b"a", b"b", b"c", b"..", b".."]), min_size=1, max_size=5).map(
    b"/".join
)


@given(st.dictionaries(_PATHS, _TARGETS, max_size=5))
@example({b"a": b"c/../a", b"b": b"a/../.."})
def test_leaving_the_tree_agrees_with_a_real_file_system(links: dict[bytes, bytes]) -> None:
    """Whether a link leads out is what walking real links on a real file system says."""
    links = {p: t for p, t in links.items() if not any(p.startswith(q + b"/") for q in links)}
    with tempfile.TemporaryDirectory() as parent:
        root = Path(parent).resolve() / "tree"
        root.mkdir()
        for path, target in links.items():
            link = root / os.fsdecode(path)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.fsdecode(target))
        for path in links:
            end = _end(root / os.fsdecode(path), root)
            if end is not None:
                assert leaves(path, links) == (not end.is_relative_to(root))


def _end(link: Path, root: Path) -> Path | None:
    """Return where a link leads once the names that it goes through are there; None: to no end."""
    while True:
        try:
            return Path(os.path.realpath(link, strict=True))
        except FileNotFoundError as error:
            missing = Path(error.filename)
            if not missing.is_relative_to(root):
                return missing
            missing.mkdir()
        except OSError:
            return None


def test_a_damaged_spool_is_never_sealed(workshop: Workshop) -> None:
    """A byte changed in the spool after it was verified ends the seal."""
    tree = workshop.tree({b"a": b"SCALAR_LR = 0.5\n"})
    (spooled,) = (workshop.root / "spool-1").glob("objects-*")
    spooled.write_bytes(spooled.read_bytes().replace(b"0.5", b"0.3"))
    with pytest.raises(StorageFault):
        workshop.trees.layer(tree)
    assert list(workshop.trees.directory.iterdir()) == []


def test_a_known_tree_is_not_written_twice(workshop: Workshop) -> None:
    """The second time layer and manifest come from the cache, equal to the first."""
    tree = workshop.tree(AWKWARD)
    first = workshop.trees.layer(tree)
    second = TreeLayers(workshop.trees.directory).layer(tree)
    assert not first.reused
    assert second.reused
    assert (second.layer, second.manifest) == (first.layer, first.manifest)


def test_a_record_that_names_another_trees_layer_is_no_record(workshop: Workshop) -> None:
    """Verify 2 believes the manifest, so a cached one is compared with the committed bytes."""
    good = workshop.tree({b"train.py": b"SCALAR_LR = 0.5\n"})
    first = workshop.trees.layer(good)
    (record,) = workshop.trees.directory.glob("*.json")
    bad = workshop.tree({b"train.py": b"SCALAR_LR = 0.3\n"})
    workshop.trees.layer(bad)
    (other,) = set(workshop.trees.directory.glob("*.json")) - {record}
    record.write_bytes(other.read_bytes())
    again = workshop.trees.layer(good)
    assert (again.layer, again.manifest, again.reused) == (first.layer, first.manifest, False)


@pytest.mark.parametrize("victim", ["record", "manifest", "layer", "version", "foreign"])
def test_a_damaged_cache_is_made_again(workshop: Workshop, victim: str) -> None:
    """Whatever is wrong with what was kept, the same layer comes out."""
    tree = workshop.tree(AWKWARD)
    first = workshop.trees.layer(tree)
    (record,) = workshop.trees.directory.glob("*.json")
    document = json.loads(record.read_bytes())
    if victim == "record":
        record.write_bytes(b"{")
    elif victim == "version":
        record.write_text(json.dumps(document | {"format": 0}))
    elif victim == "foreign":
        record.write_text(json.dumps(document | {"layer": "sha256:../x"}))
    elif victim == "layer":
        first.layer.path.unlink()
    else:
        manifest = workshop.trees.store.path(document["manifest"])
        manifest.chmod(0o600)
        content = manifest.read_bytes()
        manifest.write_bytes(content.replace(b"train.py", b"tra1n.py"))
    again = workshop.trees.layer(tree)
    assert not again.reused
    assert (again.layer, again.manifest) == (first.layer, first.manifest)
    assert workshop.trees.layer(tree).reused


def test_only_the_last_layers_are_kept(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old tree layers go, in order of their last use; what was used just now stays."""
    directory = repository(workshop.root / "repository")
    trees = []
    for n in range(KEPT + 3):
        commit(directory, {b"n": b"%d" % n})
        trees.append(committed(directory, workshop.root / "spool"))
        workshop.trees.layer(trees[-1])
    assert len(list(workshop.trees.directory.glob("*.json"))) == KEPT + 3
    for n, tree in enumerate(trees):
        record = workshop.trees.directory / f"sha1-{tree.tree}.json"
        os.utime(record, (n, n))
    assert workshop.trees.layer(trees[0]).reused
    monkeypatch.setattr(tree_layer, "USED_RECENTLY", 0.0)
    commit(directory, {b"n": b"last"})
    last = committed(directory, workshop.root / "spool")
    workshop.trees.layer(last)
    kept = {p.stem for p in workshop.trees.directory.glob("*.json")}
    assert kept == {f"sha1-{t.tree}" for t in [trees[0], *trees[-(KEPT - 2) :], last]}
    files = [p for p in workshop.trees.directory.iterdir() if p.suffix != ".json"]
    assert len(files) == 2 * KEPT
    assert USED_RECENTLY > 0


_PATH_BYTES = st.binary(min_size=1).map(lambda b: b.replace(b"\0", b" "))


@given(
    st.lists(
        st.builds(
            FileState,
            _PATH_BYTES,
            st.sampled_from(["file", "symlink", "directory"]),
            st.integers(0, 0o7777),
            st.integers(0, 1 << 50),
            st.none() | st.just("ab" * 32),
        )
    )
)
def test_a_manifest_survives_being_stored(states: list[FileState]) -> None:
    """Any path, newlines and spaces included, is read back as it was."""
    assert list(decode(encode(states))) == states


def test_a_torn_manifest_is_no_manifest() -> None:
    """Half a line is an error, not a shorter manifest."""
    content = encode([FileState(b"a", "file", 0o644, 1, "ab" * 32)])
    with pytest.raises(ValueError, match="no end"):
        decode(content[:-1])
