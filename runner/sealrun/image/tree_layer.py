"""The tree layer: exactly the committed files, as one deterministic tar.

Rules that this module keeps:

- Bytes come from a ``CommittedTree``, which re-hashed them; nothing filters or converts them
  (``git archive`` would: export-subst, export-ignore, eol).
- The layer is a function of paths, modes and bytes alone: owner 0:0, one time, sorted, no umask,
  clock, locale or user. Other commits, clones and object formats with equal content give the same
  layer.
- Committed files cannot be changed or replaced by the experiment, which runs as another user:
  files are 0644 or 0755, directories 01777, so that it can add files beside them, and the sticky
  bit keeps it from renaming or removing root's.
- What cannot stand in an image faithfully is refused with its path: a symlink that leaves the
  tree, an LFS pointer (its content is not in the commit), a whiteout's name (engines would delete
  files instead of making one), a name that no file system takes.
- An empty tree is sealed as an empty workdir: a command of the base alone is an experiment too.
- One file's bytes are in memory at a time, never the tree's.

Tree layers are cache, not data: git and this code make them again, byte for byte. The last few are
kept per repository, because a ratchet goes back to its best commit and the full way of loading
needs the file; older ones would only repeat unchanged files on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.errors import SealRefused, StorageFault
from sealrun.image import tar
from sealrun.image.model import WORKDIR, Layer
from sealrun.image.store import CHUNK, LayerStore, chunks, write_atomically
from sealrun.progress import Silent
from sealrun.sandbox.protocol import FileState
from sealrun.tree import EXECUTABLE, FILE, SYMLINK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sealrun.image.store import LayerWriter
    from sealrun.progress import Progress
    from sealrun.tree import CommittedTree, Entry

#: Counts up with every change of the layer's bytes, so that no cached layer outlives its format.
FORMAT = 1
#: Tree layers kept per repository.
KEPT = 8
#: Seconds that a layer stays after its last use, however many others there are: somebody may be
#: between sealing it and loading it.
USED_RECENTLY = 900.0

FILE_MODE = 0o644
EXECUTABLE_MODE = 0o755
DIRECTORY_MODE = 0o1777
SYMLINK_MODE = 0o777

#: Linux: NAME_MAX and PATH_MAX less the final NUL (limits.h), and links followed at most
#: (path_resolution(7)).
_NAME_MAX = 255
_PATH_MAX = 4095
_LINKS_MAX = 40

_ROOT = WORKDIR.lstrip("/").encode() + b"/"
_WHITEOUT = b".wh."
_BYTECODE = (b".pyc", b".pyo")
_LFS_SMALLER_THAN = 1024
#: git-lfs's docs/spec.md: the version line first, the other keys sorted after it.
_LFS = re.compile(
    rb"\Aversion https://git-lfs\.github\.com/spec/v1\n(?:[^\n]*\n)*?oid sha256:[0-9a-f]{64}\n"
)


@dataclass(frozen=True)
class TreeLayer:
    """One committed tree as a layer.

    Attributes:
        manifest: everything below the workdir, parents first: what verify 2 compares the container
            with. Directories have size 0; paths are relative to the workdir.
        bytecode: committed ``.pyc`` and ``.pyo`` files (``Reason.COMMITTED_BYTECODE``).
        reused: the layer was there already.
    """

    layer: Layer
    manifest: tuple[FileState, ...]
    bytecode: tuple[bytes, ...]
    reused: bool = False


def check(entries: Sequence[Entry]) -> None:
    """Refuse paths that cannot stand in an image; reads no content.

    Args:
        entries: sorted by path.

    Raises:
        SealRefused: the first path that cannot be sealed, with the remedy.
    """
    paths = {entry.path for entry in entries}
    good: set[bytes] = {b""}
    previous = b""
    for entry in entries:
        path = entry.path
        if path <= previous:
            raise _refused(path, "the path stands twice in the tree", _BROKEN_TREE)
        previous = path
        if entry.mode not in (FILE, EXECUTABLE, SYMLINK):
            raise _refused(
                path,
                f"git mode {entry.mode:o} is neither a file nor a symlink",
                "A submodule has to be checked out: git submodule update --init --recursive.",
            )
        if len(WORKDIR) + 1 + len(path) > _PATH_MAX:
            raise _refused(path, "the path is too long for Linux", "Shorten it and commit.")
        parent, _, name = path.rpartition(b"/")
        _check_name(path, name)
        while parent not in good:
            if parent in paths:
                raise _refused(parent, "the path is a file and a directory at once", _BROKEN_TREE)
            good.add(parent)
            parent, _, name = parent.rpartition(b"/")
            _check_name(path, name)


_BROKEN_TREE = "The tree was made by hand or by a broken tool; commit it anew."


def _check_name(path: bytes, name: bytes) -> None:
    if name in (b"", b".", b"..") or name.lower() == b".git" or b"\0" in name:
        raise _refused(path, "git itself would not check out this name", _BROKEN_TREE)
    if name.startswith(_WHITEOUT):
        raise _refused(
            path,
            "names that begin with .wh. mean a removed file in an image layer",
            "Rename it and commit.",
        )
    if len(name) > _NAME_MAX:
        raise _refused(
            path, f"a name is longer than {_NAME_MAX} bytes", "Shorten the name and commit."
        )


def leaves(path: bytes, links: Mapping[bytes, bytes]) -> bool:
    """Tell whether a committed symlink leads out of the tree, through others where they chain.

    Args:
        path: of the symlink.
        links: all committed symlinks and their targets.

    Returns:
        Whether following it could touch an absolute path or one above the root. A link that
        dangles inside the tree, or goes round in circles, stays inside.
    """
    at = path.split(b"/")[:-1]
    ahead = [path.rpartition(b"/")[2]]
    followed = 0
    while ahead:
        name = ahead.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            if not at:
                return True
            at.pop()
            continue
        target = links.get(b"/".join((*at, name)))
        if target is None:
            at.append(name)
            continue
        followed += 1
        if target.startswith(b"/"):
            return True
        if followed > _LINKS_MAX:
            return False
        ahead.extend(reversed(target.split(b"/")))
    return False


def _check_links(links: Mapping[bytes, bytes]) -> None:
    for path, target in links.items():
        if not target or b"\0" in target or len(target) > _PATH_MAX:
            raise _refused(path, "no file system takes this symlink's target", _BROKEN_TREE)
        if leaves(path, links):
            raise _refused(
                path,
                f"the symlink leads out of the tree, to {_show(target)}, where nothing is guarded",
                "Commit the file itself or a link to a committed one; for data, name a read-only "
                "mount in the policy.",
            )


def _refused(path: bytes, what: str, hint: str) -> SealRefused:
    return SealRefused(f"{_show(path)}: {what}", hint=hint)


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def is_lfs_pointer(content: bytes) -> bool:
    """Tell whether a file's bytes are a Git LFS pointer (git-lfs, docs/spec.md)."""
    return len(content) < _LFS_SMALLER_THAN and _LFS.match(content) is not None


