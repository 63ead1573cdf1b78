# ruff: noqa: PTH112, PTH114, PTH120 - paths are bytes here, which pathlib does not speak
"""One watched workspace: an armed run that also knows extra files, environments and git's state.

Rules that this module keeps:

- Tracked files are the armed run's own affair; what is added here is recorded in the same way, with
  evidence, writers and counts.
- An extra file that stood there at the start is the baseline, unless it stands in front of a tracked
  or a standard module or is a start-up hook; bytecode that is not its source's is never a baseline.
- An environment is one unit: a few of its changed files are named, what is beyond is one record of
  the unit.
- What cannot be judged is said to be so, and is no match.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sealrun.guard.armed import ArmedRun, Writing, difference, unfilled
from sealrun.guard.content import MISSING, Found, Identity, Looker, RootGone, identity
from sealrun.guard.filesystem import now
from sealrun.guard.manifest import LINK, Guarded
from sealrun.guard.mutations import EvidenceStore, Mutation
from sealrun.importable import Extra, Role, Surroundings, is_draft, module_name
from sealrun.watch import inventory
from sealrun.watch.bytecode import Bytecode, Cached, Judgement
from sealrun.watch.expected import RAW, Expected, guarded
from sealrun.watch.gitview import View

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from sealrun.guard.mutations import GitChange

RUN = "watch"
#: Changed files of one environment that are named, before the environment itself is.
NAMED = 8
#: Seconds that a comparison in between spends on judging environments' bytecode; the last one judges
#: all of it.
LEISURE = 0.2
#: Ends the record's path of what a link leads to.
BEHIND = b"/."
#: Entries of a directory that a link leads to, among which a module is looked for.
_ENTRIES = 4096


@dataclass
class Environment:
    """One environment as it was at the start.

    Attributes:
        files: by absolute path.
        named: of its files, those that have a record of their own.
        differs: those that are not as they were.
    """

    path: bytes
    files: dict[bytes, Guarded]
    named: set[bytes] = field(default_factory=set[bytes])
    differs: set[bytes] = field(default_factory=set[bytes])

    @property
    def digest(self) -> str:
        """One digest of everything in it but bytecode."""
        whole = hashlib.sha256()
        for path, entry in sorted(self.files.items()):
            whole.update(b"%s\0%o %s\n" % (path, entry.mode, entry.digest.encode("ascii")))
        return whole.hexdigest()


class WatchedTree(ArmedRun):
    """A workspace against what it is supposed to be, extras included.

    Args:
        expected: what it is supposed to be.
        evidence: directory for foreign bytes.
    """

    def __init__(self, expected: Expected, evidence: Path) -> None:
        root = os.fsencode(expected.workspace)
        super().__init__(RUN, root, expected.manifest, EvidenceStore(evidence), ())
        self.thorough = False
        self.started = False
        self.unverified: set[bytes] = set()
        self.outside: set[bytes] = set()
        self._expected = expected
        self._bytecode = Bytecode(expected.workspace)
        self._surroundings = Surroundings(self.files)
        self._baseline: dict[bytes, Guarded] = {}
        self._environments: dict[bytes, Environment] = {}
        self._cached: dict[bytes, tuple[Identity | None, Identity | None, Cached]] = {}
        # Bytecode that could not be verified, as it was first seen for one state of its source.
        self._first: dict[bytes, Cached] = {}
        self._marks: dict[bytes, Identity | None] = {}
        # By absolute path: what was there at the start, for finding what stood below a directory.
        self._known: list[bytes] = []
        self._recorded: set[bytes] = set()
        # By relative path of a link: where it led at the start.
        self._leads: dict[bytes, bytes] = {}
        self._behind: dict[bytes, Guarded] = {}
        self._targets: set[bytes] = set()
        self._git: View | None = None
        self._git_last: View | None = None
        self._git_paths: set[bytes] = set()
        self._leisure = 0.0

    # -- what the guard asks ------------------------------------------------------------------

    @property
    def lists(self) -> bool:
        """Whether what ``directories`` returns depends on what stands there now: here always."""
        return True

    def directories(self) -> set[bytes]:
        """Return every directory of the workspace, and those that tracked links lead into."""
        below = inventory.take(self.workspace).directories
        found = super().directories() | {self._absolute(path) for path in below}
        return found | {os.path.dirname(path) for path in self._targets}

    def is_data(self, path: bytes) -> bool:
        """Whether a path is an extra one of the workspace, or what a tracked link leads to."""
        if path in self._targets:
            return True
        if not path.startswith(self.workspace + b"/"):
            return False
        name = self._relative(path)
        return name not in self.files and b".git" not in name.split(b"/")

    def take_stock(self, position: int) -> None:
        """Record what stands where now; the baseline of everything that is not tracked."""
        super().take_stock(position)
        found = inventory.take(self.workspace)
        self._surroundings = Surroundings(self.files, found.installed())
        if self._expected.repository is not None:
            self._git = self._git_last = View.of(
                self.workspace, self._expected.repository, self._expected.commit
            )
        try:
            with Looker(self.workspace) as looker:
                for unit, paths in found.environments.items():
                    self._environments[unit] = self._environment(unit, paths, looker)
                for path in found.files:
                    self._begin_with(path, looker)
        except RootGone:
            return
        for path in self._paths:
            if self.files[path].mode == LINK:
                self._follow(path)
        known = set(self._baseline).union(*(e.files for e in self._environments.values()))
        self._known = sorted(known)
        self._alarm_at_start()

    def examine_data(
        self,
        path: bytes,
        events: tuple[str, ...],
        *,
        writing: Writing = Writing.OVERDUE,
        final: bool = False,
    ) -> float:
        """Compare one extra file, or what stands in its place, with the baseline.

        Returns:
            Seconds after which to look again; see ``ArmedRun.examine``.
        """
        try:
            self._examine(path, events, writing=writing, final=final)
        except _Unfinished as rewritten:
            return rewritten.pause
        return 0.0

    def _examine(
        self, path: bytes, events: tuple[str, ...], *, writing: Writing, final: bool
    ) -> None:
        if path in self._targets:
            for link in [one for one, target in self._leads.items() if target == path]:
                self._look_behind(link, events, writing=writing, final=final)
        if not path.startswith(self.workspace + b"/"):
            return
        name = self._relative(path)
        unit = inventory.environment_of(name, self._environments)
        if name.rpartition(b"/")[0].endswith(b"__pycache__"):
            if name.endswith(b".pyc"):
                self._examine_cached(path, events, unit=unit, final=final)
            return
        extra = self._surroundings.judge(name)
        self._judge_caches_of(path, events, final=final)
        if unit is not None:
            self._examine_in(unit, path, events, writing=writing, final=final)
        elif extra is not None or path in self._baseline:
            entry = self._baseline.get(path)
            self._examine_extra(path, "extra", entry, events, writing=writing, final=final)
        else:
            self._examine_other(path, events, writing=writing, final=final)

    def sweep(self, *, content: bool) -> None:
        """Find what no event told of, beyond the tracked files too."""
        content = content or self.thorough
        self._leisure = time.monotonic() + LEISURE
        super().sweep(content=content)
        found = inventory.take(self.workspace)
        present = {self._absolute(path) for path in found.files}
        for paths in found.environments.values():
            present.update(map(self._absolute, paths))
        for path in sorted(present.union(self._known, self._recorded)):
            if not self.is_data(path):
                continue
            mark = _mark(path)
            if content or path not in self._marks or self._marks[path] != mark:
                self._marks[path] = mark
                self.examine_data(path, (), final=True)
        for path in self._paths:
            if self.files[path].mode == LINK:
                self._look_behind(path, (), final=True)
        for unit in self._environments.values():
            root = self._absolute(unit.path)
            if not unit.differs and root in self._touched:
                self._as_expected(root, self._touched[root], ())
        self.compare_git(final=True)

    def git_changed(self, changes: Sequence[GitChange]) -> None:
        """Compare git's state where something in it changed."""
        super().git_changed(changes)
        self.compare_git(final=False)

    # -- what the watch asks ------------------------------------------------------------------

    def standing(self) -> Iterator[Mutation]:
        """Yield what is not as it should be now."""
        for path, touched in self._touched.items():
            record = self._records.get((path, touched.current or ""))
            if record is not None:
                yield record

    def kinds(self, mutation: Mutation) -> list[str]:
        """Say in the machine stream's words what a mutation is."""
        area, kind = mutation.area, mutation.kind
        words = [kind]
        if area == "tracked":
            if self._git_last is not None and mutation.path in self._git_last.flags:
                words.append("hidden-from-git")
        elif area == "extra":
            extra = self._surroundings.judge(self._relative(mutation.path))
            words += ["extra-file", *((extra.role.value,) if extra else ())]
            words += ["shadowing"] if extra is not None and extra.shadows else []
        else:
            words += {"head": ["head-moved"], "replace": ["replaced-objects"]}.get(area, [])
            words += {"staged": ["index-differs"]}.get(area, [])
            words += {"index": ["hidden-from-git"], "link": ["link-target"]}.get(area, [])
            words += {"root": ["root-replaced"], "bytecode": ["forged-bytecode"]}.get(area, [])
            words += {"environment": ["environment"], "mount": ["mount"]}.get(area, [])
            words += {"objects": ["object-corrupt"]}.get(area, [])
            words += [f"git-{area}"] if area in ("hooks", "info", "configuration", "git") else []
        return words

    def noted(self) -> Iterator[tuple[bytes, str]]:
        """Yield the extra files that stood there at the start and matter, with what they are."""
        for path in sorted(self._baseline):
            extra = self._surroundings.judge(self._relative(path))
            if extra is not None:
                yield path, extra.role.value

    @property
    def environments(self) -> tuple[Environment, ...]:
        """The units, as they were at the start."""
        return tuple(self._environments.values())

    def objects_corrupt(self, words: str) -> None:
        """Record that git serves other bytes than the commit's."""
        places = None if self._git is None else self._git.places
        base = self.workspace + b"/.git" if places is None else places.common
        self._place(base + b"/objects", "objects", "modified", words, final=True)

    def close(self) -> None:
        """End what was started to judge bytecode."""
        self._bytecode.close()

    # -- the start ----------------------------------------------------------------------------

    def _begin_with(self, name: bytes, looker: Looker) -> None:
        path = self._absolute(name)
        if name in self.files:
            return
        self._marks[path] = _mark(path)
        extra = self._surroundings.judge(name)
        if extra is None:
            extra = self._as_package(path)
        if extra is not None and extra.role is not Role.CACHED:
            entry = guarded(name, looker)
            if entry is not None:
                self._baseline[path] = entry

    def _environment(self, unit: bytes, paths: Iterable[bytes], looker: Looker) -> Environment:
        files: dict[bytes, Guarded] = {}
        for name in paths:
            path = self._absolute(name)
            if name in self.files:
                continue
            self._marks[path] = _mark(path)
            if name.endswith(b".pyc"):
                self._cached[path] = (*self._marks_of(path), Cached(Judgement.UNUSED))
            if not _counts_in_environment(name):
                continue
            entry = guarded(name, looker)
            if entry is not None:
                files[path] = entry
        return Environment(unit, files)

    def _alarm_at_start(self) -> None:
        """Record what is wrong however long it has stood there."""
        for path in self._baseline:
            extra = self._surroundings.judge(self._relative(path))
            if extra is not None and extra.alarming:
                entry = self._baseline[path]
                draft = _draft(path, "extra", "created", None, f"sha256:{entry.digest}")
                self._note(path, f"start:{entry.digest}", replace(draft, earlier=True))
        for path in sorted(self._marks):
            name = self._relative(path)
            if not name.endswith(b".pyc") or b"__pycache__" not in name:
                continue
            if inventory.environment_of(name, self._environments) is None:
                self._examine_cached(path, (), unit=None, final=True)
        view = self._git
        if view is None or view.places is None:
            return
        for oid in self._expected.replaced:
            place = view.places.common + b"/refs/replace/" + oid.encode("ascii")
            self._place(place, "replace", "created", oid, final=True)
        if view.state is not None and "info/grafts" in view.state.digests:
            self._place(view.places.common + b"/info/grafts", "replace", "created", "", final=True)

    # -- extra files --------------------------------------------------------------------------

    def _examine_extra(
        self,
        path: bytes,
        area: str,
        entry: Guarded | None,
        events: tuple[str, ...],
        *,
        writing: Writing,
        final: bool,
        at: bytes | None = None,
    ) -> bool:
        """Compare and record; say whether there is a difference.

        Args:
            at: where it is recorded if not at the path itself.

        Raises:
            _Unfinished: nothing was recorded; look again.
        """
        try:
            with Looker(self.workspace) as looker:
                found = looker.look(self._relative(path), RAW, entry)
        except RootGone:
            return True
        _check_filled(found, entry, writing)
        touched = self._touch(path, events)
        touched.seen = found.identity
        self._looked.add(path)
        self._recorded.add(path)
        kind = _difference(entry, found)
        alarming = touched.current is not None and touched.current.startswith("start:")
        if kind is None and alarming and found.kind != "missing":
            return True
        before = None if entry is None else f"sha256:{entry.digest}"
        if kind is None:
            came_and_went = entry is None and {"create", "delete"} <= set(events)
            if came_and_went and "moved-from" not in events and not touched.states:
                self._record(path, "gone", _draft(path, area, "created", None, None), MISSING)
            self._as_expected(path, touched, events)
            return False
        after = f"sha256:{found.sha256}" if found.sha256 else None
        draft = replace(_draft(path, area, kind, before, after), final=final)
        if at is not None and at != path:
            self._note(at, "changed", replace(draft, kind="modified"))
            return True
        self._record(path, f"{kind}:{found.sha256}:{found.mode:o}", draft, found)
        touched.growing = None if final or writing is Writing.CLOSED else found
        return True

    def _examine_in(
        self,
        unit: bytes,
        path: bytes,
        events: tuple[str, ...],
        *,
        writing: Writing,
        final: bool,
    ) -> None:
        if not _counts_in_environment(path):
            return
        environment = self._environments.setdefault(unit, Environment(unit, {}))
        entry = environment.files.get(path)
        if entry is None and os.path.isdir(path) and not os.path.islink(path):
            self._examine_other(path, events, writing=writing, final=final)
            return
        crowded = path not in environment.named and len(environment.named) >= NAMED
        at = self._absolute(unit) if crowded else None
        differs = self._examine_extra(
            path, "environment", entry, events, writing=writing, final=final, at=at
        )
        (environment.differs.add if differs else environment.differs.discard)(path)
        if differs and at is None:
            environment.named.add(path)

    def _examine_other(
        self, path: bytes, events: tuple[str, ...], *, writing: Writing, final: bool
    ) -> None:
        """A directory, or a file that matters to nobody: but what stood below may be gone."""
        start, end = bisect_left(self._known, path + b"/"), bisect_left(self._known, path + b"0")
        gone = {*self._known[start:end], *(p for p in self._recorded if p.startswith(path + b"/"))}
        for one in sorted(gone):
            self.examine_data(one, events, final=final)
        package = self._as_package(path)
        if package is not None or path in self._recorded:
            self._examine_extra(path, "extra", None, events, writing=writing, final=final)

    def _as_package(self, path: bytes) -> Extra | None:
        """Say what a link to a directory of modules could be used as."""
        try:
            if not stat.S_ISLNK(os.lstat(path).st_mode):
                return None
            with os.scandir(path) as entries:
                names = [entry.name for entry, _ in zip(entries, range(_ENTRIES), strict=False)]
        except OSError:
            return None
        if not any(module_name(name) and b"." in name for name in names):
            return None
        return self._surroundings.judge(self._relative(path) + b"/__init__.py")

    # -- bytecode -----------------------------------------------------------------------------

    def _examine_cached(
        self, path: bytes, events: tuple[str, ...], *, unit: bytes | None, final: bool
    ) -> None:
        name = self._relative(path)
        marks = self._marks_of(path)
        before = self._cached.get(path)
        if before is not None and before[:2] == marks and (unit is not None or not self.thorough):
            return
        if unit is not None and not self.thorough:
            # An installed package that is imported for the first time compiles by the thousand.
            self._marks.pop(path, None)
            if not final or time.monotonic() > self._leisure:
                return
        judged = self._bytecode.judge(name)
        self._cached[path] = (*marks, judged)
        self._recorded.add(path)
        touched = self._touch(path, events)
        touched.seen = marks[0]
        self._looked.add(path)
        bad = judged.judgement is Judgement.FORGED
        if judged.judgement is Judgement.UNVERIFIED:
            self.unverified.add(path)
            # One source, one interpreter, one bytecode: an honest one does not change alone.
            first = self._first.get(path)
            if first is None or first.header != judged.header:
                first = self._first[path] = judged
            bad = first.digest != judged.digest
        else:
            self.unverified.discard(path)
        if not bad:
            self._as_expected(path, touched, events)
            return
        try:
            with Looker(self.workspace) as looker:
                found = looker.look(name, RAW, None)
        except RootGone:
            return
        kind = "created" if before is None else "modified"
        draft = replace(
            _draft(path, "bytecode", kind, None, f"sha256:{judged.digest}"),
            final=final,
            earlier=not self.started,
        )
        self._record(path, f"forged:{judged.digest}", draft, found)

    def _marks_of(self, path: bytes) -> tuple[Identity | None, Identity | None]:
        """Return the identities of a cached file and of its source."""
        directory, _, name = path.rpartition(b"/")
        source = directory.rpartition(b"/")[0] + b"/" + name.partition(b".")[0] + b".py"
        return _mark(path), _mark(source)

    def _judge_caches_of(self, path: bytes, events: tuple[str, ...], *, final: bool) -> None:
        """A source changed, so that bytecode which nobody used may be used now."""
        if path.endswith(b".py") and "attrib" in events:
            directory, _, name = path.rpartition(b"/")
            prefix = directory + b"/__pycache__/" + name[:-2]
            for cached in [one for one in self._cached if one.startswith(prefix)]:
                self._examine_cached(cached, (), unit=None, final=final)

    # -- where links lead ---------------------------------------------------------------------

    def _follow(self, name: bytes) -> None:
        target = os.path.realpath(self._absolute(name))
        inside = target.startswith(self.workspace + b"/")
        self._leads[name] = target
        below = self._relative(target) if inside else b""
        if target == self.workspace or (inside and (below in self.files or self.below(below))):
            return
        if os.path.isdir(target):
            self.outside.add(name)
            return
        self._targets.add(target)
        directory, _, last = target.rpartition(b"/")
        try:
            with Looker(directory or b"/") as looker:
                entry = guarded(last, looker)
        except RootGone:
            return
        if entry is not None:
            self._behind[name] = entry

    def _look_behind(
        self,
        name: bytes,
        events: tuple[str, ...],
        *,
        writing: Writing = Writing.OVERDUE,
        final: bool,
    ) -> None:
        """Compare what a tracked link leads to with what it led to at the start."""
        target = os.path.realpath(self._absolute(name))
        # A record of what a link leads to must not be taken for one of the link itself.
        key = self._absolute(name) + BEHIND
        entry = self._behind.get(name)
        moved = target != self._leads.get(name)
        seen = _mark(target)
        directory, _, last = target.rpartition(b"/")
        now_ = MISSING
        if entry is not None and not moved:
            with contextlib.suppress(RootGone), Looker(directory or b"/") as looker:
                now_ = looker.look(last, RAW, entry)
            _check_filled(now_, entry, writing)
        touched = self._touch(key, events)
        touched.seen = seen
        self._looked.add(key)
        if moved:
            draft = replace(_draft(key, "link", "modified", None, None), final=final)
            self._record(key, f"leads:{os.fsdecode(target)}", draft, MISSING)
            return
        if entry is None:
            self._as_expected(key, touched, events)
            return
        kind = _difference(entry, now_)
        if kind is None:
            self._as_expected(key, touched, events)
            return
        after = f"sha256:{now_.sha256}" if now_.sha256 else None
        draft = _draft(key, "link", kind, f"sha256:{entry.digest}", after)
        self._record(key, f"{kind}:{now_.sha256}", replace(draft, final=final), now_)

    # -- git ----------------------------------------------------------------------------------

    def compare_git(self, *, final: bool) -> None:
        """Compare git's state with that of the start."""
        repository = self._expected.repository
        if self._git is None or repository is None:
            return
        later = View.of(self.workspace, repository, self._expected.commit, self._git_last)
        self._git_last = later
        current = {change.path: change for change in self._git.changes(later)}
        for path, change in current.items():
            self._git_paths.add(path)
            self._place(path, change.area, change.kind, change.state, final=final)
        for path in self._git_paths - current.keys():
            self._as_expected(path, self._touch(path, ()), ())

    # -- small things -------------------------------------------------------------------------

    def _place(self, path: bytes, area: str, kind: str, state: str, *, final: bool) -> None:
        self._note(path, state, replace(_draft(path, area, kind, None, None), final=final))

    def _note(self, path: bytes, state: str, draft: Mutation) -> None:
        self._touch(path, ()).seen = _mark(path)
        self._looked.add(path)
        self._record(path, state, replace(draft, path=path), MISSING)

    def _absolute(self, name: bytes) -> bytes:
        return self.workspace + b"/" + name if name else self.workspace

    def _relative(self, path: bytes) -> bytes:
        return path[len(self.workspace) + 1 :]


class _Unfinished(Exception):
    """A file is most likely in the middle of being rewritten in place."""

    def __init__(self, pause: float) -> None:
        super().__init__(pause)
        self.pause = pause


def _check_filled(found: Found, entry: Guarded | None, writing: Writing) -> None:
    if found.kind == "file":
        pause = unfilled(found.size, entry.size if entry is not None else 1, writing)
        if pause:
            raise _Unfinished(pause)


def _difference(entry: Guarded | None, found: Found) -> str | None:
    if entry is not None:
        return difference(entry, found)
    return None if found.kind in ("missing", "detoured", "directory") else "created"


def _draft(path: bytes, area: str, kind: str, before: str | None, after: str | None) -> Mutation:
    moment = now()
    return Mutation(0, path, area, kind, before, after, 0, (), moment, moment)


def _mark(path: bytes) -> Identity | None:
    try:
        return identity(os.lstat(path))
    except OSError:
        return None


def _counts_in_environment(path: bytes) -> bool:
    """Whether a file belongs to what was installed: no lock, and nothing that importing leaves."""
    directory, _, name = path.rpartition(b"/")
    return not directory.endswith(b"__pycache__") and not is_draft(os.fsdecode(name))
