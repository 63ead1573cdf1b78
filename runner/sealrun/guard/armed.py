# ruff: noqa: PTH112, PTH118, PTH120 - paths are bytes here, which pathlib does not speak
"""What one armed run knows: which files should hold what, and what they held instead.

Rules that this module keeps:

- Content decides: an event on a path only makes us look; what is recorded is what was found there.
- Each foreign state of a path is one record, however often it comes back; that it went away again
  is on the record too, and the record stays.
- A file in the middle of being rewritten in place (shorter than it should be, or gone, and not yet
  closed) gets a moment to settle; a drain does not wait for that moment. What was read decides that,
  and nothing that was known before: a file may be emptied between any two looks.
- What no event told of (hard links, mounts, lost events) is found by comparing identities in each
  drain, and content wherever an identity cannot be trusted.
"""

from __future__ import annotations

import os
import stat
import time
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING

from sealrun.guard.content import MISSING, Found, Identity, Looker, RootGone, identity
from sealrun.guard.filesystem import now
from sealrun.guard.manifest import LINK, Guarded, Manifest
from sealrun.guard.messages import encode
from sealrun.guard.mutations import Evidence, EvidenceStore, GitChange, Mutation, Rewrite
from sealrun.nested import walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sealrun.guard.attribution import Attribution
    from sealrun.guard.coverage import Moment
    from sealrun.guard.gitstate import Snapshot

#: Foreign states recorded of one path, and records of one run; what is beyond is counted, and the
#: coverage says so.
VERSIONS = 1024
RECORDS = 100_000
#: Changes of git's own state kept of one run.
GIT_CHANGES = 1000
#: A change time this close to the arming, in seconds, may hide a later change in the same tick of
#: a coarse file system clock (a jiffy is 10 ms at most; vfat has 2 s, which no work tree survives).
RACY = 0.05
#: Seconds that a file may be gone, or shorter than it should be while nobody has closed it, before
#: that is taken for real: git and editors pass through such states, and on a busy machine slowly.
SETTLE = 0.1
#: The same for an empty file. A shell empties it first and only then starts the program that fills
#: it; whoever means it to be empty closes it. What holds bytes may hold foreign ones: it has no such
#: time.
FILL = 1.0
#: Seconds between two looks at a file that is still being written; where looking takes long, so many
#: times that.
PAUSE, _SHARE = 0.02, 5


class Writing(Enum):
    """How far whoever writes a file is, by what the kernel told of it."""

    #: Nobody has closed it since it was changed, made, moved away or removed.
    OPEN = auto()
    #: It was closed, or moved there, and nothing was told of it afterwards.
    CLOSED = auto()
    #: It has had its time: what stands there now counts.
    OVERDUE = auto()


_WRITES = {"modify", "close-write", "moved-to", "create", "delete", "moved-from"}


@dataclass
class _Touched:
    """A path that events told of since the run was armed.

    Attributes:
        current: the foreign state that it is in; None while it is as expected.
        looked: monotonic seconds of the end of the last look.
        cost: seconds that the last look took.
        growing: what was found last, if its writer had not closed it yet.
        explained: position of the writers' event up to which earlier looks have accounted for.
        seen: identity at the last look; None where nothing stood there.
    """

    events: dict[str, None]
    rewrites: int = 0
    last: Moment | None = None
    content: bool = False
    current: str | None = None
    looked: float = 0.0
    cost: float = 0.0
    growing: Found | None = None
    states: list[str] = field(default_factory=list[str])
    explained: int = 0
    seen: Identity | None = None


