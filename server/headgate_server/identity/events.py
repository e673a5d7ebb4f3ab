"""Security events: who failed to get in, and what changed of keys and configuration.

Each is a line of the log (component `security`) and, where there is a key store, a row of its table, which is only ever
appended to. Rows are written off the request path from a bounded queue; of failures that repeat, the first is told at
once and the others together once a minute, so that guessing fills neither.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

MAX_QUEUED = 10_000
MAX_KINDS_OF_FAILURE = 1_000
REPEATS_SECONDS = 60.0
TICK_SECONDS = 0.5
BATCH = 500
LAST_WRITE_SECONDS = 3.0
OTHERS = "others"

log = structlog.get_logger(component="security")


@dataclass(frozen=True, slots=True)
class SecurityEvent:
    """One thing that happened, `count` times since the last one told. `time` is in seconds since the epoch."""

    kind: str
    reason: str = ""
    tenant: str = ""
    key_id: str = ""
    address: str = ""
    count: int = 1
    detail: Mapping[str, str] = field(default_factory=dict)
    time: float = field(default_factory=time.time)


class EventSink(Protocol):
    """Where events are kept."""

    async def append(self, events: Sequence[SecurityEvent]) -> None:
        """Writes all of them or none.

        Raises:
            Exception: it cannot now; the same events come again.
        """
        ...


class Repeats:
    """Tells the first failure of an address and reason at once, and counts the others for `due`. Pure."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, str, str], tuple[SecurityEvent, float]] = {}

    def is_first(self, event: SecurityEvent, now: float) -> bool:
        """Whether to tell this one; otherwise it is counted."""
        key = (event.kind, event.address, event.reason)
        if key not in self._counted and len(self._counted) >= MAX_KINDS_OF_FAILURE:
            event = replace(event, address=OTHERS, key_id="", tenant="")
            key = (event.kind, OTHERS, event.reason)
        found = self._counted.get(key)
        if found is None:
            self._counted[key] = (replace(event, count=0), now)
            return True
        counted, since = found
        self._counted[key] = (replace(counted, count=counted.count + 1, time=event.time), since)
        return False

    def due(self, now: float, age: float = REPEATS_SECONDS) -> list[SecurityEvent]:
        """What was counted for `age` seconds; an address that stayed quiet for as long begins anew."""
        over = [key for key, (_, since) in self._counted.items() if now - since >= age]
        told = []
        for key in over:
            counted, _ = self._counted.pop(key)
            if counted.count:
                told.append(counted)
                self._counted[key] = (replace(counted, count=0), now)
        return told


class SecurityEvents:
    """Tells events to the log and to `sink`, where there is one."""

    def __init__(self) -> None:
        self.sink: EventSink | None = None
        self._queue: deque[SecurityEvent] = deque()
        self._lost = 0
        self._repeats = Repeats()
        self._stopping = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    def record(self, event: SecurityEvent) -> None:
        """Tells of an event; never waits."""
        tell(event)
        self._enqueue(event)

    def failed(self, event: SecurityEvent) -> None:
        """Tells of a failure, which may be one of very many."""
        if self._repeats.is_first(event, time.monotonic()):
            self.record(event)

    def configuration_changed(self, **detail: str) -> None:
        """Tells that the server goes on with another configuration."""
        self.record(SecurityEvent("configuration_changed", detail=detail))

    def start(self) -> None:
        """Begins to write to the sink; once is enough."""
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Writes what is left, though not for long."""
        for event in self._repeats.due(time.monotonic(), age=0):
            self.record(event)
        self._stopping.set()
        if self._writing:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._writing, LAST_WRITE_SECONDS)

    async def _write(self) -> None:
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TICK_SECONDS)
            for event in self._repeats.due(time.monotonic()):
                self.record(event)
            await self._flush()

    async def _flush(self) -> None:
        """Writes what is queued; what cannot be written stays queued, and the log has had it already."""
        while self._queue and self.sink:
            batch = [self._queue[number] for number in range(min(BATCH, len(self._queue)))]
            try:
                await self.sink.append(batch)
            except Exception:  # whatever a database driver raises; the key store tells of it
                return
            for _ in batch:
                self._queue.popleft()
        if self._lost and not self._queue:
            log.error("security_events_not_kept", events=self._lost)
            self._lost = 0

    def _enqueue(self, event: SecurityEvent) -> None:
        if self.sink is None:
            return
        if len(self._queue) < MAX_QUEUED:
            self._queue.append(event)
        else:
            self._lost += 1


def tell(event: SecurityEvent) -> None:
    """Tells the log alone, of what is kept already."""
    fields = {
        "reason": event.reason,
        "tenant": event.tenant,
        "key_id": event.key_id,
        "address": event.address,
        "count": event.count if event.count != 1 else None,
        **event.detail,
    }
    told = {name: value for name, value in fields.items() if value}
    if event.kind.endswith("_failed"):
        log.warning(event.kind, **told)
    else:
        log.info(event.kind, **told)
