"""Makes a ledger from a chain that was checked: the same events under the same hashes.

Rules that this module keeps:

- The draft is made beside nothing that anybody reads, and is held to everything that a ledger must
  be (its chain, its payloads, its projections) before it is given away.
- No event is made or changed: the rows are the mirror's, byte for byte.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sealrun.errors import LedgerError
from sealrun.ledger import open_ledger, projections, schema, utc
from sealrun.ledger.codec import Misfit
from sealrun.ledger.faults import translated
from sealrun.mirror.format import Damaged

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sealrun.ledger.chain import Link

_INSERT = (
    "INSERT INTO events (seq, at_utc, monotonic_ns, boot_id, kind, run, payload, previous, hash)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def replay(links: Iterable[Link], repository: str, directory: Path) -> Path:
    """Return the file of a ledger that holds these events.

    Args:
        links: a whole chain, which was verified.
        repository: its id.
        directory: that the file is made in.

    Raises:
        Damaged: an event cannot be read.
        LedgerError: the events do not make a ledger.
        StorageFault: it cannot be written.
    """
    file = directory / "ledger.sqlite"
    schema.create(file, repository, utc())
    with translated(file), contextlib.closing(schema.connect(file)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        rows = (
            (
                *(link.seq, link.at, link.monotonic_ns, link.boot_id, link.kind, link.run),
                *(link.payload, link.previous, link.hash),
            )
            for link in links
        )
        try:
            connection.executemany(_INSERT, rows)
            projections.rebuild(connection)
        except (Misfit, KeyError, TypeError, ValueError) as error:
            raise Damaged(f"an event of the mirror cannot be read: {error}") from error
        connection.execute("COMMIT")
    _check(file, repository)
    return file


def _check(file: Path, repository: str) -> None:
    ledger = open_ledger(file, repository, pinned_refs_exist=True, create=True)
    with ledger:
        # Each payload becomes its record, or the ledger could not be read later either.
        ledger.events()
        report = ledger.verify_chain()
        if not report.sound or not ledger.projections_hold():
            raise LedgerError(f"the events of {repository} do not make a ledger")
    if file.with_name(f"{file.name}-wal").exists():
        raise LedgerError(f"the ledger of {repository} could not be closed")
