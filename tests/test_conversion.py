"""What git checks out is computed here as git does it; real checkouts are the judge."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from _git import Repo
from sealrun.checkout import Checkout
from sealrun.conversion import (
    ENCODINGS,
    Driver,
    Pointer,
    Rule,
    Setting,
    encoded,
    lfs_pointer,
    stored,
)
from sealrun.guard.manifest import read_manifest, write_manifest
from sealrun.tree import blob_id
from sealrun.workspace import Comparison, Kind, checked_out, compare

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sealrun.git import Repository
    from sealrun.tree import CommittedTree

# -- real checkouts ------------------------------------------------------------------------------


@dataclass
class World:
    """A repository made of exact blobs and checked out by git itself."""

    repo: Repo
    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])

    @classmethod
    def make(
        cls, directory: Path, blobs: Mapping[str, bytes], config: Mapping[str, str] | None = None
    ) -> World:
        """Commit blobs as they are (no clean filter, no conversion), configure, check out."""
        repo = Repo.create(directory)
        stream = [b"commit refs/heads/main\ncommitter A <a@example.invalid> 0 +0000\ndata 0\n"]
        for name, content in blobs.items():
            stream.append(b"M 100644 inline %s\ndata %d\n" % (name.encode(), len(content)))
            stream += [content, b"\n"]
        repo.git("fast-import", "--quiet", stdin=b"".join(stream))
        with (repo.path / ".git/config").open("a") as file:
            for key, value in (config or {}).items():
                section, _, name = key.rpartition(".")
                section, _, below = section.partition(".")
                file.write(f'[{section} "{below}"]\n' if below else f"[{section}]\n")
                file.write(f'\t{name} = "{value}"\n')
        repo.git("reset", "-q", "--hard")
        return cls(repo, dict(blobs))

    @cached_property
    def tree(self) -> CommittedTree:
        """The commit, read once."""
        return self.repo.tree()

    @cached_property
    def repository(self) -> Repository:
        """The repository, found once."""
        return self.repo.find()

    def compare(self) -> Comparison:
        """Compare as a run does."""
        return compare(self.tree, self.repository)

    def kinds(self) -> dict[str, Kind]:
        """Return what differs."""
        return {os.fsdecode(d.path): d.kind for d in self.compare().differences}

    def on_disk(self, name: str) -> bytes:
        """Return a file of the working directory."""
        return (self.repo.path / name).read_bytes()

    def expected(self) -> dict[str, str]:
        """Return the digests that the guard is told to expect."""
        manifest = self.repo.path.parent / "manifest"
        expected = checked_out(self.tree, self.repository)
        write_manifest(manifest, self.tree.algorithm, expected)
        return {os.fsdecode(g.path): g.digest for g in read_manifest(manifest).files}

    def guard_agrees(self) -> dict[str, Kind]:
        """The guard's manifest differs from the disk exactly where the comparison says so."""
        kinds = self.kinds()
        for name, digest in self.expected().items():
            content = self.on_disk(name)
            assert (digest != blob_id(content)) == (name in kinds), name
        return kinds


