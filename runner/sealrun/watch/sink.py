"""Hands lines to a reader that may be slow or dead, without waiting for it and without losing any.

Rules that this module keeps:

- Whoever adds a line never waits.
- What the reader does not take, because it is gone, stands still at the end, or lies too far behind, goes to
  a file in the order in which it was found.
- A line is written in one piece or not at all as far as the kernel allows; one that was cut stands
  whole in the file.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: Bytes of lines that wait for a slow reader, and seconds without progress after which a reader
#: counts as standing still once we want to end.
BACKLOG = 32 << 20
PATIENCE = 10.0


class Sink:
    """Writes lines to a descriptor in a thread of its own.

    Args:
        descriptor: of the reader's end; blocking or not.
        spill: file for what the reader does not take; made when first needed.
    """

    def __init__(self, descriptor: int, spill: Path) -> None:
        self._descriptor = descriptor
        self.spill = spill
        self.spilled = 0
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._progress = time.monotonic()
        self._gone = self._closing = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._write, daemon=True, name="sink")
        self._thread.start()

    def put(self, line: str) -> None:
        """Add a line, without its newline."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._change:
            if self._gone or self._waiting + len(data) > BACKLOG:
                self._spill(data)
                return
            self._lines.append(data)
            self._waiting += len(data)
            self._change.notify()

    def close(self, patience: float = PATIENCE) -> int:
        """Wait until everything is taken, or the reader stands still; return the lines that it lacks."""
        with self._change:
            self._closing = True
            self._progress = time.monotonic()
            self._change.notify()
            while self._lines and not self._gone:
                self._change.wait(0.1)
                if time.monotonic() - self._progress > patience:
                    self._give_up()
            return self.spilled

    def _write(self) -> None:
        while True:
            with self._change:
                while not self._lines and not self._closing:
                    self._change.wait()
                if not self._lines or self._gone:
                    return
                line = self._lines[0]
            try:
                self._send(line)
            except OSError:
                with self._change:
                    self._give_up()
                return
            with self._change:
                if self._gone:
                    return
                self._lines.popleft()
                self._waiting -= len(line)
                self._change.notify()

    def _send(self, line: bytes) -> None:
        view = memoryview(line)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                time.sleep(0.01)
                continue
            self._progress = time.monotonic()

    def _give_up(self) -> None:
        self._gone = True
        for line in self._lines:
            self._spill(line)
        self._lines.clear()
        self._change.notify()

    def _spill(self, line: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self.spilled += 1
        try:
            self.spill.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.spill, flags, 0o600)
        except OSError:
            return
        try:
            os.write(handle, line)
        finally:
            os.close(handle)