def layer_size(entries: Sequence[Entry]) -> int:
    """Return about how many bytes the layer of some entries has; long names come on top."""
    return sum(2 * tar.BLOCK + entry.size for entry in entries) + len(tar.END)


def write(tree: CommittedTree, store: LayerStore, progress: Progress | None = None) -> TreeLayer:
    """Write the layer of a tree.

    Args:
        tree: what the commit holds.
        store: where the layer goes.
        progress: told of content bytes.

    Raises:
        SealRefused: something in the tree cannot be sealed faithfully.
        StorageFault: the layer cannot be stored, or a spooled blob no longer hashes to its id.
    """
    check(tree.entries)
    links = {entry.path: tree.read(entry) for entry in tree.entries if entry.mode == SYMLINK}
    _check_links(links)
    total = sum(entry.size for entry in tree.entries)
    with (
        (progress or Silent()).task(f"sealing {len(tree.entries)} files", total) as task,
        store.writer(durable=False, expected=layer_size(tree.entries)) as writer,
    ):
        members = _Members(writer)
        members.add(_ROOT, tar.DIRECTORY, DIRECTORY_MODE)
        manifest: list[FileState] = []
        made = {b""}
        for entry in tree.entries:
            for directory in _new_parents(entry.path, made):
                members.add(_ROOT + directory + b"/", tar.DIRECTORY, DIRECTORY_MODE)
                manifest.append(FileState(directory, "directory", DIRECTORY_MODE, 0, None))
            manifest.append(_add(entry, tree, links, members))
            task.advance(entry.size)
        members.end()
        layer = writer.commit()
    bytecode = tuple(e.path for e in tree.entries if e.path.endswith(_BYTECODE))
    return TreeLayer(layer, tuple(manifest), bytecode)


