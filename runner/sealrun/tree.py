"""CommittedTree and the spool: what a commit holds, proven byte by byte.

Rules that this module keeps:

- Nothing from git is believed: the commit, every tree and every blob is hashed here and compared
  with the id it was asked for under (an overwritten loose object is served by ``git cat-file``
  under its old id).
- An object is fetched from git once; afterwards it comes from the spool, and is hashed again each
  time it is read.
- Nothing from the working directory is ever read here, nor filtered, nor converted.
- A tree that git itself would refuse to check out (``..``, ``.git``, a duplicate name) is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import threading
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, BinaryIO

from sealrun.errors import ObjectCorrupt, SealRefused, StorageFault
from sealrun.git import Git, Repository

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence
    from pathlib import Path

FILE = 0o100644
EXECUTABLE = 0o100755
SYMLINK = 0o120000
GITLINK = 0o160000
DIRECTORY = 0o040000

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or symlink of a commit.

    Attributes:
        path: relative to the tree's root, as git stores it.
        mode: ``FILE``, ``EXECUTABLE`` or ``SYMLINK``.
        oid: git's id of the blob, hexadecimal; its content was found to hash to it.
        size: bytes.
    """

    path: bytes
    mode: int
    oid: str
    size: int


def blob_id(content: bytes, algorithm: str = "sha1") -> str:
    """Return git's id of a blob: the hash of ``blob SIZE NUL CONTENT`` (gitformat-pack(5))."""
    digest = hashlib.new(algorithm, b"blob %d\0" % len(content), usedforsecurity=False)
    digest.update(content)
    return digest.hexdigest()