PARTS = (
    *(b"\n", b"\r\n", b"\r", b"\r\r\n", b"\n\n", b"x", b"line\n", b"  ", b"\t", b"\0", b"\x1a"),
    *(b"$", b"$$", b"$I", b"$Id", b"$Id$", b"$Id:", b"$Id:$", b"$Id: $", b"$Id: word $"),
    *(b"$Id: two words $", b"$Id: tab\there $", b"$Id: " + b"a1" * 20 + b" $", b":", b" $"),
    *(b"\x07" * 3, b"\x7f", b"y" * 130, b"\xef\xbb\xbf", "äöü".encode(), "日本".encode()),
    *("\U0001f600".encode(), "\U000e0041".encode(), b"\xff", b"\xed\xa0\x80", b"\xc0\x80"),
)
PIECES = st.sampled_from(PARTS)
CONTENTS = st.one_of(
    st.lists(PIECES, max_size=12).map(b"".join),
    st.binary(max_size=300),
    st.lists(PIECES, min_size=1, max_size=6).map(lambda parts: b"".join(parts) * 400),
)
#: Written as in a .gitattributes file.
ALL_WORDS = (
    *("text", "-text", "!text", "text=auto", "text=auto", "text=what", "binary", "windows"),
    *("eol=lf", "eol=crlf", "eol=crlf", "eol", "-eol", "crlf", "-crlf", "crlf=input", "crlf=auto"),
    *("ident", "ident", "ident", "-ident", "ident=x", "filter=none", "filter=idle"),
    *(
        f"working-tree-encoding={name}"
        for name in ("UTF-16", "utf16le", "UTF-16LE-BOM", "UTF-16BE-BOM", "UTF-32", "ISO-8859-1")
    ),
    *(f"working-tree-encoding={name}" for name in ("CP1252", "UTF-8", "utf8", "us-ascii")),
)
WORDS = st.lists(st.sampled_from(ALL_WORDS), max_size=4).map(" ".join)
VALUES = {
    "core.autocrlf": ("true", "false", "input", "YES", "1", "Input", "0"),
    "core.eol": ("lf", "crlf", "native", "CRLF"),
    "filter.idle.clean": ("cat",),
}
CONFIGS = st.fixed_dictionaries(
    {}, optional={key: st.sampled_from(values) for key, values in VALUES.items()}
)
FILES = st.lists(st.tuples(CONTENTS, WORDS), min_size=1, max_size=10)


def _blobs(files: list[tuple[bytes, str]], everywhere: str) -> dict[str, bytes]:
    """Give each file its line of attributes; one in three gets them from its own directory."""
    lines = ["[attr]windows text eol=crlf", f"* {everywhere}"]
    blobs: dict[str, bytes] = {}
    for number, (content, words) in enumerate(files):
        name = f"d{number % 3}/f{number}.txt"
        blobs[name] = content
        if number % 3:
            lines.append(f"{name} {words}")
        else:
            inner = blobs.get("d0/.gitattributes", b"")
            blobs["d0/.gitattributes"] = inner + f"f{number}.* {words}\n".encode()
    return blobs | {".gitattributes": "\n".join(lines).encode() + b"\n"}


@settings(max_examples=20, deadline=None)
@given(files=FILES, everywhere=WORDS, config=CONFIGS, data=st.data())
def test_a_real_checkout_is_equal_and_one_byte_more_or_less_is_not(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[bytes, str]],
    everywhere: str,
    config: dict[str, str],
    data: st.DataObject,
) -> None:
    """Any content under any attributes and settings: what git wrote is equal, no edit of it is."""
    world = World.make(tmp_path_factory.mktemp("w"), _blobs(files, everywhere), config)
    assert world.guard_agrees() == {}
    edited: set[str] = set()
    for name in sorted(world.blobs):
        if name.endswith(".gitattributes"):
            continue
        content = world.on_disk(name)
        if content != world.blobs[name]:
            event("converted")
        mutated = _mutated(content, data)
        (world.repo.path / name).write_bytes(mutated)
        if mutated not in (content, world.blobs[name]):
            edited.add(name)
    kinds = world.guard_agrees()
    assert set(kinds) == edited
    if Kind.CONVERTED_OTHERWISE in kinds.values():
        event("converted otherwise")
    _otherwise_is_what_git_says(world, kinds)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 30))]
)
def test_hundreds_of_files_of_one_checkout_are_equal_and_no_edit_of_them_is(
    tmp_path: Path, seed: int
) -> None:
    """The same at length, with the words of every attribute drawn for each file."""
    random = Random(seed)  # noqa: S311 - a test's data, the same each time
    files = [
        (b"".join(random.choices(PARTS, k=random.randint(0, 14))) * random.choice((1, 1, 1, 60)),
         " ".join(random.choices(ALL_WORDS, k=random.randint(0, 4))))
        for _ in range(400)
    ]  # fmt: skip
    config = {key: random.choice(values) for key, values in VALUES.items() if random.random() < 0.6}
    world = World.make(tmp_path, _blobs(files, random.choice(ALL_WORDS)), config)
    assert world.guard_agrees() == {}
    edited: set[str] = set()
    for name in world.blobs.keys() - {".gitattributes", "d0/.gitattributes"}:
        content, at = world.on_disk(name), random.randint(0, 40)
        mutated = content[:at] + random.choice(PARTS[:8]) + content[at + random.randint(0, 2) :]
        (world.repo.path / name).write_bytes(mutated)
        edited |= {name} if mutated not in (content, world.blobs[name]) else set()
    kinds = world.guard_agrees()
    assert set(kinds) == edited
    _otherwise_is_what_git_says(world, kinds)