class ArmedRun:
    """One run's manifest against the workspace, and its data roots against their first sight."""

    def __init__(
        self,
        run_id: str,
        workspace: bytes,
        manifest: Manifest,
        store: EvidenceStore,
        data: Iterable[bytes],
    ) -> None:
        self.run_id = run_id
        self.workspace = workspace
        self.manifest = manifest
        self.store = store
        self.since = now()
        self.data_roots = tuple(dict.fromkeys(data))
        self.git_before: Snapshot | None = None
        self.git_changes: list[GitChange] = []
        self.subscribers: list[Callable[[Mutation], None]] = []
        self.files = {entry.path: entry for entry in manifest.files}
        self.hard_linked: set[bytes] = set()
        self._paths = [entry.path for entry in manifest.files]
        self._identities: dict[bytes, Identity] = {}
        self._data: dict[bytes, Identity] = {}
        self._touched: dict[bytes, _Touched] = {}
        self._records: dict[tuple[bytes, str], Mutation] = {}
        self._number = 0
        self._since = 0
        #: Foreign states that found no room in the records.
        self.dropped = 0
        # Paths looked at, and records to tell of, since ``settle``.
        self._looked: set[bytes] = set()
        self._news: dict[tuple[bytes, str], bool] = {}

    # -- arming ------------------------------------------------------------------------------

    @property
    def lists(self) -> bool:
        """Whether what ``directories`` returns depends on what stands there now."""
        return bool(self.data_roots)

    def directories(self) -> set[bytes]:
        """Return the directories, absolute, that hold guarded files, and those above them."""
        found = {self.workspace}
        for path in self._paths:
            directory = path.rpartition(b"/")[0]
            while directory and (whole := self.workspace + b"/" + directory) not in found:
                found.add(whole)
                directory = directory.rpartition(b"/")[0]
        for root in self.data_roots:
            if not os.path.isdir(root):
                found.add(os.path.dirname(root))
                continue
            found.update(at for at, _, _ in walk(root))
        return found

    def take_stock(self, position: int) -> None:
        """Record what stands where now; called once every watch is in place and drained.

        Args:
            position: of the last of the writers' events; they are not this run's.
        """
        self._since = position
        try:
            with Looker(self.workspace) as looker:
                for path in self._paths:
                    status = looker.status(path)
                    if status is not None:
                        self._identities[path] = identity(status)
                        if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
                            self.hard_linked.add(path)
        except RootGone:
            return
        for root in self.data_roots:
            self._data.update(_inventory(root))

    # -- looking -----------------------------------------------------------------------------

    def below(self, directory: bytes) -> list[bytes]:
        """Return the guarded paths at or below a path, both relative to the workspace."""
        if not directory:
            return self._paths
        start = bisect_left(self._paths, directory + b"/")
        end = bisect_left(self._paths, directory + b"0")  # the byte after the slash
        at = [directory] if directory in self.files else []
        return at + self._paths[start:end]

    def is_data(self, path: bytes) -> bool:
        """Whether an absolute path is at or below a data root."""
        return any(path == root or path.startswith(root + b"/") for root in self.data_roots)

    def pause(self, looker: Looker, path: bytes) -> float:
        """Return the seconds for which a path that nobody has closed need not even be read.

        Its writer may be in the middle of an in-place rewrite; and a writer of many small pieces
        must not make us read its file for each.
        """
        entry = self.files[path]
        status = looker.status(path)
        if status is None:
            return SETTLE
        if stat.S_ISREG(status.st_mode) and entry.mode != LINK and status.st_size < entry.size:
            return unfilled(status.st_size, entry.size, Writing.OPEN)
        touched = self._touched.get(path)
        if touched is None:
            return 0.0
        ready = touched.looked + max(PAUSE, _SHARE * touched.cost)
        return max(0.0, ready - time.monotonic())

    def examine(
        self,
        looker: Looker,
        path: bytes,
        events: tuple[str, ...],
        *,
        writing: Writing = Writing.OVERDUE,
        final: bool = False,
        earlier: bool = False,
    ) -> float:
        """Compare one guarded path with the manifest and record what was found.

        Args:
            looker: open on the workspace.
            path: relative to it.
            events: what the kernel told of the path.
            writing: how far its writer is.
            final: a comparison looks, no event asked for it.
            earlier: nothing suggests that the file changed since the run was armed.

        Returns:
            Seconds after which to look again at the latest, because the file did not stand still, or
            is most likely being rewritten; in the second case nothing was recorded. Of a closed one
            it is enough to hear what else was told by now. 0 where all is said.
        """
        entry = self.files[path]
        began = time.monotonic()
        found = looker.look(path, self.manifest, entry)
        unfinished = _unfinished(entry, found, writing)
        if unfinished:
            return unfinished
        touched = self._touch(path, events)
        touched.looked = time.monotonic()
        touched.cost = touched.looked - began
        touched.seen = found.identity
        if not found.torn:
            self._looked.add(path)
        if found.links > 1:
            self.hard_linked.add(path)
        kind = difference(entry, found)
        if kind is None:
            self._as_expected(path, touched, events)
            return PAUSE if found.torn else 0.0
        state = state_of(kind, found)
        before = f"{self.manifest.algorithm}:{entry.digest}"
        after = f"{self.manifest.algorithm}:{found.digest}" if found.digest else None
        draft = replace(_draft(path, "tracked", kind, before, after), final=final, earlier=earlier)
        self._record(path, state, draft, found)
        touched.growing = None if final or writing is Writing.CLOSED else found
        return PAUSE if found.torn else 0.0

    def examine_data(
        self,
        path: bytes,
        events: tuple[str, ...],
        *,
        writing: Writing = Writing.OVERDUE,
        final: bool = False,
    ) -> float:
        """Compare one path of a data root with what stood there first and record a difference.

        Returns:
            Seconds after which to look again; see ``examine``.
        """
        was = self._data.get(path)
        is_now = _identity_at(path)
        if is_now is not None and is_now != was and stat.S_ISREG(is_now[5]):
            unfinished = unfilled(is_now[2], 1, writing)
            if unfinished:
                return unfinished
        touched = self._touch(path, events)
        touched.seen = is_now
        self._looked.add(path)
        if was == is_now:
            self._as_expected(path, touched, events)
            return 0.0
        kind = _data_difference(was, is_now, touched.events)
        if kind is None:
            return 0.0
        found = MISSING
        if is_now is not None and not stat.S_ISDIR(is_now[5]):
            directory, _, name = path.rpartition(b"/")
            try:
                with Looker(directory or b"/") as looker:
                    found = looker.look(name, Manifest("raw-sha256", ()), None)
            except RootGone:
                found = MISSING
        after = f"sha256:{found.sha256}" if found.sha256 else None
        draft = replace(_draft(path, "data", kind, None, after), final=final)
        self._record(path, state_of(kind, found), draft, found)
        return 0.0

    def place(self, path: bytes, area: str, kind: str, *, final: bool = False) -> None:
        """Record that a root moved, or that a mount came or went."""
        self._touch(path, ())
        self._looked.add(path)
        draft = replace(_draft(path, area, kind, None, None), final=final)
        self._record(path, kind, draft, MISSING)

    def sweep(self, *, content: bool) -> None:
        """Find what no event told of.

        Args:
            content: compare the bytes of every file (after lost events); else only of those whose
                identity changed, or cannot be trusted.
        """
        # First, because a workspace that is gone ends the rest.
        current: dict[bytes, Identity] = {}
        for root in self.data_roots:
            current.update(_inventory(root))
        for path in sorted(self._data.keys() | current.keys()):
            if self._data.get(path) != current.get(path):
                self.examine_data(path, (), final=True)
        armed_ns = (self.since.wall - RACY) * 1e9
        with Looker(self.workspace) as looker:
            for path in self._paths:
                status = looker.status(path)
                mark = None if status is None else identity(status)
                trusted = mark == self._identities.get(path)
                trusted = trusted and (mark is None or mark[4] < armed_ns)
                if trusted and path not in self.hard_linked and not content:
                    continue
                quiet = trusted and path not in self._touched
                self.examine(looker, path, (), final=True, earlier=quiet)
                if mark is None:
                    self._identities.pop(path, None)
                else:
                    self._identities[path] = mark

    def git_changed(self, changes: Sequence[GitChange]) -> None:
        """Keep what changed in git's own state, up to a bound."""
        room = max(0, GIT_CHANGES - len(self.git_changes))
        self.git_changes += changes[:room]

    # -- reporting ---------------------------------------------------------------------------

    @property
    def recorded(self) -> int:
        """How many records there are."""
        return len(self._records)

    def foreign_states(self) -> Iterator[tuple[bytes, str]]:
        """Yield each path that is not as expected, with the state that was found last."""
        for path, touched in self._touched.items():
            if touched.current is not None:
                yield path, touched.current

    def mutations(self) -> tuple[Mutation, ...]:
        """Return every record, in the order in which they were found."""
        return tuple(self._records.values())

    def rewrites(self) -> tuple[Rewrite, ...]:
        """Return the files that were touched and held the expected bytes whenever we looked."""
        mutated = {path for path, _ in self._records}
        return tuple(
            Rewrite(path, tuple(t.events), t.rewrites, t.last, t.content)
            for path, t in self._touched.items()
            if t.rewrites and t.last is not None and path not in mutated
        )

    def _touch(self, path: bytes, events: tuple[str, ...]) -> _Touched:
        touched = self._touched.get(path)
        if touched is None:
            touched = self._touched[path] = _Touched({}, explained=self._since)
        touched.events.update(dict.fromkeys(events))
        return touched

    def _as_expected(self, path: bytes, touched: _Touched, events: tuple[str, ...]) -> None:
        touched.last = now()
        touched.growing = None
        if events:
            touched.rewrites += 1
            touched.content = touched.content or bool(_WRITES & set(events))
        if touched.current is None:
            return
        touched.current = None
        for state in touched.states:
            record = self._records[path, state]
            if not record.restored:
                self._publish((path, state), replace(record, restored=True), entered=False)

    def _record(self, path: bytes, state: str, draft: Mutation, found: Found) -> None:
        touched = self._touched[path]
        key = (path, state)
        known = self._records.get(key)
        previous, touched.current = touched.current, state
        same = previous == state
        seen = replace(draft, mode=found.mode, events=tuple(touched.events))
        if known is not None:
            again = replace(known, last=seen.last, events=seen.events)
            if same:
                # Not news: the end of the interval merely finds it again.
                self._records[key] = again
            else:
                self._publish(key, replace(again, count=known.count + 1, restored=False))
            return
        if same:
            return  # it stood so before, or found no room
        if (path, previous) in self._records and _grew(touched.growing, found):
            # One write, still going on: its half-way state is not a version of its own.
            half = self._records.pop((path, str(previous)))
            self._news.pop((path, str(previous)), None)
            touched.states[touched.states.index(str(previous))] = state
            if half.evidence is not None:
                self.store.drop(half.evidence.sha256)
            grown = replace(seen, number=half.number, first=half.first, count=half.count)
            self._publish(key, replace(grown, evidence=self._keep(found)))
            return
        if not self._has_room(path):
            self.dropped += 1
            return
        touched.states.append(state)
        self._number += 1
        self._publish(key, replace(seen, number=self._number, evidence=self._keep(found)))

    def _has_room(self, path: bytes) -> bool:
        """Whether one more state of a path can be recorded."""
        return len(self._touched[path].states) < VERSIONS and len(self._records) < RECORDS

    def _keep(self, found: Found) -> Evidence | None:
        if not found.sha256:
            return None
        return self.store.keep(found.sha256, found.size, found.head)

    def _publish(self, key: tuple[bytes, str], mutation: Mutation, *, entered: bool = True) -> None:
        """Keep a record; ``settle`` tells of it. ``entered``: somebody brought this state about."""
        self._records[key] = mutation
        self._news[key] = entered or self._news.get(key, False)

    @property
    def unsettled(self) -> bool:
        """Whether anything was looked at since ``settle``."""
        return bool(self._looked or self._news)

    def settle(self, attribution: Attribution, position: int) -> None:
        """Name who made what was found since the last call, and tell of it.

        Args:
            attribution: knows who touched what.
            position: up to which it knows everything that happened before this call.
        """
        news, self._news = self._news, {}
        for key, entered in news.items():
            mutation = self._records[key]
            if entered:
                path = key[0]
                whole = self._whole(path)
                touched = self._touched[path]
                writer, candidates = attribution.name(
                    whole,
                    mutation.kind,
                    touched.explained,
                    steady=partial(_still, whole, touched.seen),
                )
                mutation = replace(mutation, writer=writer, candidates=candidates)
                self._records[key] = mutation
            self.store.note(self.line(mutation))
            for subscriber in self.subscribers:
                subscriber(mutation)
        for path in self._looked:
            touched = self._touched[path]
            # What changed after the look has a look of its own to come, and an event that we may
            # know already.
            if _still(self._whole(path), touched.seen):
                touched.explained = position
        self._looked.clear()

    @staticmethod
    def line(mutation: Mutation) -> str:
        """Return a mutation as a line of the journal."""
        return encode({"mutation": mutation}).decode("ascii").rstrip("\n")

    def _whole(self, path: bytes) -> bytes:
        return path if path.startswith(b"/") else self.workspace + b"/" + path


