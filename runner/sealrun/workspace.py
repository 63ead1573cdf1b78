"""Compares the working directory with a CommittedTree, by content.

Rules that this module keeps:

- Every tracked file is read in full, every time: sizes and times decide nothing (a same-size edit
  with its times put back is clean to git).
- Files are opened relative to directories that were opened without following links, so a directory
  swapped for a link to a copy is a difference.
- What git would have checked out counts: line endings that the commit's attributes ask for are not
  a difference, nor is the executable bit where the repository says that it means nothing here.
- Nothing is written, and no configured filter or hook runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sealrun.tree import EXECUTABLE, FILE, SYMLINK, blob_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sealrun.git import Repository
    from sealrun.tree import CommittedTree, Entry

_CHUNK = 1 << 20
#: Bytes of a file's content that a shown diff may be made from.
DIFF_LIMIT = 1 << 20


class Kind(StrEnum):
    """How a path differs from the commit."""

    MODIFIED = "modified"
    DELETED = "deleted"
    TYPE_CHANGED = "type-changed"
    MODE_CHANGED = "mode-changed"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Difference:
    """One tracked path whose state is not the commit's.

    Attributes:
        hidden: an index flag (assume-unchanged, skip-worktree) keeps git from showing it.
    """

    path: bytes
    kind: Kind
    hidden: bool = False


@dataclass(frozen=True)
class Comparison:
    """The result of one full comparison.

    Attributes:
        files: how many paths were compared.
        size: how many bytes were read.
    """

    differences: tuple[Difference, ...]
    files: int
    size: int


def compare(tree: CommittedTree, repository: Repository) -> Comparison:
    """Compare every tracked path of the working directory with the commit."""
    reader = _Reader(tree.algorithm)
    found: list[Difference] = []
    try:
        root = os.open(repository.workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        gone = tuple(Difference(entry.path, Kind.DELETED) for entry in tree.entries)
        return Comparison(gone, len(tree.entries), 0)
    try:
        for parent, entries in _by_directory(tree.entries):
            found += reader.directory(root, parent, entries)
    finally:
        os.close(root)
    found = _without_modes(_without_conversions(found, tree, repository), repository)
    return Comparison(tuple(_with_flags(found, repository)), len(tree.entries), reader.size)


def _by_directory(entries: Sequence[Entry]) -> Iterator[tuple[bytes, list[tuple[bytes, Entry]]]]:
    groups: defaultdict[bytes, list[tuple[bytes, Entry]]] = defaultdict(list)
    for entry in entries:
        parent, _, name = entry.path.rpartition(b"/")
        groups[parent].append((name, entry))
    yield from sorted(groups.items())


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Reader:
    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self.size = 0

    def directory(
        self, root: int, parent: bytes, entries: list[tuple[bytes, Entry]]
    ) -> Iterator[Difference]:
        try:
            directory = open_directory(root, parent)
        except (FileNotFoundError, NotADirectoryError):
            yield from (Difference(entry.path, Kind.DELETED) for _, entry in entries)
            return
        except OSError:
            # ELOOP: a directory on the way is a link now.
            yield from (Difference(entry.path, Kind.TYPE_CHANGED) for _, entry in entries)
            return
        try:
            for name, entry in entries:
                kind = self._entry(directory, name, entry)
                if kind is not None:
                    yield Difference(entry.path, kind)
        finally:
            os.close(directory)

    def _entry(self, directory: int, name: bytes, entry: Entry) -> Kind | None:
        try:
            if entry.mode == SYMLINK:
                return self._link(directory, name, entry)
            return self._file(directory, name, entry)
        except FileNotFoundError:
            return Kind.DELETED
        except PermissionError:
            return Kind.UNREADABLE
        except OSError:
            # ELOOP or ENXIO: a link, a socket or a device stands where a file was.
            return Kind.TYPE_CHANGED

    def _link(self, directory: int, name: bytes, entry: Entry) -> Kind | None:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            return Kind.TYPE_CHANGED
        target = os.readlink(name, dir_fd=directory)
        digest = self._digest(len(target))
        digest.update(target)
        return None if digest.hexdigest() == entry.oid else Kind.MODIFIED

    def _file(self, directory: int, name: bytes, entry: Entry) -> Kind | None:
        # O_NONBLOCK: a planted FIFO must not hold us up.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(name, flags, dir_fd=directory)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                return Kind.TYPE_CHANGED
            if status.st_size != entry.size or self._hash(handle, entry.size) != entry.oid:
                return Kind.MODIFIED
            if bool(status.st_mode & 0o100) != (entry.mode == EXECUTABLE):
                return Kind.MODE_CHANGED
            return None
        finally:
            os.close(handle)

    def _digest(self, size: int) -> _Digest:
        return hashlib.new(self.algorithm, b"blob %d\0" % size, usedforsecurity=False)

    def _hash(self, handle: int, size: int) -> str:
        digest = self._digest(size)
        # One byte more than promised: a file that grows while it is read is a difference.
        left = size + 1
        while left and (chunk := os.read(handle, min(left, _CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
        self.size += size + 1 - left
        return digest.hexdigest()


def open_directory(root: int, path: bytes) -> int:
    """Open a directory below another, following no link on the way; the caller closes it.

    Raises:
        OSError: ``ELOOP`` or ``ENOTDIR`` where a component is a link or no directory.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    current = os.dup(root)
    for part in filter(None, path.split(b"/")):
        try:
            below = os.open(part, flags, dir_fd=current)
        finally:
            os.close(current)
        current = below
    return current


