"""The ledger in PostgreSQL, as servers write to it. Needs the extra [postgres]."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection

from headgate_server.config import Ledger
from headgate_server.ledger.columns import TABLES
from headgate_server.ledger.migrations import MIGRATIONS
from headgate_server.ledger.partitions import drop_months, make_month, months_from
from headgate_server.ledger.spool import Batch
from headgate_server.sql.engine import engine

Work = Callable[[AsyncConnection], Awaitable[None]]

PREPARE_SECONDS = 60.0
HANG_UP_SECONDS = 2.0


class PostgresqlLedger:
    """Takes batches of rows, each exactly once, and keeps its tables and months in order.

    Every method raises TimeoutError or whatever the driver raises; then nothing has changed, or it cannot be known,
    and the same may be asked again.
    """

    def __init__(self, config: Ledger) -> None:
        self._config = config
        self._months: set[str] = set()
        self._raw: Any = None
        self._engine = engine(config.url.get_secret_value(), keepalives_idle=30, keepalives_interval=10)
        # Before all else that is done with a new connection, which may freeze as well.
        event.listen(self._engine.sync_engine, "connect", self._remember, insert=True)

    async def close(self) -> None:
        """Closes every connection."""
        await self._engine.dispose()

    async def prepare(self) -> None:
        """Makes or migrates the tables, has months ready, and drops those that are too old."""
        await self._transact(self._migrate, PREPARE_SECONDS)
        await self.look_after_months()

    async def look_after_months(self) -> None:
        """Has months ready, and drops those that are too old."""
        now = datetime.now(UTC)
        self._months.clear()
        await self._make(months_from(now.date(), self._config.months_ahead))
        if (days := self._config.retention_days) is not None:
            for table in TABLES:
                await self._transact(partial(drop_months, table=table, now=now, retention_days=days), PREPARE_SECONDS)

    async def ping(self) -> None:
        """Sees whether it is there."""
        await self._transact(_nothing, self._config.timeout)

    async def insert(self, batch: Batch) -> None:
        """Adds rows; those that are there already stay as they are."""

        if self._config.migrate:
            await self._make(sorted(set(batch.months) - self._months))

        async def insert_all(connection: AsyncConnection) -> None:
            for table, rows in batch.rows.items():
                await connection.execute(_INSERTS[table], {"rows": rows})

        await self._transact(insert_all, self._config.timeout)

    async def _make(self, months: Iterable[str]) -> None:
        for month in months:
            for table in TABLES:
                await self._transact(partial(make_month, table=table, month=month), PREPARE_SECONDS)
            self._months.add(month)

    async def _migrate(self, connection: AsyncConnection) -> None:
        await connection.run_sync(MIGRATIONS.upgrade)

    async def _transact(self, work: Work, seconds: float) -> None:
        """Does the work in one transaction, within the time. A frozen server does not even hear a cancel: the
        connection is broken off, and the driver finds it lost."""
        transacting = asyncio.create_task(self._begin(work, seconds))
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(transacting)
        finally:
            if not transacting.done():
                self._hang_up()
                transacting.cancel()
                await asyncio.wait((transacting,), timeout=HANG_UP_SECONDS)

    async def _begin(self, work: Work, seconds: float) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(text(f"SET LOCAL statement_timeout = {int(seconds * 1000)}"))
            await work(connection)

    def _remember(self, connection: Any, _record: Any) -> None:
        self._raw = connection.driver_connection

    def _hang_up(self) -> None:
        # Whatever state the connection is in, or if there is none yet.
        with suppress(Exception), socket.socket(fileno=os.dup(self._raw.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)


async def _nothing(_connection: AsyncConnection) -> None:
    """A transaction without statements of its own."""


def _insert(table: str) -> Any:
    columns = ", ".join(TABLES[table])
    return text(
        f"INSERT INTO {table} ({columns}) SELECT {columns} "
        f"FROM json_populate_recordset(CAST(NULL AS {table}), CAST(:rows AS json)) ON CONFLICT DO NOTHING"
    )


_INSERTS = {table: _insert(table) for table in TABLES}
