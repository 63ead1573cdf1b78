"""Runs SQL scripts within a transaction.

Rule: ``sqlite3.Connection.executescript`` commits the current transaction first, so it is not used.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def run_script(connection: sqlite3.Connection, sql: str) -> None:
    """Run each statement of a script within the current transaction.

    ``executescript`` would commit it first.
    """
    for statement in _statements(sql):
        connection.execute(statement)


def _statements(sql: str) -> Iterator[str]:
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
