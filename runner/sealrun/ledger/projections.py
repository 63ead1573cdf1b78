"""What is made from events to find them by: applied with each event, rebuilt from all of them.

Rules that this module keeps:

- ``apply`` sees one event's JSON document and changes projections only; applying all events in
  order to empty projections gives the same content as having applied them as they came.
- Projections say *which* events; content is read from the events, which the chain covers.
- Queries return event numbers and run ids, newest first unless they say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sealrun.ledger.codec import load
from sealrun.ledger.script import run_script
from sealrun.ledger.ulid import LENGTH
from sealrun.reasons import MEANINGS, Reason, Severity

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from sealrun.ledger.codec import Json

#: Every projection; nothing else in the file may be dropped.
TABLES = ("runs", "alerts", "alert_paths", "acceptances", "approvals", "pins")

#: Reasons that say that the commit itself holds what the loop did not choose: its number counts
#: under no policy, however mildly that one takes it.
IN_COMMIT = frozenset({Reason.CONTAINS_FOREIGN, Reason.INTENT_DIFFERS})
_HARMLESS = {Severity.NOTE, Severity.FLAG_HARMLESS}


@dataclass(frozen=True)
class Filter:
    """Which runs are wanted; an empty filter means all.

    Attributes:
        verdicts: any of these.
        outcomes: any of these.
        commit: begins with these hexadecimal digits.
        since: opened at or after this time; UTC, ISO 8601 as the ledger writes it.
        limit: at most so many, the newest.
        open: only runs that have not ended.
    """

    verdicts: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    commit: str | None = None
    since: str | None = None
    limit: int | None = None
    open: bool = False


def rebuild(connection: sqlite3.Connection) -> None:
    """Drop every projection and make it again from the events, in the current transaction."""
    for table in reversed(TABLES):
        connection.execute(f"DROP TABLE IF EXISTS {table}")
    run_script(connection, Path(__file__).with_name("projections.sql").read_text("utf-8"))
    rows = connection.execute("SELECT seq, at_utc, kind, run, payload FROM events ORDER BY seq")
    for seq, at, kind, run, payload in rows:
        apply(connection, seq, at, kind, run, load(payload))


def apply(
    connection: sqlite3.Connection,
    seq: int,
    at: str,
    kind: str,
    run: str | None,
    payload: dict[str, Json],
) -> None:
    """Bring the projections up to one more event."""
    step = _STEPS.get(kind)
    if step is not None:
        step(connection, seq, at, run, payload)


def _run_opened(
    connection: sqlite3.Connection, seq: int, at: str, run: str | None, payload: dict[str, Json]
) -> None:
    connection.execute(
        'INSERT OR IGNORE INTO runs (run, opened, opened_at, "commit", outcome)'
        " VALUES (?, ?, ?, ?, 'not-started')",
        (run, seq, at, payload["commit"]),
    )


def _run_ended(
    connection: sqlite3.Connection, seq: int, at: str, run: str | None, payload: dict[str, Json]
) -> None:
    del at
    verdict = cast("dict[str, Json] | None", payload.get("verdict"))
    metric = cast("dict[str, Json]", payload.get("metric") or {})
    connection.execute(
        "UPDATE runs SET ended = ?, verdict = ?, outcome = ?, metric = ?, value = ?,"
        " direction = ?, belongs = ? WHERE run = ? AND ended IS NULL",
        (
            seq,
            verdict["kind"] if verdict else None,
            payload["outcome"],
            metric.get("name"),
            _real(metric.get("value")),
            metric.get("direction"),
            _belongs(verdict),
            run,
        ),
    )


def _alert(
    connection: sqlite3.Connection, seq: int, at: str, run: str | None, payload: dict[str, Json]
) -> None:
    del at
    writer = cast("dict[str, Json]", payload.get("writer") or {})
    connection.execute(
        "INSERT INTO alerts (seq, id, run, path, phase, reason, category)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            seq,
            payload["id"],
            run,
            payload["path"],
            payload["phase"],
            payload["reason"],
            writer.get("category", "unknown"),
        ),
    )
    paths = {str(payload["path"]), *map(str, cast("list[Json]", payload.get("paths") or []))}
    connection.executemany(
        "INSERT INTO alert_paths (seq, path) VALUES (?, ?)", [(seq, path) for path in paths]
    )


def _alert_accepted(
    connection: sqlite3.Connection, seq: int, at: str, run: str | None, payload: dict[str, Json]
) -> None:
    del at, run
    connection.execute(
        "INSERT INTO acceptances (seq, alert, upto) VALUES (?, ?, ?)",
        (seq, payload["alert"], payload["upto"]),
    )


def _approval(
    connection: sqlite3.Connection, seq: int, at: str, run: str | None, payload: dict[str, Json]
) -> None:
    del at, run
    connection.execute(
        "INSERT INTO approvals (seq, policy, first) VALUES (?, ?, ?)",
        (seq, payload["policy"], int(bool(payload.get("first")))),
    )


def _pin(
    connection: sqlite3.Connection, seq: int, at: str, run: str | None, payload: dict[str, Json]
) -> None:
    del at
    connection.execute(
        'INSERT OR REPLACE INTO pins (ref, seq, "commit", run) VALUES (?, ?, ?, ?)',
        (payload["ref"], seq, payload["commit"], run),
    )


_STEPS = {
    "run-opened": _run_opened,
    "run-ended": _run_ended,
    "alert": _alert,
    "alert-accepted": _alert_accepted,
    "approval": _approval,
    "pin": _pin,
}


def _real(value: Json) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _belongs(verdict: dict[str, Json] | None) -> bool:
    if verdict is None or verdict["kind"] not in {"clean", "flagged"}:
        return False
    reasons = cast("list[dict[str, Json]]", verdict.get("reasons") or [])
    return all(
        reason["code"] not in IN_COMMIT
        and severity(reason["code"], reason.get("severity")) in _HARMLESS
        for reason in reasons
    )


def severity(code: Json, recorded: Json) -> Severity:
    """Return how bad a reason was: as recorded, else by its code; unknown codes are not harmless."""
    try:
        return Severity(str(recorded)) if recorded else MEANINGS[Reason(str(code))].severity
    except ValueError:
        return Severity.FLAG


def find_runs(connection: sqlite3.Connection, wanted: Filter) -> list[str]:
    """Return the ids of the wanted runs, newest first."""
    where: list[str] = []
    values: list[str | int] = []
    for column, choices in (("verdict", wanted.verdicts), ("outcome", wanted.outcomes)):
        if choices:
            where.append(f"{column} IN ({', '.join('?' * len(choices))})")
            values += choices
    if wanted.commit:
        where.append('substr("commit", 1, ?) = ?')
        values += [len(wanted.commit), wanted.commit.lower()]
    if wanted.since:
        where.append("opened_at >= ?")
        values.append(wanted.since)
    if wanted.open:
        where.append("ended IS NULL")
    query = "SELECT run FROM runs"
    if where:
        query += " WHERE " + " AND ".join(where)
    query += " ORDER BY opened DESC LIMIT ?"
    values.append(-1 if wanted.limit is None else wanted.limit)
    return [run for (run,) in connection.execute(query, values)]


def find_prefix(connection: sqlite3.Connection, prefix: str, limit: int) -> list[str]:
    """Return the ids of runs that begin with a canonical prefix, oldest first."""
    rows = connection.execute(
        "SELECT run FROM runs WHERE run >= ? AND run <= ? ORDER BY run LIMIT ?",
        (prefix, prefix.ljust(LENGTH, "Z"), limit),
    )
    return [run for (run,) in rows]


def neighbours(connection: sqlite3.Connection, run: str) -> list[str]:
    """Return the runs whose ids stand next to a run's, below and above."""
    below = connection.execute("SELECT max(run) FROM runs WHERE run < ?", (run,)).fetchone()
    above = connection.execute("SELECT min(run) FROM runs WHERE run > ?", (run,)).fetchone()
    return [one for (one,) in (below, above) if one is not None]


