"""One watch of one directory, from its first verification to its verdict.

Rules that this module keeps:

- Ready means: every watch is in place and everything was compared once.
- A mutation is told when it is found; what stands at the end is told again, as the last verification
  found it.
- What events cannot show (mounts, hard links, mappings) is looked for when the kernel says that mounts
  changed, and at intervals that cost at most a hundredth of a core.
- The guard's thread dying, an exception in it, a silent stream: the verdict says so and is not clean.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import select
import shutil
import sys
import threading
import time
from concurrent.futures import TimeoutError as TooEarly
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sealrun.errors import GuardError, ObjectCorrupt, SealrunError
from sealrun.guard.core import Guard
from sealrun.guard.filesystem import read_mounts
from sealrun.ownership.sessions import Sessions
from sealrun.ownership.whose import of_mutation
from sealrun.policy import FOREIGN_TOOLS
from sealrun.reasons import Reason
from sealrun.state import Places, private, repository_id
from sealrun.watch.expected import Expected, of, verify_objects
from sealrun.watch.stream import Conclusion, Detection
from sealrun.watch.tree import BEHIND, RUN, WatchedTree

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from sealrun.guard import Mutation, Report
    from sealrun.guard.filesystem import Mount
    from sealrun.ownership.sessions import Session

T = TypeVar("T")
log = logging.getLogger("sealrun.watch")
#: Seconds between two comparisons: at least, at most, and as a multiple of what one costs.
SOON, LATE, SHARE = 2.0, 600.0, 100
#: Seconds for which the list of sessions is not read again.
FRESH = 1.0
#: What the loop may change without that being a mutation: not bytecode behind a source's back, and
#: nothing that shows it other objects than its own.
OWN = frozenset(
    {
        "tracked",
        "extra",
        "environment",
        "link",
        "head",
        "index",
        "staged",
        "hooks",
        "info",
        "configuration",
    }
)
#: Seconds after which Python hands over between threads (sys.setswitchinterval).
SWITCH = 0.0005
#: Nice value where we may choose it, as the guard process has it.
NICE = -10


class Watch:
    """Watches one directory.

    Args:
        directory: what to watch; of a git working directory all of it.
        places: where evidence is kept.
        tell: called for each detection, from the guard's thread; must not wait.
    """

    def __init__(self, directory: Path, places: Places, tell: Callable[[Detection], None]) -> None:
        self._named = Path(os.path.abspath(directory))  # noqa: PTH100 - resolve() would follow links
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(4)}"
        self.evidence = places.state / "watches" / name
        self._scratch = private(places.cache / "watches" / name)
        self._tell = tell
        self._told: dict[int, int] = {}
        self._held: list[Detection] | None = []
        self._final: list[Detection] | None = None
        self.detections: list[Detection] = []
        self._expected: Expected | None = None
        self._guard: Guard | None = None
        self._tree: WatchedTree | None = None
        self._thread: threading.Thread | None = None
        self._places = places
        self._sessions: tuple[Session, ...] = ()
        self._sessions_read = float("-inf")
        self._own: list[bytes] = []
        self._mounts: tuple[Mount, ...] = ()
        self._cost = 0.0
        self._failure = ""

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> Expected:
        """Put every watch in place and compare everything once.

        Raises:
            UsageError: there is no such directory.
            ObjectCorrupt: HEAD's commit cannot be read truthfully.
            GuardError: watching cannot begin.
        """
        sys.setswitchinterval(SWITCH)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
        self._expected = expected = of(self._named, private(self._scratch / "start"))
        self._guard = guard = Guard(expected.workspace, self._scratch, idle_after=float("inf"))
        guard.start()
        self._tree = tree = WatchedTree(expected, self.evidence)
        tree.subscribers.append(self._found)
        self._thread = threading.Thread(target=self._run, args=(guard,), daemon=True, name="guard")
        self._thread.start()
        self._await(guard.call(lambda: guard.admit(tree)))
        self._await(guard.drained(lambda: guard.armed(RUN)))
        tree.thorough = True
        self._compare()
        tree.thorough = False
        self._await(guard.call(lambda: setattr(tree, "started", True)))
        return expected

    def ready(self) -> None:
        """Tell what the first verification found, and from now on everything at once."""

        def release() -> None:
            held, self._held = self._held, None
            for detection in held or ():
                self._say(detection)

        self._await(self._running().call(release))

    def attend(self, stdin: int, told_to_end: int) -> None:
        """Watch until an end is asked for.

        Args:
            stdin: descriptor whose end of file ends the watch.
            told_to_end: readable once a signal asks for the end.
        """
        waits = select.poll()
        waits.register(stdin, select.POLLIN)
        waits.register(told_to_end, select.POLLIN)
        self._mounts_changed()
        mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        waits.register(mounts, select.POLLPRI)
        due = time.monotonic() + self._pause()
        try:
            while self._alive():
                ready = dict(waits.poll(max(0.0, due - time.monotonic()) * 1000))
                if told_to_end in ready:
                    return
                if stdin in ready and not _continues(stdin, waits):
                    return
                # Others mount all the time, containers first of all.
                moved = mounts in ready and self._mounts_changed()
                if moved or time.monotonic() >= due:
                    self._compare()
                    due = time.monotonic() + self._pause()
        except GuardError:
            return
        finally:
            os.close(mounts)

    def finish(self) -> Conclusion:
        """Compare everything a last time, tell what stands, and conclude."""
        trouble: list[tuple[Reason, str]] = []
        report: Report | None = None
        try:
            self._verify_objects(trouble)
            report = self._last_comparison()
        except GuardError as error:
            trouble.append((Reason.GUARD_DIED, error.message))
        if self._guard is not None:
            self._guard.end("the watch is over")
            if self._thread is not None:
                self._thread.join(10)
        conclusion = self._conclude(report, trouble)
        self.close()
        return conclusion

    def close(self) -> None:
        """Remove what was only needed while watching."""
        if self._tree is not None:
            self._tree.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    # -- comparing ----------------------------------------------------------------------------

    def _compare(self) -> Report:
        guard = self._running()
        began = time.thread_time(), time.monotonic()
        report = self._await(guard.drained(lambda: guard.report(RUN)))
        self._cost = time.monotonic() - began[1]
        tree = self._tree
        if tree is not None and self._named.resolve() != self._running_expected().workspace:
            inside = self._named.resolve().is_relative_to(self._running_expected().workspace)
            if not inside:
                place = os.fsencode(self._named)
                self._await(guard.call(lambda: tree.place(place, "root", "moved")))
        return report

    def _mounts_changed(self) -> bool:
        """Whether what is mounted at, above or below the workspace is not what it was."""
        root = os.fsencode(self._running_expected().workspace) + b"/"
        found = tuple(
            mount
            for mount in read_mounts()
            if mount.point.startswith(root) or root.startswith(mount.point.rstrip(b"/") + b"/")
        )
        before, self._mounts = self._mounts, found
        return found != before

    def _last_comparison(self) -> Report:
        guard, tree = self._running(), self._tree
        assert tree is not None  # noqa: S101 - start() made both
        self._await(guard.call(lambda: setattr(self, "_final", [])))
        tree.thorough = True
        report = self._compare()

        def end() -> None:
            standing = [self._classified(mutation) for mutation in tree.standing()]
            self._own = [self._detection(m).path for m in standing if self._is_own(m)]
            standing = [mutation for mutation in standing if not self._is_own(mutation)]
            numbers = {mutation.number for mutation in standing}
            news, self._final = self._final or [], None
            for detection in news:
                if detection.mutation.number not in numbers:
                    self._say(detection)
            for mutation in standing:
                self._say(replace(self._detection(mutation), final=True))

        self._await(guard.call(end))
        return report

    def _verify_objects(self, trouble: list[tuple[Reason, str]]) -> None:
        """Find out whether git still serves the commit's own bytes."""
        expected, tree = self._running_expected(), self._tree
        if expected.repository is None or expected.commit is None or tree is None:
            return
        try:
            verify_objects(expected.repository, expected.commit, private(self._scratch / "end"))
        except ObjectCorrupt as error:
            words = error.message
            self._await(self._running().call(lambda: tree.objects_corrupt(words)))
        except (SealrunError, OSError) as error:
            trouble.append(
                (Reason.WORKSPACE_NOT_COMPARED, f"the commit was not re-hashed: {error}")
            )

    # -- telling ------------------------------------------------------------------------------

    def _found(self, mutation: Mutation) -> None:
        """Hear of a record from the guard's thread: a state that came, or came back, is news."""
        if self._told.get(mutation.number, 0) >= mutation.count:
            return
        self._told[mutation.number] = mutation.count
        mutation = self._classified(mutation)
        if self._is_own(mutation):
            return
        detection = self._detection(mutation)
        if self._final is not None:
            self._final.append(detection)
        elif self._held is not None:
            self._held.append(replace(detection, at_start=True))
        else:
            self._say(detection)

    def _classified(self, mutation: Mutation) -> Mutation:
        """Return a mutation with its writer's class, by the sessions on record."""
        if time.monotonic() - self._sessions_read > FRESH:
            self._sessions = self._read_sessions()
            self._sessions_read = time.monotonic()
        whose = of_mutation(mutation, self._sessions, FOREIGN_TOOLS)
        return replace(mutation, writer=replace(mutation.writer, kind=whose.category))

    def _read_sessions(self) -> tuple[Session, ...]:
        repository = self._running_expected().repository
        try:
            known = repository and repository_id(repository.common_dir, create=False)
            return Sessions.of(self._places, known or None).all()
        except (SealrunError, OSError) as error:
            log.warning("sessions cannot be read, so every writer is unknown: %s", error)
            return ()

    @staticmethod
    def _is_own(mutation: Mutation) -> bool:
        """Whether the loop itself made a change that is a loop's to make."""
        return mutation.writer.kind == "loop" and mutation.area in OWN

    def _detection(self, mutation: Mutation) -> Detection:
        tree = self._tree
        kinds = tuple(tree.kinds(mutation)) if tree is not None else (mutation.kind,)
        path = mutation.path.removesuffix(BEHIND)
        if not path.startswith(b"/"):
            path = os.fsencode(self._running_expected().workspace) + b"/" + path
        return Detection(mutation, self._as_named(path), kinds)

    def _as_named(self, path: bytes) -> bytes:
        """Return a path below the directory by the name that the caller gave it."""
        real, named = os.fsencode(self._named.resolve()), os.fsencode(self._named)
        if path == real or path.startswith(real + b"/"):
            return named + path[len(real) :]
        return path

    def _say(self, detection: Detection) -> None:
        self.detections.append(detection)
        self._tell(detection)

    def _conclude(self, report: Report | None, trouble: list[tuple[Reason, str]]) -> Conclusion:
        expected, tree = self._running_expected(), self._tree
        notes: list[dict[str, Any]] = []
        environments: list[dict[str, Any]] = []
        if tree is not None:
            for path, what in tree.noted():
                notes.append({"path": os.fsdecode(self._as_named(path)), "was": what})
            for path in sorted(tree.unverified):
                shown = os.fsdecode(self._as_named(path))
                notes.append({"path": shown, "was": "bytecode that could not be verified"})
            for path in sorted(expected.hidden):
                shown = os.fsdecode(self._as_named(tree.workspace + b"/" + path))
                notes.append({"path": shown, "was": "hidden from git by an index flag"})
            same = "rewritten; whenever it was looked at, its bytes were the expected ones"
            rewritten = (r.path for r in (report.rewrites if report else ()) if r.content)
            for path in rewritten:
                if path in tree.files:
                    shown = os.fsdecode(self._as_named(tree.workspace + b"/" + path))
                    notes.append({"path": shown, "was": same})
            own = "changed by the loop itself"
            notes += [{"path": os.fsdecode(path), "was": own} for path in self._own]
            for name in sorted(tree.outside):
                words = f"the tracked link {os.fsdecode(name)} leads to a directory that no commit holds"
                trouble.append((Reason.NOT_WATCHED, words))
            environments = [
                {
                    "path": os.fsdecode(self._as_named(tree.workspace + b"/" + unit.path)),
                    "digest": f"sha256:{unit.digest}",
                    "files": len(unit.files),
                    "changed": bool(unit.differs),
                }
                for unit in tree.environments
            ]
        return Conclusion(
            workspace=os.fspath(expected.workspace),
            commit=expected.commit,
            coverage=report.coverage if report is not None else None,
            detections=tuple(self.detections),
            trouble=tuple(trouble),
            notes=notes,
            environments=environments,
            writers=self._guard.writers_unavailable if self._guard is not None else None,
            evidence=os.fspath(self.evidence) if self.evidence.is_dir() else None,
            at=time.monotonic(),
        )

    # -- the guard's thread -------------------------------------------------------------------

    def _run(self, guard: Guard) -> None:
        try:
            log.info("ended: %s", guard.run())
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            log.exception("the guard's thread failed")

    def _pause(self) -> float:
        return min(LATE, max(SOON, SHARE * self._cost))

    def _running(self) -> Guard:
        if self._guard is None or not self._alive():
            raise GuardError(f"the guard's thread ended{self._failure and f': {self._failure}'}")
        return self._guard

    def _running_expected(self) -> Expected:
        assert self._expected is not None  # noqa: S101 - start() found it
        return self._expected

    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _await(self, future: Future[T]) -> T:
        while True:
            try:
                return future.result(timeout=0.5)
            except TooEarly:
                if not future.done():
                    self._running()


def _continues(stdin: int, waits: select.poll) -> bool:
    """Read what came on stdin; say whether there may be more."""
    try:
        return bool(os.read(stdin, 1 << 16))
    except BlockingIOError:
        return True
    except OSError:
        # A terminal's background job may not read (EIO, with SIGTTIN ignored): signals end it.
        waits.unregister(stdin)
        return True
