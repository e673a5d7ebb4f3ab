"""The ledger of a running server: what calls tell it, where it is kept, and how it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

from headgate_server.ledger.content import Content
from headgate_server.ledger.entry import Entry
from headgate_server.ledger.ids import Ids
from headgate_server.ledger.spool import Spool
from headgate_server.ledger.writer import Figures, Writer
from headgate_server.limits.estimate import Request

if TYPE_CHECKING:
    from headgate_server.call import Call
    from headgate_server.config import Ledger as LedgerConfig
    from headgate_server.errors import GatewayError
    from headgate_server.ledger.shipper import Shipper

LONG_SECONDS = 0.1
"""An attempt whose call goes on longer is on disk before its end: whatever becomes of the server, it is known."""
FLUSH_SECONDS = 5.0
SHIP_SECONDS = 5.0

log = structlog.get_logger(component="ledger")


class Ledger:
    """Enters every call that it is told of, with all its attempts. Started and closed once."""

    def __init__(self, config: LedgerConfig) -> None:
        self._config = config
        self._ids = Ids()
        self._begun: set[Entry] = set()
        """Calls in flight of which an attempt began since it was looked for long ones."""
        self._begun_before: set[Entry] = set()
        """The same since the look before."""
        self._looking: asyncio.TimerHandle | None = None
        self._writer: Writer | None = None
        self._shipper: Shipper | None = None

    async def start(self) -> None:
        """Opens the file, ends what a server before this one left in flight, and begins to write and to ship.

        Raises:
            OSError: the file cannot be used, or another server uses it.
        """
        config = self._config
        spool = await asyncio.to_thread(_opened, config)
        self._writer = Writer(
            spool,
            flush_interval=config.flush_interval,
            most_queued=config.queue,
            retention_days=None if config.ships else config.retention_days,
        )
        if config.ships:
            from headgate_server.ledger.shipper import Shipper

            self._shipper = Shipper(config, self._writer)
        self._look()

    async def close(self) -> None:
        """Writes what is queued, and ships what can be shipped in a few seconds."""
        if self._looking:
            self._looking.cancel()
        if self._shipper:
            await self._shipper.close(SHIP_SECONDS)
        if self._writer:
            await self._writer.close(FLUSH_SECONDS)

    def enter(self, call: Call, request: Request) -> Entry:
        """Begins to know of a call."""
        policy = call.runtime.config.ledger or self._config
        keeps = policy.content.prompts or policy.content.answers
        content = Content(policy.content, request) if keeps else None
        now = time.time()
        return Entry(self._ids.new(now), now, call, request, content, self._began)

    def conclude(self, entry: Entry, error: GatewayError | None) -> None:
        """A call has ended, with that error or with its answer."""
        self._begun.discard(entry)
        self._begun_before.discard(entry)
        if self._writer:
            self._writer.put(entry.rows(error))

    @property
    def trouble(self) -> str:
        """Why it is not as it should be, for people; empty when all is well."""
        return (self._writer.trouble if self._writer else "") or (self._shipper.trouble if self._shipper else "")

    @property
    def figures(self) -> Figures:
        """What became of calls so far."""
        return self._writer.figures if self._writer else Figures()

    @property
    def failures(self) -> Mapping[str, int]:
        """How often the file and PostgreSQL have not taken rows, which were tried again."""
        return {
            "file": self.figures.failures,
            "postgresql": self._shipper.failures if self._shipper else 0,
        }

    @property
    def shipped(self) -> int:
        """Calls that PostgreSQL has."""
        return self._shipper.shipped if self._shipper else 0

    @property
    def queued(self) -> int:
        """Rows in memory."""
        return self._writer.queued if self._writer else 0

    @property
    def waiting(self) -> int:
        """Calls on the local disk that PostgreSQL has not."""
        return self._shipper.waiting if self._shipper else 0

    def lag(self, now: float) -> float:
        """Seconds since every call that had ended was where it belongs; `now` is monotonic time."""
        lags = [part.lag(now) for part in (self._writer, self._shipper) if part]
        return max(lags, default=0.0)

    def _began(self, entry: Entry) -> None:
        """An attempt of the call was made."""
        self._begun.add(entry)

    def _look(self) -> None:
        """Has calls written, as far as they are known, that go on long after an attempt began."""
        self._looking = asyncio.get_running_loop().call_later(LONG_SECONDS, self._look)
        long, self._begun_before, self._begun = self._begun_before, self._begun, set()
        for entry in long:
            if self._writer and entry.in_flight:
                self._writer.put(entry.rows_so_far())


def _opened(config: LedgerConfig) -> Spool:
    try:
        spool = Spool(config.file, config.fsync)
        if lost := spool.close_open():
            log.warning("ledger_attempts_lost", attempts=lost)
    except OSError as error:
        raise OSError(f"the ledger cannot be opened: {error}") from error
    except Exception as error:  # of SQLite, or of SQLAlchemy, which is an extra
        raise OSError(f"the ledger cannot be opened: {config.file}: {getattr(error, 'orig', error)}") from error
    return spool