def _with_flags(found: list[Difference], repository: Repository) -> Iterator[Difference]:
    """Mark what index flags hide; drop what a sparse checkout left out on purpose."""
    if not found:
        return
    flags = {
        line[2:]: line[:1]
        for line in repository.git.run("ls-files", "-v", "-z").split(b"\0")
        if line
    }
    # The flag alone proves nothing: anybody can set it on a file and remove the file.
    sparse = repository.git.attempt("config", "--type=bool", "--get", "core.sparseCheckout")[1]
    for difference in found:
        flag = flags.get(difference.path, b"H")
        skipped = flag in (b"S", b"s")
        if skipped and difference.kind is Kind.DELETED and sparse.strip() == b"true":
            continue
        yield Difference(difference.path, difference.kind, hidden=skipped or flag.islower())


def _without_conversions(
    found: list[Difference], tree: CommittedTree, repository: Repository
) -> list[Difference]:
    """Drop files that differ only by the line endings which the commit's attributes ask for."""
    modified = [d.path for d in found if d.kind is Kind.MODIFIED]
    if not modified:
        return found
    converted: set[bytes] = set()
    for path in _crlf_paths(modified, tree, repository):
        entry = tree.get(path)
        if entry is None or entry.mode == SYMLINK:
            continue
        expected = _with_crlf(tree.read(entry))
        if read_bounded(repository.workspace, path, len(expected) + 1) == expected:
            converted.add(path)
    return [d for d in found if d.path not in converted]


