"""Who counts: this process alone, or Redis for all servers together, whatever becomes of Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import count
from typing import Protocol

import msgspec

from headgate_server.limits.memory import MemoryCounters
from headgate_server.limits.quota import Take, Verdict
from headgate_server.limits.watch import BudgetWatch

HERE = ""
EPOCH = time.time_ns() - time.monotonic_ns()


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """What one call holds until it is settled: `shared` says that Redis counts it, `asked` that it may."""

    name: str
    takes: Sequence[Take]
    shared: bool = False
    asked: bool = False


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

    async def reserve(self, takes: Sequence[Take]) -> tuple[Reservation, Verdict]:
        """What was decided; the reservation is one only if that was granted.

        Raises:
            GatewayOverloaded: nobody can decide, and policy says to let no one through then.
        """
        ...

    def settle(self, reservation: Reservation, truth: Sequence[int]) -> None:
        """Counts what was really used, take by take; waits for nobody."""
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

    async def reserve(self, takes: Sequence[Take]) -> tuple[Reservation, Verdict]:
        reservation = Reservation(str(next(self._names)), takes)
        return reservation, self._counters.reserve(micros(), HERE, reservation.name, takes)

    def settle(self, reservation: Reservation, truth: Sequence[int]) -> None:
        spent = self._counters.settle(micros(), HERE, reservation.name, truth)
        for take, used, total in zip(reservation.takes, truth, spent, strict=False):  # nothing is spent twice
            if take.limit.budget:
                self.watch.settled(take.limit, used, total)

    def restore(self, known: Sequence[Take]) -> None:
        self._counters.restore(micros(), known)


def micros() -> int:
    """Microseconds since the epoch by a clock that never jumps: it was right when the process began."""
    return (EPOCH + time.monotonic_ns()) // 1000
