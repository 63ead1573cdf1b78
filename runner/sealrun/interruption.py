"""Signals that would end us, while an experiment has to be ended first.

Rules: a handler only notes; whoever looks ends the experiment in order, and the record is written.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType


@contextlib.contextmanager
def interruption(noticed: threading.Event) -> Generator[None]:
    """Turn signals that would end us into a notice, while an experiment has to be ended first."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread gets signals (signal(7) by way of Python's signal module).
        yield
        return

    def notice(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
        noticed.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, notice)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
