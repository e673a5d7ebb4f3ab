"""When a target is tried again, and how often all calls together may. Decisions only: time and chance are passed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter: before retry n, anything up to `base * 2 ** (n - 1)`, at most `longest`.

    A vendor's own word on when to come back is kept up to `longest_retry_after`; beyond it the target is left alone.
    Times are in seconds. https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    base: float
    longest: float
    longest_retry_after: float

    def delay(self, retry: int, chance: float) -> float:
        """Seconds to wait before that retry, from 1; `chance` is uniform in [0, 1)."""
        return self.ceiling(retry) * chance

    def ceiling(self, retry: int) -> float:
        """The longest wait before that retry."""
        return float(min(self.longest, self.base * 2.0 ** min(retry - 1, 62)))

    def delay_after(self, retry: int, retry_after: float | None, chance: float) -> float | None:
        """As `delay`, but not before the vendor wants it; None when that is too far away."""
        if retry_after is None:
            return self.delay(retry, chance)
        if retry_after > self.longest_retry_after:
            return None
        return retry_after + self.delay(retry, chance) * _SPREAD


_SPREAD = 0.1
"""Those who were told the same moment must not all come back at it."""


class RetryBudget:
    """Allows retries as a share of first tries, so that a storm cannot double the load on a target.

    Each first try puts `ratio` in, each retry takes 1 out; at most `reserve` is kept, and that much is there at first.
    So of any n first tries in a row at most `ratio * n + reserve` are followed by a retry.
    """

    __slots__ = ("_balance", "_ratio", "_reserve")

    def __init__(self, ratio: float, reserve: float) -> None:
        self._ratio = ratio
        self._reserve = reserve
        self._balance = reserve

    def deposit(self) -> None:
        """A first try began."""
        self._balance = min(self._reserve, self._balance + self._ratio)

    def withdraw(self) -> bool:
        """Whether a retry, or a hedge, may begin; if so it is counted."""
        if self._balance < 1.0 - 1e-9:  # sums of ratios such as 0.1 fall short of 1 by rounding
            return False
        self._balance -= 1.0
        return True


Chance = Callable[[], float]
