"""The laws of the policies: backoff, budget, breaker, latency, places and the plan of a call. All time is made up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from headgate import v1 as pb
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headgate_server.errors import (
    CircuitOpen,
    GatewayError,
    ProviderError,
    ProviderLimitReached,
    ProviderRateLimited,
    ProviderRejectedRequest,
    ProviderTimeout,
    UnsupportedParameter,
)
from headgate_server.providers.base import Target
from headgate_server.providers.hosts import HOSTS
from headgate_server.resilience.backoff import Backoff, RetryBudget
from headgate_server.resilience.breaker import Breaker, BreakerSettings, Circuit
from headgate_server.resilience.clocks import AttemptClock, Clocks
from headgate_server.resilience.health import ProviderRecord
from headgate_server.resilience.latency import DECAY_SECONDS, PeakEwma
from headgate_server.resilience.places import Places
from headgate_server.resilience.plan import Option, Plan
from headgate_server.resilience.target import UNARY, TargetPolicy, TargetState, TargetStates
from headgate_server.routing import Candidate

POLICY = TargetPolicy(
    clocks=Clocks(connect=5, first_token=120, idle=60, total=600),
    backoff=Backoff(base=1.0, longest=8.0, longest_retry_after=30.0),
    max_attempts=4,
    budget_ratio=0.2,
    budget_reserve=10.0,
    breaker=BreakerSettings(
        window=30, min_calls=20, error_rate=0.5, consecutive_failures=5, open_for=5, longest_open=120
    ),
    concurrency=0,
    queue=0,
)
chances = st.floats(0, 1, exclude_max=True)
times = st.floats(0, 1000, allow_nan=False)


@given(retry=st.integers(1, 10_000), chance=chances)
def test_backoff_takes_anything_from_nothing_to_its_ceiling(retry: int, chance: float) -> None:
    """Full jitter: the ceiling doubles from 1 s and never exceeds its cap."""
    backoff = POLICY.backoff
    assert 0 <= backoff.delay(retry, chance) < backoff.ceiling(retry) <= backoff.longest
    assert [backoff.ceiling(number) for number in (1, 2, 3, 4, 5)] == [1, 2, 4, 8, 8]


@given(retry=st.integers(1, 20), chance=chances, asked=st.floats(0, 1e6))
def test_a_vendors_word_on_when_to_come_back_is_kept_up_to_a_cap(retry: int, chance: float, asked: float) -> None:
    """Never sooner than asked, and never after more than the cap: then it is not waited for at all."""
    delay = POLICY.backoff.delay_after(retry, asked, chance)
    if asked > POLICY.backoff.longest_retry_after:
        assert delay is None
    else:
        assert delay is not None
        assert asked <= delay <= asked + POLICY.backoff.longest


@given(retries=st.lists(st.booleans(), max_size=400), ratio=st.floats(0, 1), reserve=st.integers(0, 20))
def test_retries_never_exceed_their_share(retries: list[bool], ratio: float, reserve: int) -> None:
    """In every run of traffic, from any moment on, retries are at most the ratio of first tries plus the reserve."""
    budget = RetryBudget(ratio, reserve)
    spent = []
    for wants_retry in retries:
        budget.deposit()
        spent.append(wants_retry and budget.withdraw())
    for start in range(len(spent)):
        run = spent[start:]
        assert sum(run) <= ratio * len(run) + reserve + 1e-6


def test_a_storm_cannot_double_the_load() -> None:
    """With every first try failing, a thousand calls make two hundred retries and the reserve."""
    budget = RetryBudget(0.2, 10)
    made = 0
    for _ in range(1000):
        budget.deposit()
        while budget.withdraw():
            made += 1
    assert 200 <= made <= 210


class BreakerLaws(RuleBasedStateMachine):
    """Any traffic against one breaker."""

    @initialize()
    def begin(self) -> None:
        self.breaker = Breaker(POLICY.breaker)
        self.now = 0.0
        self.inside: list[int] = []
        self.probes: list[int] = []

    @rule(seconds=st.floats(0, 200))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_call_comes(self) -> None:
        before = self.breaker.circuit
        allowed_in = self.breaker.closed_in(self.now)
        permit = self.breaker.enter(self.now)
        assert (permit is not None) == (allowed_in == 0.0)
        if permit is None:
            return
        self.inside.append(permit)
        if before is not Circuit.CLOSED:
            assert self.probes == [], "one probe at a time"
            self.probes.append(permit)

    @rule(data=st.data(), verdict=st.sampled_from(["succeeded", "failed", "neutral", "proved"]))
    def a_call_ends(self, data: Any, verdict: str) -> None:
        if not self.inside:
            return
        permit = self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1)))
        before = self.breaker.circuit
        was_probe = permit in self.probes
        if verdict in ("succeeded", "failed"):
            getattr(self.breaker, verdict)(permit, self.now)
        else:
            getattr(self.breaker, verdict)(permit)
        if was_probe:
            self.probes.remove(permit)
            after = {"failed": Circuit.OPEN, "neutral": Circuit.HALF_OPEN}
            assert self.breaker.circuit is after.get(verdict, Circuit.CLOSED)
        elif before is not Circuit.CLOSED:
            assert self.breaker.circuit is before, "calls of before it opened say nothing any more"

    @invariant()
    def an_open_circuit_lets_nobody_through_for_longer_than_its_longest_time(self) -> None:
        if self.breaker.circuit is Circuit.OPEN:
            waits = self.breaker.closed_in(self.now)
            assert waits is not None
            assert 0 <= waits <= POLICY.breaker.longest_open


TestBreakerLaws = BreakerLaws.TestCase
TestBreakerLaws.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def outcomes(breaker: Breaker, *verdicts: str, now: float = 0.0, apart: float = 0.0) -> float:
    """Plays calls one after the other; the time after them."""
    for verdict in verdicts:
        permit = breaker.enter(now)
        assert permit is not None
        if verdict == "neutral":
            breaker.neutral(permit)
        else:
            getattr(breaker, verdict)(permit, now)
        now += apart
    return now


def test_failures_in_a_row_open_the_circuit_and_a_success_between_does_not_let_them() -> None:
    """Five in a row are the default; cancels in between neither help nor harm."""
    breaker = Breaker(POLICY.breaker)
    outcomes(breaker, *["failed"] * 4, "succeeded", *["failed"] * 4)
    assert breaker.circuit.value == "closed"
    outcomes(breaker, "neutral", "neutral", "failed")
    assert breaker.circuit.value == "open"


def test_an_error_rate_opens_it_only_with_enough_calls_in_the_window() -> None:
    """Ten failures of twenty open it; of nineteen they do not, and what is older than the window is forgotten."""
    pattern = ["failed", "succeeded"] * 10
    few, enough, old = Breaker(POLICY.breaker), Breaker(POLICY.breaker), Breaker(POLICY.breaker)
    outcomes(few, *pattern[1:])
    outcomes(enough, *pattern[1:], "failed")
    outcomes(old, *["failed", "succeeded"] * 40, apart=2.0)
    assert [breaker.circuit for breaker in (few, enough, old)] == [Circuit.CLOSED, Circuit.OPEN, Circuit.CLOSED]


def test_it_opens_for_twice_as_long_each_time_its_probe_fails_up_to_a_limit() -> None:
    """5, 10, 20, 40, 80, 120, 120 seconds; a success begins anew."""
    breaker = Breaker(POLICY.breaker)
    outcomes(breaker, *["failed"] * 5)
    now, waits = 0.0, []
    for _ in range(7):
        wait = breaker.closed_in(now)
        assert wait is not None
        waits.append(wait)
        now += wait
        outcomes(breaker, "failed", now=now)
    assert waits == [5, 10, 20, 40, 80, 120, 120]
    now += breaker.closed_in(now) or 0
    outcomes(breaker, "succeeded", *["failed"] * 5, now=now)
    assert breaker.closed_in(now) == pytest.approx(5)


def test_a_probe_that_says_nothing_makes_room_for_another() -> None:
    """A cancelled probe must not block the target for ever."""
    breaker = Breaker(POLICY.breaker)
    outcomes(breaker, *["failed"] * 5)
    probe = breaker.enter(5.0)
    assert probe is not None
    assert breaker.enter(5.0) is None
    assert breaker.closed_in(5.0) is None
    breaker.neutral(probe)
    assert breaker.enter(5.0) is not None


def test_a_breaker_that_is_switched_off_never_opens() -> None:
    """consecutive_failures 0."""
    breaker = Breaker(replace(POLICY.breaker, consecutive_failures=0))
    outcomes(breaker, *["failed"] * 1000)
    assert breaker.circuit is Circuit.CLOSED


@given(samples=st.lists(st.tuples(st.floats(0.001, 60), st.floats(0, 30)), min_size=1, max_size=50))
def test_latency_rises_at_once_and_falls_slowly(samples: list[tuple[float, float]]) -> None:
    """The slowest sample counts whole, it stays between the quickest and the slowest, and it fades when idle."""
    average, now, slowest, quickest = PeakEwma(), 0.0, 0.0, math.inf
    for seconds, apart in samples:
        now += apart
        average.observe(seconds, now)
        slowest, quickest = max(slowest, seconds), min(quickest, seconds)
        assert quickest - 1e-9 <= average.value(now) <= slowest + 1e-9
        if seconds == slowest:
            assert average.value(now) == pytest.approx(seconds)
    assert average.value(now + 20 * DECAY_SECONDS) < 1e-6


@given(steps=st.lists(st.sampled_from(["come", "leave", "give up"]), max_size=200), limit=st.integers(1, 5))
def test_places_are_never_more_than_there_are_and_go_to_the_first_who_waits(steps: list[str], limit: int) -> None:
    """Whoever comes and goes, at most `limit` are inside, and the queue is served in order."""
    places = Places(limit, queue=1000)
    inside, woken = 0, []
    waiting: list[int] = []
    for ticket, step in enumerate(steps):
        if step == "come":
            if places.full():
                places.join(ticket, lambda ticket=ticket: woken.append(ticket))  # type: ignore[misc]
                waiting.append(ticket)
            else:
                places.take()
                inside += 1
        elif step == "leave" and inside:
            expected = waiting[:1]
            places.give_back(1.0)
            inside -= 1
            if expected:
                assert woken.pop() == waiting.pop(0) == expected[0]
                inside += 1
        elif step == "give up" and waiting:
            assert places.leave_queue(waiting.pop())
        assert places.taken == inside <= limit
        assert places.waiting == len(waiting)


def test_nobody_joins_a_queue_that_would_outlast_its_patience() -> None:
    """Calls stay for 2 s on average; two places and three ahead mean four seconds."""
    places = Places(2, queue=4)
    for _ in range(2):
        places.take()
    for _ in range(60):
        places.take()
        places.give_back(2.0)
    for ticket in range(3):
        assert places.admits(100)
        places.join(ticket, lambda: None)
    assert places.expected_wait() == pytest.approx(4.0, rel=0.01)
    assert not places.admits(3.9)
    assert places.admits(4.1)
    places.join(3, lambda: None)
    assert not places.admits(math.inf), "the queue is full"


class Options:
    """A plan over made-up targets."""

    def __init__(
        self,
        count: int,
        *,
        own: int | None = None,
        policy: TargetPolicy = POLICY,
        max_attempts: int = 100,
        deadline: float = 1000.0,
        chance: float = 0.5,
    ) -> None:
        targets = [Target(f"p{number}", "m", HOSTS["openai"], "openai") for number in range(count)]
        self.options = [
            Option(
                Candidate(target), TargetState(policy, ProviderRecord(target.provider)), is_fallback=n >= (own or count)
            )
            for n, target in enumerate(targets)
        ]
        self.plan = Plan(self.options, may_answer, lambda: chance, max_attempts=max_attempts, deadline=deadline)

    def next(self, now: float = 0.0) -> int | float:
        """The number of the option, or the wait as a float."""
        chosen = self.plan.next(now)
        return chosen if isinstance(chosen, float) else self.options.index(chosen)

    def fail(self, number: int, error: GatewayError, now: float = 0.0) -> None:
        self.plan.failed(self.options[number], error, now)


def may_answer(error: GatewayError, *, is_fallback: bool) -> bool:
    return error.other_target


def limited(seconds: float | None = None) -> ProviderRateLimited:
    return ProviderRateLimited("slow down", retry_after=seconds)


FAILED = ProviderError("the provider failed")


def test_every_other_target_is_tried_before_one_is_asked_again() -> None:
    """0, 1, 2, and only after its backoff 0 once more."""
    plan = Options(3)
    order = []
    for _ in range(3):
        chosen = plan.next()
        assert isinstance(chosen, int)
        order.append(chosen)
        plan.fail(chosen, FAILED)
    wait = plan.next()
    assert (order, wait) == ([0, 1, 2], 0.5)
    assert plan.next(now=0.5) == 0


def test_an_untried_target_goes_first_however_long_ago_another_failed() -> None:
    """The backoff of the first is over when the second fails: the third is asked all the same."""
    plan = Options(3)
    assert plan.next(now=0.0) == 0
    plan.fail(0, FAILED, now=0.0)
    assert plan.next(now=0.0) == 1
    plan.fail(1, FAILED, now=10.0)
    assert plan.next(now=10.0) == 2
    plan.fail(2, FAILED, now=10.0)
    assert plan.next(now=10.0) == 0


def test_what_kept_the_gateway_from_asking_is_no_attempt() -> None:
    """No room for it at a provider: the next one is asked even if one attempt is all there is."""
    plan = Options(2, max_attempts=1)
    assert plan.next() == 0
    plan.fail(0, ProviderLimitReached("no room", retry_after=5.0))
    assert plan.next() == 1
    plan.fail(1, FAILED)
    with pytest.raises(ProviderError):
        plan.next()


def test_a_refusal_that_ends_is_told_before_what_a_target_cannot_carry() -> None:
    """The capable target is out for a while: the caller hears when to come back, not that it asked for too much."""
    plan = Options(2)
    outcomes(plan.options[1].state.breaker, *["failed"] * 5)
    assert plan.next(1.0) == 0
    plan.fail(0, UnsupportedParameter.at("tools", "no"))
    with pytest.raises(CircuitOpen):
        plan.next(1.0)


def test_a_callers_own_error_stands_whatever_a_hedge_says_later() -> None:
    """The first vendor calls the request invalid, the hedged one fails: nobody else is asked, and the first is told."""
    plan = Options(3)
    assert plan.next() == 0
    assert plan.plan.hedge(0.0) is plan.options[1]
    plan.fail(0, ProviderRejectedRequest("invalid"))
    plan.fail(1, FAILED)
    with pytest.raises(ProviderRejectedRequest):
        plan.next()


def test_a_target_is_asked_again_only_for_what_may_pass() -> None:
    """A clock of ours that ran out, or a missing model, is not tried twice at the same place."""
    plan = Options(1)
    assert plan.next() == 0
    plan.fail(0, ProviderTimeout.by_clock("first_token"))
    with pytest.raises(ProviderTimeout):
        plan.next(now=500.0)


def test_the_callers_own_error_ends_the_search() -> None:
    """What one vendor calls invalid is not shown to others."""
    plan = Options(2)
    assert plan.next() == 0
    plan.fail(0, ProviderRejectedRequest("invalid"))
    with pytest.raises(ProviderRejectedRequest):
        plan.next()


def test_what_nobody_was_asked_does_not_count() -> None:
    """A target that cannot carry the request is passed over, at no cost and with no influence on the error."""
    plan = Options(3, max_attempts=1)
    assert plan.next() == 0
    plan.fail(0, UnsupportedParameter.at("tools", "no"))
    assert plan.next() == 1
    plan.fail(1, FAILED)
    with pytest.raises(ProviderError):
        plan.next(100.0)


def test_no_wait_goes_beyond_the_deadline() -> None:
    """A retry that could only begin after the deadline is not waited for: the caller hears why at once."""
    plan = Options(1, deadline=20.0)
    assert plan.next() == 0
    plan.fail(0, limited(25.0))
    with pytest.raises(ProviderRateLimited):
        plan.next()


def test_nothing_more_is_tried_after_the_deadline() -> None:
    """A target that would be given no time must not be held to have failed."""
    plan = Options(2, deadline=20.0)
    assert plan.next(now=5.0) == 0
    plan.fail(0, FAILED, now=20.0)
    with pytest.raises(ProviderError):
        plan.next(now=20.0)


def test_a_cooling_target_is_waited_for_by_calls_that_have_no_other() -> None:
    """The next call with two targets takes the other; the next with one waits."""
    alone, beside = Options(1), Options(2)
    for plan in (alone, beside):
        state = plan.options[0].state
        state.places.take()
        state.began()
        state.failed(0, UNARY, limited(3.0), 0.1, 0.0)
    assert beside.next() == 1
    wait = alone.next()
    assert isinstance(wait, float)
    assert 3.0 <= wait <= 3.1
    assert alone.next(now=3.2) == 0


def test_an_open_circuit_is_not_waited_for() -> None:
    """The caller hears at once, and when to come back."""
    plan = Options(1)
    state = plan.options[0].state
    outcomes(state.breaker, *["failed"] * 5)
    with pytest.raises(CircuitOpen) as refused:
        plan.next(now=1.0)
    assert refused.value.retry_after == pytest.approx(4.0)
    assert plan.next(now=5.0) == 0


def test_a_full_target_is_queued_for_only_when_no_other_has_room() -> None:
    """Spilling over to the next target beats waiting."""
    policy = replace(POLICY, concurrency=1, queue=10)
    plan, both = Options(2, policy=policy), Options(2, policy=policy)
    plan.options[0].state.places.take()
    assert plan.next() == 1
    for option in both.options:
        option.state.places.take()
    assert both.next() == 0


def test_a_hedge_takes_an_untried_target_and_the_slow_one_pays() -> None:
    """With an empty budget nothing is hedged."""
    plan, broke = Options(2), Options(2, policy=replace(POLICY, budget_reserve=0.0, budget_ratio=0.0))
    for options, expected in ((plan, 1), (broke, None)):
        assert options.next() == 0
        hedge = options.plan.hedge(0.0)
        assert (options.options.index(hedge) if hedge else None) == expected


def test_hedging_goes_on_for_as_long_as_there_are_first_tries() -> None:
    """One call in five is hedged in the long run, besides those that the reserve pays for at first."""
    targets = Options(2).options
    hedged = 0
    for _ in range(1000):
        options = [Option(target.candidate, target.state, is_fallback=False) for target in targets]
        plan = Plan(options, may_answer, lambda: 0.5, max_attempts=4, deadline=1000.0)
        plan.next(0.0)
        hedged += plan.hedge(0.0) is not None
    assert 200 <= hedged <= 211


def test_a_target_that_was_given_up_is_known_to_be_slow() -> None:
    """A hedge's loser, or a caller who did not wait: so long it took at least. Its circuit learns nothing."""
    state = TargetState(POLICY, ProviderRecord("p"))
    for waited in (0.2, 3.0, 0.1, None):
        state.places.take()
        state.began()
        state.cancelled(0, UNARY, waited, now=100.0)
    assert state.latency[UNARY].value(100.0) == pytest.approx(3.0)
    assert state.trusted()