def _mutated(content: bytes, data: st.DataObject) -> bytes:
    at = data.draw(st.integers(0, len(content)))
    one = data.draw(st.sampled_from([b"\r", b"\n", b"x", b"\0", b"$"]))
    how = data.draw(st.sampled_from(["insert", "replace", "delete", "unix", "dos"]))
    if how in ("unix", "dos"):
        unix = content.replace(b"\r\n", b"\n")
        return unix if how == "unix" else unix.replace(b"\n", b"\r\n")
    return content[:at] + (b"" if how == "delete" else one) + content[at + (how != "insert") :]


def _otherwise_is_what_git_says(world: World, kinds: Mapping[str, Kind]) -> None:
    """What is called converted otherwise is what git itself stores as the committed bytes."""
    names = [name for name, kind in kinds.items() if kind is Kind.CONVERTED_OTHERWISE]
    if names:
        world.repo.git("-c", "core.safecrlf=false", "add", "--", *names)
        assert world.repo.git("diff", "--cached", "--name-only") == ""


@pytest.mark.parametrize("everywhere", ["text=auto eol=crlf", "text=auto", ""])
def test_gits_guesses_at_what_is_text_are_ours(tmp_path: Path, everywhere: str) -> None:
    """Mixed endings, carriage returns, binaries and the limits of what is text are left alone."""
    contents = {
        "lf": b"a\nb\n",
        "mixed": b"a\r\nb\n",
        "crlf": b"a\r\nb\r\n",
        "cr": b"a\rb\n",
        "nul": b"a\0\n",
        "text-127": b"\x01\n" + b"x" * 127,
        "text-128": b"\x01\n" + b"x" * 128,
        "mark-at-end": b"\x01\n" + b"x" * 128 + b"\x1a",
        "mark-within": b"\x01\n" + b"x" * 128 + b"\x1ax",
        "escape": b"\x1b\x0c\b\t\n",
        "delete": b"\x7f\n",
        "empty": b"",
    }
    blobs = contents | {".gitattributes": f"* {everywhere}\n".encode()}
    world = World.make(tmp_path, blobs, {"core.autocrlf": "true"})
    turned = {name for name in contents if world.on_disk(name) != contents[name]}
    assert turned == {"lf", "text-128", "mark-at-end", "escape"}
    assert world.guard_agrees() == {}
    for name in contents.keys() - turned:
        with_crlf = contents[name].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        (world.repo.path / name).write_bytes(with_crlf)
    assert set(world.kinds()) == contents.keys() - turned - {"crlf", "empty"}


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(PIECES, max_size=8),
    strips=st.booleans(),
    guessed=st.booleans(),
    encoding=st.sampled_from([None, "UTF-16", "UTF-16LE", "ISO-8859-1", "nonsense"]),
)
def test_no_content_is_too_odd_to_be_stored(
    parts: list[bytes], *, strips: bool, guessed: bool, encoding: str | None
) -> None:
    """Bytes that are not of the encoding are not stored at all; nothing raises."""
    content = b"".join(parts)
    rule = Rule(strips=strips, guessed=guessed, ident=True, encoding=encoding)
    for given_bytes in (content, encoded(content, encoding or "UTF-8")):
        found = stored(given_bytes, content, rule)
        assert found is None or isinstance(found, bytes)