def _new_parents(path: bytes, made: set[bytes]) -> list[bytes]:
    """Return the parents of a path that are not made yet, from the top down; note them as made."""
    missing: list[bytes] = []
    parent = path.rpartition(b"/")[0]
    while parent not in made:
        missing.append(parent)
        made.add(parent)
        parent = parent.rpartition(b"/")[0]
    missing.reverse()
    return missing


def _add(
    entry: Entry, tree: CommittedTree, links: Mapping[bytes, bytes], members: _Members
) -> FileState:
    name = _ROOT + entry.path
    if entry.mode == SYMLINK:
        target = links[entry.path]
        members.add(name, tar.SYMLINK, SYMLINK_MODE, target=target)
        return _file_state(entry, target)
    content = tree.read(entry)
    if is_lfs_pointer(content):
        raise _refused(
            entry.path,
            "the commit holds a Git LFS pointer, not the file itself",
            "Commit the file without LFS, or keep it as data: a read-only mount named in the "
            "policy, whose content is on record.",
        )
    state = _file_state(entry, content)
    members.add(name, tar.FILE, state.mode, content=content)
    return state


class _Members:
    """Appends members to a layer, a mebibyte at a time: hashing and writing small pieces costs."""

    def __init__(self, writer: LayerWriter) -> None:
        self._writer = writer
        self._pieces: list[bytes] = []
        self._held = 0

    def add(
        self, name: bytes, kind: bytes, mode: int, *, content: bytes = b"", target: bytes = b""
    ) -> None:
        self._put(tar.header(name, kind, mode, len(content), target))
        if content:
            self._put(content)
            self._put(tar.padding(len(content)))

    def end(self) -> None:
        self._put(tar.END)
        self._flush()

    def _put(self, piece: bytes) -> None:
        if len(piece) >= CHUNK:
            self._flush()
            self._writer.write(piece)
            return
        self._pieces.append(piece)
        self._held += len(piece)
        if self._held >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._pieces:
            self._writer.write(b"".join(self._pieces))
            self._pieces.clear()
            self._held = 0


