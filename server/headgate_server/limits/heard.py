"""What this server has heard of budgets that are counted elsewhere. What is spent only grows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from headgate_server.limits.limiter import Reservation
from headgate_server.limits.quota import Take

MOST_COUNTERS = 65_536


class Heard:
    """The most that was heard to be spent, of as many counters as were heard of last."""

    def __init__(self) -> None:
        self._spent: dict[str, int] = {}

    def hear(self, spent: Iterable[Take]) -> None:
        """So much is spent at least."""
        for take in spent:
            self._spent[take.key] = max(take.amount, self._spent.pop(take.key, 0))
        while len(self._spent) > MOST_COUNTERS:
            del self._spent[next(iter(self._spent))]

    def of(self, takes: Sequence[Take]) -> Iterator[Take]:
        """What is known to be spent of those of them that are budgets."""
        for take in takes:
            if take.limit.budget and (spent := self._spent.get(take.key)):
                yield replace(take, amount=spent)

    def lost(self, asked: Reservation) -> Sequence[Take]:
        """What is known of the counters that stood lower before this was asked for: they were lost."""
        takes = asked.takes
        used = {
            take.key: take.used - take.amount if asked.granted else take.used for take in takes if take.limit.budget
        }
        return [take for take in self.of(takes) if used[take.key] < take.amount]
