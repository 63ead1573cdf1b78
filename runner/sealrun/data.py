"""Data outside the repository: what a run read, by manifest.

Rules that this module keeps:

- A file's hash is reused only while device, inode, size, mtime *and* ctime are unchanged; the
  record says how many were hashed now and how many were known.
- Whether data changed during a run is decided by the same five, and by content where they differ.
- Nothing is written below a data mount.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import Refused, StorageFault
from sealrun.regular import opened

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sealrun.policy import DataPolicy
    from sealrun.progress import Progress

_CHUNK = 1 << 20
#: HOME inside a container.
CONTAINER_HOME = "/home/run"
#: What no data may cover: the code, what it imports, what the system and the sandbox need.
_TAKEN = (
    *("/workspace", "/opt/env", "/out", "/.sealrun", f"{CONTAINER_HOME}/.local/lib"),
    *("/proc", "/sys", "/dev", "/etc", "/usr", "/var/tmp"),  # noqa: S108 - in the container
    # Links into /usr in most bases.
    *("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
)


@dataclass(frozen=True, slots=True)
class Identity:
    """What says that a file is still the same without reading it (stat(2))."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Take the identity out of a stat result."""
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


@dataclass(frozen=True)
class DataFile:
    """One file of a data mount: path below the mount's source, identity, sha256."""

    path: bytes
    identity: Identity
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """One data mount with its manifest.

    Attributes:
        source: resolved path on the host.
        target: absolute path in the container.
        digest: sha256 over the sorted ``sha256  path`` lines.
        hashed: how many files were hashed for this record; the others were known.
    """

    source: Path
    target: str
    files: tuple[DataFile, ...]
    digest: str
    hashed: int


def target_of(policy: DataPolicy, home: Path) -> str:
    """Return where a data mount appears: at its target, else at the same place below HOME.

    Raises:
        Refused: the target is not absolute, or would cover the system, the code or the outputs.
    """
    source = Path(policy.source).expanduser()
    if policy.target is not None:
        target = policy.target.replace("~", CONTAINER_HOME, 1)
    elif source.is_absolute() and source.is_relative_to(home):
        target = f"{CONTAINER_HOME}/{source.relative_to(home)}"
    else:
        target = f"/data/{source.name}"
    clean = os.path.normpath(target)
    covers = any(
        clean == t or clean.startswith(t + "/") or t.startswith(clean.rstrip("/") + "/")
        for t in _TAKEN
    )
    covers = covers or f"{CONTAINER_HOME}/".startswith(clean.rstrip("/") + "/")
    if not clean.startswith("/") or covers:
        raise Refused(
            f"data mount {policy.source}: its target {target} lies at, above or below a path of "
            "the system, the code or the outputs",
            hint="Choose a target such as /data/NAME, or a directory below the home.",
        )
    return clean