@pytest.fixture(scope="module")
def every_character() -> str:
    """All that UTF-8 can hold."""
    return "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)


@pytest.mark.parametrize("name", ENCODINGS)
def test_each_known_encoding_is_the_one_of_iconv(name: str, every_character: str) -> None:
    """Every character that either side can write is written as the C library writes it."""
    ours = every_character.encode(name, "ignore")
    command = ["iconv", "-c", "-f", "UTF-8", "-t", name]
    theirs = subprocess.run(
        command, input=every_character.encode(), capture_output=True, check=False
    )
    assert ours == theirs.stdout
    assert encoded(ours.decode(name).encode(), name) == ours


# -- settings of the machine ---------------------------------------------------------------------


def test_line_endings_by_the_users_own_configuration_are_equal_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A global core.autocrlf is no drift; the comparison says which setting it rests on."""
    world = World.make(tmp_path, {"a.txt": b"one\ntwo\n", "b.py": b"x\n", "c": b"\0\n"})
    home = tmp_path / "gitconfig"
    home.write_text("[core]\n\tautocrlf = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home))
    (world.repo.path / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    comparison = world.compare()
    assert comparison.differences == ()
    (configured,) = comparison.configured
    assert configured.paths == (b"a.txt",)
    assert str(configured.setting) == f"core.autocrlf=true in {home}"
    world.guard_agrees()
    monkeypatch.delenv("GIT_CONFIG_GLOBAL")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    assert world.kinds() == {"a.txt": Kind.MODIFIED}


def test_a_setting_made_live_hides_nothing_but_line_endings(tmp_path: Path) -> None:
    """With core.autocrlf set under our eyes an edit is found, and the excuse is on record."""
    world = World.make(tmp_path, {"train.py": b"LR = 0.5\nB = 1\n", "run.sh": b"#!/bin/sh\n"})
    world.repo.git("config", "core.autocrlf", "true")
    (world.repo.path / "run.sh").write_bytes(b"#!/bin/sh\r\n")
    (world.repo.path / "train.py").write_bytes(b"LR = 0.3\r\nB = 1\r\n")
    comparison = world.compare()
    assert [(d.path, d.kind) for d in comparison.differences] == [(b"train.py", Kind.MODIFIED)]
    assert [c.paths for c in comparison.configured] == [(b"run.sh",)]


def test_an_equality_by_the_commits_own_attributes_needs_no_note(tmp_path: Path) -> None:
    """Only what the commit does not ask for is named."""
    blobs = {".gitattributes": b"*.bat text eol=crlf\n", "a.bat": b"dir\n"}
    world = World.make(tmp_path, blobs, {"core.autocrlf": "false"})
    assert world.on_disk("a.bat") == b"dir\r\n"
    assert world.compare().configured == ()


@pytest.mark.parametrize("place", [".git/info/attributes", "sub/.gitattributes", ".gitattributes"])
def test_attributes_that_are_not_in_the_commit_excuse_nothing(tmp_path: Path, place: str) -> None:
    """Whatever anybody plants as attributes, the commit's own decide."""
    world = World.make(tmp_path, {".gitattributes": b"*.x text\n", "sub/a.txt": b"one\n$Id$\n"})
    (world.repo.path / place).parent.mkdir(exist_ok=True)
    (world.repo.path / place).write_text("*.txt text eol=crlf ident working-tree-encoding=UTF-16\n")
    (world.repo.path / "sub/a.txt").write_bytes(b"one\r\n$Id$\r\n")
    assert world.kinds()["sub/a.txt"] is Kind.MODIFIED


