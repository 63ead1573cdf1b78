"""The ledger of one repository: append events in transactions, read runs, check the chain.

Rules that this module keeps:

- An event, its place in the chain and the projections that it changes are one transaction; a
  transaction is written whole or not at all, whatever dies.
- Nothing is ever made anew in the place of something missing or damaged: pinned runs without a
  ledger are refused, damage is reported.
- What a record could not hold is an error before it is written; what cannot be read back is damage
  and named by its number, never shown as something else.
- A ledger object serves the threads of one process, one transaction at a time; it must not cross a
  fork (sqlite.org/howtocorrupt.html, 2.6).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast, overload

from sealrun.errors import LedgerError, LedgerMissing, StorageFault, UsageError
from sealrun.ledger import chain, projections, schema
from sealrun.ledger.codec import (
    Json,
    Misfit,
    canonical,
    cut_of,
    fit,
    from_document,
    load,
    to_document,
)
from sealrun.ledger.events import (
    KINDS,
    Alert,
    AlertAccepted,
    Approval,
    Event,
    Note,
    RunEnded,
    RunOpened,
    RunProgress,
)
from sealrun.ledger.faults import damaged, network_file_system, translated
from sealrun.ledger.projections import Filter
from sealrun.ledger.records import Recorded, RunRecord, merge
from sealrun.ledger.ulid import canonical_prefix, is_ulid

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import TracebackType

E = TypeVar("E", bound=Event)

#: Ids named in an error message about an ambiguous prefix.
_CANDIDATES = 10
#: Characters of an id's prefix in tables, at least: ten are the time, of which the last three
#: change within seconds.
_SHORTEST = 8
_COLUMNS = "seq, at_utc, monotonic_ns, boot_id, kind, run, payload, previous, hash"


def utc(moment: datetime | None = None) -> str:
    """Return a time as the ledger writes it: UTC, ISO 8601, microseconds, sortable as text."""
    moment = moment or datetime.now(UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@overload
def open_ledger(
    path: Path, repository: str, *, pinned_refs_exist: bool, create: Literal[True]
) -> Ledger: ...
@overload
def open_ledger(
    path: Path, repository: str, *, pinned_refs_exist: bool, create: bool = False
) -> Ledger | None: ...
def open_ledger(
    path: Path, repository: str, *, pinned_refs_exist: bool, create: bool = False
) -> Ledger | None:
    """Open the ledger of a repository.

    Args:
        path: its file (``Places.ledger``).
        repository: id of the repository (``state.repository_id``).
        pinned_refs_exist: whether ``refs/sealrun/runs/`` holds anything.
        create: begin a new ledger where there is none and nothing is pinned. Without it the
            ledger is opened for reading only.

    Returns:
        The ledger; None when there is none and ``create`` is false.

    Raises:
        LedgerMissing: pinned runs exist but the ledger does not.
        LedgerError: it is locked, damaged, of a newer version, or another repository's.
        StorageFault: it cannot be read, made or written.
    """
    if not _is_there(path):
        if pinned_refs_exist:
            raise LedgerMissing(
                f"this repository has pinned runs, but their ledger {path} is missing",
                hint=(
                    "Restore the ledger from a backup. Where SEALRUN_HOME or XDG_STATE_HOME was "
                    "different when those runs were made, set it as it was then."
                ),
            )
        if not create:
            return None
        schema.create(path, repository, utc())
        return _opened(path, repository, writable=True, fresh=True)
    return _opened(path, repository, writable=create)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise StorageFault(
            f"the ledger {path} cannot be reached: {error.strerror}",
            hint="Fix the permissions of its directories, then repeat the command.",
        ) from error


def _opened(path: Path, repository: str, *, writable: bool, fresh: bool = False) -> Ledger:
    try:
        _make_private(path)
        with translated(path), contextlib.ExitStack() as stack:
            mode = "rw" if os.access(path.parent, os.W_OK) else "immutable"
            connection = stack.enter_context(contextlib.closing(schema.connect(path, mode)))
            journal = schema.prepare(connection, path)
            ledger = Ledger(path, repository, connection, journal=journal, writable=writable)
            ledger.check_owner()
            if fresh and journal != "wal":
                ledger.append(_about_journal(path, journal))
            stack.pop_all()
    except OSError as error:
        raise StorageFault(f"the ledger {path} cannot be opened: {error.strerror}") from error
    return ledger


def _make_private(path: Path) -> None:
    status = path.stat()
    if status.st_mode & 0o077 and status.st_uid == os.geteuid():
        path.chmod(0o600)


def _about_journal(path: Path, journal: str) -> Note:
    name = network_file_system(path) or "this file system"
    return Note(
        code="journal",
        text=f"the ledger keeps a rollback journal: {name} cannot share a write-ahead log",
        details={"journal": journal, "file_system": name},
    )


class Transaction:
    """Events that are written together or not at all."""

    def __init__(self, ledger: Ledger, connection: sqlite3.Connection) -> None:
        self._ledger = ledger
        self._connection = connection
        self.open = True
        self.broken = False

    def append(self, event: Event, *, at: datetime | None = None) -> Recorded[Event]:
        """Append an event to the chain and bring the projections up to it.

        Args:
            event: what happened.
            at: when it is recorded; now, when not given.

        Raises:
            LedgerError: it does not fit what is on record (an unknown run, a second end, a second
                first approval), or the ledger is damaged.
            StorageFault: it cannot be written; the whole transaction is lost.
        """
        if not self.open:
            raise LedgerError("an event came after the end of its transaction")
        try:
            with translated(self._ledger.path):
                self._admit(event)
                return self._write(event, utc(at))
        except BaseException:
            self.broken = True
            raise

    def _admit(self, event: Event) -> None:
        if event.run is not None and not is_ulid(event.run):
            raise LedgerError(f"{event.run!r} is no run id")
        if isinstance(event, Approval) and event.first and self._ledger.approved() is not None:
            # Two first runs at once must not both approve what their commits hold.
            raise LedgerError(
                "another run has approved the policy meanwhile", hint="Run the command again."
            )
        if isinstance(event, AlertAccepted):
            if not projections.is_event_of(self._connection, event.alert, event.upto):
                raise LedgerError(f"event {event.upto} is none of alert {event.alert}")
            return
        if not isinstance(event, RunOpened | RunProgress | RunEnded):
            return
        row = self._connection.execute(
            "SELECT ended FROM runs WHERE run = ?", (event.run,)
        ).fetchone()
        if isinstance(event, RunOpened):
            if row is not None or event.run is None:
                raise LedgerError(f"run {event.run} is on record already")
        elif row is None:
            raise LedgerError(f"run {event.run} was never opened")
        elif row[0] is not None:
            raise LedgerError(f"run {event.run} has ended already, with event {row[0]}")

    def _write(self, event: Event, at: str) -> Recorded[Event]:
        document, truncated = to_document(event)
        if truncated:
            document["truncated"] = dict[str, Json](truncated)
        seq, previous = self._ledger.last_link()
        link = chain.Link(
            seq=seq + 1,
            at=at,
            monotonic_ns=time.monotonic_ns(),
            boot_id=_boot_id(),
            kind=event.kind,
            run=event.run,
            payload=canonical(document),
            previous=previous,
            hash=b"",
        )
        digest = chain.link_hash(link)
        self._connection.execute(
            f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - a constant
            (
                link.seq,
                link.at,
                link.monotonic_ns,
                link.boot_id,
                link.kind,
                link.run,
                link.payload,
                previous,
                digest,
            ),
        )
        projections.apply(self._connection, link.seq, at, link.kind, link.run, document)
        return Recorded(
            link.seq, at, link.monotonic_ns, link.boot_id, digest.hex(), event, truncated
        )


class Ledger:
    """An open ledger; a context manager that closes it.

    Attributes:
        path: of its file.
        repository: id of the repository.
        journal: ``wal`` or ``delete``.
        writable: whether it was opened for appending.
    """

    def __init__(
        self,
        path: Path,
        repository: str,
        connection: sqlite3.Connection,
        *,
        journal: str,
        writable: bool,
    ) -> None:
        self.path = path
        self.repository = repository
        self.journal = journal
        self.writable = writable
        self._connection = connection
        self._lock = threading.RLock()
        self._transaction: Transaction | None = None
        if not writable:
            connection.execute("PRAGMA query_only = ON")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Safe to repeat."""
        with self._lock:
            self._connection.close()

    def check_owner(self) -> None:
        """Refuse the ledger of another repository.

        Raises:
            LedgerError: it belongs to another one.
        """
        with self._reading() as connection:
            row = connection.execute("SELECT repository FROM ledger").fetchone()
        if row is None or row[0] != self.repository:
            raise LedgerError(
                f"the ledger {self.path} belongs to another repository",
                hint=f"This repository's id is {self.repository}. Put its own ledger back there.",
            )

    # -- writing ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Generator[Transaction]:
        """Open a transaction: all events that are appended within it are written at its end.

        Raises:
            LedgerError: another process has held the ledger for five seconds, a newer sealrun has
                changed it meanwhile, or it was opened for reading.
            StorageFault: it cannot be written (disk full); nothing of the transaction was.
        """
        with self._lock:
            if not self.writable:
                raise LedgerError(f"the ledger {self.path} is open for reading only")
            if self._transaction is not None:
                raise LedgerError(f"a transaction of the ledger {self.path} is open already")
            with translated(self.path):
                self._connection.execute("BEGIN IMMEDIATE")
            transaction = self._transaction = Transaction(self, self._connection)
            try:
                with translated(self.path):
                    schema.check_version(self._connection, self.path)
                yield transaction
                if transaction.broken:
                    raise LedgerError("an event of this transaction could not be appended")
                with translated(self.path):
                    self._connection.execute("COMMIT")
            except BaseException:
                # After some errors (SQLITE_FULL among them) SQLite has rolled back by itself.
                with contextlib.suppress(sqlite3.Error):
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                raise
            finally:
                transaction.open = False
                self._transaction = None

    def append(self, event: Event) -> Recorded[Event]:
        """Append one event in a transaction of its own (see ``transaction``)."""
        with self.transaction() as transaction:
            return transaction.append(event)

    def rebuild(self) -> None:
        """Drop every projection and make it again from the events, in one transaction."""
        with self.transaction(), translated(self.path), self._payloads():
            projections.rebuild(self._connection)

    # -- reading ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reading(self) -> Generator[sqlite3.Connection]:
        """One state of the ledger for several queries, whoever writes meanwhile."""
        with self._lock, translated(self.path):
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")

    def last_link(self) -> tuple[int, bytes]:
        """Return number and hash of the last event; before the first, 0 and the genesis."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1"
            ).fetchone()
        return (0, chain.genesis(self.repository)) if row is None else (row[0], row[1])

    def head(self) -> tuple[int, str]:
        """Return number and hash (hexadecimal) of the last event: what an anchor keeps."""
        seq, digest = self.last_link()
        return seq, digest.hex()

    def run(self, run: str) -> RunRecord:
        """Return everything on record about a run.

        Args:
            run: its whole id (``resolve`` finds it from a prefix).

        Raises:
            UsageError: there is no such run.
        """
        with self._reading():
            record = merge(self.events(run=run))
        if record is None:
            raise self._unknown(run)
        return record

    def runs(self, wanted: Filter | None = None) -> list[RunRecord]:
        """Return the wanted runs, newest first."""
        with self._reading() as connection:
            return [self.run(run) for run in projections.find_runs(connection, wanted or Filter())]

    def open_runs(self) -> list[RunRecord]:
        """Return the runs that have not ended, newest first; whether they live is not known here."""
        return self.runs(Filter(open=True))

    def alerts(
        self,
        *,
        run: str | None = None,
        path: str | None = None,
        phase: str | None = None,
        reason: str | None = None,
        limit: int | None = None,
    ) -> list[Recorded[Alert]]:
        """Return the latest state of each alert, the newest first.

        Args:
            run: of this run only.
            path: only where it is one of the paths.
            phase: of this phase only.
            reason: of this reason code only.
            limit: at most so many.
        """
        given = {"run": run, "phase": phase, "reason": reason}
        equal = {column: fit(value) for column, value in given.items() if value is not None}
        with self._reading() as connection:
            found = projections.find_alerts(
                connection, equal, limit, path=None if path is None else fit(path)
            )
            return [cast("Recorded[Alert]", self.event(seq)) for seq in found]

    def approved(self) -> Recorded[Approval] | None:
        """Return the approval in force: the latest."""
        with self._reading() as connection:
            seq = projections.latest_approval(connection)
            return None if seq is None else cast("Recorded[Approval]", self.event(seq))

    def best(self, metric: str, direction: str) -> str | None:
        """Return the id of the run with the best value of a metric.

        Only runs that succeeded and whose number belongs to their commit alone take part.

        Args:
            metric: its name.
            direction: ``minimize`` or ``maximize``.
        """
        with self._reading() as connection:
            return projections.best_run(connection, fit(metric), direction)

    def resolve(self, prefix: str) -> str:
        """Return the id of the one run that begins with a prefix, in either case.

        Raises:
            UsageError: there is none, or several; the message lists them.
        """
        canonical_form = canonical_prefix(prefix)
        if canonical_form is None:
            raise self._unknown(prefix)
        with self._reading() as connection:
            found = projections.find_prefix(connection, canonical_form, _CANDIDATES + 1)
        if not found:
            raise self._unknown(prefix)
        if len(found) > 1:
            names = ", ".join(found[:_CANDIDATES]) + (", …" if len(found) > _CANDIDATES else "")
            raise UsageError(
                f"run {prefix!r} is ambiguous: {names}", hint="Give more characters of its id."
            )
        return found[0]

    def shortest(self, run: str) -> str:
        """Return the shortest prefix of a run's id that no other run has, at least 8 characters."""
        with self._reading() as connection:
            others = projections.neighbours(connection, run)
        length = _SHORTEST
        while any(other.startswith(run[:length]) for other in others):
            length += 1
        return run[:length]

    def event(self, seq: int) -> Recorded[Event]:
        """Return one event by its number.

        Raises:
            LedgerError: there is none, or it cannot be read.
        """
        with self._reading() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM events WHERE seq = ?",  # noqa: S608 - a constant
                (seq,),
            ).fetchone()
        if row is None:
            raise damaged(self.path, f"event {seq} is missing")
        return self._recorded(_link(row))

    @overload
    def events(
        self, kind: None = None, *, run: str | None = None, after: int = 0
    ) -> list[Recorded[Event]]: ...
    @overload
    def events(
        self, kind: type[E], *, run: str | None = None, after: int = 0
    ) -> list[Recorded[E]]: ...
    def events(
        self, kind: type[Event] | None = None, *, run: str | None = None, after: int = 0
    ) -> list[Recorded[Any]]:
        """Return events, oldest first.

        Args:
            kind: only of this kind.
            run: only of this run.
            after: only with a greater number.
        """
        where = "seq > ?"
        parameters: list[int | str] = [after]
        if run is not None:
            where += " AND run = ?"
            parameters.append(run)
        if kind is not None:
            where += " AND kind = ?"
            parameters.append(kind.kind)
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM events WHERE {where} ORDER BY seq",  # noqa: S608 - constants
                parameters,
            )
            return [self._recorded(_link(row)) for row in rows]

    def links(self, after: int = 0) -> Iterator[chain.Link]:
        """Walk the chain as it is stored.

        Args:
            after: only events with a greater number.
        """
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM events WHERE seq > ? ORDER BY seq",  # noqa: S608 - a constant
                (after,),
            )
            for row in rows:
                yield _link(row)

    def verify_chain(self, anchor: chain.Anchor | None = None) -> chain.ChainReport:
        """Check every event of the chain.

        Args:
            anchor: a head that was seen earlier and kept elsewhere: without one, a chain that was
                cut at its end or rewritten as a whole cannot be told from a sound one.

        Raises:
            LedgerError: the file is damaged below the chain, so that it cannot be walked.
        """
        with self._reading() as connection:
            wrong = schema.quick_check(connection)
            if wrong is not None:
                raise damaged(self.path, wrong)
            return chain.verify(chain.genesis(self.repository), self.links(), anchor)

    def projections_hold(self) -> bool:
        """Tell whether the projections are what the events make; nothing is changed.

        The chain covers events alone: a row removed from a projection hides a run from ``log``.

        Raises:
            LedgerError: an event cannot be read, or the file is damaged.
        """
        with (
            self._lock,
            translated(self.path),
            self._payloads(),
            contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as copy,
        ):
            self._connection.backup(copy)
            copy.text_factory = self._connection.text_factory
            found = projections.content(copy)
            projections.rebuild(copy)
            return found == projections.content(copy)

    @contextlib.contextmanager
    def _payloads(self) -> Generator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(self.path, f"an event cannot be read: {error!r}") from error

    def _recorded(self, link: chain.Link) -> Recorded[Event]:
        try:
            kind = KINDS[link.kind]
            document = load(link.payload)
            truncated = cut_of(document)
            event = replace(from_document(kind, document), run=link.run)
        except (Misfit, KeyError) as error:
            raise damaged(self.path, f"event {link.seq} cannot be read: {error}") from error
        return Recorded(
            link.seq,
            link.at,
            link.monotonic_ns,
            link.boot_id,
            link.hash.hex(),
            event,
            truncated,
        )

    def _unknown(self, run: str) -> UsageError:
        return UsageError(f"there is no run {run!r} here", hint="sealrun log lists the runs.")


def _link(row: tuple[object, ...]) -> chain.Link:
    """Take a row as it is; of a damaged row each column gets its type, and its hash fails."""
    seq, at, monotonic_ns, boot_id, kind, run, payload, previous, digest = row
    return chain.Link(
        seq=seq if isinstance(seq, int) else -1,
        at=_as_text(at),
        monotonic_ns=monotonic_ns if isinstance(monotonic_ns, int) else -1,
        boot_id=_as_text(boot_id),
        kind=_as_text(kind),
        run=None if run is None else _as_text(run),
        payload=_as_text(payload),
        previous=previous if isinstance(previous, bytes) else b"",
        hash=digest if isinstance(digest, bytes) else b"",
    )


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else f"<{value!r}>"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
