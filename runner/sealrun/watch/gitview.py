# ruff: noqa: PTH118 - paths are bytes here, which pathlib does not speak
"""What of git's own state must stay as it is while a workspace is watched.

Rules that this module keeps:

- What can change what runs, or what git shows of it, counts: where HEAD leads, hooks, ``info/*``,
  configuration, replace refs and grafts, index flags, the git directory itself.
- Housekeeping does not: packed refs, other branches, fetched refs, what configuration says of
  branches and remotes, an index whose flags are the same.
- Two views are compared; nothing here remembers.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.guard.gitstate import GitPlaces, Snapshot, snapshot
from sealrun.nested import walk
from sealrun.regular import beginning
from sealrun.tree import blob_id
from sealrun.watch.expected import index_flags
from sealrun.workspace import read_bounded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sealrun.git import Git, Repository

#: Keys that say nothing of what stands in the working directory or of what git shows of it.
_ELSEWHERE = ("branch.", "remote.", "gc.", "maintenance.", "user.", "gui.", "submodule.")
#: Bytes of a file that is held against what the index has of it.
STAGED = 64 << 20
_PACKED = re.compile(rb"^([0-9a-f]{40,64}) (refs/replace/\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Change:
    """One way in which git's state is not what it was.

    Attributes:
        path: absolute.
        area: ``head``, ``hooks``, ``info``, ``configuration``, ``replace``, ``index``,
            ``staged``, ``git``.
        kind: as a mutation's.
        state: names what is there now; the same again is no news.
    """

    path: bytes
    area: str
    kind: str
    state: str


@dataclass(frozen=True)
class View:
    """Git's state at one moment.

    Attributes:
        places: None where there is no git directory any more.
        settings: by configuration file: digest of the keys that count.
        replaced: replace refs by name, packed ones included, with what they lead to.
        flags: paths that an index flag hides, each with its flag.
        staged: paths for which the index holds bytes that neither the commit nor the file holds.
    """

    places: GitPlaces | None
    state: Snapshot | None
    settings: dict[str, str]
    replaced: dict[str, str]
    flags: dict[bytes, bytes]
    staged: frozenset[bytes] = frozenset()

    @classmethod
    def of(
        cls,
        workspace: bytes,
        repository: Repository,
        commit: str | None,
        before: View | None = None,
    ) -> View:
        """Look at git's state now.

        Args:
            commit: whose tree the workspace should be, if any.
            before: an earlier view; what has not changed since is not asked of git again.
        """
        places = GitPlaces.of(workspace)
        if places is None:
            return cls(None, None, {}, {}, {})
        state = snapshot(places)
        old = before.state.digests if before is not None and before.state is not None else {}
        settings: dict[str, str] = {}
        for name in ("config", "config.worktree"):
            digest = state.digests.get(name)
            if before is not None and name in before.settings and old.get(name) == digest:
                settings[name] = before.settings[name]
            elif digest is not None:
                base = places.own if name == "config.worktree" else places.common
                settings[name] = _settings(repository.git, Path(os.fsdecode(base)) / name)
        same = before is not None and old.get("index") == state.digests.get("index")
        flags = before.flags if before is not None and same else index_flags(repository)
        # Not remembered: whether the file holds the same depends on the file.
        staged = _staged(repository, commit) if commit is not None else frozenset[bytes]()
        return cls(places, state, settings, _replaced(places), flags, staged)

    def changes(self, later: View) -> Iterator[Change]:
        """Yield what is different in a later view."""
        before, after = self.state, later.state
        if before is None or self.places is None:
            return
        if after is None or later.places != self.places:
            kind = "deleted" if after is None else "type-changed"
            dot = self.places.common
            yield Change(dot, "git", kind, f"{kind}:{later.places}")
            return
        if (before.head, before.branch) != (after.head, after.branch):
            name = b"HEAD"
            if before.branch == after.branch and after.branch is not None:
                name = os.fsencode(after.branch)
            base = self.places.own if name == b"HEAD" else self.places.common
            state = f"{after.branch}:{after.head}"
            yield Change(os.path.join(base, name), "head", "modified", state)
        yield from self._files(before, after)
        for file in sorted(self.settings.keys() | later.settings.keys()):
            yield from self._one("configuration", file, self.settings, later.settings)
        for ref in sorted(self.replaced.keys() | later.replaced.keys()):
            yield from self._one("replace", ref, self.replaced, later.replaced)
        if hiding := sorted(later.flags.keys() - self.flags.keys()):
            index = os.path.join(self.places.own, b"index")
            yield Change(index, "index", "modified", repr(hiding))
        elif other := sorted(later.staged - self.staged):
            index = os.path.join(self.places.own, b"index")
            yield Change(index, "staged", "modified", repr(other))

    def _files(self, before: Snapshot, after: Snapshot) -> Iterator[Change]:
        if self.places is None:
            return
        for name in sorted(before.digests.keys() | after.digests.keys()):
            path = os.path.join(self.places.common, os.fsencode(name))
            area = self.places.area(path)
            if area in ("hooks", "info") or name in ("info/grafts", "objects/info/alternates"):
                yield from self._one(area or "info", name, before.digests, after.digests)

    def _one(
        self, area: str, name: str, before: Mapping[str, str], after: Mapping[str, str]
    ) -> Iterator[Change]:
        was, is_now = before.get(name), after.get(name)
        if was == is_now or self.places is None:
            return
        kind = "created" if was is None else "deleted" if is_now is None else "modified"
        base = self.places.own if name == "config.worktree" else self.places.common
        yield Change(os.path.join(base, os.fsencode(name)), area, kind, f"{kind}:{is_now}")


def _settings(git: Git, file: Path) -> str:
    status, output, _ = git.attempt("config", "--file", str(file), "--no-includes", "--list", "-z")
    if status != 0:
        return "unreadable"
    kept = [
        entry
        for entry in output.split(b"\0")
        if entry and not entry.decode("utf-8", "replace").startswith(_ELSEWHERE)
    ]
    return hashlib.sha256(b"\0".join(kept)).hexdigest()


def _staged(repository: Repository, commit: str) -> frozenset[bytes]:
    """Return the paths for which the index holds what neither a commit nor the file holds.

    What was added to the index is what the file holds, which is compared anyway; bytes that stand in
    the index alone enter the next commit unseen.
    """
    git = repository.git
    status, output, _ = git.attempt("diff-index", "--cached", "--no-renames", "-z", commit)
    if status != 0:
        return frozenset()
    fields = output.split(b"\0")
    found: set[bytes] = set()
    for facts, path in zip(fields[::2], fields[1::2], strict=False):
        oid = facts.split(b" ")[3].decode("ascii")
        content = read_bounded(repository.workspace, path, STAGED)
        if not set(oid) - {"0"} or content is None or len(content) == STAGED:
            continue
        unix = content.replace(b"\r\n", b"\n")
        if oid not in (blob_id(content, repository.algorithm), blob_id(unix, repository.algorithm)):
            found.add(path)
    return frozenset(found)


def _replaced(places: GitPlaces) -> dict[str, str]:
    """Return replace refs, also those that housekeeping has packed."""
    found: dict[str, str] = {}
    packed = _read(os.path.join(places.common, b"packed-refs"))
    for oid, name in _PACKED.findall(packed):
        found[os.fsdecode(name)] = oid.decode("ascii")
    top = os.path.join(places.common, b"refs/replace")
    for at, _, names in walk(top):
        for name in names:
            if not name.endswith(b".lock"):
                path = os.path.join(at, name)
                ref = os.fsdecode(path[len(places.common) + 1 :])
                found[ref] = _read(path)[:64].strip().decode("ascii", "replace")
    return found


def _read(path: bytes) -> bytes:
    return beginning(path, 256 << 20) or b""
