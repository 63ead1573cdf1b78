"""Verify 2: what a created container shows, against what its layers hold.

Rules that this module keeps:

- Set equality: a missing, a changed and an extra path are each a finding.
- Committed files are compared by content every time.
- Base and environment are compared by content at first use per engine, layer stack and mounts; later
  by path, inode, size, mode and ctime, as one digest over all of them. A digest that differs is not a
  finding but leads to a full comparison.
- What an engine itself puts into a container (``/.dockerenv``, mount points, ``/etc/hosts``) is
  named here, one by one.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import stat
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.image.model import WORKDIR
from sealrun.image.store import open_layer
from sealrun.sandbox.effective import read_mounts
from sealrun.sandbox.protocol import FileState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from sealrun.image.model import Layer
    from sealrun.progress import Progress
    from sealrun.sandbox.protocol import Container

_CHUNK = 1 << 20
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"

#: Directories that every container gets anew, and so are compared neither way.
_FRESH = (b"proc", b"sys", b"dev", b"tmp", b"var/tmp", b"run", b"home/run", b"out", b".sealrun")
#: Files that an engine binds or makes in every container (moby, ``daemon/initlayer``).
_ENGINES = (
    b".dockerenv",
    b"etc/hosts",
    b"etc/hostname",
    b"etc/resolv.conf",
    b"etc/mtab",
    b"etc/passwd",
    b"etc/group",
    b"run/.containerenv",
)


@dataclass(frozen=True)
class Discrepancy:
    """One path of a container that is not what its layers hold.

    Attributes:
        what: ``missing``, ``extra`` or ``changed``.
    """

    path: str
    what: str


def compare_workdir(container: Container, manifest: Sequence[FileState]) -> list[Discrepancy]:
    """Compare the committed files of a container with the tree layer's manifest, by content."""
    return _compare({f.path: f for f in manifest}, container.files(WORKDIR), WORKDIR + "/")


def compare_rest(
    container: Container, layers: Sequence[Layer], mounts: Iterable[str], progress: Progress
) -> list[Discrepancy]:
    """Compare base and environment in a container with their layers, by content."""
    skipped = _skipped(mounts)
    expected = {
        path: state for path, state in merged(layers, progress).items() if not _below(path, skipped)
    }
    size = sum(state.size for state in expected.values())
    with progress.task("verifying base and environment in the container", size) as task:
        seen = _advancing(container.files("/"), task.advance)
        found = (state for state in seen if not _below(state.path, skipped))
        return _compare(expected, found, "/", ancestors=_ancestors(skipped))


def _advancing(states: Iterable[FileState], advance: Callable[[int], None]) -> Iterator[FileState]:
    for state in states:
        advance(state.size)
        yield state


def _skipped(mounts: Iterable[str]) -> frozenset[bytes]:
    targets = {os.fsencode(target).strip(b"/") for target in mounts}
    return frozenset({*_FRESH, *_ENGINES, WORKDIR.strip("/").encode(), *targets})


def _ancestors(paths: Iterable[bytes]) -> frozenset[bytes]:
    found: set[bytes] = set()
    for path in paths:
        parts = path.split(b"/")
        found.update(b"/".join(parts[:n]) for n in range(1, len(parts) + 1))
    return frozenset(found)


def _below(path: bytes, roots: frozenset[bytes]) -> bool:
    if path in roots:
        return True
    at = path.find(b"/")
    while at > 0:
        if path[:at] in roots:
            return True
        at = path.find(b"/", at + 1)
    return False


def _compare(
    expected: Mapping[bytes, FileState],
    found: Iterable[FileState],
    prefix: str,
    ancestors: frozenset[bytes] = frozenset(),
) -> list[Discrepancy]:
    discrepancies: list[Discrepancy] = []
    seen: set[bytes] = set()

    def report(path: bytes, what: str) -> None:
        name = prefix + path.decode("utf-8", "surrogateescape")
        discrepancies.append(Discrepancy(name, what))

    for state in found:
        seen.add(state.path)
        wanted = expected.get(state.path)
        if wanted is None:
            # Parents of mount points are made by the engine where the image lacks them.
            if not (state.kind == "directory" and state.path in ancestors):
                report(state.path, "extra")
        elif not _same(wanted, state):
            report(state.path, "changed")
    for path in expected.keys() - seen:
        report(path, "missing")
    return sorted(discrepancies, key=lambda d: d.path)


