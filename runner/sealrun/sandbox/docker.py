"""Runs containers through a Docker engine (API 1.41 upward).

Rules that this module keeps:

- We attach before we start: no byte is missed, and from its first moment the container's life
  hangs on our connection.
- Everything that an engine, a socket or docker-py raises leaves here as an error of ours.
- A container that could not be brought to its gate is removed before the error is raised.
- Only containers with our owner's label are ever cleared.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun.devices.access import remedy
from sealrun.devices.injected import brought
from sealrun.errors import EngineError, ImageGone, SandboxError
from sealrun.interruption import held_back
from sealrun.sandbox import files, spec, views
from sealrun.sandbox.cgroup import Accounts, accounts_of
from sealrun.sandbox.effective import read_effective, read_mounts, sees
from sealrun.sandbox.events import Watch
from sealrun.sandbox.gate import Gate, Sink
from sealrun.sandbox.init import place
from sealrun.sandbox.protocol import Effective, Ended
from sealrun.sandbox.stream import STDERR, STDOUT, Log
from sealrun.sandbox.unenforced import with_unenforced, without_unenforced

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from sealrun.sandbox.protocol import FileState, Interference, Mount, Request

_NOT_FOUND, _CONFLICT, _NOT_MODIFIED = 404, 409, 304
#: Seconds that an init has to report at its gate; a loaded machine took two.
_HANDSHAKE = 30.0
#: Bytes a second that an init copies at least, before it reports.
_COPIED = 20e6
#: Seconds after SIGKILL until we ask the engine instead of the init.
_KILL = 5.0
#: Seconds between two measurements of new files, and how much longer than one they are apart.
_MEASURE, _MEASURE_RATIO = 1.0, 20.0
_PROC = Path("/proc")
#: Characters of an engine's error that are shown.
_MOST_TOLD = 2000
_CREATE_HINT = (
    "A limit that this machine cannot grant stands in [sandbox] of the policy (sealrun policy show) "
    "or on the command line; about the engine `sealrun doctor` says more."
)


def default_owner(state: Path) -> str:
    """Return a name for the installation that keeps its state here, for labels.

    Args:
        state: ``Places.state``.
    """
    text = f"{socket.gethostname()}\0{os.getuid()}\0{state}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


@contextlib.contextmanager
def _engine_errors(
    doing: str, *, refused: bool = False, hint: str | None = None
) -> Generator[None]:
    """Turn what docker-py and below raise into errors of ours.

    Args:
        doing: what was tried, e.g. ``start a container``.
        refused: an answer of the engine means that our request was wrong.
        hint: what to do when the engine refused.
    """
    import docker.errors
    import requests
    import urllib3

    try:
        yield
    except docker.errors.ImageNotFound as error:
        raise ImageGone(
            f"the engine refused to {doing}: {str(error.explanation)[:_MOST_TOLD]}",
            hint="Try again; if it is gone again, find out who removes this engine's images.",
        ) from error
    except docker.errors.APIError as error:
        kind = SandboxError if refused else EngineError
        # An engine may repeat what it was given: a whole system call filter, for one.
        text = str(error.explanation or error)[:_MOST_TOLD]
        raise kind(f"the engine refused to {doing}: {text}", hint=remedy(text) or hint) from error
    except (
        docker.errors.DockerException,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
    ) as error:
        raise EngineError(
            f"the engine went away while we tried to {doing}: {error}",
            hint="`sealrun engine status` and `sealrun doctor` say more.",
        ) from error


def _same(path: Path) -> str:
    return str(path)


class DockerSandbox:
    """Containers of one Docker engine.

    Args:
        client: docker-py's ``APIClient``.
        path_mapping: turns a path of ours into the engine's path of the same file; None where both
            are the same.
        owner: whose containers these are (``default_owner``); ``clear`` touches no others.
        unenforced: limits that the engine cannot enforce (``Engine.unenforced``).
    """

    tier = "container"

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - docker-py ships no types
        path_mapping: Callable[[Path], str] | None = None,
        *,
        owner: str,
        unenforced: Sequence[str] = (),
    ) -> None:
        self._client = client
        self._translate = path_mapping or _same
        self._owner = owner
        self._unenforced = unenforced

    def create(self, request: Request) -> DockerContainer:
        """Create and start a container whose init waits at the gate.

        Raises:
            ImageGone: the engine does not have its image.
            SandboxError: the engine refused it, or our init did not report within its time.
            EngineError: the engine failed or went away.
            StorageFault: the accounts' files cannot be written.
            Refused: data cannot be made readable for the experiment's user here.
        """
        with views.of(request) as given:
            container = self._made(given)
            try:
                views.check(request, container.root)
            except BaseException:
                with contextlib.suppress(EngineError):
                    container.remove()
                raise
        return container

    def _made(self, request: Request) -> DockerContainer:
        _, accounts = place(
            request.init.parent.parent, {"passwd": request.passwd, "group": request.group}
        )
        body = spec.specification(request, accounts, self._owner, self._translate)
        container: DockerContainer | None = None
        try:
            with (
                _engine_errors(
                    f"create the container {request.name}", refused=True, hint=_CREATE_HINT
                ),
                # An engine makes a container whose request was broken off, and before it has, there
                # is nothing that we could remove.
                held_back(),
            ):
                answer = self._client.create_container_from_config(body, request.name)
                container = DockerContainer(
                    self._client, str(answer["Id"]), request, spec.mounts(request, accounts)
                )
            container.unenforced = self._unenforced
            container.start()
        except BaseException:
            if container is not None:
                with contextlib.suppress(EngineError):
                    container.remove()
            raise
        return container

    def clear(self, is_alive: Callable[[str], bool]) -> Sequence[str]:
        """Remove containers of dead controllers (see the Protocol).

        Raises:
            EngineError: the engine failed or went away.
        """
        wanted = {"label": [f"{spec.OWNER_LABEL}={self._owner}", spec.RUN_LABEL]}
        with _engine_errors("list containers"):
            found = self._client.containers(all=True, filters=wanted)
        cleared: list[str] = []
        for entry in found:
            run = str(entry["Labels"][spec.RUN_LABEL])
            if not is_alive(run):
                _remove(self._client, str(entry["Id"]))
                cleared.append(run)
        return cleared


def _remove(client: Any, container: str) -> None:  # noqa: ANN401 - docker-py ships no types
    import docker.errors

    with _engine_errors("remove a container"):
        try:
            client.remove_container(container, v=True, force=True)
        except docker.errors.APIError as error:
            # Gone already, or somebody else is at it.
            if error.response is None or error.response.status_code not in (_NOT_FOUND, _CONFLICT):
                raise


class DockerContainer:
    """One container; ``DockerSandbox.create`` hands it out when its init waits at the gate."""

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - docker-py ships no types
        container: str,
        request: Request,
        binds: Sequence[Mount],
    ) -> None:
        self.id = container
        self.root: Path | None = None
        self.brought: Sequence[str] = ()
        self.command = ""
        self.unenforced: Sequence[str] = ()
        self._client = client
        self._request = request
        self._binds = binds
        self._pid: int | None = None
        self._accounts = Accounts({})
        self._inspection: dict[str, Any] = {}
        self._gate: Gate | None = None
        self._log: Log | None = None
        self._unseen: list[str] = []
        self._stopped_for: str | None = None
        self._ended: Ended | None = None
        self._killed = False
        self._removed = False
        self._next_measure = 0.0
        self._kill_by: float | None = None
        self._watch = Watch(self._subscribe, container)

    def start(self) -> None:
        """Attach, start, and wait until the init reports at its gate.

        Raises:
            SandboxError: the engine refused it, or our init did not report within its time.
            EngineError: the engine failed or went away.
        """
        with _engine_errors("attach to a container"):
            connection = self._client.attach_socket(
                self.id, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            )
        # docker-py wraps a plain socket in a reader that cannot send.
        connection = getattr(connection, "_sock", connection)
        connection.settimeout(None)
        self._gate = Gate(connection, joined=self._request.join_stderr)
        with _engine_errors("start a container", refused=True):
            self._client.start(self.id)
        seed = self._request.seed
        copying = 0.0 if seed is None else seed.size / _COPIED
        self.command = self._gate.handshake(_HANDSHAKE + copying)
        with _engine_errors("inspect a container"):
            self._inspection = self._client.inspect_container(self.id)
        pid = int(self._inspection["State"]["Pid"])
        if pid and sees(pid, self.id, self._request, _PROC):
            self._pid = pid
            self._accounts = accounts_of(pid, _PROC)
            root = _PROC / str(pid) / "root"
            if os.access(root, os.R_OK):
                self.root = root
                if self._request.devices is not None and self._request.devices.injected:
                    text = os.fsdecode((root.parent / "mountinfo").read_bytes())
                    self.brought = brought(root, (mount.target for mount in read_mounts(text)))

    def effective(self) -> Effective:
        """Read back capabilities, seccomp, limits and mounts, and compare with the request."""
        record = without_unenforced(self._inspection, self._request, self.unenforced)
        found = read_effective(self._pid, self._request, self._binds, record, _PROC)
        return with_unenforced(found, self._request, self.unenforced)

    def files(self, directory: str, largest: int | None = None) -> Iterator[FileState]:
        """List everything below an absolute directory of the container, as it stands there.

        Args:
            directory: no part of its path may be a link.
            largest: bytes above which a file is listed without its hash.

        Raises:
            SandboxError: there is no such directory.
            EngineError: the engine failed or went away.
        """
        if self.root is None:
            yield from files.list_archive(self._archive(directory), largest)
            return
        with self._opened(directory) as top:
            yield from files.list_files(top, largest)

    def open_gate(self) -> None:
        """Let the experiment start; its deadline starts now.

        Raises:
            EngineError: the connection is gone.
            SandboxError: the init did not find the command.
        """
        if self.command != "ready":
            raise SandboxError(f"the command was not started: {self.command}")
        self._at_gate().open()

    def pump(self, stdout: int, stderr: int, log: Path, log_limit: int) -> None:
        """Pass output to two descriptors byte for byte until the experiment ends.

        Raises:
            StorageFault: the log cannot be written.
        """
        gate = self._at_gate()
        keep = Log(log, log_limit)
        self._log = keep
        out = Sink(stdout)
        sinks = {STDOUT: out, STDERR: out if stderr == stdout else Sink(stderr)}
        gate.pump(sinks, keep, self._tick)
        keep.close()

    def finish(self) -> Ended:
        """Return how it ended; its processes are gone, its files can still be read.

        Raises:
            EngineError: the engine went away, or let go of us while the container runs on.
        """
        if self._ended is None:
            gate = self._at_gate()
            while not gate.wait(3600):
                pass
            if self._log is not None:
                self._log.close()
            self._ended = self._judge(gate)
        return self._ended

    def interference(self, *, settled: bool = True) -> Sequence[Interference]:
        """Return what others did to the container through the engine, so far.

        Args:
            settled: wait until every act before this call is known; else only what is known.
        """
        if settled and not self._removed and not self._watch.settle(self._nudge, "attach"):
            self._miss(self._watch.broken or "the engine's events could not be read to the end")
        return self._watch.found()

    def unseen(self) -> Sequence[str]:
        """Return what of the container's life was not observed, as a sentence each."""
        if self._watch.broken:
            self._miss(self._watch.broken)
        return tuple(self._unseen)

    def collect(self, directory: str, into: Path, limit: int) -> Sequence[FileState]:
        """Copy new files below a directory out safely; never follows a link of the container's.

        Raises:
            SandboxError: more than ``limit`` bytes; what was copied until then stays.
            StorageFault: they cannot be written.
            EngineError: the engine failed or went away.
        """
        if self.root is None or self._pid is None:
            archive = self._archive(directory)
            return files.copy_archive(archive, self._request.user[0], into, limit)
        # As this host sees the init: an engine may map user ids.
        owner = (_PROC / str(self._pid)).joinpath("status").read_text("utf-8").split("Uid:\t")[1]
        with self._opened(directory) as top:
            return files.copy_new(top, int(owner.split()[0]), into, limit)

    def stop(self, grace: float) -> None:
        """End the experiment: SIGTERM, then SIGKILL after ``grace`` seconds. Safe to repeat.

        Raises:
            EngineError: neither the init nor the engine could end it.
        """
        gate = self._gate
        if gate is None or gate.is_over:
            return
        if not gate.is_open:
            gate.close()
            return
        if grace > 0:
            gate.terminate()
            if gate.wait(grace):
                return
        self._killed = True
        gate.kill()
        if not gate.wait(_KILL):
            self._kill_by_engine()
            if not gate.wait(_KILL):
                raise EngineError(f"the container {self._request.name} cannot be stopped")

    def remove(self) -> None:
        """Remove the container, its volumes and whatever was made for it. Safe to repeat.

        Raises:
            EngineError: the engine failed or went away.
        """
        if self._removed:
            return
        self._removed = True
        self._watch.close()
        if self._gate is not None:
            self._gate.close()
        if self._log is not None:
            self._log.close()
        try:
            _remove(self._client, self.id)
        except EngineError:
            self._removed = False
            raise

    def _at_gate(self) -> Gate:
        if self._gate is None:
            raise SandboxError("the container was never started")
        return self._gate

    def _subscribe(self) -> Any:  # noqa: ANN401 - docker-py ships no types
        # Since 1970: the engine replays what it remembers, so nothing falls between the container's
        # creation and our first look.
        return self._client.events(since=1, filters={"type": ["container", "network"]}, decode=True)

    def _nudge(self) -> bool:
        """Make the engine report an event: attaching to nothing does nothing else."""
        client = self._client
        with contextlib.suppress(Exception):
            url = client._url("/containers/{0}/attach", self.id)  # noqa: SLF001 - no public way
            with client.post(url, None, params={"stream": 0, "logs": 0}) as answer:
                return bool(answer.ok)
        return False

    def _miss(self, sentence: str) -> None:
        if sentence not in self._unseen:
            self._unseen.append(sentence)

    @contextlib.contextmanager
    def _opened(self, directory: str) -> Generator[int]:
        try:
            top = files.open_directory(self.root or Path("/nonexistent"), directory)
        except OSError as error:
            raise SandboxError(f"the container's files cannot be read: {error}") from error
        try:
            yield top
        finally:
            os.close(top)

    def _archive(self, directory: str) -> Iterator[bytes]:
        self._watch.announce("archive-path")
        with _engine_errors(f"read {directory} in a container", refused=True):
            chunks, _ = self._client.get_archive(self.id, directory)
            yield from chunks

    def _tick(self) -> None:
        """Between two reads: measure new files now and then; see that a kill has its effect."""
        now = time.monotonic()
        if self._kill_by is not None:
            if now > self._kill_by:
                self._kill_by = now + _KILL
                self._kill_by_engine()
            return
        if now < self._next_measure:
            return
        used = self._new_bytes()
        spent = time.monotonic() - now
        self._next_measure = time.monotonic() + max(_MEASURE, spent * _MEASURE_RATIO)
        if used is not None and used > self._request.limits.outputs:
            self._stopped_for = "outputs"
            self._killed = True
            self._kill_by = now + _KILL
            self._at_gate().kill()

    def _new_bytes(self) -> int | None:
        """Return the bytes of new files in the container's own layer and its writable mounts."""
        places = [mount.source for mount in self._request.mounts if not mount.read_only]
        data = (self._inspection.get("GraphDriver") or {}).get("Data") or {}
        upper = data.get("UpperDir") if self._pid is not None else None
        total = 0
        if upper and os.access(upper, os.R_OK):
            places.append(Path(upper))
        elif self._request.writable_workdir:
            try:
                with _engine_errors("measure a container"):
                    url = self._client._url("/containers/{0}/json", self.id)  # noqa: SLF001 - docker-py has no size option
                    answer = self._client.get(url, params={"size": 1}).json()
                total = int(answer["SizeRw"])
            except (EngineError, KeyError, TypeError, ValueError):
                self._miss("the size of new files in the container's layer could not be measured")
        for place_ in places:
            try:
                top = os.open(place_, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                self._miss(f"the size of new files in {place_} could not be measured")
                continue
            try:
                total += files.allocated(top)
            finally:
                os.close(top)
        return total

    def _kill_by_engine(self) -> None:
        import docker.errors

        self._watch.announce("kill")
        with _engine_errors("kill a container"), contextlib.suppress(docker.errors.APIError):
            self._client.kill(self.id)

    def _judge(self, gate: Gate) -> Ended:
        state = self._state()
        report = gate.report
        if report is None and state.get("Running"):
            raise EngineError("the engine let go of the container while it was running")
        kills = self._accounts.memory_kills()
        out_of_memory = bool(kills)
        if report is not None and report.status == 137 and not kills:  # noqa: PLR2004 - SIGKILL
            # Where the kernel's own count cannot be read, the engine learns of it a moment later.
            deadline = time.monotonic() + 0.5
            while not state.get("OOMKilled") and kills is None and time.monotonic() < deadline:
                time.sleep(0.05)
                state = self._state()
        out_of_memory = out_of_memory or bool(state.get("OOMKilled"))
        peak, cpu = self._accounts.peak_memory(), self._accounts.cpu_seconds()
        if report is None:
            # The init itself was ended: by the engine, or by the kernel for want of memory.
            status = int(state.get("ExitCode") or 0) if out_of_memory else None
            lost = None if out_of_memory else "lost"
            return Ended(status, out_of_memory, peak, cpu, self._stopped_for or lost)
        return Ended(
            None if self._killed else report.status,
            out_of_memory,
            peak if peak is not None else report.peak_rss,
            cpu if cpu is not None else report.cpu_seconds,
            self._stopped_for,
        )

    def _state(self) -> dict[str, Any]:
        with _engine_errors("inspect a container"):
            state: dict[str, Any] = self._client.inspect_container(self.id)["State"]
        return state
