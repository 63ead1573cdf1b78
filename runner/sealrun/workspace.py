"""Compares the working directory with a CommittedTree, by content.

Rules that this module keeps:

- Every tracked file is read in full, every time: sizes and times decide nothing (a same-size edit
  with its times put back is clean to git).
- Files are opened relative to directories that were opened without following links, so a directory
  swapped for a link to a copy is a difference.
- What git would have checked out counts (``conversion.py``): a file is equal when it is its blob, or
  what git writes for that blob under the commit's attributes, to the byte.
- Where only a setting of this machine makes a file equal, the comparison names the setting; what
  cannot be judged without running a filter is a difference that says so.
- What the guard is told to expect, and what ``compare`` accepts, one and the same function judged.
- Nothing is written, and no configured filter or hook runs.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from sealrun.checkout import Checkout
from sealrun.conversion import LFS, Judged, Judgement, Standing, judge
from sealrun.tree import EXECUTABLE, FILE, SYMLINK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sealrun.conversion import Rule, Setting
    from sealrun.git import Repository
    from sealrun.tree import CommittedTree, Entry

_CHUNK = 1 << 20
#: Bytes of a file's content that a shown diff may be made from.
DIFF_LIMIT = 1 << 20
#: Bytes of a blob, and of the file beside it, that a conversion is computed for.
CONVERSION_LIMIT = 1 << 28
#: How much longer than its blob a file can be that git wrote: four bytes a character, and ``$Id$``
#: with an id of 64 digits in it.
_GROWTH, _MARK = 72, 4096


class Kind(StrEnum):
    """How a path differs from the commit.

    ``CONVERTED_OTHERWISE``: git would store the committed bytes for it, but checks out others.
    ``NOT_COMPARABLE``: what git would have written here is known only by running a filter.
    """

    MODIFIED = "modified"
    CONVERTED_OTHERWISE = "converted otherwise than git would"
    NOT_COMPARABLE = "not comparable"
    DELETED = "deleted"
    TYPE_CHANGED = "type-changed"
    MODE_CHANGED = "mode-changed"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Difference:
    """One tracked path whose state is not the commit's.

    Attributes:
        hidden: an index flag (assume-unchanged, skip-worktree) keeps git from showing it.
        why: what the kind rests on, in words, where that is not plain.
    """

    path: bytes
    kind: Kind
    hidden: bool = False
    why: str = ""


@dataclass(frozen=True)
class Configured:
    """Paths that are as checked out only because of a setting that is not in the commit.

    Anybody who can write the repository's or the user's configuration can make one.
    """

    setting: Setting
    paths: tuple[bytes, ...]


@dataclass(frozen=True)
class Comparison:
    """The result of one full comparison.

    Attributes:
        files: how many paths were compared.
        size: how many bytes were read.
        configured: equalities that rest on git's configuration here.
    """

    differences: tuple[Difference, ...]
    files: int
    size: int
    configured: tuple[Configured, ...] = ()


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
    if not found:
        return Comparison((), len(tree.entries), reader.size)
    look = _SecondLook(tree, repository)
    differences = tuple(look.at(found))
    return Comparison(differences, len(tree.entries), reader.size, look.configured())


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


class _SecondLook:
    """Judges what differs from its blob by how git checks files out here."""

    def __init__(self, tree: CommittedTree, repository: Repository) -> None:
        self.tree = tree
        self.repository = repository
        self.checkout = Checkout(tree, repository)
        self._configured: defaultdict[Setting, list[bytes]] = defaultdict(list)

    def configured(self) -> tuple[Configured, ...]:
        """Return the settings by which something was found equal."""
        return tuple(Configured(s, tuple(paths)) for s, paths in self._configured.items())

    def at(self, found: list[Difference]) -> Iterator[Difference]:
        """Yield what of the differences remains."""
        entries = {d.path: entry for d in found if (entry := self.tree.get(d.path)) is not None}
        modified = [entries[d.path] for d in found if d.kind is Kind.MODIFIED]
        rules = self.checkout.rules(modified)
        flags = _index_flags(self.repository)
        for first in found:
            flag = flags.get(first.path, b"H")
            difference = self._one(first, entries[first.path], rules.get(first.path), flag)
            if difference is not None:
                yield replace(difference, hidden=flag in b"Ss" or flag.islower())

    def _one(
        self, found: Difference, entry: Entry, rule: Rule | None, flag: bytes
    ) -> Difference | None:
        settings = self.checkout.settings(self.checkout.module(entry.path))
        setting: Setting | None = None
        if found.kind is Kind.MODIFIED and rule is not None:
            state = _look(self.tree, self.repository.workspace, entry, rule)
            if state is None or state.judged is None:
                # Gone, or the blob itself by now: it differed when it was read.
                return found
            kind = _KINDS.get(state.judged.judgement)
            if kind is not None:
                return replace(found, kind=kind, why=state.judged.why)
            self._note(rule.setting, entry)
            if state.mode == entry.mode:
                return None
            found, setting = replace(found, kind=Kind.MODE_CHANGED), settings.modes
        elif found.kind is Kind.MODE_CHANGED:
            setting = settings.modes
        elif found.kind is Kind.TYPE_CHANGED and entry.mode == SYMLINK and settings.links:
            plain = read_bounded(self.repository.workspace, entry.path, entry.size + 1)
            setting = settings.links if plain == self.tree.read(entry) else None
        elif found.kind is Kind.DELETED and flag in b"Ss":
            # The flag alone proves nothing: anybody can set it on a file and remove the file.
            setting = settings.sparse
        self._note(setting, entry)
        return found if setting is None else None

    def _note(self, setting: Setting | None, entry: Entry) -> None:
        if setting is not None:
            self._configured[setting].append(entry.path)


#: How the judgements that are not equality are called.
_KINDS = {
    Judgement.OTHERWISE: Kind.CONVERTED_OTHERWISE,
    Judgement.UNKNOWN: Kind.NOT_COMPARABLE,
    Judgement.DIFFERENT: Kind.MODIFIED,
}


def _index_flags(repository: Repository) -> dict[bytes, bytes]:
    """Return the letter that git-ls-files(1) gives each path of the index."""
    output = repository.git.run("ls-files", "-v", "-z")
    return {line[2:]: line[:1] for line in output.split(b"\0") if line}


@dataclass(frozen=True)
class _State:
    """A regular file as it stands, judged.

    Attributes:
        oid: git's id of its bytes as they are.
        judged: None where these are the blob.
    """

    mode: int
    oid: str
    size: int
    judged: Judged | None

    @property
    def judgement(self) -> Judgement | None:
        """The judgement alone."""
        return None if self.judged is None else self.judged.judgement


def _look(tree: CommittedTree, workspace: Path, entry: Entry, rule: Rule) -> _State | None:
    """Read a file once and judge it.

    Returns:
        None where no regular file stands there, or where it changed while it was read.
    """
    handle = _open(workspace, entry.path)
    if handle is None:
        return None
    with os.fdopen(handle, "rb", buffering=0) as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            return None
        size = status.st_size
        digest = hashlib.new(tree.algorithm, b"blob %d\0" % size, usedforsecurity=False)
        whole = hashlib.sha256() if rule.filter is not None and rule.filter.name == LFS else None
        possible = size <= _GROWTH * entry.size + _MARK
        fits = max(size, entry.size) <= CONVERSION_LIMIT
        kept = bytearray() if possible and fits else None
        left = size + 1
        while left and (chunk := file.read(min(left, _CHUNK))):
            digest.update(chunk)
            if whole is not None:
                whole.update(chunk)
            if kept is not None:
                kept += chunk
            left -= len(chunk)
    if left != 1:
        return None
    state = _State(_mode(status), digest.hexdigest(), size, None)
    if state.oid == entry.oid:
        return state
    if possible and kept is None:
        why = "it is too large for its conversion to be computed"
        return replace(state, judged=Judged(Judgement.UNKNOWN, why))
    sha256 = None if whole is None else whole.hexdigest()
    standing = Standing(size, sha256, None if kept is None else bytes(kept))
    return replace(state, judged=judge(standing, tree.read(entry), entry.oid, rule))


def checked_out(tree: CommittedTree, repository: Repository) -> tuple[Entry, ...]:
    """Return a commit's entries as the guard has to expect them in this working directory.

    Where git converts files, or says that modes mean nothing, a file may rightly differ from its
    blob; then the entry says what stands there now. What ``compare`` calls a difference, by the
    same judgement, is none of this: there the entry is the commit's.
    """
    checkout = Checkout(tree, repository)
    rules = checkout.rules(tree.entries)
    everywhere = [checkout.settings(module) for module in checkout.modules]
    if not rules and not any(s.modes or s.links or s.sparse for s in everywhere):
        return tree.entries
    flags = _index_flags(repository) if checkout.settings().sparse else {}
    expected: list[Entry] = []
    for entry in tree.entries:
        settings = checkout.settings(checkout.module(entry.path))
        status = _lstat(repository.workspace, entry.path)
        if status is None:
            left_out = settings.sparse is not None and flags.get(entry.path, b"H") in b"Ss"
            expected += [] if left_out else [entry]
        elif entry.mode == SYMLINK:
            plain = settings.links is not None and stat.S_ISREG(status.st_mode)
            expected.append(replace(entry, mode=FILE) if plain else entry)
        else:
            rule = rules.get(entry.path)
            stands = entry
            state = None if rule is None else _look(tree, repository.workspace, entry, rule)
            if state is not None and state.judgement is Judgement.CHECKED_OUT:
                stands = replace(entry, oid=state.oid, size=state.size)
            if settings.modes is not None:
                stands = replace(stands, mode=_mode(status))
            expected.append(stands)
    return tuple(expected)


def _mode(status: os.stat_result) -> int:
    return EXECUTABLE if status.st_mode & 0o100 else FILE


def _lstat(workspace: Path, path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(os.fsencode(workspace) + b"/" + path)
    except OSError:
        return None


def _open(workspace: Path, path: bytes) -> int | None:
    """Open a path of the workspace for reading, following no link; None where that fails."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    parent, _, name = path.rpartition(b"/")
    try:
        root = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            directory = open_directory(root, parent)
        finally:
            os.close(root)
        try:
            return os.open(name, flags, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError:
        return None


def read_bounded(workspace: Path, path: bytes, limit: int) -> bytes | None:
    """Return the first ``limit`` bytes of a regular file of the workspace, following no link.

    Returns:
        None where no regular file can be read.
    """
    handle = _open(workspace, path)
    if handle is None:
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
