"""The talk with the init in a container, over the engine's attach connection.

Rules that this module keeps:

- Nothing of the experiment runs before ``open``; the handshake is read before it.
- The end is what the init reports behind the marker, or the end of the connection; nothing that
  the experiment writes is taken for either.
- Exactly one thread reads at a time; any thread may end the experiment, whether or not somebody
  reads, and whether or not the caller's own reader of our output has stopped reading.
- A caller that no longer reads (EPIPE) loses its copy, never the run or the log.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

from sealrun.errors import EngineError, SandboxError
from sealrun.sandbox.stream import STDERR, STDOUT, Frames, Log, Report, Until, new_marker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_CHUNK = 1 << 18
#: Bytes of the handshake line; longer is not ours.
_LINE = 256
#: A pipe that poll(2) calls writable takes this much without blocking (pipe(7), PIPE_BUF).
_PIPE_BUF = 4096
#: Bytes kept of what arrives before somebody pumps.
_EARLY = 1 << 20
#: Seconds that a blocked reader of the caller's gets once the experiment was killed.
_PATIENCE = 1.0
GREETING = b"sealrun-init 1 "
ANSWERS = ("ready", "not-found", "not-executable")


class Sink:
    """A descriptor of the caller's; takes every byte, or none after its reader went away."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._gone = False
        mode = os.fstat(descriptor).st_mode
        # A write to these can block for ever, and with it the end of the run.
        self._polled = not stat.S_ISREG(mode)

    def write(self, data: bytes, is_over: Callable[[], bool]) -> None:
        """Write all; give up when the reader went away, or is stuck after the end."""
        view = memoryview(data)
        since = time.monotonic()
        while view and not self._gone:
            try:
                if self._polled and not self._writable():
                    self._gone = is_over() and time.monotonic() - since > _PATIENCE
                    continue
                part = view[:_PIPE_BUF] if self._polled else view
                view = view[os.write(self._descriptor, part) :]
            except BlockingIOError:
                time.sleep(0.005)
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ENOSPC):
                    raise
                self._gone = True

    def _writable(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(200))


