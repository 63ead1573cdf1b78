"""How commands reach the guard of a workspace, and start it when there is none.

Rules that this module keeps:

- One guard per workspace: a start is serialised by a lock, and the guard itself holds another for
  its whole life.
- The guard runs no code of the workspace or of its caller's environment: isolated Python, working
  directory ``/``, a scrubbed environment, no inherited descriptors.
- A guard that died between arm and disarm is a report with ``guard-died``, never an exception that
  loses the run; what it had written to its journal is read back.
- Nothing heavy is imported: every command comes through here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import sealrun
from sealrun.errors import GuardError
from sealrun.guard import messages
from sealrun.guard.address import SOCKET, is_stopped, nearby, peer, peer_pid
from sealrun.guard.coverage import Coverage, Gap, Moment
from sealrun.guard.filesystem import now
from sealrun.guard.messages import PROTOCOL, Document, GuardStatus, decode, encode, path_text
from sealrun.guard.mutations import JOURNAL, Happened, Mutation, Report
from sealrun.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from sealrun.state import Places

T = TypeVar("T")

#: Seconds without runs after which a guard ends.
IDLE = 12 * 3600.0
#: Seconds that a start may take: 100,000 directories take about 3.
PATIENCE = 120.0
#: Seconds that an answer may take: a drain after lost events reads every tracked file.
ANSWER = 600.0
#: Seconds between two looks at whether the guard can answer at all.
_LOOK = 1.0
LOCK, STARTING, LOG = "lock", "starting", "log"
_KEPT = ("HOME", "LOGNAME", "PATH", "SEALRUN_HOME", "TMPDIR", "TZ", "USER")


class GuardLost(GuardError):
    """The guard went away while it was being spoken to."""


class GuardStopped(GuardLost):
    """The guard is there and stands still (SIGSTOP, or a debugger)."""

    def __init__(self, pid: int) -> None:
        super().__init__(
            f"the guard (process {pid}) is stopped and does not answer",
            hint=f"kill -CONT {pid} lets it go on; then repeat the command. What was written meanwhile "
            "is looked at then.",
        )


class GuardClient:
    """One connection to a guard. Calls are serialised; a client may be shared by threads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._link = _Link(directory)
        self._runs: dict[str, tuple[Coverage, Path]] = {}
        hello = self._call("hello")
        self.pid = int(hello["pid"])
        self.protocol = int(hello["protocol"])
        self.version = str(hello["version"])
        self.busy = tuple(map(str, hello["busy"]))

    @property
    def instance(self) -> str:
        """Random name of the guard process that this client speaks to."""
        return self._link.instance

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; runs that this client armed are disarmed."""
        self._link.close()

    def status(self) -> GuardStatus:
        """Ask the guard about itself; every earlier write has been dealt with.

        Raises:
            GuardLost: it went away.
        """
        return _understood(messages.status, self._call("status"))

    def history(self, since: float = 0.0) -> tuple[Happened, ...]:
        """Return what happened to tracked files, git's state and new directories, oldest first.

        Args:
            since: monotonic seconds; earlier entries are left out.
        """
        answer = self._call("history", since=since)
        return tuple(_understood(messages.happened, entry) for entry in answer)

    def arm(
        self,
        run_id: str,
        manifest: Path,
        evidence: Path,
        extra_roots: Iterable[Path] = (),
        *,
        between: Path | None = None,
    ) -> Coverage:
        """Watch for a run; when this returns, every watch that can be is in place.

        Args:
            run_id: names the run in later calls.
            manifest: file that ``write_manifest`` made; read once, now.
            evidence: directory for foreign bytes and the journal; made when first needed.
            extra_roots: files or directories outside the workspace, e.g. data mounts.
            between: fresh evidence directory of the standing watch that ``disarm`` begins with this
                manifest, in the same moment. A client that goes away without ``disarm`` leaves the
                standing watch as it was, or begins it where there was none.

        Returns:
            Coverage at this moment. It may be incomplete already: too few watches.

        Raises:
            GuardError: the manifest is malformed, or the id is armed already.
        """
        data = [path_text(os.fsencode(root.absolute())) for root in extra_roots]
        answer = self._call(
            "arm",
            run=run_id,
            manifest=str(manifest.absolute()),
            evidence=str(evidence.absolute()),
            data=data,
            between=None if between is None else str(between.absolute()),
        )
        coverage = _understood(messages.coverage, answer)
        self._runs[run_id] = (coverage, evidence)
        return coverage

    def drain(self, run_id: str) -> Report:
        """Return what happened since the run was armed, every write before this call included.

        A guard that died is no exception: the report says ``guard-died`` and holds what the
        journal kept.
        """
        return self._report("drain", run_id)

    def disarm(self, run_id: str) -> Report:
        """Drain, then stop watching for the run."""
        report = self._report("disarm", run_id)
        self._runs.pop(run_id, None)
        return report

    def stand(self, manifest: Path, evidence: Path) -> Report | None:
        """Let the guard watch between runs: every state of a listed file, its bytes, its writer.

        The watch outlives this client and its guard. It replaces the one before and begins empty.

        Args:
            manifest: file that ``write_manifest`` made; read once, now.
            evidence: fresh directory for the bytes and the journal; made when first needed.

        Returns:
            The last report of the watch that was replaced, up to this moment; None if there was none.

        Raises:
            GuardError: the manifest is malformed, or the workspace is gone.
        """
        answer = self._call(
            "stand", manifest=str(manifest.absolute()), evidence=str(evidence.absolute())
        )
        return None if answer is None else _understood(messages.report, answer)

    def between(self) -> Report | None:
        """Return what happened since ``stand``, every write before this call included.

        The records stay: only ``stand`` empties them. Where an earlier guard had begun the watch, they
        are in the report and the time without a guard is a gap in its coverage.

        Returns:
            None where nobody called ``stand``.

        Raises:
            GuardLost: the guard went away; the next one goes on with the watch.
        """
        answer = self._call("between")
        return None if answer is None else _understood(messages.report, answer)

    def follow(self, run_id: str) -> Iterator[Mutation]:
        """Yield each mutation as it is found, and each change of its record, until disarmed.

        Mutations found before the call come first; the call subscribes before it returns.

        Raises:
            GuardLost: the guard went away.
        """
        link = _Link(self._directory)
        try:
            link.exchange({"call": "follow", "run": run_id})
        except BaseException:
            link.close()
            raise
        return _pushed(link)

    def on_mutation(
        self,
        run_id: str,
        callback: Callable[[Mutation], None],
        lost: Callable[[GuardError], None] | None = None,
    ) -> threading.Thread:
        """Call back in a thread for what ``follow`` yields.

        Args:
            run_id: an armed run.
            callback: called with each mutation.
            lost: called once if the guard goes away before the run is disarmed.
        """
        stream = self.follow(run_id)

        def listen() -> None:
            try:
                for mutation in stream:
                    callback(mutation)
            except GuardError as error:
                if lost is not None:
                    lost(error)

        thread = threading.Thread(target=listen, daemon=True, name=f"follow {run_id}")
        thread.start()
        return thread

    def stop(self, why: str, *, force: bool = False) -> None:
        """End the guard and wait until it has ended.

        Raises:
            GuardError: it is guarding a run and ``force`` is false, or it does not end.
        """
        self._call("stop", why=why, force=force)
        self.close()
        deadline = time.monotonic() + PATIENCE
        with (self._directory / LOCK).open("a") as lock:
            while not _locked(lock.fileno()):
                if time.monotonic() > deadline:
                    raise GuardError(
                        f"the guard (process {self.pid}) does not end",
                        hint=f"Look at {self._directory / LOG}.",
                    )
                time.sleep(0.01)

    def _call(self, call: str, **arguments: Any) -> Any:  # noqa: ANN401 - JSON is any of these
        with self._lock:
            return self._link.exchange({"call": call, **arguments})

    def _report(self, call: str, run_id: str) -> Report:
        try:
            report = _understood(messages.report, self._call(call, run=run_id))
        except GuardError as error:
            # Whatever is wrong with the guard: the run has a verdict, and it is not clean.
            if run_id not in self._runs:
                raise
            return self._post_mortem(*self._runs[run_id], error.message)
        armed = self._runs.get(run_id)
        if armed is not None and report.coverage.since != armed[0].since:
            return self._post_mortem(*armed, "somebody else armed the run anew")
        return report

    def _post_mortem(self, armed: Coverage, evidence: Path, why: str) -> Report:
        gap = Gap(Reason.GUARD_DIED, f"{why} (process {self.pid})", {"pid": self.pid})
        coverage = replace(armed, until=now(), gaps=(*armed.gaps, gap))
        return Report(coverage, read_journal(evidence, armed.since))


class _Link:
    """A connected socket that carries lines."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.instance = ""
        try:
            with nearby(directory) as near:
                self._socket.connect(f"{near}/{SOCKET}")
            if peer(self._socket) not in {0, os.geteuid()}:
                raise GuardError(f"another user answers at {directory / SOCKET}")
        except OSError as error:
            self._socket.close()
            raise GuardLost(f"no guard answers at {directory / SOCKET}") from error
        except GuardError:
            self._socket.close()
            raise
        self._stream = self._socket.makefile("rwb")

    def exchange(self, message: Document) -> Any:  # noqa: ANN401 - JSON is any of these
        """Send a call and return its answer.

        Raises:
            GuardError: the guard refused.
            GuardLost: it went away, or another one answered.
        """
        try:
            self._stream.write(encode(message))
            self._stream.flush()
        except (OSError, ValueError) as error:
            raise GuardLost("the guard went away") from error
        answer = self.receive(ANSWER)
        instance = str(answer.get("instance", self.instance))
        if self.instance and instance != self.instance:
            raise GuardLost("another guard answered than the one that was asked")
        self.instance = instance
        if "error" in answer:
            hint = answer.get("hint")
            raise GuardError(str(answer["error"]), hint=None if hint is None else str(hint))
        return answer.get("ok")

    def receive(self, patience: float | None = None) -> Document:
        """Return the next line.

        Args:
            patience: seconds until a silent guard counts as lost; None waits for ever. A guard
                that is stopped (SIGSTOP) counts as lost at once.
        """
        try:
            if patience is not None:
                self._await(patience)
            line = self._stream.readline()
        except GuardLost:
            # What it may still answer one day is no answer to the next call.
            self.close()
            raise
        except (OSError, ValueError) as error:
            raise GuardLost("the guard went away") from error
        if not line.endswith(b"\n"):
            raise GuardLost("the guard went away")
        return decode(line)

    def _await(self, patience: float) -> None:
        # An answer is a single write and nothing is read ahead of it, so the socket alone tells.
        deadline = time.monotonic() + patience
        while not select.select([self._socket], [], [], _LOOK)[0]:
            if is_stopped(self._socket):
                raise GuardStopped(peer_pid(self._socket))
            if time.monotonic() > deadline:
                raise GuardLost(f"the guard did not answer within {patience:.0f} s")

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError, ValueError):
            self._stream.close()
        self._socket.close()