def _with_crlf(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _without_modes(found: list[Difference], repository: Repository) -> list[Difference]:
    """Drop executable bits where the file system has none to speak of (``core.fileMode``)."""
    if all(d.kind is not Kind.MODE_CHANGED for d in found) or _modes_count(repository):
        return found
    return [d for d in found if d.kind is not Kind.MODE_CHANGED]


def _modes_count(repository: Repository) -> bool:
    answer = repository.git.attempt("config", "--type=bool", "--get", "core.fileMode")[1]
    return answer.strip() != b"false"


def checked_out(tree: CommittedTree, repository: Repository) -> tuple[Entry, ...]:
    """Return a commit's entries as the guard has to expect them in this working directory.

    Where git's settings turn line endings, or say that modes mean nothing, a file may rightly
    differ from its blob; then the entry says what stands there now. ``compare`` decides by the same
    settings whether that is right.
    """
    if not _may_convert(tree, repository):
        return tree.entries
    paths = [entry.path for entry in tree.entries if entry.mode != SYMLINK]
    turned = set(_crlf_paths(paths, tree, repository)) if paths else set()
    modes_count = _modes_count(repository)
    return tuple(
        entry
        if entry.mode == SYMLINK
        else _as_it_stands(entry, tree, repository, turned=entry.path in turned, mode=modes_count)
        for entry in tree.entries
    )


def _may_convert(tree: CommittedTree, repository: Repository) -> bool:
    """Tell cheaply, without git, whether any setting could make files differ from their blobs."""
    if any(entry.path.rpartition(b"/")[2] == b".gitattributes" for entry in tree.entries):
        return True
    text = b""
    for file in (repository.common_dir / "config", repository.git_dir / "config.worktree"):
        with contextlib.suppress(OSError):
            text += file.read_bytes().lower()
    text = b"".join(text.split())
    return any(word in text for word in (b"autocrlf", b"eol=", b"filemode=false", b"[include"))


def _as_it_stands(
    entry: Entry, tree: CommittedTree, repository: Repository, *, turned: bool, mode: bool
) -> Entry:
    if not mode:
        with contextlib.suppress(OSError):
            status = os.lstat(os.fsencode(repository.workspace) + b"/" + entry.path)
            entry = replace(entry, mode=EXECUTABLE if status.st_mode & 0o100 else FILE)
    if turned:
        content = _with_crlf(tree.read(entry))
        if read_bounded(repository.workspace, entry.path, len(content) + 1) == content:
            entry = replace(entry, oid=blob_id(content, tree.algorithm), size=len(content))
    return entry


def _crlf_paths(paths: list[bytes], tree: CommittedTree, repository: Repository) -> Iterator[bytes]:
    """Yield the paths that git would check out with CRLF (gitattributes(5), ``text`` and ``eol``).

    The attributes come from the commit by way of a private index, never from the working
    directory or the repository.
    """
    git = repository.git
    config = {}
    for key in ("core.autocrlf", "core.eol"):
        config[key] = git.attempt("config", "--get", key)[1].strip().lower()
    native_crlf = config["core.autocrlf"] == b"true" or config["core.eol"] == b"crlf"
    with tempfile.TemporaryDirectory(prefix="sealrun-") as scratch:
        # A git directory of our own over the same objects: info/attributes of the workspace's
        # repository outranks the commit's, and anybody can write it.
        git.run("init", "-q", "--bare", f"--object-format={tree.algorithm}", scratch)
        extra = {
            "GIT_DIR": scratch,
            "GIT_OBJECT_DIRECTORY": str(repository.common_dir / "objects"),
            "GIT_INDEX_FILE": str(Path(scratch) / "index"),
        }
        git.run("read-tree", tree.tree, extra=extra)
        output = git.run(
            *("check-attr", "--cached", "-z", "--stdin", "text", "eol", "crlf"),
            stdin=b"\0".join(paths) + b"\0",
            extra=extra,
        )
    values: defaultdict[bytes, dict[bytes, bytes]] = defaultdict(dict)
    fields = output.split(b"\0")
    for path, name, value in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
        values[path][name] = value
    for path, attributes in values.items():
        text, eol = attributes.get(b"text"), attributes.get(b"eol")
        if text == b"unset" or eol == b"lf":
            continue
        marked = text in (b"set", b"auto") or attributes.get(b"crlf") == b"set"
        automatic = config["core.autocrlf"] == b"true"
        if eol == b"crlf" or (native_crlf and (marked or automatic)):
            yield path


def read_bounded(workspace: Path, path: bytes, limit: int) -> bytes | None:
    """Return the first ``limit`` bytes of a regular file of the workspace, following no link.

    Returns:
        None where no regular file can be read.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        root = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            parent, _, name = path.rpartition(b"/")
            directory = open_directory(root, parent)
        finally:
            os.close(root)
        try:
            handle = os.open(name, flags, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        return file.read(limit)


def unified_diff(
    tree: CommittedTree, workspace: Path, path: bytes, *, lines: int = 40
) -> tuple[str, ...]:
    """Return a short unified diff from the commit to the working directory.

    Args:
        lines: how many lines at most; a cut is said in the last line.

    Returns:
        Lines without newlines; what cannot be shown as text is said in words.
    """
    entry = tree.get(path)
    before = tree.read(entry) if entry is not None and entry.size <= DIFF_LIMIT else b""
    after = read_bounded(workspace, path, DIFF_LIMIT) or b""
    return diff_lines(before, after, path, lines=lines)


def diff_lines(before: bytes, after: bytes, path: bytes, *, lines: int = 40) -> tuple[str, ...]:
    """Return a short unified diff of two contents; see ``unified_diff``."""
    import difflib

    name = path.decode("utf-8", "backslashreplace")
    if b"\0" in before[:8192] or b"\0" in after[:8192]:
        return (f"{name}: binary, {len(before)} bytes in the commit, {len(after)} on disk",)
    old = before.decode("utf-8", "backslashreplace").splitlines()
    new = after.decode("utf-8", "backslashreplace").splitlines()
    diff = list(
        difflib.unified_diff(old, new, f"{name} (commit)", f"{name} (disk)", lineterm="", n=1)
    )
    if not diff:
        return (f"{name}: differs in line endings, in its last newline, or not as text",)
    if len(diff) > lines:
        return (*diff[: lines - 1], f"… {len(diff) - lines + 1} more lines")
    return tuple(diff)


def replaced_objects(repository: Repository, tree: CommittedTree) -> tuple[str, ...]:
    """Return the objects of a commit that replace refs hide behind others (git-replace(1))."""
    output = repository.git.attempt(
        "for-each-ref", "--format=%(refname:lstrip=2)", "refs/replace/"
    )[1]
    replaced = set(output.decode("ascii", "replace").split())
    if not replaced:
        return ()
    held = {tree.commit} | tree.trees | {entry.oid for entry in tree.entries}
    return tuple(sorted(replaced & held))
