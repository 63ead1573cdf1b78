"""Signals that would end us, while something has to be brought to an end first.

Rules that this module keeps:

- A handler only notes. While an experiment runs, whoever looks ends it in order, and the record is
  written.
- What must not be torn apart is short and holds a signal back; the second one is an impatient
  user's, and gets through.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType

#: The alarm is one that came while a module was imported, and strikes again (``sealrun.cli``).
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@contextlib.contextmanager
def held_back() -> Generator[None]:
    """Let a signal wait until the block is over; a second one strikes at once.

    Raises:
        KeyboardInterrupt: a signal came; raised at the block's end, whatever else that end is.
    """
    came = 0

    def hold(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
        nonlocal came
        came += 1
        if came > 1:
            raise KeyboardInterrupt

    try:
        with _handled_by(hold):
            yield
    finally:
        if came:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interruption(noticed: threading.Event) -> Generator[None]:
    """Turn signals that would end us into a notice, while an experiment has to be ended first."""

    def notice(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
        noticed.set()

    with _handled_by(notice):
        yield


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread gets signals (signal(7) by way of Python's signal module).
        yield
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    try:
        for number in _NUMBERS:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, whole in before.items():
            signal.signal(number, whole)
