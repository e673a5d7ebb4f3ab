"""How long a target takes, as one number that rises at once and falls slowly. Pure: time is passed in, in seconds."""

from __future__ import annotations

import math

DECAY_SECONDS = 10.0


class PeakEwma:
    """Peak-sensitive moving average: a slower sample counts whole, a faster one by how long ago the last one was.

    Without samples it fades, so that a target which was slow is tried again after a while. After Finagle's peak EWMA,
    https://twitter.github.io/finagle/guide/Clients.html#power-of-two-choices-p2c-least-loaded
    """

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._at = 0.0

    def observe(self, seconds: float, now: float) -> None:
        """One sample."""
        if seconds >= self._value:
            self._value = seconds
        else:
            weight = math.exp((self._at - now) / DECAY_SECONDS)
            self._value = self._value * weight + seconds * (1.0 - weight)
        self._at = now

    def value(self, now: float) -> float:
        """Seconds; 0 before the first sample."""
        return self._value * math.exp((self._at - now) / DECAY_SECONDS)

    def load(self, in_flight: int, now: float) -> float:
        """What one more call would have to wait for: the average for each in flight, and its own."""
        return self.value(now) * (in_flight + 1)