def _same(wanted: FileState, found: FileState) -> bool:
    if wanted.kind != found.kind:
        return False
    if wanted.kind == "directory":
        return wanted.mode == found.mode
    if wanted.kind == "symlink":
        return wanted.sha256 == found.sha256
    return (wanted.mode, wanted.size, wanted.sha256) == (found.mode, found.size, found.sha256)


def merged(layers: Sequence[Layer], progress: Progress) -> dict[bytes, FileState]:
    """Return what a stack of layers shows, whiteouts applied (OCI image layer specification)."""
    root: dict[bytes, FileState] = {}
    total = sum(layer.size for layer in layers)
    with progress.task("reading the manifest of base and environment", total) as task:
        for layer in layers:
            with open_layer(layer) as archive:
                upper = dict(_members(archive))
            for path in upper:
                parent, _, name = path.rpartition(b"/")
                if name == _OPAQUE:
                    _forget(root, parent, itself=False)
                elif name.startswith(_WHITEOUT):
                    hidden = name.removeprefix(_WHITEOUT)
                    _forget(root, parent + b"/" + hidden if parent else hidden, itself=True)
            for path, state in upper.items():
                if path.rpartition(b"/")[2].startswith(_WHITEOUT):
                    continue
                old = root.get(path)
                if old is not None and old.kind == "directory" and state.kind != "directory":
                    _forget(root, path, itself=True)
                root[path] = state
            task.advance(layer.size)
    return root


def _forget(root: dict[bytes, FileState], path: bytes, *, itself: bool) -> None:
    prefix = path + b"/" if path else b""
    for known in [p for p in root if p.startswith(prefix) or (itself and p == path)]:
        del root[known]


