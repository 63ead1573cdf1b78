# ruff: noqa: PTH112, PTH118 - paths are bytes here, which pathlib does not speak
"""Git's own state beside the work tree: where it is, what it says, what changed.

Rules that this module keeps:

- Read as files, without running git: the guard looks at it in the middle of the user's own calls.
- Objects, logs, lock files and sealrun's own refs are noise and left out; HEAD and where it leads,
  index, configuration, hooks, info, replace refs and packed refs are not.
- Work trees whose ``.git`` is a file, and git directories that share a common one, are followed
  (gitrepository-layout(5)).
- Every read is bounded; a repository is input, not a friend.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.guard.mutations import GitChange
from sealrun.nested import walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sealrun.guard.coverage import Moment

_SMALL = 1 << 16
_LARGE = 256 << 20
_FILES = 4096
_OID = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?")
#: Files of the common git directory whose content counts, beside hooks, info and replace refs.
_COMMON = (b"config", b"packed-refs", b"shallow", b"objects/info/alternates")
#: Files of this work tree's own git directory whose content counts.
_OWN = (b"HEAD", b"index", b"config.worktree")


@dataclass(frozen=True)
class GitPlaces:
    """Where one work tree's git state is; absolute paths."""

    own: bytes
    common: bytes

    @classmethod
    def of(cls, workspace: bytes) -> GitPlaces | None:
        """Find them from a work tree's top; None where it has no readable git directory."""
        dot = os.path.join(workspace, b".git")
        try:
            if stat.S_ISDIR(os.lstat(dot).st_mode):
                own = dot
            else:
                text = _read(dot, _SMALL)
                if text is None or not text.startswith(b"gitdir:"):
                    return None
                own = os.path.realpath(os.path.join(workspace, text[7:].strip()))
        except OSError:
            return None
        common = _read(os.path.join(own, b"commondir"), _SMALL)
        if common is None:
            return cls(own, own)
        return cls(own, os.path.realpath(os.path.join(own, common.strip())))

    def directories(self) -> Iterator[bytes]:
        """Yield the directories to watch that exist now."""
        seen: set[bytes] = set()
        flat = [self.own, self.common]
        flat += [os.path.join(self.common, name) for name in (b"hooks", b"info", b"objects/info")]
        for directory in flat:
            if directory not in seen and os.path.isdir(directory):
                seen.add(directory)
                yield directory
        for base in dict.fromkeys((self.common, self.own)):
            for at, names, _ in walk(os.path.join(base, b"refs")):
                names[:] = [n for n in names if not (at.endswith(b"/refs") and n == b"sealrun")]
                yield at

    def files(self, change: GitChange, branch: str | None) -> Iterator[bytes]:
        """Yield the files by which a change can have been made.

        Args:
            change: of git's state.
            branch: full name of the ref that HEAD leads to after it.
        """
        if change.area == "head":
            yield os.path.join(self.own, b"HEAD")
            if branch is not None:
                yield os.path.join(self.common, branch.encode("utf-8", "surrogateescape"))
            yield os.path.join(self.common, b"packed-refs")
            return
        name = change.name.encode("utf-8", "surrogateescape")
        for base in dict.fromkeys((self.own, self.common)):
            yield os.path.join(base, name)

    def area(self, path: bytes) -> str | None:
        """Return what a path in these directories belongs to; None for noise."""
        for base in (self.own, self.common):
            if path.startswith(base + b"/"):
                return _area(path[len(base) + 1 :])
        return None


@dataclass(frozen=True)
class Snapshot:
    """Git's state at one moment.

    Attributes:
        head: commit id that HEAD leads to; None on an unborn branch.
        branch: full ref name; None when detached.
        digests: sha256 of each file that counts, by name.
    """

    head: str | None
    branch: str | None
    digests: Mapping[str, str]

    def changes(self, later: Snapshot, at: Moment) -> tuple[GitChange, ...]:
        """Return what changed from here to a later snapshot."""
        found: list[GitChange] = []
        if (self.head, self.branch) != (later.head, later.branch):
            found.append(GitChange("HEAD", "head", self.head, later.head, at))
        for name in sorted(self.digests.keys() | later.digests.keys()):
            before, after = self.digests.get(name), later.digests.get(name)
            if before != after and name != "HEAD":
                area = _area(name.encode("utf-8", "surrogateescape")) or "configuration"
                found.append(GitChange(name, area, before, after, at))
        return tuple(found)


def snapshot(places: GitPlaces) -> Snapshot:
    """Read git's state now."""
    digests: dict[str, str] = {}
    for base, names in ((places.own, _OWN), (places.common, _COMMON)):
        for name in names:
            _digest(digests, base, name)
    for directory in (b"hooks", b"info", b"refs/replace"):
        for at, subdirectories, files in walk(os.path.join(places.common, directory)):
            subdirectories.sort()
            for name in sorted(files):
                if name.endswith((b".sample", b".lock")) or len(digests) > _FILES:
                    continue
                path = os.path.join(at, name)[len(places.common) + 1 :]
                if _area(path) is not None:
                    _digest(digests, places.common, path)
    head, branch = _head(places)
    return Snapshot(head, branch, digests)


def _area(name: bytes) -> str | None:  # noqa: PLR0911 - one line a rule
    if name.endswith(b".lock") or name.startswith((b"refs/sealrun", b"sealrun", b"logs")):
        return None
    if name == b"HEAD":
        return "head"
    if name.startswith(b"refs/replace"):
        return "replace"
    if name.startswith(b"refs/") or name == b"packed-refs":
        return "refs"
    if name == b"index":
        return "index"
    if name.startswith(b"hooks/"):
        return "hooks"
    if name.startswith(b"info/"):
        if name.startswith(b"info/refs"):
            # A copy for dumb transports, and its drafts, that each gc and repack writes.
            return None
        return "replace" if name == b"info/grafts" else "info"
    if name in {
        b"config",
        b"config.worktree",
        b"shallow",
        b"objects/info/alternates",
        b"commondir",
    }:
        return "configuration"
    return None


def _head(places: GitPlaces) -> tuple[str | None, str | None]:
    text = (_read(os.path.join(places.own, b"HEAD"), _SMALL) or b"").strip()
    if not text.startswith(b"ref:"):
        return (text.decode("ascii") if _OID.fullmatch(text) else None), None
    ref = text[4:].strip()
    branch = ref.decode("utf-8", "surrogateescape")
    if not ref.startswith(b"refs/") or b".." in ref:
        return None, branch
    loose = (_read(os.path.join(places.common, ref), _SMALL) or b"").strip()
    if _OID.fullmatch(loose):
        return loose.decode("ascii"), branch
    packed = _read(os.path.join(places.common, b"packed-refs"), _LARGE) or b""
    match = re.search(rb"^([0-9a-f]{40,64}) " + re.escape(ref) + rb"$", packed, re.MULTILINE)
    return (match[1].decode("ascii") if match else None), branch


def _digest(into: dict[str, str], base: bytes, name: bytes) -> None:
    data = _read(os.path.join(base, name), _LARGE)
    if data is not None:
        mode = b"x" if os.access(os.path.join(base, name), os.X_OK) else b"-"
        seed = mode if name.startswith(b"hooks/") else b""
        into[name.decode("utf-8", "surrogateescape")] = hashlib.sha256(seed + data).hexdigest()


def _read(path: bytes, bound: int) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        parts: list[bytes] = []
        while bound > 0 and (part := os.read(fd, min(bound, 1 << 20))):
            parts.append(part)
            bound -= len(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(fd)
