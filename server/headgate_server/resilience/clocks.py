"""The clocks of one upstream attempt. Decisions only: time is passed in, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headgate import v1 as pb

Phase = Literal["connect", "first_token", "idle", "total", "default_deadline"]


@dataclass(frozen=True, slots=True)
class Clocks:
    """How long an attempt may take to connect, to its first content, between reads after that, and in all.

    `callers` are those that a caller has shortened: when they run out, that is no fault of the target's.
    """

    connect: float
    first_token: float
    idle: float
    total: float
    callers: frozenset[Phase] = frozenset()

    def tightened(self, policy: pb.ExecutionPolicy) -> Clocks:
        """These clocks under a caller's policy, which can shorten each and lengthen none."""
        first_token = _shorter(self.first_token, policy.first_token_timeout.ToNanoseconds())
        idle = _shorter(self.idle, policy.idle_timeout.ToNanoseconds())
        total = _shorter(self.total, policy.attempt_timeout.ToNanoseconds())
        callers: dict[Phase, bool] = {
            "first_token": first_token < self.first_token,
            "idle": idle < self.idle,
            "total": total < self.total,
        }
        shortened = frozenset(phase for phase, shorter in callers.items() if shorter)
        return Clocks(self.connect, first_token, idle, total, shortened)


class AttemptClock:
    """Which clock of an attempt runs out next. `deadline` is the server's, for a call that came without one."""

    def __init__(self, clocks: Clocks, started: float, deadline: float | None = None) -> None:
        self.clocks = clocks
        self._total = started + clocks.total
        self._last_phase: Phase = "total"
        if deadline is not None and deadline < self._total:
            self._total, self._last_phase = deadline, "default_deadline"
        self._first_token = started + clocks.first_token
        self._streams = False
        self._content_came = False

    def stream_expected(self) -> None:
        """The answer is a stream: its first content has a clock of its own."""
        self._streams = True

    def content_came(self) -> None:
        """From now on silence is measured from read to read."""
        self._content_came = True

    def limit(self, now: float) -> tuple[float, Phase]:
        """Seconds that a wait which begins now may take, and the clock that ends it."""
        phase: Phase
        if not self._streams:
            return self._total - now, self._last_phase
        if self._content_came:
            until, phase = now + self.clocks.idle, "idle"
        else:
            until, phase = self._first_token, "first_token"
        return (until - now, phase) if until < self._total else (self._total - now, self._last_phase)


def _shorter(configured: float, asked_nanoseconds: int) -> float:
    return min(configured, asked_nanoseconds / 1e9) if asked_nanoseconds > 0 else configured
