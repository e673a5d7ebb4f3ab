"""Counters in this process: all limits of a call are checked, then taken from all or from none. Pure.

What a holder reserved comes back when the holder has not been heard of for a lease. Should it settle all the same, the
truth is counted then.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from headgate_server.limits.meters import METERS, Meter
from headgate_server.limits.quota import NEVER, Scoped, Take

FEW = 4096
SWEPT_FOR_ONE = 2


@dataclass(slots=True)
class Holder:
    """One process that reserves: what it holds, and until when if it is not heard of."""

    expires: int
    held: dict[str, Sequence[tuple[Take, int]]] = field(default_factory=dict)
    """What was taken, each with the mark by which its meter settles it."""
    returned: dict[str, Sequence[Take]] = field(default_factory=dict)


class MemoryCounters:
    """Counters by key. Those that nobody uses are swept out a few at a time, so that keys of callers cannot pile up."""

    def __init__(self, lease: int | None = None) -> None:
        self._lease = lease
        self._meters: OrderedDict[str, Meter] = OrderedDict()
        self._swept = 0
        self._holders: dict[str, Holder] = {}

    def __len__(self) -> int:
        return len(self._meters)

    def reserve(self, now: int, holder: str, name: str, takes: Sequence[Take]) -> bool:
        """Takes all of it, to be settled under `name`, or nothing."""
        self._expire(now)
        meters = self._meters
        if len(meters) > FEW:
            self._sweep(now)
        found, has_room = [], True
        for take in takes:
            counter = take.counter
            meter = meters.get(counter.key) or self._meter(counter)
            meter.limit = limit = counter.limit
            used = meter.used(now)
            if used + take.amount > limit.capacity:
                has_room = False
            found.append((take, meter, used))
        if not has_room:
            for take, meter, used in found:
                take.used, take.reset, take.wait = used, meter.reset(now), _wait(take, meter, used, now)
            return False
        marked = []
        for take, meter, used in found:
            amount = take.amount
            marked.append((take, meter.take(now, amount)))
            take.used, take.reset, take.wait = used + amount, meter.reset(now), 0
        self._holder(now, holder).held[name] = marked
        return True

    def settle(self, now: int, holder: str, name: str) -> Sequence[int]:
        """Counts the truth of what was reserved under `name`; nothing happens twice.

        What each of these counters has spent by now, of budgets; nothing if nothing happened.
        """
        self._expire(now)
        known = self._holders.get(holder)
        if known is None:
            return ()
        spent = []
        if marked := known.held.pop(name, None):
            for take, mark in marked:
                counter = take.counter
                meter = self._meters.get(counter.key) or self._meter(counter)
                meter.settle(now, mark, take.amount, take.truth)
                spent.append(meter.spent)
        elif takes := known.returned.pop(name, None):
            for take in takes:
                meter = self._meter(take.counter)
                meter.used(now)
                if take.truth:
                    meter.charge(now, take.truth)
                spent.append(meter.spent)
        return spent

    def restore(self, now: int, known: Sequence[Take]) -> None:
        """At least this was spent of budgets, by what is written elsewhere; what was counted already is part of it."""
        self._expire(now)
        for take in known:
            meter = self._meter(take.counter)
            meter.limit = take.limit
            meter.used(now)
            meter.charge(now, max(0, take.amount - meter.spent))

    def renew(self, now: int, holder: str) -> None:
        """The holder is alive."""
        self._expire(now)
        self._holder(now, holder)

    def _meter(self, counter: Scoped) -> Meter:
        meter = self._meters.get(counter.key)
        if meter is None:
            meter = self._meters[counter.key] = METERS[counter.limit.algorithm](counter.limit)
        return meter

    def _holder(self, now: int, name: str) -> Holder:
        holder = self._holders.get(name)
        if holder is None:
            holder = self._holders[name] = Holder(0)
        if self._lease is not None:
            holder.expires = now + self._lease
        return holder

    def _expire(self, now: int) -> None:
        if self._lease is None:
            return
        for holder in self._holders.values():
            if holder.held and holder.expires <= now:
                for name, marked in holder.held.items():
                    holder.returned[name] = [take for take, _ in marked]
                    for take, mark in marked:
                        meter = self._meter(take.counter)
                        meter.settle(now, mark, take.amount, 0)
                holder.held.clear()

    def _sweep(self, now: int) -> None:
        """Of many counters, looks at those that were looked at longest ago, and at more of them than are added."""
        added = len(self._meters) - max(self._swept, FEW)
        for _ in range(SWEPT_FOR_ONE * added):
            key, meter = self._meters.popitem(last=False)
            if meter.used(now):
                self._meters[key] = meter
        self._swept = len(self._meters)


def _wait(take: Take, meter: Meter, used: int, now: int) -> int:
    if take.amount > take.limit.capacity:
        return NEVER
    if used + take.amount > take.limit.capacity:
        return meter.wait(now, take.amount)
    return 0
