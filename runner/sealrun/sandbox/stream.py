"""The bytes between a container and us: frames, the marker at the end, the log.

Rules that this module keeps:

- Bytes of the experiment are passed on exactly once, in order, and as soon as they are here.
- Memory does not grow with output: what is held back is shorter than a marker.
- What the experiment writes cannot be taken for a message of our init: the marker is random, and
  known to nobody in the container but the init (see ``images/init/init.c``).
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.errors import SandboxError, StorageFault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STDOUT, STDERR = 1, 2
#: Engine API, "Attach to a container", stream format: type, three zeros, length (big endian).
_HEADER = 8


def new_marker() -> bytes:
    """Return 33 bytes that nobody can guess: one that no text holds, and 128 random bits."""
    return b"\xff" + secrets.token_hex(16).encode("ascii")


class Frames:
    """Takes apart the engine's multiplexed stream; payload comes out as it comes in."""

    def __init__(self) -> None:
        self._header = b""
        self._stream = 0
        self._left = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield ``(stream, payload)`` for what is complete or begun.

        Raises:
            SandboxError: the bytes are not frames.
        """
        view = memoryview(data)
        while view:
            if self._left:
                part = bytes(view[: self._left])
                view = view[len(part) :]
                self._left -= len(part)
                yield self._stream, part
                continue
            missing = _HEADER - len(self._header)
            self._header += bytes(view[:missing])
            view = view[missing:]
            if len(self._header) < _HEADER:
                return
            kind, zeros = self._header[0], self._header[1:4]
            # 0 would be our own input, 3 an error of the engine's.
            if kind not in (STDOUT, STDERR) or zeros != b"\0\0\0":
                raise SandboxError("the engine's output stream is not made of frames")
            self._stream = kind
            self._left = int.from_bytes(self._header[4:], "big")
            self._header = b""


class Until:
    """Passes bytes on until a marker, and keeps the line behind it."""

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._held = b""
        self._line: bytes | None = None
        self.found = False

    @property
    def line(self) -> bytes | None:
        """The line behind the marker without its end, once it is complete."""
        if self._line is None or not self._line.endswith(b"\n"):
            return None
        return self._line[:-1]

    def feed(self, data: bytes) -> bytes:
        """Return what belongs to the experiment."""
        if self.found:
            self._line = (self._line or b"") + data
            return b""
        data = self._held + data
        place = data.find(self._marker)
        if place >= 0:
            self.found = True
            self._held = b""
            self._line = data[place + len(self._marker) :]
            return data[:place]
        keep = self._overlap(data)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def rest(self) -> bytes:
        """Return what was held back, when the stream ended without the marker."""
        held, self._held = self._held, b""
        return held

    def _overlap(self, data: bytes) -> int:
        """Return how many of the last bytes could be the beginning of a marker."""
        start = data.rfind(self._marker[:1], max(0, len(data) - len(self._marker) + 1))
        # The first byte occurs in the marker once, so only its last occurrence can begin one.
        if start >= 0 and self._marker.startswith(data[start:]):
            return len(data) - start
        return 0


@dataclass(frozen=True)
class Report:
    """What the init says when the experiment's processes are all dead.

    Attributes:
        status: as a shell shows it (128 + signal).
        cpu_seconds: user and system time of all processes that were waited for.
        peak_rss: bytes, of the largest single process.
        exec_errno: why the command could not be executed; 0 when it was.
    """

    status: int
    cpu_seconds: float
    peak_rss: int
    exec_errno: int

    @classmethod
    def parse(cls, line: bytes) -> Report:
        """Read the line behind the marker.

        Raises:
            SandboxError: it is not one of our init's.
        """
        try:
            status, user, system, rss, error = (int(word) for word in line.split(b" "))
        except ValueError as problem:
            raise SandboxError("the container init reported something unreadable") from problem
        return cls(status, (user + system) / 1e6, rss * 1024, error)


class Log:
    """A file that keeps the first and the last part of the output.

    The last part is kept in a file beside it, written round and round, until ``close``; so memory
    stays small, and what was written survives us.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._head_limit = limit // 2
        self._tail_limit = limit - self._head_limit
        self._tail_path = path.with_name(f"{path.name}.tail")
        self._head = self._open(path)
        self._tail: int | None = None
        self.total = 0
        self._closed = False

    def write(self, data: bytes) -> None:
        """Keep some output.

        Raises:
            StorageFault: it cannot be written.
        """
        head_room = max(0, self._head_limit - self.total)
        try:
            if head_room:
                _write_all(self._head, data[:head_room])
            if len(data) > head_room and self._tail_limit:
                self._write_tail(data[head_room:], self.total + head_room - self._head_limit)
        except OSError as error:
            raise self._fault(error) from error
        self.total += len(data)

    def close(self) -> None:
        """Join the parts, with a line that says how much is missing. Safe to repeat.

        Raises:
            StorageFault: the parts cannot be joined; the last one stays beside the log.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._tail is not None:
                self._join(self._tail)
                os.close(self._tail)
                self._tail_path.unlink()
        except OSError as error:
            raise self._fault(error) from error
        finally:
            os.close(self._head)

    def _write_tail(self, data: bytes, offset: int) -> None:
        if self._tail is None:
            self._tail = self._open(self._tail_path)
        skipped = max(0, len(data) - self._tail_limit)
        view, offset = memoryview(data)[skipped:], offset + skipped
        while view:
            place = offset % self._tail_limit
            written = os.pwrite(self._tail, view[: self._tail_limit - place], place)
            view, offset = view[written:], offset + written

    def _join(self, tail: int) -> None:
        kept = self.total - self._head_limit
        missing = kept - self._tail_limit
        if missing > 0:
            _write_all(self._head, f"\n[sealrun] {missing} bytes are left out here\n".encode())
            start = kept % self._tail_limit
            pieces = [(start, self._tail_limit - start), (0, start)]
        else:
            pieces = [(0, kept)]
        for place, length in pieces:
            while length:
                part = os.pread(tail, min(length, 1 << 20), place)
                _write_all(self._head, part)
                place, length = place + len(part), length - len(part)  # noqa: PLW2901 - a cursor

    @staticmethod
    def _open(path: Path) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except OSError as error:
            raise StorageFault(f"cannot write the log {path}: {error.strerror}") from error

    def _fault(self, error: OSError) -> StorageFault:
        return StorageFault(
            f"cannot write the log {self._path}: {error.strerror}",
            hint="Free space where sealrun keeps its state, or set SEALRUN_HOME to another place.",
        )


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
