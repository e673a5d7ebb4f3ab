"""The local file of SQLite that rows are written to first. On one machine it is the ledger."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from headgate_server.ledger.columns import LOST, OPEN, TABLES
from headgate_server.ledger.entry import Row, Rows
from headgate_server.timestamps import sqlite_text

SYNCHRONOUS = {"commit": "FULL", "checkpoint": "NORMAL", "never": "OFF"}
BUSY_SECONDS = 5.0
AT_ONCE = 50
"""Rows in one statement: within one, this thread need not win the interpreter's lock back from the event loop."""
NO_ROWS = "[]"
STATEMENTS = 3 * AT_ONCE
KEYS = {"headgate_calls": "id", "headgate_attempts": "call_id", "headgate_contents": "call_id"}


class SpoolInUse(OSError):
    """Another server writes to the file."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Calls that have ended, with all their rows: of each table a JSON array of objects."""

    ids: Sequence[str]
    rows: Mapping[str, str]
    months: Sequence[str]
    """Months that the rows are of, such as 2026-11."""


class Spool:
    """The open file, of this server alone. Used by one thread at a time.

    Every method raises sqlite3.Error where the file cannot be read or written; then nothing has changed.
    """

    def __init__(self, file: Path, fsync: str) -> None:
        self._lock = _locked(file.with_name(f"{file.name}.lock"))
        _migrate(file)
        self._connection = sqlite3.connect(
            file,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=STATEMENTS,
        )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(f"PRAGMA synchronous={SYNCHRONOUS[fsync]}")

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()
        self._lock.close()

    def close_open(self) -> int:
        """Ends what a server before this one left in flight; the number of its attempts."""
        with self._transaction():
            self._connection.execute("UPDATE headgate_calls SET outcome = ? WHERE outcome = ?", (LOST, OPEN))
            changed = self._connection.execute(
                "UPDATE headgate_attempts SET outcome = ? WHERE outcome = ?", (LOST, OPEN)
            )
        return changed.rowcount

    def write(self, entries: Sequence[Rows]) -> None:
        """Writes all of them, in the place of what was written of the same calls before."""
        with self._transaction():
            self._put("headgate_calls", [entry.call for entry in entries])
            self._put("headgate_attempts", [row for entry in entries for row in entry.attempts])
            self._put("headgate_contents", [entry.content for entry in entries if entry.content])

    def waiting(self) -> int:
        """How many calls that have ended are here."""
        query = "SELECT count(*) FROM headgate_calls WHERE outcome <> ?"
        found: tuple[int] = self._connection.execute(query, (OPEN,)).fetchone()
        return found[0]

    def oldest(self, most: int) -> Batch:
        """The first calls that have ended, to be sent elsewhere; they stay here."""
        ended = self._connection.execute(
            "SELECT id FROM headgate_calls WHERE outcome <> ? ORDER BY id LIMIT ?", (OPEN, most)
        )
        ids = [row[0] for row in ended]
        rows = {table: self._as_json(table, ids) for table in TABLES}
        months = {month for table in TABLES for month in self._months(table, ids)}
        return Batch(ids, {table: text for table, text in rows.items() if text != NO_ROWS}, sorted(months))

    def forget(self, ids: Sequence[str]) -> None:
        """Deletes calls with all their rows, as PostgreSQL has them."""
        with self._transaction():
            for table, key in KEYS.items():
                self._connection.execute(f"DELETE FROM {table} WHERE {key} IN ({_marks(ids)})", ids)

    def prune(self, before: float, most: int) -> int:
        """Deletes rows from before this moment, at most so many of each table; how many there were."""
        deleted = 0
        with self._transaction():
            for table in TABLES:
                old = f"SELECT rowid FROM {table} WHERE time < ? LIMIT ?"
                deleted += self._connection.execute(
                    f"DELETE FROM {table} WHERE rowid IN ({old})", (sqlite_text(max(before, 0.0)), most)
                ).rowcount
        return deleted

    def _put(self, table: str, rows: Sequence[Row]) -> None:
        for first in range(0, len(rows), AT_ONCE):
            part = rows[first : first + AT_ONCE]
            values: list[Any] = []
            for row in part:
                values += row
            self._connection.execute(_insert(table, len(part)), values)

    def _as_json(self, table: str, ids: Sequence[str]) -> str:
        query = f"SELECT {_OBJECTS[table]} FROM {table} WHERE {KEYS[table]} IN ({_marks(ids)})"
        found: tuple[str] = self._connection.execute(query, ids).fetchone()
        return found[0]

    def _months(self, table: str, ids: Sequence[str]) -> list[str]:
        query = f"SELECT DISTINCT substr(time, 1, 7) FROM {table} WHERE {KEYS[table]} IN ({_marks(ids)})"
        return [row[0] for row in self._connection.execute(query, ids)]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


@cache
def _insert(table: str, size: int) -> str:
    row = f"({_marks(TABLES[table])})"
    return f"INSERT OR REPLACE INTO {table} ({', '.join(TABLES[table])}) VALUES {', '.join([row] * size)}"


def _object(table: str) -> str:
    values = {column: column for column in TABLES[table]}
    values["time"] = "time || '+00'"
    if "labels" in values:
        values["labels"] = "json(labels)"
    pairs = ", ".join(f"'{column}', {value}" for column, value in values.items())
    return f"json_group_array(json_object({pairs}))"


_OBJECTS = {table: _object(table) for table in TABLES}


def _locked(file: Path) -> Any:
    """The lock that says whose the spool is; it ends with the process, however that ends."""
    opened = file.open("a")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        opened.close()
        raise SpoolInUse(f"{file.with_suffix('')} is written by another server: each needs a file of its own") from None
    return opened


def _migrate(file: Path) -> None:
    """Makes or migrates the tables. SQLAlchemy and alembic are loaded only where there is something to do."""
    with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as connection:
        try:
            found = connection.execute("SELECT version_num FROM headgate_ledger_version").fetchall()
        except sqlite3.OperationalError:  # there is no such table
            found = []
    newest = max(path.name for path in (Path(__file__).parent / "migrations" / "versions").glob("[0-9]*.py"))
    if found == [(newest.partition("_")[0],)]:
        return
    from sqlalchemy import create_engine

    from headgate_server.ledger.migrations import MIGRATIONS

    engine = create_engine(f"sqlite:///{file}")
    try:
        with engine.begin() as connection:
            MIGRATIONS.upgrade(connection)
    finally:
        engine.dispose()