class Spool:
    """A private, verified store of git objects: one file of bytes and an index beside it.

    The bytes are appended and never moved. The index is committed after the bytes are written, so
    that a death in between leaves unreferenced bytes and nothing worse. It is cache: removing it
    costs time only.
    """

    def __init__(self, directory: Path, algorithm: str) -> None:
        self.directory = directory
        self.algorithm = algorithm
        self._bytes = directory / f"objects-{algorithm}"
        self._index = directory / f"index-{algorithm}.sqlite"
        self._known: dict[str, tuple[str, int, int]] = {}
        self._handle: int | None = None
        self._load()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._index, timeout=30, isolation_level=None)
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS objects "
            "(oid TEXT PRIMARY KEY, kind TEXT, at INTEGER, size INTEGER) STRICT, WITHOUT ROWID"
        )
        return connection

    def _load(self) -> None:
        try:
            with closing(self._connect()) as connection:
                rows = connection.execute("SELECT oid, kind, at, size FROM objects").fetchall()
        except sqlite3.DatabaseError:
            # Cache of ours, damaged: start over. What it held is fetched and verified again.
            self._index.unlink(missing_ok=True)
            rows = []
        end = self._bytes.stat().st_size if self._bytes.exists() else 0
        self._known = {oid: (kind, at, size) for oid, kind, at, size in rows if at + size <= end}

    def _drop_beyond(self, end: int) -> None:
        """Forget rows that a cut-off file of bytes no longer backs, before it grows over them."""
        with closing(self._connect()) as connection:
            connection.execute("DELETE FROM objects WHERE at + size > ?", (end,))

    def __contains__(self, oid: str) -> bool:
        return oid in self._known

    def size(self, oid: str) -> int:
        """Return the size of a stored object in bytes."""
        return self._known[oid][2]

    def read(self, oid: str, kind: str) -> bytes:
        """Return a stored object's bytes, hashed again.

        Raises:
            StorageFault: the stored bytes no longer hash to the id (the disk, or somebody), or are
                gone (``sealrun gc``).
            KeyError: it is not stored.
        """
        stored, at, size = self._known[oid]
        if self._handle is None:
            self._handle = self._opened()
        content = _pread(self._handle, size, at)
        if stored != kind or object_id(kind, content, self.algorithm) != oid:
            self._forget(oid)
            raise StorageFault(
                f"the spooled copy of {kind} {oid} in {self.directory} is damaged",
                hint="Check the disk, then run again: it is a cache, and this object is now read "
                "from git anew.",
            )
        return content

    def _opened(self) -> int:
        try:
            return os.open(self._bytes, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            words = "was removed meanwhile" if gone else f"cannot be read: {error.strerror}"
            raise StorageFault(
                f"the spool {self.directory} {words}",
                hint="Repeat the command: it is a cache, and what it held is read from git anew.",
            ) from error

    def _forget(self, oid: str) -> None:
        with suppress(sqlite3.Error), closing(self._connect()) as connection:
            connection.execute("DELETE FROM objects WHERE oid = ?", (oid,))

    @contextmanager
    def appending(self) -> Generator[_Appender]:
        """Add objects; one process at a time.

        Raises:
            StorageFault: they cannot be written.
        """
        try:
            with self._bytes.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                # Another process may have added objects while we waited.
                self._drop_beyond(file.seek(0, os.SEEK_END))
                self._load()
                appender = _Appender(self, file)
                yield appender
                file.flush()
                with closing(self._connect()) as connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.executemany(
                        "INSERT OR IGNORE INTO objects VALUES (?, ?, ?, ?)", appender.rows
                    )
                    connection.execute("COMMIT")
                self._known.update({oid: (kind, at, n) for oid, kind, at, n in appender.rows})
        except (OSError, sqlite3.Error) as error:
            raise StorageFault(
                f"cannot write the spool {self.directory}: {error}",
                hint="Free disk space; nothing was lost, the spool is a cache.",
            ) from error

    def close(self) -> None:
        """Close the file of bytes."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


@dataclass
class _Appender:
    spool: Spool
    file: BinaryIO
    rows: list[tuple[str, str, int, int]] = field(default_factory=list[tuple[str, str, int, int]])

    def add(self, oid: str, kind: str, source: IO[bytes], size: int) -> bytes | None:
        """Copy ``size`` bytes from ``source``, hashing them; return small objects' bytes.

        Raises:
            ObjectCorrupt: they do not hash to ``oid``.
        """
        at = self.file.tell()
        digest = hashlib.new(
            self.spool.algorithm, b"%s %d\0" % (kind.encode(), size), usedforsecurity=False
        )
        left, kept = size, []
        while left:
            chunk = source.read(min(left, _CHUNK))
            if not chunk:
                break
            digest.update(chunk)
            self.file.write(chunk)
            left -= len(chunk)
            if kind != "blob":
                kept.append(chunk)
        if left or digest.hexdigest() != oid:
            self.file.flush()
            self.file.truncate(at)
            raise ObjectCorrupt(
                f"git serves other bytes than it promises for {kind} {oid}",
                hint="The object was overwritten or damaged. git fsck shows more; restore it from "
                "a clone or a backup.",
            )
        self.rows.append((oid, kind, at, size))
        return b"".join(kept) if kind != "blob" else None


def object_id(kind: str, content: bytes, algorithm: str) -> str:
    """Return git's id of an object of any kind."""
    digest = hashlib.new(
        algorithm, b"%s %d\0" % (kind.encode(), len(content)), usedforsecurity=False
    )
    digest.update(content)
    return digest.hexdigest()


def _pread(handle: int, size: int, at: int) -> bytes:
    content = os.pread(handle, size, at)
    while len(content) < size:
        # pread(2) returns at most 2 GiB at once.
        more = os.pread(handle, size - len(content), at + len(content))
        if not more:
            break
        content += more
    return content


class _Objects:
    """Reads objects through the spool, and what it lacks from one ``git cat-file --batch``."""

    def __init__(self, git: Git, spool: Spool) -> None:
        self.git = git
        self.spool = spool

    def get(self, wanted: Sequence[tuple[str, str, bytes]]) -> list[bytes | None]:
        """Make objects available; return the bytes of those that are not blobs.

        Args:
            wanted: id, kind, and the path that is shown when something is wrong.

        Raises:
            ObjectCorrupt: one is missing, of another kind, or does not hash to its id.
        """
        missing = {oid: (kind, path) for oid, kind, path in wanted if oid not in self.spool}
        fetched: dict[str, bytes | None] = {}
        if missing:
            with self.spool.appending() as appender:
                todo = {oid: v for oid, v in missing.items() if oid not in self.spool}
                fetched = self._fetch(todo, appender)
        return [
            None if kind == "blob" else (fetched.get(oid) or self.spool.read(oid, kind))
            for oid, kind, _ in wanted
        ]

    def _fetch(
        self, todo: dict[str, tuple[str, bytes]], appender: _Appender
    ) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        with self.git.popen("cat-file", "--batch", "--buffer") as process:
            if process.stdin is None or process.stdout is None:  # pragma: no cover - popen pipes
                raise AssertionError
            feeder = threading.Thread(target=_feed, args=(process.stdin, list(todo)))
            feeder.start()
            try:
                for oid, (kind, path) in todo.items():
                    header = process.stdout.readline().split()
                    if header[1:2] == [b"missing"] or len(header) < 3:  # noqa: PLR2004 - id kind size
                        raise _missing(oid, kind, path)
                    if header[1] != kind.encode():
                        raise ObjectCorrupt(
                            f"{_show(path)}: object {oid} is a {header[1].decode()}, not a {kind}"
                        )
                    try:
                        found[oid] = appender.add(oid, kind, process.stdout, int(header[2]))
                    except ObjectCorrupt as error:
                        raise ObjectCorrupt(
                            f"{_show(path)}: {error.message}", hint=error.hint
                        ) from error
                    process.stdout.read(1)
            except ObjectCorrupt:
                process.kill()
                raise
            finally:
                feeder.join()
        return found


def _feed(pipe: IO[bytes], oids: Iterable[str]) -> None:
    # A dead reader shows itself by a short answer; the writer need not report it too.
    try:
        with pipe:
            pipe.write("".join(f"{oid}\n" for oid in oids).encode())
    except (BrokenPipeError, ValueError):
        return


def _missing(oid: str, kind: str, path: bytes) -> ObjectCorrupt:
    return ObjectCorrupt(
        f"{_show(path)}: {kind} {oid} is missing from the repository",
        hint="In a partial or shallow clone fetch it first (git fetch --refetch); sealrun never "
        "fetches by itself. Otherwise restore it from another clone.",
    )


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace") or "the commit"


@dataclass(frozen=True)
class CommittedTree:
    """The checked content of one commit: each id in it was compared with the bytes behind it.

    Attributes:
        commit: id of the commit.
        tree: id of its root tree.
        algorithm: ``sha1`` or ``sha256``.
        entries: files and symlinks, those of submodules included, sorted by path.
        trees: ids of all trees, the root included.
        submodules: path and commit of each.
        subject: first line of the commit's message.
        parents: ids of the parents.
    """

    commit: str
    tree: str
    algorithm: str
    entries: tuple[Entry, ...]
    trees: frozenset[str]
    submodules: tuple[tuple[bytes, str], ...]
    subject: str
    parents: tuple[str, ...]
    spool: Spool = field(repr=False, compare=False)
    _by_path: dict[bytes, Entry] = field(
        default_factory=dict[bytes, Entry], repr=False, compare=False
    )

    def __post_init__(self) -> None:
        self._by_path.update({entry.path: entry for entry in self.entries})

    def get(self, path: bytes) -> Entry | None:
        """Return the entry at a path, or None."""
        return self._by_path.get(path)

    def read(self, entry: Entry) -> bytes:
        """Return an entry's bytes (a symlink's: its target), hashed again while reading."""
        return self.spool.read(entry.oid, "blob")


def read_commit(repository: Repository, commit: str, spool: Spool) -> CommittedTree:
    """Read, check and spool one commit.

    Args:
        commit: full id, as ``Repository.resolve`` returns it.

    Raises:
        ObjectCorrupt: an object is missing or does not hash to its id.
        SealRefused: the tree holds a name that cannot be checked out, or a submodule that is not
            there.
    """
    objects = _Objects(repository.git, spool)
    return _Reading(repository, objects, spool).read(commit)


class _Reading:
    def __init__(self, repository: Repository, objects: _Objects, spool: Spool) -> None:
        self.repository = repository
        self.objects = objects
        self.spool = spool
        self.trees: set[str] = set()
        self.found: list[tuple[bytes, int, str]] = []
        self.submodules: list[tuple[bytes, str]] = []

    def read(self, commit: str) -> CommittedTree:
        tree, parents, subject = self._commit(self.objects, commit)
        self._walk(self.objects, tree, b"")
        self.found.sort()
        entries = tuple(
            Entry(path, mode, oid, self.spool.size(oid)) for path, mode, oid in self.found
        )
        return CommittedTree(
            commit=commit,
            tree=tree,
            algorithm=self.spool.algorithm,
            entries=entries,
            trees=frozenset(self.trees),
            submodules=tuple(self.submodules),
            subject=subject,
            parents=parents,
            spool=self.spool,
        )

    def _commit(self, objects: _Objects, commit: str) -> tuple[str, tuple[str, ...], str]:
        (content,) = objects.get([(commit, "commit", b"")])
        head, _, message = (content or b"").partition(b"\n\n")
        fields = [line.split(b" ", 1) for line in head.split(b"\n")]
        trees = [f[1].decode() for f in fields if f[0] == b"tree"]
        parents = tuple(f[1].decode() for f in fields if f[0] == b"parent")
        if len(trees) != 1:
            raise ObjectCorrupt(f"commit {commit} names {len(trees)} trees instead of one")
        subject = message.split(b"\n", 1)[0].decode("utf-8", "replace")
        return trees[0], parents, subject

    def _walk(self, objects: _Objects, root: str, prefix: bytes) -> None:
        """Read all trees below ``root``, level by level, then all blobs at once."""
        level = [(root, prefix)]
        blobs: list[tuple[str, str, bytes]] = []
        while level:
            contents = objects.get([(oid, "tree", path) for oid, path in level])
            below: list[tuple[str, bytes]] = []
            for (oid, path), content in zip(level, contents, strict=True):
                self.trees.add(oid)
                for mode, name, child in parse_tree(content or b"", self.spool.algorithm, path):
                    full = path + name
                    if mode == DIRECTORY:
                        below.append((child, full + b"/"))
                    elif mode == GITLINK:
                        self._submodule(full, child)
                    else:
                        blobs.append((child, "blob", full))
                        self.found.append((full, mode, child))
            level = below
        objects.get(blobs)

    def _submodule(self, path: bytes, commit: str) -> None:
        where = self.repository.workspace / os.fsdecode(path)
        name = path.decode("utf-8", "backslashreplace")
        if not (where / ".git").exists():
            raise SealRefused(
                f"{name}: the submodule is not there, so its commit {commit[:12]} cannot be sealed",
                hint="git submodule update --init --recursive brings it.",
            )
        objects = _Objects(Git(where), self.spool)
        tree, _, _ = self._commit(objects, commit)
        self.submodules.append((path, commit))
        self._walk(objects, tree, path + b"/")


def parse_tree(content: bytes, algorithm: str, where: bytes) -> list[tuple[int, bytes, str]]:
    """Split a tree object into mode, name and id of each entry (gitformat: ``MODE NAME NUL ID``).

    Raises:
        SealRefused: a name cannot be checked out, or stands twice.
        ObjectCorrupt: the tree is malformed.
    """
    width = hashlib.new(algorithm, usedforsecurity=False).digest_size
    entries: list[tuple[int, bytes, str]] = []
    names: set[bytes] = set()
    at = 0
    while at < len(content):
        space = content.find(b" ", at)
        end = content.find(b"\0", space)
        if space < 0 or end < 0 or end + 1 + width > len(content):
            raise ObjectCorrupt(f"{_show(where)}: malformed tree object")
        try:
            mode = int(content[at:space], 8)
        except ValueError as error:
            raise ObjectCorrupt(f"{_show(where)}: malformed mode in a tree object") from error
        name = content[space + 1 : end]
        if name in names or name in (b"", b".", b"..") or b"/" in name or name.lower() == b".git":
            raise SealRefused(
                f"{_show(where + name)}: git would not check out this name",
                hint="The tree was made by hand or by a broken tool; commit it anew.",
            )
        names.add(name)
        entries.append(
            (_normal(mode, where + name), name, content[end + 1 : end + 1 + width].hex())
        )
        at = end + 1 + width
    return entries


def _normal(mode: int, path: bytes) -> int:
    if mode in (DIRECTORY, SYMLINK, GITLINK):
        return mode
    if mode & 0o170000 == 0o100000:  # noqa: PLR2004 - S_IFREG; old commits hold 100664
        return EXECUTABLE if mode & 0o100 else FILE
    raise ObjectCorrupt(f"{_show(path)}: unknown mode {mode:o} in a tree object")
