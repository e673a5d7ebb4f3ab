"""What is known of one target, learnt from its traffic: whether it may be called, how busy and how quick it is.

Decisions only: time is passed in, in seconds of the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from headgate import v1 as pb

from headgate_server.errors import (
    CircuitOpen,
    GatewayError,
    ProviderError,
    ProviderModelMissing,
    ProviderOverloaded,
    ProviderRateLimited,
)
from headgate_server.resilience.backoff import Backoff, RetryBudget
from headgate_server.resilience.breaker import Breaker, BreakerSettings, Circuit
from headgate_server.resilience.clocks import Clocks
from headgate_server.resilience.health import ProviderRecord
from headgate_server.resilience.latency import PeakEwma
from headgate_server.resilience.places import Places

PROBE_RETRY_SECONDS = 1.0
FAILURE_SECONDS = 1.0
STREAM, UNARY, EMBED = "stream", "unary", "embed"
KINDS = (STREAM, UNARY, EMBED)
MOST_STATES = 1000
NAMED_CIRCUITS = 3


@dataclass(frozen=True, slots=True)
class TargetPolicy:
    """How one target is treated."""

    clocks: Clocks
    backoff: Backoff
    max_attempts: int
    budget_ratio: float
    budget_reserve: float
    breaker: BreakerSettings
    concurrency: int
    queue: int


class TargetState:
    """The memory of one target. `record` is that of its provider, which learns of everything too."""

    __slots__ = (
        "_cool_until",
        "_cooled_by",
        "_last_failure",
        "breaker",
        "budget",
        "in_flight",
        "latency",
        "places",
        "policy",
        "record",
    )

    def __init__(self, policy: TargetPolicy, record: ProviderRecord) -> None:
        self.policy = policy
        self.record = record
        self.breaker = Breaker(policy.breaker)
        self.budget = RetryBudget(policy.budget_ratio, policy.budget_reserve)
        self.places = Places(policy.concurrency, policy.queue)
        self.latency = {kind: PeakEwma() for kind in KINDS}
        self.in_flight = 0
        self._cool_until = 0.0
        self._cooled_by: type[ProviderError] = ProviderRateLimited
        self._last_failure = ""

    def trusted(self) -> bool:
        """Its circuit is closed: more than one call may go."""
        return self.breaker.circuit is Circuit.CLOSED

    def circuit(self, now: float) -> Circuit:
        """The circuit as it stands: an open one whose time has come lets the next call through."""
        is_due = self.breaker.closed_in(now) == 0.0
        return Circuit.HALF_OPEN if is_due and not self.trusted() else self.breaker.circuit

    def cool_in(self, now: float) -> float:
        """Seconds until the vendor wants to be asked again; 0 when it may be."""
        return max(0.0, self._cool_until - now)

    def refusal(self, now: float) -> GatewayError | None:
        """Why it may not be called now: it cools down, or its circuit is open. `retry_after` says for how long."""
        if cool_in := self.cool_in(now):
            cooling = self._cooled_by("the provider asked to be left alone for a while", retry_after=cool_in)
            cooling.asked = False
            return cooling
        if self.breaker.circuit is Circuit.CLOSED:
            return None
        closed_in = self.breaker.closed_in(now)
        if closed_in == 0.0:
            return None
        return CircuitOpen(
            "the provider failed too often and is left alone for a while",
            retry_after=PROBE_RETRY_SECONDS if closed_in is None else closed_in,
            facts={"cause": self._last_failure},
        )

    def began(self) -> None:
        """An attempt begins, with a place that was taken."""
        self.in_flight += 1
        self.record.began()

    def first_token(self, permit: int, seconds: float, now: float) -> None:
        """The first content of a stream came so long after the attempt's start."""
        self.breaker.proved(permit)
        self.latency[STREAM].observe(seconds, now)
        self.record.first_token(seconds)

    def answered(self, permit: int, kind: str, seconds: float, now: float, wall_clock: float) -> None:
        """The target answered."""
        self._left(seconds)
        if kind != STREAM:
            self.latency[kind].observe(seconds, now)
        self.breaker.succeeded(permit, now)
        self.record.answered(seconds, wall_clock)

    def failed(self, permit: int, kind: str, error: GatewayError, seconds: float, now: float) -> None:
        """The attempt failed; not every error is the target's fault."""
        self._left(None)
        if isinstance(error, ProviderRateLimited | ProviderOverloaded) and error.retry_after:
            self._cool_until = max(
                self._cool_until, now + min(error.retry_after, self.policy.backoff.longest_retry_after)
            )
            self._cooled_by = type(error)
        if not _is_the_targets_fault(error):
            self.breaker.neutral(permit)
            self.record.neutral()
            return
        if isinstance(error, ProviderRateLimited):
            self.breaker.neutral(permit)
        else:
            # A target that fails at once must not look like the quickest.
            self.latency[kind].observe(max(seconds, self.latency[kind].value(now), FAILURE_SECONDS), now)
            self.breaker.failed(permit, now)
            self._last_failure = error.reason
        self.record.failed(error.reason)

    def cancelled(self, permit: int, kind: str, waited: float | None, now: float) -> None:
        """The attempt was given up, by no merit or fault of the target; no content had come for `waited` seconds."""
        if waited is not None and waited > self.latency[kind].value(now):
            self.latency[kind].observe(waited, now)  # it would have taken longer still
        self.neutral(permit)

    def neutral(self, permit: int) -> None:
        """The attempt says nothing of the target."""
        self._left(None)
        self.breaker.neutral(permit)
        self.record.neutral()

    def _left(self, stayed: float | None) -> None:
        self.in_flight -= 1
        self.places.give_back(stayed)