def test_calls_do_not_all_follow_one_to_a_target_that_nobody_knows() -> None:
    """Idle it is worth a try; with calls in flight and no answer yet it counts as slow, again after a long silence."""
    average = PeakEwma()
    assert average.load(0, 1000.0) == 0.0
    assert average.load(1, 1000.0) == pytest.approx(2.0)
    average.observe(0.01, 1000.0)
    assert average.load(3, 1000.0) == pytest.approx(0.04)
    assert average.load(1, 1100.0) == pytest.approx(2.0)


@settings(max_examples=300, deadline=None)
@given(
    count=st.integers(1, 4),
    max_attempts=st.integers(1, 10),
    errors=st.lists(
        st.sampled_from([FAILED, limited(0.5), limited(60.0), ProviderTimeout.by_clock("total")]), max_size=60
    ),
    chance=chances,
)
def test_any_plan_ends_within_its_attempts_and_its_deadline(
    count: int, max_attempts: int, errors: Sequence[GatewayError], chance: float
) -> None:
    """Whatever fails in whatever way, tries are bounded per call and per target, and none begins too late."""
    plan = Options(count, max_attempts=max_attempts, deadline=30.0, chance=chance)
    now, tries = 0.0, [0] * count
    for error in errors:
        try:
            chosen = plan.next(now)
        except GatewayError:
            break
        if isinstance(chosen, float):
            assert chosen > 0
            now += chosen
            continue
        tries[chosen] += 1
        assert now < 30.0
        plan.fail(chosen, error, now)
    assert sum(tries) <= max_attempts
    assert all(number <= POLICY.max_attempts for number in tries)


