"""API keys as requests see them: in memory, and kept current with a database off the request path."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from headgate_server.identity.events import SecurityEvent
from headgate_server.identity.records import KeyRecord

READ_SECONDS = 3.0
CLOSE_SECONDS = 5.0
MAX_DETAIL = 256

log = structlog.get_logger(component="identity")


class StaticKeys:
    """The keys that stand in the configuration."""

    def __init__(self, records: Mapping[str, KeyRecord]) -> None:
        self.is_known = True
        self._records = records

    def get(self, key_id: str) -> KeyRecord | None:
        """The key of that name."""
        return self._records.get(key_id)


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed of the keys until `revision`; `complete` means that these are all of them."""

    revision: int
    records: Mapping[str, KeyRecord]
    complete: bool


class KeyDatabase(Protocol):
    """Where keys and security events are kept for good."""

    async def prepare(self) -> None:
        """Makes or migrates the tables, where that is this process's to do."""
        ...

    async def changes(self, revision: int, known: Set[str]) -> Changes:
        """What changed since a revision at which these keys were known."""
        ...

    async def append(self, events: Sequence[SecurityEvent]) -> None:
        """Adds security events."""
        ...

    async def close(self) -> None:
        """Closes every connection."""
        ...


class KeyStore:
    """The keys of a database, read again each `interval` seconds. While it cannot be read, the last known go on."""

    def __init__(self, database: KeyDatabase, interval: float) -> None:
        self._database = database
        self._interval = interval
        self._records: dict[str, KeyRecord] = {}
        self._revision = -1
        self._prepared = False
        self._failing = False
        self._tried = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    @property
    def is_known(self) -> bool:
        """The keys could be read at least once."""
        return self._revision >= 0

    def get(self, key_id: str) -> KeyRecord | None:
        """The key of that name."""
        return self._records.get(key_id)

    def start(self) -> None:
        """Begins to keep the keys current; once is enough."""
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep_current())

    async def tried(self) -> None:
        """Waits until the keys were read for the first time, or could not be."""
        await self._tried.wait()

    async def append(self, events: Sequence[SecurityEvent]) -> None:
        """Adds security events to the database."""
        async with asyncio.timeout(READ_SECONDS):
            await self._database.append(events)

    async def close(self) -> None:
        """Stops reading, and closes every connection."""
        if self._keeping:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._database.close()

    async def _keep_current(self) -> None:
        while True:
            try:
                async with asyncio.timeout(READ_SECONDS):
                    await self._read()
            except Exception as error:  # whatever a database driver raises: the last known keys must go on
                self._tell_failure(error)
            else:
                self._tell_success()
            self._tried.set()
            await asyncio.sleep(self._interval)

    async def _read(self) -> None:
        if not self._prepared:
            await self._database.prepare()
            self._prepared = True
        changes = await self._database.changes(self._revision, self._records.keys())
        if changes.complete:
            self._records = dict(changes.records)
        else:
            self._records.update(changes.records)
        self._revision = changes.revision

    def _tell_failure(self, error: Exception) -> None:
        if not self._failing:
            # Not SQLAlchemy's own text, which repeats the statement and its values.
            detail = str(getattr(error, "orig", error))[:MAX_DETAIL]
            log.error("key_store_unreachable", error=type(error).__name__, detail=detail, keys=len(self._records))
        self._failing = True

    def _tell_success(self) -> None:
        if self._failing:
            log.info("key_store_reachable_again", keys=len(self._records))
        self._failing = False
