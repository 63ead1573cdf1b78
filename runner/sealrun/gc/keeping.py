"""Who is using stored layers before it is on record that a run needs them.

Rules that this module keeps:

- Between finding a layer and recording that a run needs it nothing may be removed: whoever does
  that holds the lock shared; ``sealrun gc`` takes it alone, and leaves everything where it cannot.
- The kernel gives the lock back however its holder dies.
- The lock's file names every state directory whose runs use this data: ledgers elsewhere have a say
  too, also when the variables that say where state stands were different then.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import StorageFault
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Generator

    from sealrun.state import Places

#: The lock that says who uses the data, and the one that makes two ``gc`` take turns.
FILE, ALONE = "used-by", "gc.lock"
#: Bytes of names of state directories that are read.
_MOST = 1 << 20
_AGAIN = 0.05


@contextlib.contextmanager
def keeping(places: Places) -> Generator[None]:
    """Keep ``sealrun gc`` from removing layers, images and drafts meanwhile.

    Waits while it is removing some, which takes moments.

    Raises:
        StorageFault: the lock cannot be made.
    """
    with _opened(places, FILE) as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        # Made before it is noted: what is noted and not there was there, and counts as lost.
        private(places.state / "repositories")
        _note(handle, places.state)
        yield


@contextlib.contextmanager
def nobody_keeping(places: Places, patience: float) -> Generator[bool]:
    """Hold the lock alone, if that is possible within ``patience`` seconds; yields whether it is."""
    with _opened(places, FILE) as handle:
        yield _lock_alone(handle, patience)


@contextlib.contextmanager
def taking_turns(places: Places) -> Generator[None]:
    """Let one ``gc`` at a time look and remove."""
    with _opened(places, ALONE) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def states(places: Places) -> tuple[Path, ...]:
    """Return every state directory whose runs use this data, the caller's first.

    Raises:
        StorageFault: what is noted cannot be read.
    """
    return tuple(dict.fromkeys((places.state.absolute(), *noted(places))))


def noted(places: Places) -> tuple[Path, ...]:
    """Return the state directories that are noted: what was made for them may still be needed.

    Raises:
        StorageFault: what is noted cannot be read.
    """
    file = private(places.data) / FILE
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST + 1)
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise StorageFault(f"cannot read {file}: {error.strerror}") from error
    if len(content) > _MOST or (content and not content.endswith(b"\0")):
        raise StorageFault(
            f"{file} does not name the state directories that use {places.data}",
            hint="Restore it from a backup; nothing is removed without it.",
        )
    return tuple(Path(os.fsdecode(name)) for name in content.split(b"\0") if name)


def _note(handle: int, state: Path) -> None:
    """Add a state directory to the names in the lock's file, if it is not among them."""
    name = os.fsencode(state.absolute()) + b"\0"
    if b"\0" + name in b"\0" + os.pread(handle, _MOST, 0):
        return
    try:
        # One small write at the end of a file opened for appending is not torn.
        os.write(handle, name)
    except OSError as error:
        raise StorageFault(
            f"cannot note that {state} uses stored layers: {error.strerror}",
            hint="Free space or fix the permissions of sealrun's data directory.",
        ) from error


def _lock_alone(handle: int, patience: float) -> bool:
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(_AGAIN)
        else:
            return True


@contextlib.contextmanager
def _opened(places: Places, name: str) -> Generator[int]:
    file = private(places.data) / name
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageFault(
            f"cannot open {file}: {error.strerror}",
            hint="Free space or fix the permissions of sealrun's data directory.",
        ) from error
    try:
        yield handle
    finally:
        os.close(handle)