def state_of(kind: str, found: Found) -> str:
    """Return what tells one foreign state of a path from another."""
    return f"{kind}:{found.sha256}:{found.mode:o}"


def difference(entry: Guarded, found: Found) -> str | None:
    """Say how what was found differs from what should stand there; None if it does not."""
    if found.kind == "missing":
        return "deleted"
    if found.kind in {"detoured", "unreadable"}:
        return found.kind
    if found.kind != ("link" if entry.mode == LINK else "file"):
        return "type-changed"
    if found.digest != entry.digest:
        return "modified"
    if found.mode != entry.mode:
        return "mode-changed"
    return None


def unfilled(size: int, expected: int, writing: Writing) -> float:
    """Return the seconds for which a file of less than the expected bytes is left to be filled."""
    if size >= expected or writing is Writing.OVERDUE:
        return 0.0
    if size == 0:
        # Also a closed one: somebody may have begun the next save, of which we have yet to be told.
        return FILL
    return SETTLE if writing is Writing.OPEN else 0.0


def _unfinished(entry: Guarded, found: Found, writing: Writing) -> float:
    """Return the seconds for which what was found is most likely no state of its own."""
    if found.kind == "missing":
        return 0.0 if writing is Writing.OVERDUE else SETTLE
    if found.kind == "file" and entry.mode != LINK:
        return unfilled(found.size, entry.size, writing)
    return 0.0