def test_an_overwritten_attributes_object_excuses_nothing(tmp_path: Path) -> None:
    """Attributes come from bytes that were hashed, not from what git serves under their id."""
    world = World.make(tmp_path, {".gitattributes": b"*.x text\n", "a.txt": b"one\n"})
    tree, repo = world.tree, world.repo
    old = repo.git("rev-parse", "HEAD:.gitattributes")
    other = repo.git("hash-object", "-w", "--stdin", stdin=b"*.txt text eol=crlf\n")
    for pack in (repo.path / ".git/objects/pack").glob("*"):
        pack.rename(tmp_path / pack.name)
    for pack in tmp_path.glob("*.pack"):
        repo.git("unpack-objects", "-q", stdin=pack.read_bytes())
    objects = repo.path / ".git/objects"
    victim = objects / old[:2] / old[2:]
    victim.chmod(0o644)
    victim.write_bytes((objects / other[:2] / other[2:]).read_bytes())
    assert "eol=crlf" in repo.git("cat-file", "blob", old)
    (repo.path / "a.txt").write_bytes(b"one\r\n")
    differences = compare(tree, repo.find()).differences
    assert [(d.path, d.kind) for d in differences] == [(b"a.txt", Kind.MODIFIED)]


def test_modes_and_links_that_mean_nothing_here_are_equal_and_named(tmp_path: Path) -> None:
    """core.fileMode=false and core.symlinks=false are obeyed, and on record."""
    repo = Repo.create(tmp_path)
    (repo.path / "link").symlink_to("run.sh")
    repo.commit({"run.sh": "#!/bin/sh\n"})
    world = World(repo, {"run.sh": b"#!/bin/sh\n", "link": b"run.sh"})
    repo.git("config", "core.fileMode", "false")
    repo.git("config", "core.symlinks", "false")
    (repo.path / "run.sh").chmod(0o755)
    (repo.path / "link").unlink()
    (repo.path / "link").write_text("run.sh")
    comparison = world.compare()
    assert comparison.differences == ()
    assert {(c.setting.name, c.paths) for c in comparison.configured} == {
        ("core.filemode", (b"run.sh",)),
        ("core.symlinks", (b"link",)),
    }
    modes = {e.path: e.mode for e in checked_out(repo.tree(), repo.find())}
    assert modes == {b"link": 0o100644, b"run.sh": 0o100755}
    (repo.path / "link").write_text("run.py")
    assert world.kinds() == {"link": Kind.TYPE_CHANGED}


def test_a_sparse_checkout_is_equal_and_named(tmp_path: Path) -> None:
    """What it leaves out is neither missing to the comparison nor expected by the guard."""
    world = World.make(tmp_path, {"in/a": b"1", "out/b": b"2"})
    world.repo.git("sparse-checkout", "set", "in")
    comparison = world.compare()
    assert comparison.differences == ()
    assert [(c.setting.name, c.paths) for c in comparison.configured] == [
        ("core.sparsecheckout", (b"out/b",))
    ]
    assert set(world.expected()) == {"in/a"}


def test_a_converted_file_keeps_its_mode(tmp_path: Path) -> None:
    """An executable bit is a difference also where the content was excused."""
    blobs = {".gitattributes": b"*.txt eol=crlf\n", "a.txt": b"one\n"}
    world = World.make(tmp_path, blobs)
    (world.repo.path / "a.txt").chmod(0o755)
    assert world.kinds() == {"a.txt": Kind.MODE_CHANGED}


def test_a_submodule_has_attributes_and_settings_of_its_own(tmp_path: Path) -> None:
    """What the repository says of *.txt does not reach into a submodule, nor the other way."""
    inner = World.make(tmp_path / "i", {".gitattributes": b"*.md eol=crlf\n", "a.md": b"1\n"}).repo
    inner.commit({"b.txt": "2\n"})
    outer = World.make(tmp_path / "o", {".gitattributes": b"*.txt eol=crlf\n", "c.md": b"3\n"}).repo
    outer.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner.path), "sub")
    outer.git("commit", "-q", "-m", "with a submodule")
    world = World(outer)
    assert world.on_disk("sub/a.md") == b"1\r\n"
    assert world.kinds() == {}
    for name in ("c.md", "sub/b.txt"):
        content = world.on_disk(name)
        (outer.path / name).write_bytes(content.replace(b"\n", b"\r\n"))
    assert world.kinds() == {"c.md": Kind.MODIFIED, "sub/b.txt": Kind.MODIFIED}


