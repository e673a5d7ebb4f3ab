"""One counter of each algorithm, in whole units and microseconds. Pure; counting.lua says the same to Redis.

What is taken may turn out to have been more or less. Less gives back, where the counter still counts it; more is
debt: it is counted from the moment it is known, above the capacity if need be, and nothing is granted until it is gone.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from headgate_server.limits.quota import MICROS, MOST, NEVER, Limit

CONCURRENCY_WAIT = 1_000_000
"""A guess: nobody knows when a call in flight ends."""


DAY = 86_400 * MICROS


class Meter(Protocol):
    """Counts what is used of one limit; a reload may put another amount or burst in its place.

    `take`, `charge`, `wait` and `reset` go by what `used` has found at the same moment. `spent` is what a budget has
    settled.
    """

    limit: Limit
    spent: int

    def used(self, now: int) -> int:
        """Units in use, a part of one counted as one."""
        ...

    def take(self, now: int, amount: int) -> int:
        """Counts `amount`; returns the mark by which it can be settled."""
        ...

    def charge(self, now: int, amount: int) -> None:
        """Counts `amount` that nothing was taken for."""
        ...

    def settle(self, now: int, mark: int, taken: int, truth: int) -> None:
        """What was `taken` at the mark was `truth`."""
        ...

    def wait(self, now: int, amount: int) -> int:
        """Until `amount`, which does not fit now but is within the capacity, fits if nothing else happens."""
        ...

    def reset(self, now: int) -> int:
        """Until nothing is in use if nothing else happens; 0 when that cannot be known."""
        ...


class TokenBucket:
    """Wins back `gain` parts each microsecond, to the whole capacity at most."""

    __slots__ = ("_parts", "_updated", "limit")
    spent = 0

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._parts = 0
        self._updated = 0

    def used(self, now: int) -> int:
        limit = self.limit
        elapsed = now - self._updated
        if elapsed > 0:
            parts = self._parts - elapsed * limit.gain
            self._parts = parts if parts > 0 else 0
            self._updated = now
        return -(-self._parts // limit.scale)

    def take(self, now: int, amount: int) -> int:
        self._parts += amount * self.limit.scale
        return 0

    def charge(self, now: int, amount: int) -> None:
        self.take(now, amount)

    def settle(self, now: int, mark: int, taken: int, truth: int) -> None:
        self.used(now)
        parts = self._parts + (truth - taken) * self.limit.scale
        self._parts = parts if parts > 0 else 0

    def wait(self, now: int, amount: int) -> int:
        excess = self._parts - (self.limit.capacity - amount) * self.limit.scale
        return -(-excess // self.limit.gain)

    def reset(self, now: int) -> int:
        return -(-self._parts // self.limit.gain)


class SlidingWindow:
    """Sums of slots, counted until the last moment of a slot is a window old.

    So an amount counts for a whole window at least, and at most one slot longer.
    """

    __slots__ = ("_slots", "_used", "limit")
    spent = 0

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._slots: deque[list[int]] = deque()
        self._used = 0

    def used(self, now: int) -> int:
        slots, limit = self._slots, self.limit
        oldest = now // limit.gain - limit.scale
        while slots and slots[0][0] < oldest:
            self._used -= slots.popleft()[1]
        return self._used

    def take(self, now: int, amount: int) -> int:
        slots, slot = self._slots, now // self.limit.gain
        self._used += amount
        if slots and (last := slots[-1])[0] >= slot:
            last[1] += amount
            return last[0]
        slots.append([slot, amount])
        return slot

    def charge(self, now: int, amount: int) -> None:
        self.take(now, amount)

    def settle(self, now: int, mark: int, taken: int, truth: int) -> None:
        self.used(now)
        if truth > taken:
            self.take(now, truth - taken)
        if truth >= taken:
            return
        for index in range(len(self._slots) - 1, -1, -1):
            slot = self._slots[index]
            if slot[0] == mark:
                slot[1] -= taken - truth
                self._used -= taken - truth
                if not slot[1]:
                    del self._slots[index]
                return

    def wait(self, now: int, amount: int) -> int:
        excess = self._used + amount - self.limit.capacity
        for slot, sum_of_slot in self._slots:
            excess -= sum_of_slot
            if excess <= 0:
                return self._gone(slot) - now
        return 0

    def reset(self, now: int) -> int:
        return self._gone(self._slots[-1][0]) - now if self._slots else 0

    def _gone(self, slot: int) -> int:
        """When a slot is counted no more."""
        return (slot + self.limit.scale + 1) * self.limit.gain


class Concurrency:
    """What is in flight."""

    __slots__ = ("_used", "limit")
    spent = 0

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._used = 0

    def used(self, now: int) -> int:
        return self._used

    def take(self, now: int, amount: int) -> int:
        self._used += amount
        return 0

    def charge(self, now: int, amount: int) -> None:
        """Nothing: it is over."""

    def settle(self, now: int, mark: int, taken: int, truth: int) -> None:
        self._used -= taken  # whatever came of it, it is over

    def wait(self, now: int, amount: int) -> int:
        return CONCURRENCY_WAIT

    def reset(self, now: int) -> int:
        return 0


class Calendar:
    """What was spent in a period of the calendar, and what calls in flight may spend yet.

    A new period is a counter of another key, so nothing is won back. The counter outlives its period by the calls that
    began in it: it is forgotten when the period is over and nothing was counted for a day.
    """

    __slots__ = ("_held", "_until", "limit", "spent")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.spent = 0
        self._held = 0
        self._until = 0

    def used(self, now: int) -> int:
        if now >= self._until:
            self.spent = self._held = 0
        return self.spent + self._held

    def take(self, now: int, amount: int) -> int:
        self._held += amount
        self._keep(now)
        return 0

    def charge(self, now: int, amount: int) -> None:
        self.spent += amount
        self._keep(now)

    def settle(self, now: int, mark: int, taken: int, truth: int) -> None:
        self.used(now)
        self._held = max(0, self._held - taken)
        self.charge(now, truth)

    def wait(self, now: int, amount: int) -> int:
        return NEVER if self.limit.gain == MOST else max(1, self.limit.gain - now)

    def reset(self, now: int) -> int:
        return 0 if self.limit.gain == MOST else max(0, self.limit.gain - now)

    def _keep(self, now: int) -> None:
        self._until = max(self.limit.gain, now + DAY)


METERS: dict[str, type[TokenBucket | SlidingWindow | Concurrency | Calendar]] = {
    "token_bucket": TokenBucket,
    "sliding_window": SlidingWindow,
    "concurrency": Concurrency,
    "calendar": Calendar,
}