class TargetStates:
    """The states of one provider's targets, made when they are first asked for.

    Callers may name any model, so that only so many are kept: then the oldest that is idle is forgotten, but none of
    the `named`, which the configuration knows.
    """

    def __init__(
        self, policy_of: Callable[[str], TargetPolicy], record: ProviderRecord, named: Collection[str] = ()
    ) -> None:
        self._policy_of = policy_of
        self._states: dict[str, TargetState] = {}
        self._named = frozenset(named)
        self.record = record

    def __len__(self) -> int:
        return len(self._states)

    def of(self, model: str) -> TargetState:
        """The state of the target that is this model."""
        state = self._states.get(model)
        if state is None:
            if len(self._states) >= MOST_STATES:
                self._forget_one()
            state = self._states[model] = TargetState(self._policy_of(model), self.record)
        return state

    def items(self) -> Iterator[tuple[str, TargetState]]:
        """All states, by the model's name."""
        return iter(tuple(self._states.items()))

    def health(self, now: float) -> pb.ProviderHealth:
        """The provider's record, with the circuits that are not closed. Open ones whose time has come are half open."""
        health = self.record.health()
        circuits = {model: state.circuit(now) for model, state in self._states.items() if not state.trusted()}
        health.circuit = pb.CIRCUIT_STATE_CLOSED
        if circuits:
            all_open = Circuit.HALF_OPEN not in circuits.values()
            health.circuit = pb.CIRCUIT_STATE_OPEN if all_open else pb.CIRCUIT_STATE_HALF_OPEN
            named = ", ".join(f"{model} {circuit.value}" for model, circuit in list(circuits.items())[:NAMED_CIRCUITS])
            health.detail = "; ".join(filter(None, (health.detail, f"circuits: {named}")))
            if all_open and len(circuits) == len(self._states):
                health.state = pb.SERVING_STATE_NOT_SERVING
        return health

    def _forget_one(self) -> None:
        idle = (model for model, state in self._states.items() if not state.in_flight and model not in self._named)
        if (forgotten := next(idle, None)) is not None:
            del self._states[forgotten]


def _is_the_targets_fault(error: GatewayError) -> bool:
    """A missing model is not: callers may ask a provider for any name."""
    if isinstance(error, ProviderModelMissing):
        return False
    return isinstance(error, ProviderError) and error.other_target and not error.callers_clock