def find_alerts(
    connection: sqlite3.Connection,
    equal: dict[str, str],
    limit: int | None,
    *,
    path: str | None = None,
) -> list[int]:
    """Return the numbers of the latest event of each alert, newest first.

    Args:
        connection: of the ledger.
        equal: column of the projection -> value that it must have.
        limit: at most so many.
        path: that the event must name among its paths.
    """
    where = [f"{column} = ?" for column in equal]
    values: list[str | int] = list(equal.values())
    if path is not None:
        where.append("seq IN (SELECT seq FROM alert_paths WHERE path = ?)")
        values.append(path)
    rows = connection.execute(
        f"SELECT max(seq) AS latest FROM alerts WHERE {' AND '.join(where) or '1'}"  # noqa: S608 - columns are ours
        " GROUP BY id ORDER BY latest DESC LIMIT ?",
        (*values, -1 if limit is None else limit),
    )
    return [seq for (seq,) in rows]


def is_event_of(connection: sqlite3.Connection, alert: str, seq: int) -> bool:
    """Tell whether an event is one of an alert's."""
    row = connection.execute(
        "SELECT 1 FROM alerts WHERE seq = ? AND id = ?", (seq, alert)
    ).fetchone()
    return row is not None


def latest_approval(connection: sqlite3.Connection) -> int | None:
    """Return the number of the approval in force, if there is one."""
    (seq,) = connection.execute("SELECT max(seq) FROM approvals").fetchone()
    return cast("int | None", seq)


def best_run(connection: sqlite3.Connection, metric: str, direction: str) -> str | None:
    """Return the run with the best value of a metric, the first of equals.

    Only runs that succeeded and whose number belongs to their commit alone take part.
    """
    row = connection.execute(
        "SELECT run FROM runs WHERE metric = ? AND direction = ? AND value IS NOT NULL"
        " AND belongs = 1 AND outcome = 'succeeded' ORDER BY value * ?, opened LIMIT 1",
        (metric, direction, -1 if direction == "maximize" else 1),
    ).fetchone()
    return None if row is None else str(row[0])


def content(connection: sqlite3.Connection) -> dict[str, Sequence[tuple[object, ...]]]:
    """Return every row of every projection, in order of its key: for comparing two states."""
    return {
        table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()  # noqa: S608 - ours
        for table in TABLES
    }
