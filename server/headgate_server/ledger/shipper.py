"""Moves rows from the spool to PostgreSQL, each exactly once, whatever dies in between."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from headgate_server.ledger.writer import Writer

if TYPE_CHECKING:
    from headgate_server.config import Ledger
    from headgate_server.ledger.postgresql import PostgresqlLedger

AT_ONCE = 500
"""Calls in one batch."""
LONGEST_PAUSE = 10.0
MONTHS_SECONDS = 3600.0
MAX_DETAIL = 200

log = structlog.get_logger(component="ledger")


class Shipper:
    """Inserts what is oldest, then deletes it here. A row that PostgreSQL has already is not inserted again, so that
    nothing is lost or doubled if the server ends between the two."""

    def __init__(self, config: Ledger, writer: Writer) -> None:
        self.shipped = 0
        self.failures = 0
        self.waiting = 0
        """Calls in the spool, as far as is known."""
        self.trouble = ""
        """Why nothing arrives, for people; empty when all is well."""
        self._config = config
        self._database: PostgresqlLedger | None = None
        self._writer = writer
        self._months_due = 0.0
        self._caught_up = time.monotonic()
        self._closing = asyncio.Event()
        self._shipping = asyncio.create_task(self._run())

    def lag(self, now: float) -> float:
        """Seconds since PostgreSQL had everything; `now` is monotonic time."""
        return now - self._caught_up if self.trouble or self.waiting else 0.0

    async def close(self, seconds: float) -> None:
        """Sends what is left, if that is possible in this time; the rest is for the next start."""
        self._closing.set()
        # Not cancelled at once: what is under way would have to begin anew, on another connection.
        await asyncio.wait((self._shipping,), timeout=0 if self.trouble else seconds)
        self._shipping.cancel()
        await asyncio.gather(self._shipping, return_exceptions=True)
        with suppress(Exception):
            self.waiting = await self._writer.do(lambda spool: spool.waiting())
        if self.waiting:
            log.warning("ledger_calls_left_in_spool", calls=self.waiting)
        if self._database:
            with suppress(Exception):
                async with asyncio.timeout(1):
                    await self._database.close()

    async def _run(self) -> None:
        pause = self._config.ship_interval
        is_last = False
        while True:
            try:
                more = await self._ship()
            except Exception as error:  # whatever a driver raises: what is not shipped now is shipped later
                self._failed(error)
                pause = min(pause * 2, LONGEST_PAUSE)
                await self._count()
            else:
                self._succeeded()
                pause = self._config.ship_interval
                if more:
                    await self._count()
                    continue
                self.waiting, self._caught_up = 0, time.monotonic()
            if is_last:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
                is_last = True

    async def _ship(self) -> bool:
        """Sends one batch; whether there is more."""
        if self._database is None:
            self._database = await asyncio.to_thread(_database, self._config)
        database = self._database
        if self._config.migrate and time.monotonic() >= self._months_due:
            await database.prepare()
            self._months_due = time.monotonic() + MONTHS_SECONDS
        batch = await self._writer.do(lambda spool: spool.oldest(AT_ONCE))
        if batch.ids:
            await database.insert(batch)
            await self._writer.do(lambda spool: spool.forget(batch.ids))
            self.shipped += len(batch.ids)
        elif self.trouble:
            await database.ping()
        return len(batch.ids) == AT_ONCE

    async def _count(self) -> None:
        with suppress(Exception):  # the writer tells of its own trouble
            self.waiting = await self._writer.do(lambda spool: spool.waiting())

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        # Not SQLAlchemy's own text, which repeats the statement and its values.
        detail = " ".join(str(getattr(error, "orig", error)).split())[:MAX_DETAIL] or type(error).__name__
        if not self.trouble:
            log.error("ledger_not_shipped", error=type(error).__name__, detail=detail)
        self.trouble = f"the ledger's rows do not get to PostgreSQL: {detail}"

    def _succeeded(self) -> None:
        if self.trouble:
            log.info("ledger_shipped_again")
        self.trouble = ""


def _database(config: Ledger) -> PostgresqlLedger:
    """Off the event loop, which has calls to answer."""
    from headgate_server.ledger.postgresql import PostgresqlLedger  # an extra, and a second

    return PostgresqlLedger(config)
