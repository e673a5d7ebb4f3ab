"""One upstream attempt: its clock, and the record that says what became of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from headgate import v1 as pb

from headgate_server.call import Call
from headgate_server.errors import (
    CallerCredentialsRejected,
    GatewayError,
    InternalError,
    ProviderCredentialsRejected,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderTimeout,
)
from headgate_server.ledger.estimate import answer_bytes, content_bytes
from headgate_server.prices import Account, PriceList
from headgate_server.providers.base import Target
from headgate_server.redaction import redacted
from headgate_server.resilience.clocks import AttemptClock, Clocks
from headgate_server.resilience.plan import Cause
from headgate_server.resilience.target import TargetState

CALLERS_OWN = (CallerCredentialsRejected, ProviderQuotaExhausted, ProviderRateLimited)
"""Failures of a caller's own key, which say nothing of the target."""


class Attempt:
    """Ends exactly once: answered, failed or cancelled, whichever is said first.

    `permit` is the breaker's, `cause` why the attempt is made, `prices` what the target's tokens cost.
    """

    def __init__(
        self,
        call: Call,
        target: Target,
        state: TargetState,
        clocks: Clocks,
        *,
        kind: str,
        cause: Cause,
        permit: int,
        prices: PriceList | None = None,
    ) -> None:
        self.target = target
        self.prices = prices
        self.cost: pb.Cost | None = None
        """Of what the vendor counted, once that is known."""
        self.share = 1.0
        """How much of the call's request is sent in this attempt."""
        self.uncounted_bytes = 0
        """Bytes of content that came after the vendor's last word on usage, as far as the ledger has to know."""
        self._usage_reports = 0
        self.caller_key = call.provider_keys.get(target.issuer.lower(), "")
        self.secrets: Collection[str] = ()
        """What it authenticates by, which a vendor may repeat in an error."""
        self.record = pb.Attempt(number=len(call.attempts) + 1, provider=target.provider, model=target.model)
        self.started = time.monotonic()
        self.clock = AttemptClock(clocks, self.started, call.default_deadline)
        self.cause = cause
        self.latency: float | None = None
        """Seconds to its end, known from then on."""
        self.first_token: float | None = None
        """Seconds to its first content, of a stream that has brought some."""
        # Not the call itself, which knows its attempts: only the garbage collector would ever end them.
        self._upstream = call.upstream
        self._trace_headers = call.trace_headers
        self._counts_content = call.counts_content
        self._state = state
        self._kind = kind
        self._permit = permit
        self._ended = False
        self.superseded = False
        """A hedged attempt at another target came first: if this one is cancelled, that is why."""
        call.attempts.append(self.record)
        call.causes.append(cause)
        self._upstream.enter(self.started)
        self._span = call.trace.attempt(call, self.record, target, cause) if call.trace else None
        if call.entry:
            call.entry.began(self)
        state.began()

    @property
    def trace_headers(self) -> Mapping[str, str]:
        """What tells the vendor of the trace."""
        return self._span.headers if self._span else self._trace_headers

    def content_came(self) -> None:
        """The first content of a stream arrived: the attempt is committed."""
        self.clock.content_came()
        now = time.monotonic()
        self.first_token = now - self.started
        self.record.first_token_latency.FromNanoseconds(int(self.first_token * 1e9))
        self._state.first_token(self._permit, self.first_token, now)
        if self._span:
            self._span.content_came()

    def streamed(self, events: Sequence[pb.StreamGenerateResponse], usage_reports: int) -> None:
        """Events of one read came. What of them the vendor has not counted is counted for the ledger."""
        if usage_reports != self._usage_reports:
            self._usage_reports, self.uncounted_bytes = usage_reports, 0
        elif self._counts_content:
            self.uncounted_bytes += content_bytes(events)

    def counted(self, account: Account) -> None:
        """The vendor's own account of what was used, whatever becomes of the attempt."""
        if account.HasField("usage"):
            self.record.usage.CopyFrom(account.usage)
        elif self._counts_content and isinstance(account, pb.GenerateResponse):
            self.uncounted_bytes = answer_bytes(account)
        if account.HasField("cost"):
            self.cost = account.cost

    def answered(self, account: Account) -> None:
        """The vendor's whole answer came, with what it counted."""
        if self._ended:
            return
        self.counted(account)
        latency = self._end(pb.ATTEMPT_OUTCOME_OK)
        self._state.answered(self._permit, self._kind, latency, self.started + latency, time.time())

    def failed(self, error: GatewayError) -> None:
        """The attempt ended in an error, which learns where it happened, and forgets by which key."""
        error.vendor_detail = redacted(error.vendor_detail, self.secrets)
        if self._ended:
            return
        timed_out = isinstance(error, ProviderTimeout)
        latency = self._end(pb.ATTEMPT_OUTCOME_TIMED_OUT if timed_out else pb.ATTEMPT_OUTCOME_FAILED)
        self.record.error_reason = error.reason
        error.facts.setdefault("provider", self.target.provider)
        error.facts.setdefault("model", self.target.model)
        if self.caller_key and isinstance(error, CALLERS_OWN):
            self._state.neutral(self._permit)
        else:
            self._state.failed(self._permit, self._kind, error, latency, self.started + latency)

    def cancelled(self) -> None:
        """The caller went away, or another target came first; no merit or fault of the target's."""
        if self._ended:
            return
        latency = self._end(pb.ATTEMPT_OUTCOME_SUPERSEDED if self.superseded else pb.ATTEMPT_OUTCOME_CANCELLED)
        waited = latency if self.first_token is None else None
        self._state.cancelled(self._permit, self._kind, waited, self.started + latency)

    def supersede(self) -> None:
        """Another target's answer is taken. What this one has answered already stays on record as used in vain."""
        self.superseded = True
        if self._ended and self.record.outcome == pb.ATTEMPT_OUTCOME_OK:
            self.record.outcome = pb.ATTEMPT_OUTCOME_SUPERSEDED

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Whatever leaves this block by an exception ends the attempt."""
        try:
            yield
        except ProviderCredentialsRejected as error:
            self.failed(own := self._with_whose_key(error))
            raise own from None
        except GatewayError as error:
            self.failed(error)
            raise
        except Exception:
            self.failed(InternalError())
            raise
        except BaseException:
            self.cancelled()
            raise

    def _with_whose_key(self, error: ProviderCredentialsRejected) -> GatewayError:
        """A caller's own key that the vendor refuses is the caller's affair, and nothing bad of the provider's."""
        if not self.caller_key:
            return error
        return CallerCredentialsRejected(
            "the provider does not accept the caller's own key", facts=error.facts, vendor_detail=error.vendor_detail
        )

    def _end(self, outcome: pb.AttemptOutcome.ValueType) -> float:
        self._ended = True
        now = time.monotonic()
        latency = self.latency = now - self.started
        self._upstream.leave(now)
        if self._span:
            self._span.over()
        self.record.outcome = outcome
        self.record.latency.FromNanoseconds(int(latency * 1e9))
        return latency
