"""Who counts: this process alone, or Redis for all servers together, whatever becomes of Redis."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple, Protocol

from headgate_server.limits.memory import MemoryCounters
from headgate_server.limits.quota import Take, Verdict

HERE = ""


class Reservation(NamedTuple):
    """What one call holds until it is settled: `shared` says that Redis counts it, `asked` that it may."""

    name: str
    takes: Sequence[Take]
    shared: bool = False
    asked: bool = False


class Limiter(Protocol):
    """Reserves from all limits of a call or from none, and settles."""

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


class LocalLimiter:
    """Counts in this process."""

    trouble = ""

    def __init__(self) -> None:
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
        self._counters.settle(micros(), HERE, reservation.name, truth)


def micros() -> int:
    """The monotonic clock in microseconds."""
    return time.monotonic_ns() // 1000
