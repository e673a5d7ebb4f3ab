"""How long a target takes, as one number that rises at once and falls slowly. Pure: time is passed in, in seconds."""

from __future__ import annotations

import math

DECAY_SECONDS = 10.0
FORGOTTEN_SECONDS = 3 * DECAY_SECONDS
UNKNOWN_SECONDS = 1.0
"""What one call in flight is taken to need where nothing is known, so that not all follow it there."""


class PeakEwma:
    """Peak-sensitive moving average: a slower sample counts whole, a faster one by how long ago the last one was.

    Without samples it fades, so that a target which was slow is tried again after a while. After Finagle's peak EWMA,
    https://twitter.github.io/finagle/guide/Clients.html#power-of-two-choices-p2c-least-loaded
    """

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._at = -math.inf

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
        if in_flight and now - self._at > FORGOTTEN_SECONDS:
            return UNKNOWN_SECONDS * (in_flight + 1)
        return self.value(now) * (in_flight + 1)