class Gate:
    """One attached container.

    Args:
        connection: a socket: ``fileno``, ``recv``, ``sendall``, ``shutdown``, ``close``.
        joined: the init joins standard error to standard output.
    """

    def __init__(
        self,
        connection: Any,  # noqa: ANN401 - a socket, TLS or SSH channel: no common type
        *,
        joined: bool,
    ) -> None:
        self._connection = connection
        self._frames = Frames()
        marker = new_marker()
        self._marker = marker
        self._parts = {STDOUT: Until(marker), STDERR: Until(marker)}
        self._waited = (STDOUT,) if joined else (STDOUT, STDERR)
        self._early: list[tuple[int, bytes]] = []
        self._early_size = 0
        self._sinks: Mapping[int, Sink] | None = None
        self._log: Log | None = None
        self._reading = threading.Lock()
        self._sending = threading.Lock()
        self._over = threading.Event()
        self._killing = threading.Event()
        self.is_open = False
        self.report: Report | None = None

    @property
    def is_over(self) -> bool:
        """The init reported the end, or the connection ended."""
        return self._over.is_set()

    def handshake(self, timeout: float) -> str:
        """Return what the init says about the command.

        Raises:
            SandboxError: it did not speak within ``timeout`` seconds, or something else spoke.
        """
        deadline = time.monotonic() + timeout
        line, complaint = b"", b""
        while not line.endswith(b"\n"):
            data = self._receive(deadline - time.monotonic())
            if data is None or len(line) > _LINE:
                raise SandboxError(
                    "the container init did not report in time" + _quote(line + complaint),
                    hint="The machine may be overloaded; `sealrun doctor` checks the engine.",
                )
            if not data:
                raise SandboxError("the container ended before its gate" + _quote(line + complaint))
            for kind, part in self._frames.feed(data):
                if kind == STDOUT:
                    line += part
                else:
                    complaint += part[:_LINE]
        answer = line.removeprefix(GREETING).decode("ascii", "replace").strip()
        if not line.startswith(GREETING) or answer not in ANSWERS:
            raise SandboxError("something else than the container init spoke" + _quote(line))
        return answer

    def open(self) -> None:
        """Let the experiment start.

        Raises:
            EngineError: the connection is gone.
        """
        self._send(b"G" + self._marker)
        self.is_open = True

    def terminate(self) -> None:
        """Send SIGTERM to the experiment; nothing happens when the connection is gone."""
        with contextlib.suppress(EngineError):
            self._send(b"T")

    def kill(self) -> None:
        """Send SIGKILL to everything in the container; nothing when the connection is gone."""
        self._killing.set()
        with contextlib.suppress(EngineError):
            self._send(b"K")

    def pump(
        self,
        sinks: Mapping[int, Sink],
        log: Log,
        tick: Callable[[], None],
    ) -> None:
        """Pass output on until the end.

        Args:
            sinks: by stream.
            log: keeps a copy of both, interleaved as they came.
            tick: called between reads, a few times a second.

        Raises:
            StorageFault: the log cannot be written.
        """
        with self._reading:
            self._sinks, self._log = sinks, log
            early, self._early = self._early, []
            for kind, data in early:
                self._deliver(kind, data)
            while not self.is_over:
                self._step(0.25)
                tick()

    def wait(self, timeout: float) -> bool:
        """Wait until it is over, reading when nobody else does.

        Returns:
            Whether it is over.
        """
        deadline = time.monotonic() + timeout
        while not self.is_over:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if self._reading.acquire(blocking=False):
                try:
                    self._step(min(left, 0.25))
                finally:
                    self._reading.release()
            else:
                self._over.wait(min(left, 0.25))
        return True

    def close(self) -> None:
        """Tell the init to exit, and end the connection: end of file ends it in any case."""
        with contextlib.suppress(EngineError):
            self._send(b"X")
        self.end()

    def end(self) -> None:
        """End the connection and nothing else; the init takes it as the end of everything."""
        with contextlib.suppress(OSError):
            # Closing alone is put off while docker-py's reader of it lives; the engine would go on
            # writing into a full socket, and could not remove the container.
            self._connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._connection.close()
        self._over.set()

    def _send(self, data: bytes) -> None:
        try:
            with self._sending:
                self._connection.sendall(data)
        except OSError as error:
            raise EngineError(f"the connection to the container is gone: {error}") from error

    def _receive(self, timeout: float) -> bytes | None:
        """Return what is there, nothing at the end, None when nothing came in time."""
        pending = getattr(self._connection, "pending", None)  # TLS holds bytes poll cannot see
        try:
            if not (pending and pending()):
                poll = select.poll()
                poll.register(self._connection.fileno(), select.POLLIN)
                if not poll.poll(max(0, timeout) * 1000):
                    return None
            data: bytes = self._connection.recv(_CHUNK)
        except (OSError, ValueError):
            return b""
        return data

    def _step(self, timeout: float) -> None:
        data = self._receive(timeout)
        if data is None:
            return
        if not data:
            for kind, part in self._parts.items():
                self._deliver(kind, part.rest())
            self._over.set()
            return
        for kind, payload in self._frames.feed(data):
            self._deliver(kind, self._parts[kind].feed(payload))
        if all(self._parts[kind].line is not None for kind in self._waited):
            self.report = Report.parse(self._parts[STDOUT].line or b"")
            self._over.set()

    def _deliver(self, kind: int, data: bytes) -> None:
        if not data:
            return
        if self._sinks is None or self._log is None:
            if self._early_size < _EARLY:
                self._early.append((kind, data))
                self._early_size += len(data)
            return
        self._log.write(data)
        self._sinks[kind].write(data, self._killing.is_set)


def _quote(said: bytes) -> str:
    return f": {said[:_LINE].decode('utf-8', 'backslashreplace')!r}" if said else ""
