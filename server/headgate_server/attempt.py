"""One upstream attempt: its clock, and the record that says what became of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from headgate import v1 as pb

from headgate_server.call import Call
from headgate_server.errors import GatewayError, InternalError, ProviderError, ProviderTimeout
from headgate_server.providers.base import Target
from headgate_server.resilience.clocks import AttemptClock, Clocks
from headgate_server.resilience.health import ProviderRecord


class Attempt:
    """Ends exactly once: answered, failed or cancelled, whichever is said first."""

    def __init__(self, number: int, target: Target, clocks: Clocks, health: ProviderRecord) -> None:
        self.target = target
        self.record = pb.Attempt(number=number, provider=target.provider, model=target.model)
        self.started = time.monotonic()
        self.clock = AttemptClock(clocks, self.started)
        self._health = health
        self._ended = False
        health.began()

    def content_came(self) -> None:
        """The first content of a stream arrived: the attempt is committed."""
        self.clock.content_came()
        latency = time.monotonic() - self.started
        self.record.first_token_latency.FromNanoseconds(int(latency * 1e9))
        self._health.first_token(latency)

    def answered(self, usage: pb.Usage | None) -> None:
        """The vendor's whole answer came, with what it counted."""
        if self._ended:
            return
        if usage is not None:
            self.record.usage.CopyFrom(usage)
        self._health.answered(self._end(pb.ATTEMPT_OUTCOME_OK), time.time())

    def failed(self, error: GatewayError) -> None:
        """The attempt ended in an error, which learns where it happened."""
        if self._ended:
            return
        timed_out = isinstance(error, ProviderTimeout)
        self._end(pb.ATTEMPT_OUTCOME_TIMED_OUT if timed_out else pb.ATTEMPT_OUTCOME_FAILED)
        self.record.error_reason = error.reason
        error.facts.setdefault("provider", self.target.provider)
        error.facts.setdefault("model", self.target.model)
        if isinstance(error, ProviderError) and error.other_target:
            self._health.failed(error.reason)
        else:
            self._health.neutral()

    def cancelled(self) -> None:
        """The caller went away; no merit or fault of the provider's."""
        if self._ended:
            return
        self._end(pb.ATTEMPT_OUTCOME_CANCELLED)
        self._health.neutral()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Whatever leaves this block by an exception ends the attempt."""
        try:
            yield
        except GatewayError as error:
            self.failed(error)
            raise
        except Exception:
            self.failed(InternalError())
            raise
        except BaseException:
            self.cancelled()
            raise

    def _end(self, outcome: pb.AttemptOutcome.ValueType) -> float:
        self._ended = True
        latency = time.monotonic() - self.started
        self.record.outcome = outcome
        self.record.latency.FromNanoseconds(int(latency * 1e9))
        return latency


def begin(call: Call, target: Target, clocks: Clocks, health: ProviderRecord) -> Attempt:
    """A new attempt, on record from its first moment."""
    attempt = Attempt(len(call.attempts) + 1, target, clocks, health)
    call.attempts.append(attempt.record)
    return attempt
