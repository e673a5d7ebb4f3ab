"""Counting in Redis for many servers, within a time budget, and by policy without Redis while it is not well.

Whether Redis did what it did not confirm cannot be known, so everything that is sent to it may be sent again: the
script lets nothing happen twice.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

import structlog
from msgspec.structs import replace

from headgate_server.errors import GatewayOverloaded
from headgate_server.limits.heard import Heard
from headgate_server.limits.limiter import HERE, Reservation, micros
from headgate_server.limits.memory import MemoryCounters
from headgate_server.limits.quota import MICROS, Take
from headgate_server.limits.watch import BudgetWatch
from headgate_server.limits.wire import Operation, StoreUnavailable, Wire, connect, granted, packed

if TYPE_CHECKING:
    from headgate_server.config.limits import LimitStore

FAILURES_TO_DEGRADE = 3
TEND_SECONDS = 0.25
LAST_WORDS_SECONDS = 1.0
MOST_UNSENT = 65_536
MOST_OWED = 65_536
OWED_AT_ONCE = 10
RESTORED_AT_ONCE = 50
SENT_AT_ONCE = 1000
"""So many operations each time that is tended: reservations wait behind them."""
RETRY_AFTER_SECONDS = 1.0

log = structlog.get_logger(component="limits")


class SharedLimiter:
    """Asks Redis; after a few answers that did not come in time it asks no more until Redis is well again."""

    def __init__(self, store: LimitStore) -> None:
        self.watch = BudgetWatch()
        self.forgot = asyncio.Event()
        self._store = store
        self._holder = secrets.token_hex(8)
        self._names = count()
        self._here = MemoryCounters()
        self._heard = Heard()
        self._wire: Wire | None = None
        self._failures = 0
        self._degraded: datetime | None = None
        self._unsent: deque[tuple[Operation, Sequence[Take]]] = deque()
        self._unconfirmed: set[asyncio.Future[list[int]]] = set()
        self._owed: dict[str, Take] = {}
        self._renewed = 0
        self._tending: asyncio.Task[None] | None = None

    @property
    def trouble(self) -> str:
        if self._degraded is None:
            return ""
        done = "counting locally" if self._store.on_failure == "open" else "refusing calls"
        return f"{done} since {self._degraded:%Y-%m-%dT%H:%M:%SZ}"

    async def start(self) -> None:
        """Connects; without Redis the server starts all the same, and does what policy says."""
        if self._tending is None:
            await self._tend()
            self._tending = asyncio.create_task(self._keep_tending())

    async def close(self) -> None:
        """Sends what is still to be settled, for a moment, and disconnects."""
        if self._tending:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        if self._wire and self._wire.is_open:
            self._send_unsent(len(self._unsent) + len(self._owed))
            if self._unconfirmed:
                await asyncio.wait(self._unconfirmed, timeout=LAST_WORDS_SECONDS)
        if self._wire:
            await self._wire.close()

    async def reserve(self, takes: Sequence[Take]) -> Reservation:
        reservation = await self._reserve(takes)
        if reservation.shared and (lost := self._heard.lost(reservation)):
            if reservation.granted:
                self._take_back(reservation.name, takes)
            self.restore(lost)
            self.forgot.set()
            return await self._reserve(takes)
        return reservation

    async def _reserve(self, takes: Sequence[Take]) -> Reservation:
        name = self._name()
        asked = False
        if self._degraded is None and self._wire:
            asked = True
            try:
                is_granted = granted(takes, await self._wire.reserve(name, takes))
            except StoreUnavailable as error:
                self._failed(str(error))
            except asyncio.CancelledError:
                self._take_back(name, takes)
                raise
            else:
                self._failures = 0
                return Reservation(name, takes, is_granted, shared=True)
        if self._store.on_failure == "closed":
            if asked:
                self._take_back(name, takes)
            raise GatewayOverloaded("limits cannot be checked at the moment", retry_after=RETRY_AFTER_SECONDS)
        self._here.restore(micros(), [*self._heard.of(takes)])
        is_granted = self._here.reserve(micros(), HERE, name, takes)
        if asked and not is_granted:
            self._take_back(name, takes)
        return Reservation(name, takes, is_granted, asked=asked)

    def settle(self, reservation: Reservation) -> None:
        name, takes = reservation.name, reservation.takes
        if reservation.shared:
            self._send(("settle", name, packed(takes, truth=True)), _of_budgets(takes))
            return
        self._here.settle(micros(), HERE, name)
        if reservation.asked:
            self._send(("charge", name, packed(takes, truth=True)), _of_budgets(takes))
            return
        for take in takes:
            if take.truth and take.limit.algorithm != "concurrency":
                self._owe(take)

    def restore(self, known: Sequence[Take]) -> None:
        self._heard.hear(known)
        for start in range(0, len(known), RESTORED_AT_ONCE):
            self._send(("restore", "", packed(known[start : start + RESTORED_AT_ONCE])))

    def _owe(self, take: Take) -> None:
        """Notes what Redis is to be told; of more counters than can be kept nobody learns."""
        owed = self._owed.get(take.key)
        if owed is None and len(self._owed) >= MOST_OWED:
            log.error("settlement_lost")
            return
        self._owed[take.key] = replace(take, truth=take.truth + (owed.truth if owed else 0))

    def _take_back(self, name: str, takes: Sequence[Take]) -> None:
        """Redis has reserved it, or may have, and nobody will use it."""
        self._send(("charge", name, packed(takes, truth=True)))

    def _send(self, operation: Operation, used: Sequence[Take] = ()) -> None:
        """Sends, and keeps to send again what is not confirmed. Of what budgets `used` is told then."""
        if self._wire is None or not self._wire.is_open:
            self._keep(operation, used)
            return

        def answered(answer: asyncio.Future[list[int]]) -> None:
            self._unconfirmed.discard(answer)
            if answer.cancelled() or answer.exception():
                self._keep(operation, used)
                return
            for take, spent in zip(used, answer.result(), strict=False):  # nothing is spent twice
                if take.limit.budget:
                    self.watch.settled(take, spent)
                    self._heard.hear([replace(take, amount=spent)])

        sent = self._wire.send(operation)
        self._unconfirmed.add(sent)
        sent.add_done_callback(answered)

    def _keep(self, operation: Operation, used: Sequence[Take]) -> None:
        if len(self._unsent) >= MOST_UNSENT:
            self._unsent.popleft()  # what it reserved comes back with the lease
            log.error("settlement_lost")
        self._unsent.append((operation, used))

    def _send_unsent(self, most: int) -> None:
        """Sends what could not be settled, and what was counted here meanwhile: so many operations of it."""
        operations = min(most, len(self._unsent))
        for _ in range(operations):
            self._send(*self._unsent.popleft())
        owed = [self._owed.popitem()[1] for _ in range(min((most - operations) * OWED_AT_ONCE, len(self._owed)))]
        for start in range(0, len(owed), OWED_AT_ONCE):
            some = owed[start : start + OWED_AT_ONCE]
            self._send(("charge", self._name(), packed(some, truth=True)), some)

    def _name(self) -> str:
        return f"{self._holder}:{next(self._names)}"

    def _failed(self, reason: str) -> None:
        self._failures += 1
        if self._failures >= FAILURES_TO_DEGRADE or not (self._wire and self._wire.is_open):
            self._degrade(reason)

    def _degrade(self, reason: str) -> None:
        if self._degraded is None:
            self._degraded = datetime.now(UTC)
            log.warning("limits_degraded", reason=reason, on_failure=self._store.on_failure)

    def _recover(self) -> None:
        self._failures = 0
        if self._degraded:
            seconds = (datetime.now(UTC) - self._degraded).total_seconds()
            log.info("limits_restored", seconds=round(seconds, 3))
        self._degraded = None

    async def _keep_tending(self) -> None:
        while True:
            await asyncio.sleep(TEND_SECONDS)
            try:
                await self._tend()
            except Exception:
                log.exception("limits_not_tended")

    async def _tend(self) -> None:
        """Connects where there is no connection, finds out whether Redis is well, and sends what is due."""
        try:
            if self._wire is None or not self._wire.is_open:
                self._wire = await self._connected()
            if self._degraded or self._is_renewal_due():
                await self._wire.renew()
                self._renewed = micros()
                self._recover()
        except StoreUnavailable as error:
            self._failed(str(error))
        if self._wire and self._wire.is_open:
            self._send_unsent(SENT_AT_ONCE)

    async def _connected(self) -> Wire:
        if self._wire:
            await self._wire.close()
        url = self._store.url
        assert url is not None, "checked with the configuration"
        self._renewed = 0
        self.forgot.set()
        prefix, lease = self._store.key_prefix, round(self._store.lease * MICROS)
        return await connect(url.get_secret_value(), prefix, self._holder, lease, self._store.timeout)

    def _is_renewal_due(self) -> bool:
        return micros() - self._renewed > self._store.lease * MICROS / 3


def _of_budgets(takes: Sequence[Take]) -> Sequence[Take]:
    """All of it, if budgets are among it."""
    return takes if any(take.limit.budget for take in takes) else ()
