"""The circuit breaker of one target. Decisions only: time is passed in, in seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

BUCKETS = 10


class Circuit(Enum):
    """Closed lets calls through, open none, half open one."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """It opens when `consecutive_failures` come in a row, or when within `window` seconds, of at least `min_calls`
    outcomes, a share of `error_rate` are failures. It stays open for `open_for` seconds, doubled each time that the
    probe fails, up to `longest_open`. With `consecutive_failures` 0 it never opens.
    """

    window: float
    min_calls: int
    error_rate: float
    consecutive_failures: int
    open_for: float
    longest_open: float


@dataclass(slots=True)
class _Bucket:
    began: float
    successes: int = 0
    failures: int = 0


class Breaker:
    """Counts outcomes and says whether a call may go.

    Who was let through by `enter` reports once, with the permit that it got: `succeeded`, `failed` or `neutral` (a
    cancel, or the caller's own error, which says nothing of the target). What a permit of an earlier state reports
    after the circuit changed is not held against the new state.
    """

    __slots__ = ("_buckets", "_epoch", "_in_a_row", "_open_until", "_openings", "_probing", "_settings", "circuit")

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._buckets: deque[_Bucket] = deque()
        self._in_a_row = 0
        self._openings = 0
        self._open_until = 0.0
        self._probing = False
        self._epoch = 0
        self.circuit = Circuit.CLOSED

    def closed_in(self, now: float) -> float | None:
        """Seconds until a call may go: 0 for at once, None for as soon as the probe in flight has succeeded."""
        if self.circuit is Circuit.CLOSED:
            return 0.0
        if self._probing:
            return None
        return max(0.0, self._open_until - now)

    def enter(self, now: float) -> int | None:
        """A permit to call, or None. The first after the open time is the one probe."""
        if self.circuit is not Circuit.CLOSED:
            if self._probing or now < self._open_until:
                return None
            self.circuit = Circuit.HALF_OPEN
            self._probing = True
        return self._epoch

    def proved(self, permit: int) -> None:
        """The target began to answer: as a probe that is enough, for its stream may go on for minutes."""
        if permit == self._epoch and self.circuit is not Circuit.CLOSED:
            self._close()

    def succeeded(self, permit: int, now: float) -> None:
        """The target answered."""
        if permit != self._epoch:
            return
        self._in_a_row = 0
        if self.circuit is Circuit.CLOSED:
            self._bucket(now).successes += 1
        else:
            self._close()

    def failed(self, permit: int, now: float) -> None:
        """The target failed."""
        if permit != self._epoch:
            return
        if self.circuit is not Circuit.CLOSED:
            self._open(now)
            return
        self._in_a_row += 1
        self._bucket(now).failures += 1
        if self._settings.consecutive_failures and (
            self._in_a_row >= self._settings.consecutive_failures or self._too_many_failures()
        ):
            self._open(now)

    def neutral(self, permit: int) -> None:
        """The call ended without a verdict; if it was the probe, the next call is."""
        if permit == self._epoch:
            self._probing = False

    def _close(self) -> None:
        self._change(Circuit.CLOSED)
        self._openings = 0

    def _open(self, now: float) -> None:
        self._change(Circuit.OPEN)
        open_for = self._settings.open_for * 2.0 ** min(self._openings, 62)
        self._open_until = now + min(open_for, self._settings.longest_open)
        self._openings += 1

    def _change(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self._epoch += 1
        self._probing = False
        self._in_a_row = 0
        self._buckets.clear()

    def _too_many_failures(self) -> bool:
        failures = sum(bucket.failures for bucket in self._buckets)
        total = failures + sum(bucket.successes for bucket in self._buckets)
        return total >= self._settings.min_calls and failures >= self._settings.error_rate * total

    def _bucket(self, now: float) -> _Bucket:
        """The count of now; what has left the window is forgotten."""
        buckets = self._buckets
        width = self._settings.window / BUCKETS
        if not buckets or now - buckets[-1].began >= width:
            buckets.append(_Bucket(now))
            while now - buckets[0].began >= self._settings.window:
                buckets.popleft()
        return buckets[-1]
