"""Who counts: this process alone, or Redis for all servers together, whatever becomes of Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from itertools import count
from typing import Protocol

import msgspec

from headgate_server.limits.memory import MemoryCounters
from headgate_server.limits.quota import MICROS, Take
from headgate_server.limits.watch import BudgetWatch

HERE = ""
EPOCH = (time.time_ns() - time.monotonic_ns()) // 1000


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """What was asked for, and all of it or nothing `granted`: what was is held until it is settled.

    `shared` says that Redis counts it, `asked` that it may.
    """

    name: str
    takes: Sequence[Take]
    granted: bool
    shared: bool = False
    asked: bool = False

    def amount(self, unit: str) -> int:
        """What was asked of a unit; it is the same of each limit of that unit."""
        return next((take.amount for take in self.takes if take.counter.limit.unit == unit), 0)


class Limiter(Protocol):
    """Reserves from all limits of a call or from none, and settles."""

    watch: BudgetWatch
    """Hears of what budgets spend."""
    forgot: asyncio.Event
    """Set while nobody has told it what budgets had spent before it began to count, or after its store was away."""

    @property
    def trouble(self) -> str:
        """Why it does not count as it should, for people; empty when it does."""
        ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def reserve(self, takes: Sequence[Take]) -> Reservation | Awaitable[Reservation]:
        """Asks for all of it, or says what to await for that.

        Raises, when awaited:
            GatewayOverloaded: nobody can decide, and policy says to let no one through then.
        """
        ...

    def settle(self, reservation: Reservation) -> None:
        """Counts the truth of what was granted; waits for nobody."""
        ...

    def restore(self, known: Sequence[Take]) -> None:
        """At least this was spent of budgets, by the ledger."""
        ...


class LocalLimiter:
    """Counts in this process."""

    trouble = ""

    def __init__(self) -> None:
        self.watch = BudgetWatch()
        self.forgot = asyncio.Event()
        self.forgot.set()
        self._counters = MemoryCounters()
        self._names = count()

    async def start(self) -> None:
        """Nothing has to be there."""

    async def close(self) -> None:
        """Nothing is left."""

    def reserve(self, takes: Sequence[Take]) -> Reservation:
        name = str(next(self._names))
        return Reservation(name, takes, self._counters.reserve(micros(), HERE, name, takes))

    def settle(self, reservation: Reservation) -> None:
        spent = self._counters.settle(micros(), HERE, reservation.name)
        if any(spent):  # nothing but budgets spends, and nothing is spent twice
            for take, total in zip(reservation.takes, spent, strict=True):
                self.watch.settled(take, total)

    def restore(self, known: Sequence[Take]) -> None:
        self._counters.restore(micros(), known)


def micros() -> int:
    """Microseconds since the epoch by a clock that never jumps: it was right when the process began."""
    return EPOCH + int(time.monotonic() * MICROS)
