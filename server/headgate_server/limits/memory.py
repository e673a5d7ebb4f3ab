"""Counters in this process: all limits of a call are checked, then taken from all or from none. Pure.

What a holder reserved comes back when the holder has not been heard of for a lease. Should it settle all the same, the
truth is counted then.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from headgate_server.limits.meters import METERS, Meter
from headgate_server.limits.quota import NEVER, Standing, Take, Verdict

FEW = 4096
SWEPT_FOR_ONE = 2


@dataclass(slots=True)
class Holder:
    """One process that reserves: what it holds, and until when if it is not heard of."""

    expires: int
    held: dict[str, tuple[Sequence[Take], Sequence[int]]] = field(default_factory=dict)
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

    def reserve(self, now: int, holder: str, name: str, takes: Sequence[Take]) -> Verdict:
        """Takes all of it, to be settled under `name`, or nothing."""
        self._expire(now)
        if len(self._meters) > FEW:
            self._sweep(now)
        meters, uses, has_room = [], [], True
        for take in takes:
            limit = take.limit
            meter = self._meter(take)
            meter.limit = limit
            used = meter.used(now)
            if used + take.amount > limit.capacity:
                has_room = False
            meters.append(meter)
            uses.append(used)
        if not has_room:
            return Verdict(False, [_refused(*each, now) for each in zip(takes, meters, uses, strict=True)])
        marks, standings = [], []
        for take, meter, used in zip(takes, meters, uses, strict=True):
            amount = take.amount
            marks.append(meter.take(now, amount))
            standings.append(Standing(used + amount, meter.reset(now), 0))
        self._holder(now, holder).held[name] = (takes, marks)
        return Verdict(True, standings)

    def settle(self, now: int, holder: str, name: str, truth: Sequence[int]) -> Sequence[int]:
        """What was reserved under `name` was really this, take by take; nothing happens twice.

        What each of them has spent by now, of budgets; nothing if nothing happened.
        """
        self._expire(now)
        known = self._holders.get(holder)
        if known is None:
            return ()
        spent = []
        if reservation := known.held.pop(name, None):
            for take, mark, used in zip(*reservation, truth, strict=True):
                meter = self._meter(take)
                meter.settle(now, mark, take.amount, used)
                spent.append(meter.spent)
        elif takes := known.returned.pop(name, None):
            for take, used in zip(takes, truth, strict=True):
                meter = self._meter(take)
                meter.used(now)
                meter.charge(now, used)
                spent.append(meter.spent)
        return spent

    def restore(self, now: int, known: Sequence[Take]) -> None:
        """At least this was spent of budgets, by what is written elsewhere; what was counted already is part of it."""
        for take in known:
            meter = self._meter(take)
            meter.limit = take.limit
            meter.used(now)
            meter.charge(now, max(0, take.amount - meter.spent))

    def renew(self, now: int, holder: str) -> None:
        """The holder is alive."""
        self._expire(now)
        self._holder(now, holder)

    def _meter(self, take: Take) -> Meter:
        meter = self._meters.get(take.key)
        if meter is None:
            meter = self._meters[take.key] = METERS[take.limit.algorithm](take.limit)
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
                for name, (takes, marks) in holder.held.items():
                    holder.returned[name] = takes
                    for take, mark in zip(takes, marks, strict=True):
                        self._meter(take).settle(now, mark, take.amount, 0)
                holder.held.clear()

    def _sweep(self, now: int) -> None:
        """Of many counters, looks at those that were looked at longest ago, and at more of them than are added."""
        added = len(self._meters) - max(self._swept, FEW)
        for _ in range(SWEPT_FOR_ONE * added):
            key, meter = self._meters.popitem(last=False)
            if meter.used(now):
                self._meters[key] = meter
        self._swept = len(self._meters)


def _refused(take: Take, meter: Meter, used: int, now: int) -> Standing:
    if take.amount > take.limit.capacity:
        wait = NEVER
    elif used + take.amount > take.limit.capacity:
        wait = meter.wait(now, take.amount)
    else:
        wait = 0
    return Standing(used, meter.reset(now), wait)
