"""What an earlier controller left when it died, and how it is told apart from a living one.

Rules that this module keeps:

- A living controller holds a lock on its run's directory; the kernel gives it back however it dies.
- What is left is found by label and by the ledger, and cleared only when it is ours.
- A run whose controller died is recorded as ``interrupted``: that is our trouble, and no outcome of
  the experiment.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from sealrun.errors import LedgerMissing, StorageFault
from sealrun.ledger import RunEnded, is_alive, open_ledger
from sealrun.ledger.alive import LOCK
from sealrun.state import repository_id

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from sealrun.git import Repository
    from sealrun.ledger import Ledger
    from sealrun.sandbox.protocol import Sandbox
    from sealrun.state import Places


@contextlib.contextmanager
def lock(directory: Path) -> Generator[None]:
    """Hold the lock of a run's directory, by which others see that its controller lives.

    Nobody locks a run's directory a second time, so its file can go with the lock: whoever asks takes
    one without it for dead, as it is.

    Raises:
        StorageFault: it cannot be made or locked.
    """
    try:
        handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageFault(
            f"cannot make the lock of {directory}: {error.strerror}",
            hint="Free disk space or fix the permissions of the state directory.",
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            (directory / LOCK).unlink()
        os.close(handle)


def identify(repository: Repository) -> str:
    """Return the id of a repository, and give it one where nothing was ever pinned.

    Raises:
        LedgerMissing: runs are pinned, but the id that names their ledger is gone.
        StorageFault: the id cannot be read or written.
    """
    known = repository_id(repository.common_dir, create=False)
    if known is None:
        if repository.pinned():
            raise without_id(repository)
        known = repository_id(repository.common_dir)
    return known or ""


def without_id(repository: Repository) -> LedgerMissing:
    """Return the error for pinned runs whose ledger has lost its name."""
    return LedgerMissing(
        f"this repository has pinned runs, but no {repository.common_dir}/sealrun/id, "
        "which names their ledger",
        hint="Restore that file from a backup of the git directory.",
    )


def writable_ledger(repository: Repository, places: Places, repository_id: str) -> Ledger:
    """Open a repository's ledger for writing, and begin it where nothing was ever pinned.

    Raises:
        LedgerMissing: runs are pinned but their ledger is gone.
        LedgerError: it is locked, damaged or of a newer version.
    """
    path = places.ledger(repository_id)
    pinned = not path.exists() and bool(repository.pinned())
    return open_ledger(path, repository_id, pinned_refs_exist=pinned, create=True)


def record_dead(ledger: Ledger, places: Places, repository_id: str) -> tuple[str, ...]:
    """Record every open run whose controller died as interrupted; return their ids."""
    if not ledger.open_runs():
        return ()
    with ledger.transaction() as tx:
        # Read inside the transaction: of two starts at once only one may record a death.
        dead = [
            record.run
            for record in ledger.open_runs()
            if not is_alive(places, repository_id, record.run)
        ]
        for run in dead:
            tx.append(
                RunEnded(
                    run=run,
                    outcome="interrupted",
                    fault="its controller died before the run ended",
                )
            )
    return tuple(dead)


def clear_containers(sandbox: Sandbox, places: Places, repository_id: str) -> Sequence[str]:
    """Remove the containers of dead controllers of this repository; return their run ids."""
    return sandbox.clear(lambda run: is_alive(places, repository_id, run))
