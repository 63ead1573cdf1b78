# ruff: noqa: PTH112, PTH118, PTH119, PTH120 - paths are bytes here, which pathlib does not speak
"""One workspace's guard: an actor that alone touches the observer and the armed runs.

Rules that this module keeps:

- One thread, one queue: events and calls are dealt with in the order in which they arrived, so
  nothing here needs a lock.
- A drain answers only after its cookie came out of the event queue, whatever was waiting to settle
  was looked at, and every armed file's identity was compared.
- Lost events, missing watches, a moved root, a covering mount, a silent stream: each is a ``Loss``
  with its interval before anything else happens, then everything is compared again.
- Only what a run needs is watched: directories that hold tracked files and those above, git's own
  state, data roots; and a bounded number of new directories.
- Reading the workspace costs nothing here: no event of a read is ever asked for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import select
import threading
import time
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import sealrun
from sealrun.errors import Fault, GuardError, SealrunError
from sealrun.git import Git
from sealrun.guard import observer as ob
from sealrun.guard.armed import FILL, PAUSE, ArmedRun, Writing
from sealrun.guard.attribution import Attribution
from sealrun.guard.client import read_journal
from sealrun.guard.content import Looker, RootGone
from sealrun.guard.coverage import Coverage, Loss, Moment, gaps
from sealrun.guard.filesystem import mount_of, mounts_below, now, read_mounts
from sealrun.guard.gitstate import GitPlaces, Snapshot, snapshot
from sealrun.guard.messages import PROTOCOL, Armed, GuardStatus
from sealrun.guard.mutations import (
    EvidenceStore,
    GitChange,
    GitState,
    Happened,
    Mutation,
    Report,
    Writer,
)
from sealrun.guard.observer import Event, Observer, Raw
from sealrun.guard.standing import BETWEEN, Standing, StandingRun
from sealrun.nested import walk
from sealrun.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sealrun.guard.filesystem import Mount
    from sealrun.guard.manifest import Manifest

T = TypeVar("T")
log = logging.getLogger("sealrun.guard")

#: Seconds between two looks at whether the workspace still exists, and between two full rescans.
TICK, RESCAN = 30.0, 1.0
#: Seconds of silence after which a cookie that does not come out is a lost stream.
SILENCE = 10
#: Seconds after which the thread that attends the mounts notices that the guard has ended.
MOUNTS = 5
#: Directories watched beyond those that a run needs, and entries of the memory.
NEW_DIRECTORIES = 1024
MEMORY = 20_000
_LOSSES = 1000
#: Set in an event's mask, above the kernel's 32 bits: the path has waited long enough.
_SETTLED = 1 << 40
#: The same: the last that was told of the path is not that it was closed or moved there.
_UNCLOSED = 1 << 41
#: Directories that tools fill with thousands of others; no run reads them from the workspace.
_HEAVY = frozenset({b".venv", b"venv", b"node_modules", b"__pycache__", b".git", b".tox", b"wandb"})


@dataclass
class _Wait:
    """A path that is left alone for a moment.

    Attributes:
        since: monotonic seconds; nothing that was found since is recorded.
        due: when it is looked at whatever was told of it.
        mask: what was told of it.
        pause: seconds that were asked for last.
    """

    since: float
    due: float = 0.0
    mask: int = 0
    pause: float = 0.0


class Guard:
    """Watches one workspace from its start to its end.

    Args:
        workspace: top of the working directory, resolved.
        directory: private directory of this guard.
        idle_after: seconds without runs and calls after which it ends.
    """

    def __init__(self, workspace: Path, directory: Path, *, idle_after: float) -> None:
        self.workspace = os.fsencode(workspace)
        self.instance = secrets.token_hex(8)
        self._idle_after = idle_after
        self._queue: SimpleQueue[Raw | Callable[[], None]] = SimpleQueue()
        self._attribution = Attribution()
        self._observer = Observer(directory / "cookie", self._queue.put, self._attribution)
        self._place = directory
        self._runs: dict[str, ArmedRun] = {}
        self._standing: StandingRun | None = None
        self._losses: list[Loss] = []
        self._open: dict[Reason, Loss] = {}
        self._memory: deque[Happened] = deque(maxlen=MEMORY)
        self._memory_new: deque[Happened] = deque(maxlen=MEMORY // 4)
        self._index: frozenset[bytes] = frozenset()
        self._wanted: set[bytes] = set()
        self._git_directories: set[bytes] = set()
        self._new: set[bytes] = set()
        self._pending: dict[bytes, int] = {}
        self._waiting: dict[bytes, _Wait] = {}
        self._unechoed: set[bytes] = set()
        self._echoing: set[bytes] = set()
        self._git: GitPlaces | None = None
        self._git_now: Snapshot | None = None
        self._git_due: float | None = None
        self._git_told = 0
        self._ref_moved: Moment | None = None
        self._index_stale = False
        self._mounts: tuple[Mount, ...] = ()
        self._drains: list[Callable[[], None]] = []
        self._awaited: list[Callable[[], None]] | None = None
        self._silent = 0
        self._ticked = self._settled = 0.0
        self._rescan_due = False
        self._rescanned = self._read_at = self._active = time.monotonic()
        self._ended: str | None = None
        self._root: tuple[int, int] | None = None
        self.watching_since = now()

    # -- from any thread ---------------------------------------------------------------------

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Do something in the guard's own thread, for somebody who needs the guard."""

        def asked() -> T:
            self._active = time.monotonic()
            return work()

        return self.posted(asked)

    def posted(self, work: Callable[[], T]) -> Future[T]:
        """Do something in the guard's own thread."""
        future, step = _promised(work)
        self._queue.put(step)
        return future

    def drained(self, work: Callable[[], T]) -> Future[T]:
        """Do something once every event of a write before this call has been dealt with."""
        future, step = _promised(work)

        def ask() -> None:
            self._active = time.monotonic()
            self._drains.append(step)
            self._send_cookie()

        self._queue.put(ask)
        return future

    def end(self, why: str) -> None:
        """Ask the guard to end."""
        self._queue.put(lambda: setattr(self, "_ended", why))

    # -- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Put every watch in place; watching has begun when this returns.

        Raises:
            GuardError: the workspace is not there.
        """
        self._attribution.start()
        self._observer.start()
        threading.Thread(target=self._attend_mounts, daemon=True, name="mounts").start()
        self._settle_down()
        self._resume()

    def run(self) -> str:
        """Guard until asked to end, idle for long, or without a workspace; return why."""
        self._active = time.monotonic()  # to start may have taken long, and is no idleness
        while self._ended is None:
            try:
                item = self._queue.get(timeout=self._patience())
            except Empty:
                self._tick()
            else:
                if isinstance(item, Raw):
                    self._silent = 0
                    self._deal_with(item)
                else:
                    item()
                    # Others' mounts bring one several times a second, so that we may never wait.
                    self._look_at_clock()
            self._due()
            self._name_writers(*self._watches)
        self._observer.stop()
        self._attribution.stop()
        return self._ended

    def _settle_down(self) -> None:
        """Watch the workspace as it is now."""
        try:
            status = os.lstat(self.workspace)
        except OSError as error:
            raise GuardError(
                f"cannot guard {os.fsdecode(self.workspace)}: {error.strerror}",
                hint="Run sealrun inside an existing git working directory.",
            ) from error
        self._root = (status.st_dev, status.st_ino)
        self._read_index()
        self._plan()
        self._git = GitPlaces.of(self.workspace)
        self._watch_git()
        self._git_now = snapshot(self._git) if self._git else None
        # Last, because where watches are few the directories themselves come first.
        above = os.path.dirname(self.workspace)
        while above != b"/":
            self._observer.guard_place(above)
            above = os.path.dirname(above)
        self._mounts = self._mounts_here(read_mounts())
        self._remote(self._mounts)
        self._observer.verify()
        self._close(Reason.NOT_WATCHED)
        self._account()
        self.watching_since = now()
        log.info("watching %d directories", self._observer.watched)

    def _patience(self) -> float:
        unsettled = any(run.unsettled for run in self._watches)
        if self._rescan_due or self._waiting or self._git_due is not None or unsettled:
            return PAUSE / 2
        return 1.0 if self._awaited else min(TICK, max(0.1, self._idle_after))

    def _tick(self) -> None:
        self._observer.reap()
        self._look_at_clock()

    def _look_at_clock(self) -> None:
        """Notice that the stream fell silent, or that there is nothing to guard any more."""
        clock = time.monotonic()
        if self._awaited:
            # Ticks are counted, not seconds: a guard that was stopped (SIGSTOP) has not waited.
            if clock - self._ticked >= 1:
                self._ticked = clock
                self._silent += 1
            if self._silent >= SILENCE:
                self._lose(Reason.EVENTS_LOST, "the event stream fell silent", {})
                self._answer_drains()
            return
        if not self._runs:
            if not os.path.isdir(self.workspace):
                self._ended = "the workspace is gone"
            elif clock - self._active > self._idle_after:
                self._ended = "nothing to guard for long"

    def _due(self) -> None:
        """Do what has waited long enough."""
        clock = time.monotonic()
        ready = [path for path, wait in self._waiting.items() if wait.due <= clock]
        for path in ready:
            self._pending[path] = self._waiting.pop(path).mask | _SETTLED
        if ready:
            self._look()
        if self._git_due is not None and self._git_due <= clock:
            self._look_at_git()
        if self._rescan_due and (self._queue.empty() or clock - self._rescanned > RESCAN):
            self._rescan()

    # -- events ------------------------------------------------------------------------------

    def _deal_with(self, raw: Raw) -> None:
        for event in self._observer.events(raw):
            if event.mask & ob.OVERFLOW:
                self._overflowed(raw)
            elif self._observer.is_cookie(event):
                self._look()
                self._answer_drains()
            elif self._observer.is_echo(event):
                self._look()
                self._echoed()
            else:
                for directory in event.directories:
                    self._one(event, directory)
        self._observer.reader.consumed(raw)
        self._look()
        self._read_at = raw.at

    def _one(self, event: Event, directory: bytes) -> None:
        mask = event.mask
        if not event.name:
            if mask & ob.ITSELF_GONE:
                self._check_root()
            elif mask & ob.ATTRIBUTE and not os.access(directory, os.R_OK | os.X_OK):
                self._note_below(directory, mask)
            return
        path = directory + b"/" + event.name
        if path == self.workspace + b"/.git":
            self._git = None  # whatever stands there now is found anew
            self._git_due = self._git_due or time.monotonic() + PAUSE
            return
        if directory in self._git_directories and self._in_git(path, mask, event):
            return
        if mask & ob.DIRECTORY:
            self._directory(path, mask)
            return
        if path in self._wanted and mask & (ob.CREATED | ob.MOVED_TO | ob.LEFT):
            # A link or file where a directory of guarded files should be.
            self._note_below(path, mask)
        self._note(path, mask, event)

    def _note(self, path: bytes, mask: int, event: Event) -> None:
        name = path[len(self.workspace) + 1 :] if self._inside(path) else None
        if name is not None and name in self._index:
            self._remember(self._memory, Happened(name, "tracked", event.words, now()))
        elif path.rpartition(b"/")[0] in self._new:
            self._remember(self._memory_new, Happened(name or path, "new", event.words, now()))
        for run in self._watches:
            if (name is not None and name in run.files) or run.is_data(path):
                self._pending[path] = _after(self._pending.get(path, 0), mask)

    def _note_below(self, directory: bytes, mask: int) -> None:
        name = directory[len(self.workspace) + 1 :] if self._inside(directory) else None
        for run in self._watches:
            if name is not None or directory == self.workspace:
                for path in run.below(name or b""):
                    whole = self.workspace + b"/" + path
                    self._pending[whole] = self._pending.get(whole, 0) | mask
            if run.is_data(directory):
                self._pending[directory] = self._pending.get(directory, 0) | mask

    def _directory(self, path: bytes, mask: int) -> None:
        if mask & ob.LEFT:
            self._observer.leave(path)
        if mask & (ob.CREATED | ob.MOVED_TO):
            self._arrived(path)
        if mask & ob.ATTRIBUTE and os.access(path, os.R_OK | os.X_OK):
            return
        self._note_below(path, mask)

    def _arrived(self, path: bytes) -> None:
        if any(run.is_data(path) for run in self._runs.values()):
            for at, _, files in walk(path, self._cover_wanted):
                for name in files:
                    self._pending[os.path.join(at, name)] = ob.CREATED
        elif path in self._wanted:
            below = path + b"/"
            for directory in sorted(d for d in self._wanted if d == path or d.startswith(below)):
                self._observer.cover(directory)
        else:
            self._cover_new(path)
        self._account()

    def _cover_wanted(self, directory: bytes) -> None:
        self._wanted.add(directory)
        self._observer.cover(directory)

    def _cover_new(self, path: bytes) -> None:
        if os.path.basename(path) in _HEAVY:
            return
        for _, names, _ in walk(path, self._remember_of):
            names[:] = [name for name in names if name not in _HEAVY]
            if len(self._new) >= NEW_DIRECTORIES:
                return

    def _remember_of(self, directory: bytes) -> None:
        """Watch a directory that no run needs, for what is remembered, while there is room."""
        if len(self._new) >= NEW_DIRECTORIES:
            self._new = {d for d in self._new if self._observer.has(d)}
        if len(self._new) < NEW_DIRECTORIES and self._observer.cover(directory):
            self._new.add(directory)
        self._observer.missing.pop(directory, None)

    def _look(self) -> None:
        """Look at every path that events told of."""
        if not self._pending:
            return
        pending, self._pending = self._pending, {}
        self._active = time.monotonic()
        start = len(self.workspace) + 1
        try:
            with Looker(self.workspace) as looker:
                for path, mask in pending.items():
                    self._look_at(looker, path, path[start:] if self._inside(path) else None, mask)
        except RootGone:
            self._check_root()
        self._name_writers(*self._watches)

    def _look_at(self, looker: Looker, path: bytes, name: bytes | None, mask: int) -> None:
        words = tuple(word for bit, word in ob.WORDS if mask & bit)
        writing = Writing.OVERDUE if mask & _SETTLED else _writing(mask)
        waits: list[float] = []
        for run in self._watches:
            if name is not None and name in run.files:
                pause = run.pause(looker, name) if writing is Writing.OPEN else 0.0
                waits.append(pause or run.examine(looker, name, words, writing=writing))
            if run.is_data(path):
                waits.append(run.examine_data(path, words, writing=writing))
        if not any(waits):
            self._waiting.pop(path, None)
        elif writing is Writing.CLOSED:
            # Whatever was told of it by now has to be heard, however late that is.
            self._wait(path, mask, FILL)
            self._unechoed.add(path)
            self._send_echo()
        else:
            self._wait(path, mask, max(waits))

    def _send_echo(self) -> None:
        if not self._echoing and self._unechoed:
            self._echoing, self._unechoed = self._unechoed, set()
            self._observer.echo()

    def _echoed(self) -> None:
        """Look at what stands where a file was closed: nothing was told of it before that look."""
        held, self._echoing = self._echoing, set()
        for path in held:
            wait = self._waiting.get(path)
            if wait is not None and _writing(wait.mask) is Writing.CLOSED:
                del self._waiting[path]
                mask = self._pending.get(path, 0) | wait.mask
                self._pending[path] = mask | _SETTLED
        self._look()
        self._send_echo()

    def _name_writers(self, *runs: ArmedRun) -> None:
        """Tell of what the last looks found, with its writers as far as they are known."""
        clock = time.monotonic()
        if not self._queue.empty() and clock - self._settled < PAUSE:
            return  # in a storm, once for many looks
        if any(run.unsettled for run in runs):
            self._settled = clock
            position = self._attribution.settle()
            self._account_for_witness()
            for run in runs:
                run.settle(self._attribution, position)

    def _wait(self, path: bytes, mask: int, pause: float) -> None:
        clock = time.monotonic()
        wait = self._waiting.setdefault(path, _Wait(clock))
        if pause != wait.pause:
            # Whoever goes on for ever, or begins again and again, has as long as for one file.
            wait.due = min(clock + pause, wait.since + max(FILL, pause))
            wait.pause = pause
        # Whether it was closed is what was told last.
        wait.mask = (wait.mask & ~_UNCLOSED) | (mask & ~_SETTLED)

    # -- git ---------------------------------------------------------------------------------

    def _in_git(self, path: bytes, mask: int, event: Event) -> bool:
        if self._git is None:
            return False
        if mask & ob.DIRECTORY and path not in self._wanted:
            if mask & ob.LEFT:
                self._observer.leave(path)
            if mask & (ob.CREATED | ob.MOVED_TO):
                self._watch_git()
            self._git_due = self._git_due or time.monotonic() + PAUSE
        area = self._git.area(path)
        if area is None:
            # The common directory of a work tree may hold the workspace itself.
            return not self._inside(path) or path.startswith(self._git.own + b"/")
        self._index_stale = self._index_stale or area == "index"
        if area in ("head", "refs"):
            self._ref_moved = now()
        self._git_due = self._git_due or time.monotonic() + PAUSE
        self._remember(self._memory, Happened(path, "git-state", event.words, now()))
        return True

    def _watch_git(self) -> None:
        self._git_directories = set()
        # Until there is nothing new, for the reason that ``_plan`` gives.
        while self._git and (found := {*self._git.directories()} - self._git_directories):
            self._git_directories |= found
            for directory in found:
                self._observer.cover(directory)

    def _look_at_git(self) -> None:
        self._git_due = None
        places = GitPlaces.of(self.workspace)
        if places != self._git:
            self._git = places
            self._watch_git()
        later = snapshot(places) if places else None
        if self._git_now is not None and later is not None:
            # We look a moment later, and whoever writes in that moment writes after the commit.
            changes = self._git_now.changes(later, self._ref_moved or now())
            changes = self._with_writers(changes, later.branch)
            for run in self._watches:
                run.git_changed(changes)
        self._git_now = later
        self._ref_moved = None
        if self._index_stale and not self._runs:
            # While runs are armed their manifests decide; the index is read again afterwards.
            self._read_index()
            self._plan()

    def _with_writers(
        self, changes: tuple[GitChange, ...], branch: str | None
    ) -> tuple[GitChange, ...]:
        if not changes or self._git is None:
            return changes
        since, self._git_told = self._git_told, self._attribution.settle()
        named: list[GitChange] = []
        for change in changes:
            kind = "deleted" if change.after is None else "modified"
            # Several of its files may have been written, and not all by the same process.
            writers: list[Writer] = []
            for path in self._git.files(change, branch):
                writer, candidates = self._attribution.name(path, kind, since)
                if writer.process is not None or candidates:
                    writers += (writer, *candidates)
            if writers:
                change = replace(change, writer=writers[0], candidates=tuple(writers[1:]))  # noqa: PLW2901 - the same, named
            named.append(change)
        return tuple(named)

    def _read_index(self) -> None:
        self._index_stale = False
        try:
            output = Git(Path(os.fsdecode(self.workspace))).run("ls-files", "-z")
        except (Fault, SealrunError) as error:
            log.warning("cannot list tracked files: %s", error)
            return
        self._index = frozenset(path for path in output.split(b"\0") if path)

    # -- losses ------------------------------------------------------------------------------

    def _overflowed(self, raw: Raw) -> None:
        limit = _number("/proc/sys/fs/inotify/max_queued_events")
        self._lose(
            Reason.EVENTS_LOST,
            "the kernel's event queue overflowed",
            {"max_queued_events": limit},
            since=self._read_at,
            until=raw.at,
        )
        self._rescan_due = True
        # Those under way may be among the lost.
        if self._awaited is not None:
            self._observer.touch_cookie()
        if self._echoing:
            self._observer.echo()

    def _rescan(self) -> None:
        """Renew every watch and compare every byte."""
        self._rescan_due = False
        self._plan()
        self._watch_git()
        self._observer.verify()
        self._check_root()
        for run in self._watches:
            self._sweep(run, content=True)
        self._look_at_git()
        self._rescanned = time.monotonic()

    def _sweep(self, run: ArmedRun, *, content: bool) -> None:
        try:
            run.sweep(content=content)
        except RootGone:
            self._check_root()
        self._name_writers(run)

    def _check_root(self) -> None:
        try:
            status = os.lstat(self.workspace)
            here = (status.st_dev, status.st_ino)
        except OSError:
            here = None
        if here == self._root:
            return
        if Reason.NOT_WATCHED not in self._open:
            self._open[Reason.NOT_WATCHED] = Loss(
                Reason.NOT_WATCHED,
                "the workspace was moved, replaced or mounted over",
                min(self._read_at, time.monotonic()),
            )
            log.warning("the workspace does not stand at its path any more")
        for run in self._watches:
            run.place(self.workspace, "root", "moved")

    def _attend_mounts(self) -> None:
        """Look at the mounts whenever one came or went anywhere (proc(5), ``/proc/self/mountinfo``)."""
        fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        changes = select.poll()
        changes.register(fd, select.POLLPRI)

        def look() -> None:
            self._check_root()
            self._check_mounts()

        try:
            while self._ended is None:
                if changes.poll(MOUNTS * 1000):
                    # Waited for, so that whoever mounts all day long does not fill our queue. Nobody
                    # answers once the guard has ended.
                    with contextlib.suppress(FutureTimeout):
                        self.posted(look).result(SILENCE)
        finally:
            os.close(fd)

    def _check_mounts(self) -> None:
        mounts = self._mounts_here(read_mounts())
        before, after = set(self._mounts), set(mounts)
        for mount, kind in (
            *((m, "unmounted") for m in before - after),
            *((m, "mounted") for m in after - before),
        ):
            self._lose(
                Reason.NOT_WATCHED,
                f"a file system was {kind} inside the guarded directories",
                {},
                since=self._read_at,
            )
            for run in self._watches:
                run.place(mount.point, "mount", kind, final=True)
            self._rescan_due = True
        self._mounts = mounts
        self._remote(mounts)

    def _mounts_here(self, mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
        roots = [self.workspace, *(root for run in self._runs.values() for root in run.data_roots)]
        found = {mount: None for root in roots for mount in mounts_below(mounts, root)}
        return tuple(found)

    def _remote(self, below: tuple[Mount, ...]) -> None:
        every = read_mounts()
        places = [self.workspace]
        places += [root for run in self._runs.values() for root in run.data_roots]
        if self._git is not None:
            places += [self._git.own, self._git.common]
        found = [*(mount_of(place, every) for place in places), *below]
        remote = sorted({mount.type for mount in found if mount is not None and mount.remote})
        if not remote:
            self._close(Reason.REMOTE_FILE_SYSTEM)
        elif Reason.REMOTE_FILE_SYSTEM not in self._open:
            self._open[Reason.REMOTE_FILE_SYSTEM] = Loss(
                Reason.REMOTE_FILE_SYSTEM,
                f"content-only: writes from elsewhere to {', '.join(remote)} make no event here",
                time.monotonic(),
                numbers={"file_systems": len(remote)},
            )

    def _account_for_witness(self) -> None:
        """Put on record since when a witness that was taken away is missed."""
        why = self._attribution.absent
        if why is None:
            self._close(Reason.WRITERS_LOST)
        elif Reason.WRITERS_LOST not in self._open:
            self._open[Reason.WRITERS_LOST] = Loss(Reason.WRITERS_LOST, why, time.monotonic())

    def _revive_witness(self) -> None:
        self._account_for_witness()
        self._attribution.revive()
        self._account_for_witness()

    def _account(self) -> None:
        """Compare wanted directories with watches, and the witness with what it should be."""
        self._account_for_witness()
        needed = self._wanted | self._git_directories
        missing = [d for d in self._observer.missing if d in needed]
        if not missing:
            self._close(Reason.WATCHES_MISSING)
            return
        known = self._open.get(Reason.WATCHES_MISSING)
        numbers = {
            "missing": len(missing),
            "directories": len(needed),
            "max_user_watches": _number("/proc/sys/fs/inotify/max_user_watches"),
        }
        why = self._observer.missing[missing[0]]
        loss = Loss(
            Reason.WATCHES_MISSING,
            f"{len(missing)} of {len(needed)} directories have no watch: {why}",
            known.since if known else time.monotonic(),
            numbers=numbers,
        )
        self._open[Reason.WATCHES_MISSING] = loss

    def _lose(
        self,
        reason: Reason,
        text: str,
        numbers: dict[str, int],
        *,
        since: float | None = None,
        until: float | None = None,
    ) -> None:
        clock = time.monotonic()
        loss = Loss(reason, text, clock if since is None else since, until or clock, numbers)
        last = self._losses[-1] if self._losses else None
        if last is not None and (last.reason, last.text) == (reason, text):
            times = last.numbers.get("times", 1) + 1
            loss = replace(
                loss, since=min(last.since, loss.since), numbers={**numbers, "times": times}
            )
            self._losses.pop()
        elif len(self._losses) >= _LOSSES:
            # Two old intervals become one that spans both: never less than was lost.
            first, second = self._losses[0], self._losses.pop(1)
            self._losses[0] = replace(first, until=second.until)
        self._losses.append(loss)
        log.warning("%s: %s", reason.value, text)

    def _close(self, reason: Reason) -> None:
        loss = self._open.pop(reason, None)
        if loss is not None:
            self._losses.append(replace(loss, until=time.monotonic()))

    # -- drains ------------------------------------------------------------------------------

    def _send_cookie(self) -> None:
        if self._awaited is None and self._drains:
            self._awaited, self._drains = self._drains, []
            self._silent = 0
            self._ticked = time.monotonic()
            self._observer.touch_cookie()

    def _answer_drains(self) -> None:
        awaited, self._awaited = self._awaited, None
        for path, wait in self._waiting.items():
            self._pending[path] = self._pending.get(path, 0) | wait.mask | _SETTLED
        self._waiting.clear()
        self._look()
        for step in awaited or ():
            step()
        self._send_cookie()

    # -- what clients ask for (in the guard's own thread) ------------------------------------

    def arm(self, run_id: str, manifest: Manifest, evidence: Path, data: Iterable[bytes]) -> None:
        """Watch everything that a run needs; follow with a drained ``armed``.

        Raises:
            GuardError: a run of this id is armed, or the workspace is gone.
        """
        self.admit(ArmedRun(run_id, self.workspace, manifest, EvidenceStore(evidence), data))

    def admit(self, run: ArmedRun) -> None:
        """Watch everything that a run needs; follow with a drained ``armed``.

        Raises:
            GuardError: a run of this id is armed, or the workspace is gone.
        """
        if run.run_id in self._runs or run.run_id == BETWEEN:
            raise GuardError(f"run {run.run_id} is armed already")
        self._check_root()
        if Reason.NOT_WATCHED in self._open and not self._runs:
            self._settle_down()
        self._revive_witness()
        self._runs[run.run_id] = run
        self._plan()
        self._watch_git()
        self._observer.verify()
        self._account()
        self._mounts = self._mounts_here(read_mounts())
        self._remote(self._mounts)
        run.since = now()

    def armed(self, run_id: str) -> Coverage:
        """Take stock of a run's files; its coverage so far."""
        run = self._run(run_id)
        self._look_at_git()
        run.git_changes.clear()
        run.git_before = self._git_now
        run.take_stock(self._attribution.settle())
        return self._coverage(run.since, run)

    def report(self, run_id: str) -> Report:
        """Compare everything once more and say what happened since the run was armed."""
        run = self._run(run_id)
        self._check_root()
        self._check_mounts()
        self._observer.verify()
        self._account()
        if self._rescan_due:
            self._rescan()
        else:
            self._sweep(run, content=Reason.WATCHES_MISSING in self._open)
            self._look_at_git()
        run.settle(self._attribution, self._attribution.settle())
        before, after = run.git_before, self._git_now
        return Report(
            self._coverage(run.since, run),
            run.mutations(),
            run.rewrites(),
            GitState(
                head=before.head if before else None,
                head_now=after.head if after else None,
                branch=before.branch if before else None,
                branch_now=after.branch if after else None,
                changes=tuple(run.git_changes),
            ),
        )

    def disarm(self, run_id: str) -> ArmedRun | None:
        """Stop watching for a run; None where there is no such run."""
        run = self._runs.pop(run_id, None)
        if run is not None:
            if self._index_stale:
                self._read_index()
            self._plan()
        return run

    # -- between runs ------------------------------------------------------------------------

    def stand(self, manifest: Manifest, evidence: Path) -> Report | None:
        """Watch between runs from now on; call when drained.

        Returns:
            The last report of the standing watch that this one replaces; None if there was none.

        Raises:
            GuardError: the workspace is gone.
        """
        last = self.between()
        self.renew(manifest, evidence, self._standing)
        return last

    def renew(self, manifest: Manifest, evidence: Path, before: ArmedRun | None) -> None:
        """Begin a standing watch, in the place of any; call when drained.

        Args:
            manifest: what to watch for.
            evidence: directory for what is found.
            before: whose report was the last word so far.

        Raises:
            GuardError: the workspace is gone.
        """
        self._check_root()
        if Reason.NOT_WATCHED in self._open and not self._runs:
            self._settle_down()
        self._revive_witness()
        standing = Standing(manifest, evidence, now(), self._root or (0, 0))
        run = StandingRun(self.workspace, standing)
        if self._standing is not None:
            run.subscribers = self._standing.subscribers
        run.store.begin_journal(())
        self._stand(run)
        if before is not None:
            run.follow_on(before)
        try:
            standing.save(self._place)
        except OSError as error:
            log.warning("the standing watch will not outlive this guard: %s", error)

    def between(self) -> Report | None:
        """Report what happened since the standing watch began; None without one. Call when drained."""
        return None if self._standing is None else self.report(BETWEEN)

    @property
    def stands(self) -> bool:
        """Whether there is a standing watch."""
        return self._standing is not None

    def _stand(self, run: StandingRun) -> None:
        self._standing = run
        self._plan()
        self._observer.verify()
        self._account()
        self._look_at_git()
        run.git_before = self._git_now
        run.take_stock(self._attribution.settle())

    def _resume(self) -> None:
        """Go on with what the guard before this one watched for; what came in between is found."""
        try:
            standing = Standing.load(self._place)
        except GuardError as error:
            log.warning("%s", error.message)
            standing = None
        if standing is None or standing.root != self._root:
            Standing.forget(self._place)
            return
        run = StandingRun(self.workspace, standing)
        self._stand(run)
        run.restore(read_journal(standing.evidence, standing.since))
        log.info("going on with the standing watch of %s", standing.evidence)
        self._sweep(run, content=True)

    def subscribe(self, run_id: str, subscriber: Callable[[Mutation], None]) -> None:
        """Tell somebody of each mutation of a run, from the first on."""
        run = self._run(run_id)
        for mutation in run.mutations():
            subscriber(mutation)
        run.subscribers.append(subscriber)

    def history(self, since: float) -> tuple[Happened, ...]:
        """Return what is remembered since a monotonic time, oldest first."""
        entries = [h for h in (*self._memory, *self._memory_new) if h.at.monotonic >= since]
        return tuple(sorted(entries, key=lambda h: h.at.monotonic))

    def status(self) -> GuardStatus:
        """Describe this guard."""
        self._check_root()
        listed = self._observer.verify()
        self._account()
        return GuardStatus(
            pid=os.getpid(),
            instance=self.instance,
            protocol=PROTOCOL,
            version=sealrun.__version__,
            workspace=os.fsdecode(self.workspace),
            watching_since=self.watching_since,
            watches=self._observer.watched,
            directories=self._observer.watched + len(self._observer.missing),
            kernel_watches=listed,
            coverage=self._coverage(self.watching_since, None),
            armed=tuple(map(self._describe, self._runs.values())),
            standing=self._describe(self._standing) if self._standing else None,
            remembered=len(self._memory) + len(self._memory_new),
            idle_after=self._idle_after,
        )

    @property
    def busy(self) -> tuple[str, ...]:
        """Ids of armed runs."""
        return tuple(self._runs)

    @property
    def writers_unavailable(self) -> str | None:
        """Why writers cannot be named here; None where they can."""
        return self._attribution.why

    @staticmethod
    def _describe(run: ArmedRun) -> Armed:
        return Armed(run.run_id, run.since, len(run.files), run.recorded)

    @property
    def _watches(self) -> tuple[ArmedRun, ...]:
        runs = tuple(self._runs.values())
        return runs if self._standing is None else (*runs, self._standing)

    # -- small things ------------------------------------------------------------------------

    def _coverage(self, since: Moment, run: ArmedRun | None) -> Coverage:
        until = now()
        needed = self._wanted | self._git_directories
        watches = sum(1 for directory in needed if self._observer.has(directory))
        found = gaps(since, until, self.watching_since, (*self._losses, *self._open.values()))
        if run is not None and run.dropped:
            loss = Loss(
                Reason.EVENTS_LOST,
                "more states of files than records are kept for",
                since.monotonic,
                numbers={"dropped": run.dropped},
            )
            found += gaps(since, until, self.watching_since, (loss,))
        return Coverage(
            since=since,
            until=until,
            watching_since=self.watching_since,
            directories=watches + sum(1 for d in self._observer.missing if d in needed),
            watches=watches,
            hard_linked=len(run.hard_linked) if run else 0,
            gaps=found,
        )

    def _plan(self) -> None:
        """Watch every wanted directory and stop watching those that nobody wants any more."""
        wanted = {self.workspace}
        for path in self._index:
            directory = path.rpartition(b"/")[0]
            while directory and (whole := self.workspace + b"/" + directory) not in wanted:
                wanted.add(whole)
                directory = directory.rpartition(b"/")[0]
        for run in self._watches:
            wanted |= run.directories()
        for directory in self._wanted - wanted - self._git_directories:
            self._observer.uncover(directory)
        self._wanted = wanted
        self._new -= wanted
        for directory in sorted(wanted):
            self._observer.cover(directory)
        # Once more, because one may have been made after its parent was listed and before that had
        # a watch.
        listing = [run for run in self._watches if run.lists]
        while late := set[bytes]().union(*(run.directories() for run in listing)) - self._wanted:
            self._new -= late
            for directory in sorted(late):
                self._cover_wanted(directory)

    def _run(self, run_id: str) -> ArmedRun:
        if run_id == BETWEEN and self._standing is not None:
            return self._standing
        try:
            return self._runs[run_id]
        except KeyError:
            raise GuardError(f"run {run_id} is not armed") from None

    def _inside(self, path: bytes) -> bool:
        return path.startswith(self.workspace + b"/")

    @staticmethod
    def _remember(memory: deque[Happened], entry: Happened) -> None:
        if memory and memory[-1].path == entry.path and memory[-1].events == entry.events:
            memory.pop()
        memory.append(entry)


def _after(before: int, mask: int) -> int:
    """Return what was told of a path, and then this."""
    whole = before | mask
    if mask & (ob.CLOSED_WRITE | ob.MOVED_TO):
        return whole & ~_UNCLOSED
    return whole | _UNCLOSED if mask & (ob.MODIFIED | ob.CREATED | ob.LEFT) else whole


def _writing(mask: int) -> Writing:
    # A directory that came back says nothing of whether a file below it has been closed.
    ends = ob.CLOSED_WRITE | (0 if mask & ob.DIRECTORY else ob.MOVED_TO)
    return Writing.CLOSED if mask & ends and not mask & _UNCLOSED else Writing.OPEN


def _number(file: str) -> int:
    try:
        return int(Path(file).read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _promised(work: Callable[[], T]) -> tuple[Future[T], Callable[[], None]]:
    """Return what a piece of work will come to, and the step that does it."""
    future: Future[T] = Future()

    def step() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - carried to the caller
            future.set_exception(error)

    return future, step
