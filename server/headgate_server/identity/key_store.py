"""API keys as requests see them: in memory, and kept current with a database off the request path."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

import structlog

from headgate_server.config.budgets import Budget
from headgate_server.identity.events import SecurityEvent, tell
from headgate_server.identity.records import REVOKED, KeyRecord

READ_SECONDS = 3.0
CLOSE_SECONDS = 5.0
MAX_DETAIL = 256
PAGE = 500
"""Keys that are read at once: the event loop has other things to do between any two pages."""

T = TypeVar("T")

log = structlog.get_logger(component="identity")


class StaticKeys:
    """The keys that stand in the configuration."""

    def __init__(self, records: Mapping[str, KeyRecord]) -> None:
        self.is_known = True
        self._records = records

    def get(self, key_id: str) -> KeyRecord | None:
        """The key of that name."""
        return self._records.get(key_id)


class KeyDatabase(Protocol):
    """Where keys and security events are kept for good."""

    async def prepare(self) -> None:
        """Makes or migrates the tables, where that is this process's to do."""
        ...

    async def state(self) -> tuple[int, int]:
        """The number of changes ever made, and the number of keys."""
        ...

    async def changed(self, revision: int, after: str) -> Sequence[KeyRecord]:
        """The first PAGE keys that changed since a revision, of those whose name is behind `after`, by name."""
        ...

    async def names(self, after: str) -> Sequence[str]:
        """The first PAGE names of keys behind `after`, in order."""
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

    def budgets(self) -> Iterator[Budget]:
        """Those of all keys."""
        for record in self._records.values():
            yield from record.principal.budgets

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
                await self._read()
            except Exception as error:  # whatever a database driver raises: the last known keys must go on
                self._tell_failure(error)
            else:
                self._tell_success()
            self._tried.set()
            await asyncio.sleep(self._interval)

    async def _read(self) -> None:
        """Reads what changed. Keys that change meanwhile have a later revision, and are read the next time."""
        if not self._prepared:
            await _soon(self._database.prepare())
            self._prepared = True
        revision, number = await _soon(self._database.state())
        if (revision, number) == (self._revision, len(self._records)):
            return
        known = self._records if revision >= self._revision else {}  # else it was put back to an older state
        records = {**known, **await self._changed(self._revision if known else -1)}
        if known and len(records) != number:
            records = await self._there(records)
        if self.is_known:
            for event in _changes(self._records, records):
                tell(event)
        self._records, self._revision = records, revision

    async def _there(self, records: Mapping[str, KeyRecord]) -> dict[str, KeyRecord]:
        """Those of the records that have not vanished from the database, and whatever came without a revision."""
        names = set(await _paged(self._database.names, lambda name: name))
        if names <= records.keys():
            return {name: record for name, record in records.items() if name in names}
        return await self._changed(-1)

    async def _changed(self, revision: int) -> dict[str, KeyRecord]:
        found = await _paged(lambda after: self._database.changed(revision, after), _name)
        return {_name(record): record for record in found}

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


def _changes(before: Mapping[str, KeyRecord], after: Mapping[str, KeyRecord]) -> Iterator[SecurityEvent]:
    """What happened to keys; whoever did it has kept it in the database."""
    for name, record in after.items():
        if record is not (earlier := before.get(name)) and (kind := _kind(earlier, record)):
            yield SecurityEvent(kind, tenant=record.principal.tenant, key_id=name)
    for name in before.keys() - after.keys():
        if before[name].ended != REVOKED:
            yield SecurityEvent("key_revoked", reason="vanished", tenant=before[name].principal.tenant, key_id=name)


def _kind(before: KeyRecord | None, after: KeyRecord) -> str:
    if before is None:
        return "key_created"
    if after.ended == REVOKED != before.ended:
        return "key_revoked"
    return "key_rotated" if after.digest != before.digest else ""


def _name(record: KeyRecord) -> str:
    return record.principal.key_id


async def _paged(read: Callable[[str], Awaitable[Sequence[T]]], name: Callable[[T], str]) -> list[T]:
    """All that `read` finds, a page at a time."""
    found: list[T] = []
    page = await _soon(read(""))
    while page:
        found += page
        page = await _soon(read(name(page[-1]))) if len(page) == PAGE else ()
    return found


async def _soon(reading: Awaitable[T]) -> T:
    """One step of the database, which must not take long."""
    async with asyncio.timeout(READ_SECONDS):
        return await reading