def test_a_clock_that_the_caller_shortened_is_not_held_against_the_target() -> None:
    """Otherwise one impatient caller could open the circuit for everybody."""
    clocks = POLICY.clocks.tightened(pb.ExecutionPolicy(attempt_timeout={"nanos": 1_000_000}))  # type: ignore[arg-type]
    assert clocks.callers == {"total"}
    state = TargetState(POLICY, ProviderRecord("p"))
    for _ in range(10):
        state.places.take()
        state.began()
        state.failed(0, UNARY, ProviderTimeout.by_clock("total", callers=True), 0.001, 0.0)
    assert state.trusted()
    assert state.in_flight == state.places.taken == 0


def test_the_servers_deadline_is_a_clock_of_its_own() -> None:
    """For a call without a deadline it ends the wait and gives its name, unless another clock is sooner."""
    clock = AttemptClock(POLICY.clocks, started=100.0, deadline=130.0)
    assert clock.limit(120.0) == (10.0, "default_deadline")
    clock.stream_expected()
    clock.content_came()
    assert clock.limit(125.0) == (5.0, "default_deadline")
    later = AttemptClock(POLICY.clocks, started=100.0, deadline=10_000.0)
    assert later.limit(120.0) == (580.0, "total")


def test_callers_who_name_endless_models_do_not_fill_the_memory() -> None:
    """States of idle targets are forgotten, whatever their circuit; busy and configured ones are not."""
    states = TargetStates(lambda model: POLICY, ProviderRecord("p"), named=["configured"])
    configured = states.of("configured")
    busy = states.of("busy")
    busy.places.take()
    busy.began()
    for number in range(3000):
        outcomes(states.of(f"model-{number}").breaker, *["failed"] * 5)
    assert len(states) == 1000
    assert states.of("busy") is busy
    assert states.of("configured") is configured


def test_the_health_of_a_provider_names_its_open_circuits() -> None:
    """One model's circuit does not make its provider unserving; all of them do."""
    states = TargetStates(lambda model: POLICY, ProviderRecord("p"))
    for model in ("a", "b"):
        states.of(model)
    assert states.health(0.0).circuit == pb.CIRCUIT_STATE_CLOSED
    outcomes(states.of("a").breaker, *["failed"] * 5)
    health = states.health(0.0)
    assert (health.circuit, health.detail) == (pb.CIRCUIT_STATE_OPEN, "circuits: a open")
    assert health.state != pb.SERVING_STATE_NOT_SERVING
    outcomes(states.of("b").breaker, *["failed"] * 5)
    assert states.health(0.0).state == pb.SERVING_STATE_NOT_SERVING
    assert states.health(100.0).circuit == pb.CIRCUIT_STATE_HALF_OPEN, "the next call may go"
    assert states.health(100.0).state != pb.SERVING_STATE_NOT_SERVING
