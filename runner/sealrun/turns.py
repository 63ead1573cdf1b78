"""Locks with a file of their own, which is gone when nobody wants them any more.

Rules that this module keeps:

- The lock is ``flock(2)`` of an open file, so that the kernel gives it back when its holder dies.
- Its holder removes the file while holding the lock; whoever waited for it looks whether what they
  locked still has its name, and begins anew where it has not. So no two hold one name at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@contextlib.contextmanager
def turn(lock: Path) -> Generator[None]:
    """Hold a lock; waits for it.

    Args:
        lock: its file, in a directory that is ours alone.

    Raises:
        OSError: the file cannot be made or locked.
    """
    handle = _locked(lock)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(handle)


def _locked(lock: Path) -> int:
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.samestat(lock.stat(), os.fstat(handle)):
                return handle
        except FileNotFoundError:
            pass  # Its holder has removed it.
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