def _understood(read: Callable[[Document], T], answer: Any) -> T:  # noqa: ANN401 - JSON
    try:
        return read(answer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GuardError(
            "the guard answers in the words of another version",
            hint="sealrun guard stop ends it; the next command starts a new one.",
        ) from error


def _pushed(link: _Link) -> Iterator[Mutation]:
    try:
        while "end" not in (message := link.receive()):
            yield _understood(messages.mutation, message.get("mutation"))
    finally:
        link.close()


def read_journal(evidence: Path, since: Moment) -> tuple[Mutation, ...]:
    """Return the mutations that a guard noted in an evidence directory since a moment."""
    found: dict[int, Mutation] = {}
    try:
        lines = (evidence / JOURNAL).read_bytes().splitlines()
    except OSError:
        return ()
    for line in lines:
        try:
            mutation = messages.mutation(decode(line)["mutation"])
        except (GuardError, KeyError, TypeError, ValueError):
            continue  # cut short when the guard died
        if mutation.last.boot == since.boot and mutation.last.monotonic >= since.monotonic:
            found[mutation.number] = mutation
    return tuple(found.values())


def find(workspace: Path, places: Places) -> GuardClient | None:
    """Connect to the guard of a workspace if one is running, whatever its version."""
    try:
        return GuardClient(places.guard(workspace.resolve()))
    except GuardStopped:
        raise
    except GuardLost:
        return None


def ensure(workspace: Path, places: Places, *, idle_after: float = IDLE) -> GuardClient:
    """Connect to the guard of a workspace, starting or replacing it first where needed.

    Args:
        workspace: top of the git working directory.
        places: whose guard.
        idle_after: seconds without runs and calls after which a guard started here ends.

    Raises:
        GuardError: it cannot be started, or one of another version is guarding a run.
    """
    workspace = workspace.resolve()
    directory = places.guard(workspace)
    client = _connect(directory)
    if client is not None and _current(client):
        return client
    if client is not None:
        client.close()
    with (directory / STARTING).open("a") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        client = _connect(directory)
        if client is not None and _current(client):
            return client
        if client is not None:
            client.stop(f"replaced by version {sealrun.__version__}")
        _spawn(workspace, directory, idle_after)
        return GuardClient(directory)


def _connect(directory: Path) -> GuardClient | None:
    try:
        return GuardClient(directory)
    except GuardStopped:
        raise
    except GuardLost:
        return None


def _current(client: GuardClient) -> bool:
    return (client.protocol, client.version) == (PROTOCOL, sealrun.__version__)


def _spawn(workspace: Path, directory: Path, idle_after: float) -> None:
    ours, theirs = os.pipe()
    try:
        with (directory / LOG).open("ab") as log:
            subprocess.Popen(
                [
                    *(sys.executable, "-I", "-m", "sealrun.guard"),
                    *("--ready", str(theirs), "--idle", str(idle_after)),
                    *(os.fspath(workspace), os.fspath(directory)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment(workspace),
                pass_fds=(theirs,),
                start_new_session=True,
            )
        os.close(theirs)
        theirs = -1
        _await(ours, directory)
    except OSError as error:
        raise GuardError(f"cannot start the guard: {error}") from error
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def _await(ready: int, directory: Path) -> None:
    data = b""
    deadline = time.monotonic() + PATIENCE
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([ready], [], [], left)[0]:
            raise GuardError(
                f"the guard was not ready within {PATIENCE:.0f} s",
                hint=f"Its log is {directory / LOG}.",
            )
        part = os.read(ready, 65536)
        if not part:
            raise GuardError("the guard ended while it started", hint=_last_words(directory))
        data += part
    answer = decode(data)
    if "error" in answer:
        hint = answer.get("hint")
        raise GuardError(str(answer["error"]), hint=None if hint is None else str(hint))


def _last_words(directory: Path) -> str:
    try:
        lines = (directory / LOG).read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    return f"Its log is {directory / LOG}" + (f"; it ends: {lines[-1][:200]}" if lines else ".")


def environment(workspace: Path) -> dict[str, str]:
    """Return the environment of a guard: nothing by which its caller or a workspace steers it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or name.startswith("XDG_")
    }
    paths = [
        part
        for part in kept.get("PATH", "").split(os.pathsep)
        if part.startswith("/") and not Path(part).resolve().is_relative_to(workspace)
    ]
    return {**kept, "PATH": os.pathsep.join([*paths, "/usr/bin", "/bin"]), "LC_ALL": "C.UTF-8"}


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True