# -- ids that went stale -------------------------------------------------------------------------


def test_what_git_takes_back_when_it_stores_is_told_apart_from_an_edit(tmp_path: Path) -> None:
    """An id of the last commit and a line that was appended with LF are differences of that name.

    Words of other kinds in place of the id are an edit, though git takes those back too.
    """
    blobs = {
        ".gitattributes": b"*.py ident\n*.bat eol=crlf\n*.u text working-tree-encoding=UTF-16\n",
        "a.py": b"# $Id$\n",
        "b.py": b"x = '$Id$'\n",
        "c.bat": b"one\ntwo\n",
        "d.u": b"text\n",
    }
    world = World.make(tmp_path, blobs)
    (world.repo.path / "a.py").write_bytes(b"# $Id: " + b"0" * 40 + b" $\n")
    (world.repo.path / "b.py").write_bytes(b"x = '$Id: '+evil()+' $'\n")
    (world.repo.path / "c.bat").write_bytes(b"one\r\ntwo\n")
    (world.repo.path / "d.u").write_bytes(b"\xfe\xff" + "text\n".encode("utf-16-be"))
    differences = {os.fsdecode(d.path): d for d in world.compare().differences}
    assert {name: d.kind for name, d in differences.items()} == {
        "a.py": Kind.CONVERTED_OTHERWISE,
        "b.py": Kind.MODIFIED,
        "c.bat": Kind.CONVERTED_OTHERWISE,
        "d.u": Kind.CONVERTED_OTHERWISE,
    }
    assert "git takes back" in differences["a.py"].why
    _otherwise_is_what_git_says(world, world.guard_agrees())


# -- filters -------------------------------------------------------------------------------------

SECRET = b"".join(b"line %d\n" % n for n in range(1000))
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:"
    + hashlib.sha256(SECRET).hexdigest().encode()
    + b"\nsize %d\n" % len(SECRET)
)


def test_a_smudge_filter_is_never_run_and_its_file_never_taken_for_equal(tmp_path: Path) -> None:
    """What stands behind a filter cannot be judged and says so; the blob itself is fine."""
    ran = tmp_path / "ran"
    blobs = {".gitattributes": b"*.x filter=up\n", "a.x": b"abc\n", "b.x": b"ABC\n"}
    world = World.make(tmp_path, blobs, {"filter.up.smudge": f"touch {ran}; tr a-z A-Z"})
    ran.unlink()
    assert world.on_disk("a.x") == b"ABC\n"
    (difference,) = world.compare().differences
    assert (difference.path, difference.kind) == (b"a.x", Kind.NOT_COMPARABLE)
    assert "the filter up" in difference.why
    world.guard_agrees()
    assert not ran.exists()


@pytest.mark.parametrize(
    "config",
    [{}, {"filter.up.smudge": "cat"}, {"filter.up.clean": "tr A-Z a-z"}, {"filter.up.process": ""}],
)
def test_behind_a_filter_that_changes_nothing_every_byte_counts(
    tmp_path: Path, config: dict[str, str]
) -> None:
    """No command, cat, or a clean side alone: git writes the blob, so anything else differs."""
    blobs = {".gitattributes": b"*.x filter=up eol=crlf\n", "a.x": b"abc\n"}
    world = World.make(tmp_path, blobs, config)
    assert world.on_disk("a.x") == b"abc\r\n"
    assert world.kinds() == {}
    (world.repo.path / "a.x").write_bytes(b"ABC\r\n")
    assert world.kinds() == {"a.x": Kind.MODIFIED}


