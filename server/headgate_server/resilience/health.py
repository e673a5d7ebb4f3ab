"""How a provider has served this process, learnt from its traffic and from checks. Pure: time is passed in."""

from __future__ import annotations

from headgate import v1 as pb

from headgate_server.errors import GatewayError, ProviderCredentialsRejected

SMOOTHING = 0.2
DEGRADED_BELOW = 0.95
NOT_SERVING_BELOW = 0.2


class ProviderRecord:
    """Running averages over the attempts at one provider; each new attempt weighs a fifth."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.total_calls = 0
        self.in_flight = 0
        self._success_rate: float | None = None
        self._latency: float | None = None
        self._first_token: float | None = None
        self._last_success: float | None = None
        self._last_error = ""
        self._check_error = ""
        self.unreachable = False
        """The last check found no way to it, and no call has had an answer since."""

    def began(self) -> None:
        self.total_calls += 1
        self.in_flight += 1

    def first_token(self, latency: float) -> None:
        """Content came `latency` seconds after the attempt's start."""
        self._first_token = _smooth(self._first_token, latency)

    def answered(self, latency: float, now: float) -> None:
        """`now` is wall-clock time in seconds since the epoch."""
        self.in_flight -= 1
        self._latency = _smooth(self._latency, latency)
        self._success_rate = _smooth(self._success_rate, 1.0)
        self._last_success = now
        self._last_error = ""
        self._check_error = ""
        self.unreachable = False

    def failed(self, reason: str) -> None:
        self.in_flight -= 1
        self._success_rate = _smooth(self._success_rate, 0.0)
        self._last_error = reason

    def neutral(self) -> None:
        """The attempt ended by no merit or fault of the provider: a cancel, or the caller's own error."""
        self.in_flight -= 1

    def check_succeeded(self, now: float) -> bool:
        """A check was answered; whether that is news."""
        news = bool(self._check_error)
        self._check_error = ""
        self.unreachable = False
        self._last_success = now
        if self._success_rate is not None:
            self._success_rate = max(self._success_rate, NOT_SERVING_BELOW)
        return news

    def check_failed(self, error: GatewayError) -> bool:
        """A check failed; whether that is news. Keys that may generate are not always allowed to list models."""
        news = self._check_error != error.reason
        self._check_error = error.reason
        self.unreachable = not isinstance(error, ProviderCredentialsRejected)
        return news

    def health(self) -> pb.ProviderHealth:
        """The record in the contract's words."""
        health = pb.ProviderHealth(
            provider=self.provider,
            state=self._state(),
            detail=self._last_error or (f"check: {self._check_error}" if self._check_error else ""),
            success_rate=self._success_rate or 0.0,
            total_calls=self.total_calls,
            in_flight=self.in_flight,
        )
        if self._last_success is not None:
            health.last_success_time.FromNanoseconds(int(self._last_success * 1e9))
        if self._latency is not None:
            health.average_latency.FromNanoseconds(int(self._latency * 1e9))
        if self._first_token is not None:
            health.first_token_latency.FromNanoseconds(int(self._first_token * 1e9))
        return health

    def _state(self) -> pb.ServingState.ValueType:
        if self.unreachable:
            return pb.SERVING_STATE_NOT_SERVING
        if self._success_rate is None:
            if self._check_error:
                return pb.SERVING_STATE_DEGRADED
            return pb.SERVING_STATE_UNSPECIFIED if self._last_success is None else pb.SERVING_STATE_SERVING
        if self._success_rate < NOT_SERVING_BELOW:
            return pb.SERVING_STATE_NOT_SERVING
        if self._success_rate < DEGRADED_BELOW:
            return pb.SERVING_STATE_DEGRADED
        return pb.SERVING_STATE_SERVING


def _smooth(average: float | None, value: float) -> float:
    return value if average is None else average + SMOOTHING * (value - average)
