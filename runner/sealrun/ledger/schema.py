"""The ledger's file: made once, brought up to date by numbered migrations, never made anew.

Rules that this module keeps:

- A new ledger is made beside its place and linked into it whole: nobody ever sees half of one, and
  an existing one is never overwritten, be it empty.
- ``migrations/NNNN_*.sql`` bring ``PRAGMA user_version`` from NNNN - 1 to NNNN. All that are due
  are applied in one transaction, together with a rebuild of the projections; changes of
  ``projections.sql`` come with a migration too.
- A ledger of a newer version is left alone.
- The file is readable by its owner alone.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from sealrun.errors import LedgerError, StorageFault
from sealrun.ledger import projections
from sealrun.ledger.faults import damaged, network_file_system, translated
from sealrun.ledger.script import run_script

#: Marks our files among SQLite's (``PRAGMA application_id``): "seal".
APPLICATION_ID = 0x7365616C
#: Seconds to wait for another process's transaction.
PATIENCE = 5.0


def migrations() -> list[tuple[int, str]]:
    """Return each migration's number and SQL, in order."""
    folder = Path(__file__).with_name("migrations")
    return [(int(file.name[:4]), file.read_text("utf-8")) for file in sorted(folder.glob("*.sql"))]


def newest() -> int:
    """Return the version that this sealrun reads and writes."""
    return migrations()[-1][0]


def create(file: Path, repository: str, made_at: str) -> None:
    """Make a ledger without events, unless another process was quicker.

    Raises:
        StorageFault: it cannot be written.
        LedgerError: remains of an older ledger are in the way.
    """
    for remains in (Path(f"{file}-wal"), Path(f"{file}-journal")):
        if remains.exists() and not file.exists():
            raise damaged(file, f"the file is gone, but {remains.name} is still there")
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        with translated(file), contextlib.closing(connect(draft)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            migrate(connection, file)
            connection.execute(
                "INSERT INTO ledger (one, repository, made_at) VALUES (1, ?, ?)",
                (repository, made_at),
            )
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    except OSError as error:
        raise StorageFault(
            f"the ledger {file} cannot be made: {error.strerror}",
            hint="Free space or fix the permissions of its directory, then repeat the command.",
        ) from error
    finally:
        for leftover in (draft, Path(f"{draft}-journal")):
            with contextlib.suppress(OSError):
                leftover.unlink()


def connect(file: Path, mode: str = "rw") -> sqlite3.Connection:
    """Connect to an existing file; transactions are begun and ended by hand.

    Args:
        file: an existing SQLite file.
        mode: ``rw``, or ``immutable`` for one on a read-only file system.
    """
    query = "immutable=1" if mode == "immutable" else f"mode={mode}"
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(file.absolute()))}?{query}",
        uri=True,
        timeout=PATIENCE,
        isolation_level=None,
        check_same_thread=False,
    )
    # Damaged text must not end a check of the chain: it is found there, and named.
    connection.text_factory = _text
    return connection


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def prepare(connection: sqlite3.Connection, file: Path) -> str:
    """Check a ledger, bring it up to date, and set the connection up.

    Returns:
        The journal mode in use: ``wal``, or ``delete`` on a network file system.

    Raises:
        LedgerError: it is damaged, locked, no ledger, or of a newer version.
    """
    if file.stat().st_size == 0:
        raise damaged(file, "the file is empty")
    with translated(file):
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cell_size_check = ON")
        if _number(connection, "application_id") != APPLICATION_ID:
            raise damaged(file, "it is an SQLite file, but not a ledger of sealrun")
        check_version(connection, file)
        if _number(connection, "user_version") < newest():
            migrate(connection, file)
        mode = _journal(connection, file)
        # A run that was opened must still be on record after a power cut.
        connection.execute("PRAGMA synchronous = FULL")
    return mode


def check_version(connection: sqlite3.Connection, file: Path) -> None:
    """Refuse a ledger that a newer sealrun has changed.

    Raises:
        LedgerError: its version is newer than ours.
    """
    version = _number(connection, "user_version")
    if version > newest():
        raise LedgerError(
            f"the ledger {file} is of version {version}, this sealrun knows up to {newest()}",
            hint="Use the newer sealrun that wrote it, or upgrade this one.",
        )


def migrate(connection: sqlite3.Connection, file: Path) -> None:
    """Apply what is due in one transaction; another process may have done so meanwhile."""
    with translated(file):
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _number(connection, "user_version")
            due = [(number, sql) for number, sql in migrations() if number > version]
            for _, sql in due:
                run_script(connection, sql)
            if due:
                projections.rebuild(connection)
                connection.execute(f"PRAGMA user_version = {due[-1][0]}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def quick_check(connection: sqlite3.Connection) -> str | None:
    """Return the first thing that SQLite finds wrong with the file, or None."""
    try:
        (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if answer == "ok" else str(answer)


def _journal(connection: sqlite3.Connection, file: Path) -> str:
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    wanted = "delete" if network_file_system(file) else "wal"
    if mode != wanted and not _number(connection, "query_only"):
        (mode,) = connection.execute(f"PRAGMA journal_mode = {wanted}").fetchone()
    return str(mode)


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    (number,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(number)