def _grew(before: Found | None, after: Found) -> bool:
    """Whether what was found is what was found before, and more of it."""
    return (
        before is not None
        and before.kind == after.kind == "file"
        and before.mode == after.mode
        and after.size > before.size
        and after.head.startswith(before.head)
    )


def _data_difference(
    was: Identity | None, is_now: Identity | None, events: Iterable[str]
) -> str | None:
    if was is None:
        # A directory's entries have records of their own.
        return "created" if is_now is not None and not stat.S_ISDIR(is_now[5]) else None
    if is_now is None:
        return "deleted"
    if stat.S_IFMT(was[5]) != stat.S_IFMT(is_now[5]):
        return "type-changed"
    if was[:4] == is_now[:4] and not _WRITES & set(events):
        return "metadata-changed"
    return "modified"


def _draft(path: bytes, area: str, kind: str, before: str | None, after: str | None) -> Mutation:
    moment = now()
    return Mutation(0, path, area, kind, before, after, 0, (), moment, moment)


def _still(path: bytes, seen: Identity | None) -> bool:
    return seen == _identity_at(path)


def _identity_at(path: bytes) -> Identity | None:
    try:
        return identity(os.lstat(path))
    except OSError:
        return None


def _inventory(root: bytes) -> dict[bytes, Identity]:
    found: dict[bytes, Identity] = {}
    for at, names, files in walk(root):
        for path in (at, *(os.path.join(at, name) for name in (*files, *names))):
            mark = _identity_at(path)
            # A directory's times change with its entries, which stand here themselves.
            if mark is not None and not stat.S_ISDIR(mark[5]):
                found[path] = mark
    mark = _identity_at(root)
    if mark is not None and not stat.S_ISDIR(mark[5]):
        found[root] = mark
    return found