class TreeLayers:
    """The last few tree layers of one repository, with their manifests, by tree id.

    Args:
        directory: cache of ours; whatever is missing or damaged in it is made again.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = LayerStore(directory)

    def layer(self, tree: CommittedTree, progress: Progress | None = None) -> TreeLayer:
        """Return the layer of a tree, from the cache or written now.

        Raises:
            SealRefused: something in the tree cannot be sealed faithfully.
            StorageFault: the layer cannot be stored, or a spooled blob no longer hashes to its id.
        """
        known = self._known(tree)
        if known is not None:
            return known
        made = write(tree, self.store, progress)
        with self.store.writer(durable=False) as writer:
            writer.write(encode(made.manifest))
            manifest = writer.commit()
        record = {
            "format": FORMAT,
            "layer": made.layer.diff_id,
            "layer_size": made.layer.size,
            "manifest": manifest.diff_id,
            "manifest_size": manifest.size,
        }
        content = json.dumps(record, sort_keys=True).encode()
        write_atomically(self._record(tree), content, durable=False)
        self._prune()
        return made

    def _record(self, tree: CommittedTree) -> Path:
        return self.directory / f"{tree.algorithm}-{tree.tree}.json"

    def _known(self, tree: CommittedTree) -> TreeLayer | None:
        record = self._record(tree)
        try:
            # Used now: before looking, so that nobody prunes what we are about to hand out.
            os.utime(record)
            found = json.loads(record.read_bytes())
            if found["format"] != FORMAT:
                return None
            layer = self.store.get(found["layer"], found["layer_size"])
            stored = self.store.get(found["manifest"], found["manifest_size"])
            if layer is None or stored is None:
                return None
            manifest = decode(b"".join(chunks(stored)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StorageFault):
            return None
        if not _describes(manifest, tree):
            return None
        bytecode = tuple(s.path for s in manifest if s.path.endswith(_BYTECODE) and s.sha256)
        return TreeLayer(layer, manifest, bytecode, reused=True)

    def _prune(self) -> None:
        """Remove all but the last used layers."""
        records = sorted(self._records(), reverse=True)
        oldest = time.time() - USED_RECENTLY
        kept = {name for _, path in records[:KEPT] for name in _names(path)}
        for used, path in records[KEPT:]:
            names = _names(path)
            if used > oldest:
                kept |= names
                continue
            path.unlink(missing_ok=True)
            for name in names - kept:
                (self.directory / name).unlink(missing_ok=True)

    def _records(self) -> Iterator[tuple[float, Path]]:
        for path in self.directory.glob("*.json"):
            try:
                yield path.stat().st_mtime, path
            except OSError:
                continue


def _describes(manifest: Sequence[FileState], tree: CommittedTree) -> bool:
    """Tell whether a stored manifest is a tree's; verify 2 believes it, so nothing is assumed."""
    listed = [state for state in manifest if state.kind != "directory"]
    return [state.path for state in listed] == [entry.path for entry in tree.entries] and all(
        state == _file_state(entry, tree.read(entry))
        for state, entry in zip(listed, tree.entries, strict=True)
    )


def _file_state(entry: Entry, content: bytes) -> FileState:
    """Return what a committed file or symlink is in the container."""
    digest = hashlib.sha256(content).hexdigest()
    if entry.mode == SYMLINK:
        return FileState(entry.path, "symlink", SYMLINK_MODE, len(content), digest)
    mode = EXECUTABLE_MODE if entry.mode == EXECUTABLE else FILE_MODE
    return FileState(entry.path, "file", mode, len(content), digest)


def _names(record: Path) -> set[str]:
    """Return the files that a record points at."""
    try:
        found = json.loads(record.read_bytes())
        digests = [found["layer"], found["manifest"]]
        return {digest.removeprefix("sha256:") for digest in digests if "/" not in digest}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def encode(manifest: Sequence[FileState]) -> bytes:
    """Return a manifest as bytes: ``KIND MODE SIZE SHA256 PATH`` and NUL for each, paths as they are."""
    return b"".join(
        b"%b %o %d %b %b\0" % (s.kind.encode(), s.mode, s.size, (s.sha256 or "-").encode(), s.path)
        for s in manifest
    )


def decode(content: bytes) -> tuple[FileState, ...]:
    """Read what ``encode`` wrote.

    Raises:
        ValueError: it is something else.
    """
    if not content:
        return ()
    *lines, rest = content.split(b"\0")
    if rest:
        raise ValueError("the last line of the manifest has no end")
    return tuple(_state(line) for line in lines)


def _state(line: bytes) -> FileState:
    kind, mode, size, digest, path = line.split(b" ", 4)
    known = None if digest == b"-" else digest.decode("ascii")
    return FileState(path, kind.decode("ascii"), int(mode, 8), int(size), known)