def test_a_git_lfs_file_is_judged_by_its_pointer(tmp_path: Path) -> None:
    """The content that the pointer names is equal, the pointer itself too, one other byte not."""
    attributes = b"*.bin filter=lfs diff=lfs merge=lfs -text\n"
    names = ("content.bin", "pointer.bin", "edited.bin", "extended.bin", "plain.bin")
    blobs = dict.fromkeys(names, POINTER) | {".gitattributes": attributes, "plain.bin": b"no\n"}
    extended = b"version https://git-lfs.github.com/spec/v1\next-0-x sha256:" + b"0" * 64 + b"\n"
    blobs["extended.bin"] = extended + POINTER.split(b"\n", 1)[1]
    world = World.make(tmp_path, blobs)
    assert world.kinds() == {}
    (world.repo.path / "content.bin").write_bytes(SECRET)
    (world.repo.path / "edited.bin").write_bytes(SECRET[:-1] + b"x")
    (world.repo.path / "extended.bin").write_bytes(SECRET)
    (world.repo.path / "plain.bin").write_bytes(b"No\n")
    assert world.kinds() == {
        "edited.bin": Kind.MODIFIED,
        "extended.bin": Kind.NOT_COMPARABLE,
        "plain.bin": Kind.MODIFIED,
    }
    world.guard_agrees()


def test_only_the_plain_form_is_a_pointer() -> None:
    """What has another form, or more in it, is not believed."""
    assert lfs_pointer(POINTER) == Pointer(hashlib.sha256(SECRET).hexdigest(), len(SECRET))
    for other in (POINTER[:-1], POINTER + b"x", POINTER.replace(b"\n", b"\r\n"), b"", SECRET):
        assert lfs_pointer(other) is None
    assert lfs_pointer(POINTER.replace(b"size ", b"size 0000000000000000000")) is None


def test_an_encoding_that_is_not_known_cannot_be_judged(tmp_path: Path) -> None:
    """Its file is never taken for equal unless it is the blob."""
    blobs = {
        ".gitattributes": b"*.jp working-tree-encoding=SHIFT-JIS\n",
        "a.jp": "日本\n".encode(),
        "b.jp": b"ascii\n",
    }
    world = World.make(tmp_path, blobs)
    assert world.on_disk("a.jp") == "日本\n".encode("shift-jis")
    (difference,) = world.compare().differences
    assert (difference.path, difference.kind) == (b"a.jp", Kind.NOT_COMPARABLE)
    assert "SHIFT-JIS" in difference.why


# -- cost, and what settings say -----------------------------------------------------------------


def test_a_plain_workspace_costs_no_call_of_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every file is its blob, neither configuration nor attributes are asked for."""
    world = World.make(tmp_path, {".gitattributes": b"* text=auto\n", "a.py": b"x\n"})
    tree, repository = world.tree, world.repository
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert compare(tree, repository).differences == ()


def test_attributes_that_cannot_change_a_file_are_not_looked_up(tmp_path: Path) -> None:
    """The common ``* text=auto`` costs nothing where text has LF."""
    world = World.make(tmp_path, {".gitattributes": b"* text=auto\n*.png binary\n", "a": b"x\n"})
    tree = world.tree
    assert Checkout(tree, world.repository).rules(tree.entries) == {}
    assert checked_out(tree, world.repository) is tree.entries


@pytest.mark.parametrize(
    ("value", "on"),
    [
        (None, True),
        (b"", False),
        *((v, True) for v in (b"true", b"Yes", b"ON", b"1", b"-1", b"2k")),
        *((v, False) for v in (b"false", b"No", b"off", b"0", b"00", b"0k")),
    ],
)
def test_a_boolean_is_read_as_git_reads_it(repo: Repo, value: bytes | None, *, on: bool) -> None:
    """A key without a value is true, an empty one false, numbers count."""
    line = "a" if value is None else f"a = {value.decode()}"
    with (repo.path / ".git/config").open("a") as file:
        file.write(f"[x]\n\t{line}\n")
    assert (repo.git("config", "--type=bool", "x.a") == "true") is on
    assert Setting("x.a", value, "").on is on


def test_a_filter_is_known_by_its_commands() -> None:
    """An empty process command switches the smudge command off."""
    assert not Driver().configured
    assert Driver(smudge=b"x").changes
    assert not Driver(smudge=b"x", process=b"").changes
    assert Driver(process=b"x").changes
    assert Driver(clean=b"x").configured
    assert not Driver(clean=b"x", smudge=b" cat ").changes