class HashCache:
    """Hashes of data files by identity, in one SQLite file; it is a cache."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def manifest(
        self, policies: Sequence[DataPolicy], home: Path, progress: Progress
    ) -> tuple[Dataset, ...]:
        """Hash what is not known yet and return each mount's manifest.

        Raises:
            Refused: a source does not exist or cannot be read.
            StorageFault: the cache cannot be written.
        """
        if not policies:
            return ()
        try:
            with closing(sqlite3.connect(self.file, timeout=30)) as connection, connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS hashes (device INTEGER, inode INTEGER, "
                    "size INTEGER, mtime INTEGER, ctime INTEGER, sha256 TEXT, "
                    "PRIMARY KEY (device, inode)) STRICT"
                )
                return tuple(_dataset(connection, p, home, progress) for p in policies)
        except sqlite3.Error as error:
            raise StorageFault(
                f"cannot use the hash cache {self.file}: {error}",
                hint="Remove the file: it is a cache and is made again.",
            ) from error


def _dataset(
    connection: sqlite3.Connection, policy: DataPolicy, home: Path, progress: Progress
) -> Dataset:
    source = Path(policy.source).expanduser()
    target = target_of(policy, home)
    try:
        source = source.resolve(strict=True)
        found = list(walk(source, links=True))
    except OSError as error:
        raise Refused(
            f"data mount {policy.source}: {error.strerror}",
            hint="Prepare the data first, or correct [[data]] source in the policy.",
        ) from error
    files: list[DataFile] = []
    hashed = 0
    total = sum(identity.size for _, identity in found)
    with progress.task(f"hashing {source}", total) as task:
        for path, identity in found:
            known = connection.execute(
                "SELECT sha256 FROM hashes WHERE device = ? AND inode = ? AND size = ? "
                "AND mtime = ? AND ctime = ?",
                (
                    identity.device,
                    identity.inode,
                    identity.size,
                    identity.mtime_ns,
                    identity.ctime_ns,
                ),
            ).fetchone()
            if known:
                digest = known[0]
            else:
                digest = _hash(source, path)
                hashed += 1
                connection.execute(
                    "INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        identity.device,
                        identity.inode,
                        identity.size,
                        identity.mtime_ns,
                        identity.ctime_ns,
                        digest,
                    ),
                )
            task.advance(identity.size)
            files.append(DataFile(path, identity, digest))
    lines = b"".join(f.sha256.encode() + b"  " + f.path + b"\n" for f in files)
    return Dataset(source, target, tuple(files), hashlib.sha256(lines).hexdigest(), hashed)


def walk(source: Path, *, links: bool = False) -> Iterator[tuple[bytes, Identity]]:
    """Yield each regular file at or below a path, sorted, with its identity; follows no link.

    Args:
        source: a directory or a file.
        links: yield symbolic links too: where one leads decides what is read.

    Raises:
        OSError: a directory cannot be read.
    """
    status = source.stat()
    if stat.S_ISREG(status.st_mode):
        yield b"", Identity.of(status)
        return
    # Directories under way, in a list: an experiment may nest more of them than Python nests calls.
    under_way = [(b"", _sorted(source, b""))]
    while under_way:
        below, entries = under_way[-1]
        entry = next(entries, None)
        if entry is None:
            under_way.pop()
            continue
        path = below + b"/" + entry.name if below else entry.name
        if entry.is_dir(follow_symlinks=False):
            under_way.append((path, _sorted(source, path)))
        elif entry.is_file(follow_symlinks=False) or (links and entry.is_symlink()):
            yield path, Identity.of(entry.stat(follow_symlinks=False))


def _sorted(root: Path, below: bytes) -> Iterator[os.DirEntry[bytes]]:
    with os.scandir(os.fsencode(root / os.fsdecode(below))) as listing:
        return iter(sorted(listing, key=lambda entry: entry.name))


def _hash(source: Path, path: bytes) -> str:
    digest = hashlib.sha256()
    place = source / os.fsdecode(path)
    if path and place.is_symlink():
        # No file holds this: a link never has the hash of one with the same bytes.
        return hashlib.sha256(b"symlink\0" + os.fsencode(place.readlink())).hexdigest()
    with place.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of(file: Path) -> str | None:
    """Return the sha256 of a regular file, hexadecimal; None for anything else, links included.

    For files that an experiment left: waits on no pipe and follows no link.
    """
    stream = opened(file)
    if stream is None:
        return None
    with stream:
        try:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            return None


def changes(dataset: Dataset) -> tuple[str, ...]:
    """Return each file that is not what the manifest says, as a sentence.

    A file whose identity changed is hashed: the same bytes again are no change.
    """
    found: list[str] = []
    known = {file.path: file for file in dataset.files}
    try:
        now = dict(walk(dataset.source, links=True))
    except OSError as error:
        return (f"{dataset.source} cannot be read any more: {error.strerror}",)
    for path in sorted(known.keys() | now.keys()):
        name = dataset.source / os.fsdecode(path)
        if path not in now:
            found.append(f"{name} is gone")
        elif path not in known:
            found.append(f"{name} appeared")
        elif now[path] != known[path].identity:
            try:
                same = _hash(dataset.source, path) == known[path].sha256
            except OSError:
                same = False
            if not same:
                found.append(f"{name} changed")
    return tuple(found)
