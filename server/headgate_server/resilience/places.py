"""How many calls a target takes at once, and who waits for how long. Decisions only: time is passed in, in seconds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

SMOOTHING = 0.2
FIRST_GUESS_SECONDS = 1.0


class Places:
    """At most `limit` callers inside (0 for no limit) and at most `queue` waiting, first come first served.

    A waiting caller is represented by what wakes it. Nobody is let into a queue that would outlast its patience.
    """

    __slots__ = ("_limit", "_queue", "_stay", "_waiting", "taken")

    def __init__(self, limit: int, queue: int) -> None:
        self._limit = limit
        self._queue = queue
        self._waiting: OrderedDict[int, Callable[[], None]] = OrderedDict()
        self._stay = FIRST_GUESS_SECONDS
        self.taken = 0

    @property
    def waiting(self) -> int:
        """Callers in the queue."""
        return len(self._waiting)

    def full(self) -> bool:
        """Whether a caller would have to wait."""
        return bool(self._limit) and self.taken >= self._limit

    def expected_wait(self) -> float:
        """Seconds until one who comes now has a place, as far as can be told from how long others stayed."""
        return self._stay * (len(self._waiting) + 1) / self._limit if self.full() else 0.0

    def take(self) -> None:
        """Takes a place that is free."""
        self.taken += 1

    def admits(self, patience: float) -> bool:
        """Whether one who can wait `patience` seconds may join the queue."""
        return len(self._waiting) < self._queue and self.expected_wait() <= patience

    def join(self, ticket: int, wake: Callable[[], None]) -> None:
        """Queues; `wake` is called once there is a place, which is taken already."""
        self._waiting[ticket] = wake

    def leave_queue(self, ticket: int) -> bool:
        """Gives up waiting; False if a place was given already, which then has to be given back."""
        return self._waiting.pop(ticket, None) is not None

    def give_back(self, stayed: float | None) -> None:
        """Frees a place, after so many seconds if that says how long a call takes, for the first who waits."""
        if stayed is not None:
            self._stay += SMOOTHING * (stayed - self._stay)
        if self._waiting:
            _, wake = self._waiting.popitem(last=False)
            wake()
        else:
            self.taken -= 1