def _members(archive: BinaryIO) -> Iterator[tuple[bytes, FileState]]:
    known: dict[bytes, FileState] = {}
    with tarfile.open(
        fileobj=archive, mode="r:", encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for member in tar:
            path = member.name.encode("utf-8", "surrogateescape").strip(b"/")
            path = path.removeprefix(b"./")
            if path in (b"", b"."):
                continue
            if member.islnk():
                target = member.linkname.encode("utf-8", "surrogateescape").strip(b"/")
                same = known[target.removeprefix(b"./")]
                state = FileState(path, same.kind, same.mode, same.size, same.sha256)
            else:
                state = _state(tar, member, path)
            known[path] = state
            yield path, state


def _state(tar: tarfile.TarFile, member: tarfile.TarInfo, path: bytes) -> FileState:
    if member.isdir():
        return FileState(path, "directory", member.mode & 0o7777, 0, None)
    if member.issym():
        target = member.linkname.encode("utf-8", "surrogateescape")
        return FileState(path, "symlink", 0o777, 0, hashlib.sha256(target).hexdigest())
    if not member.isreg():
        return FileState(path, "other", member.mode & 0o7777, 0, None)
    digest = hashlib.sha256()
    content = tar.extractfile(member)
    while content is not None and (chunk := content.read(_CHUNK)):
        digest.update(chunk)
    return FileState(path, "file", member.mode & 0o7777, member.size, digest.hexdigest())


def listing_digest(root: Path, mounts: Iterable[str]) -> str:
    """Return one digest over path, kind, mode, inode, size and ctime of all but the workdir.

    Two equal digests on one engine mean that no file was written, replaced or touched in between:
    ctime cannot be set from user space (inode(7)).

    Raises:
        OSError: the container's root cannot be listed.
    """
    skipped = _skipped(mounts)
    names = frozenset(map(os.fsdecode, skipped)), frozenset(map(os.fsdecode, _ancestors(skipped)))
    lines: list[str] = []
    _list(root, *names, lines)
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()


def _list(root: Path, skipped: frozenset[str], ancestors: frozenset[str], lines: list[str]) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    # Directories under way, in a list: an image may nest more of them than Python nests calls.
    handles = [os.open(root, flags)]
    try:
        under_way = [("", _sorted(handles[0]))]
        while under_way:
            below, entries = under_way[-1]
            entry = next(entries, None)
            if entry is None:
                os.close(handles.pop())
                under_way.pop()
                continue
            path = below + entry.name
            if path in skipped:
                continue
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                # An engine that adds a mount point makes the parent directory anew: only its name
                # and mode are the image's.
                if path not in ancestors:
                    lines.append(f"{path}\0d{status.st_mode:o}")
                handles.append(os.open(entry.name, flags | os.O_NOFOLLOW, dir_fd=handles[-1]))
                under_way.append((f"{path}/", _sorted(handles[-1])))
            else:
                lines.append(
                    f"{path}\0{status.st_mode:o} {status.st_ino} {status.st_size} "
                    f"{status.st_ctime_ns}"
                )
    finally:
        for handle in handles:
            os.close(handle)


def _sorted(handle: int) -> Iterator[os.DirEntry[str]]:
    with os.scandir(handle) as listing:
        return iter(sorted(listing, key=_name))


def identities(root: Path, manifest: Sequence[FileState]) -> dict[bytes, tuple[int, int, int]]:
    """Return inode, size and ctime of each committed file in a container's workdir.

    Where both are the same at two moments, nobody wrote or replaced the file in between, not even
    to put the same bytes back.
    """
    found: dict[bytes, tuple[int, int, int]] = {}
    top = os.fsencode(root) + os.fsencode(WORKDIR) + b"/"
    for state in manifest:
        if state.kind == "directory":
            continue
        try:
            status = os.lstat(top + state.path)
        except OSError:
            continue
        found[state.path] = (status.st_ino, status.st_size, status.st_ctime_ns)
    return found


def user_of(root: Path) -> int:
    """Return the uid, as this host sees it, of the process whose root is ``/proc/PID/root``.

    Raises:
        OSError: the process cannot be seen.
        ValueError: the kernel's word for it is not understood.
    """
    status = (root.parent / "status").read_text("utf-8", "replace")
    return int(status.partition("\nUid:\t")[2].split("\t")[0])


class MountWatch:
    """Notices every change of a process's mounts, also one that was undone.

    Args:
        root: ``/proc/PID/root``; its neighbour ``mountinfo`` can be polled (proc(5)).

    Raises:
        OSError: the mounts cannot be seen.
    """

    def __init__(self, root: Path) -> None:
        self._file = os.open(root.parent / "mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)
        self._before = self._table()

    def changed(self) -> str | None:
        """Say what was mounted or unmounted since this object was made; None if nothing was."""
        if not self._poll.poll(0):
            return None
        now = self._table()
        told = [f"now also {_shown(line)}" for line in now if line not in self._before]
        told += [f"no longer {_shown(line)}" for line in self._before if line not in now]
        return "; ".join(told) or "what it was is gone again"

    def close(self) -> None:
        """Stop watching."""
        os.close(self._file)

    def _table(self) -> list[str]:
        parts: list[bytes] = []
        os.lseek(self._file, 0, os.SEEK_SET)
        while part := os.read(self._file, 1 << 16):
            parts.append(part)
        return os.fsdecode(b"".join(parts)).split("\n")


def _shown(line: str) -> str:
    return ", ".join(f"{mount.target!r} ({mount.kind})" for mount in read_mounts(line))


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


class Witnesses:
    """Digests of verified listings; a cache in one JSON file each.

    One is kept for each engine, layer stack and set of mounts: what is mounted upon is not listed, so
    that two containers of one image list different files where their data stands elsewhere.
    """

    def __init__(self, directory: Path, engine: str) -> None:
        self.directory = directory
        self.engine = engine

    def _file(self, layers: Sequence[Layer], mounts: Iterable[str]) -> Path:
        key = json.dumps([self.engine, [layer.diff_id for layer in layers], sorted(mounts)])
        return self.directory / f"witness-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def known(self, layers: Sequence[Layer], mounts: Iterable[str]) -> str | None:
        """Return the listing digest of the last full verification, if there was one."""
        try:
            found = json.loads(self._file(layers, mounts).read_text("ascii"))["listing"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, str) else None

    def remember(self, layers: Sequence[Layer], mounts: Iterable[str], listing: str) -> None:
        """Keep the listing digest of a full verification that found no discrepancy."""
        file = self._file(layers, mounts)
        draft = file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({"listing": listing}), "ascii")
        draft.replace(file)
