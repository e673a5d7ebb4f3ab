"""The counters in memory and in Redis: whatever happens, they agree with a slow and simple account."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

import msgspec
import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis
from throttled import MemoryStore, Throttled, per_day
from throttled.rate_limiter import sliding_window

from headgate_server.limits.memory import MemoryCounters
from headgate_server.limits.meters import DAY
from headgate_server.limits.quota import (
    MICROS,
    MOST,
    NEVER,
    Limit,
    Scoped,
    Take,
    calendar_limit,
    limit,
)
from headgate_server.limits.wire import SCRIPT, granted, packed
from tests.redis_server import RedisServer, redis_server

LEASE = 5 * MICROS
START = 1_790_000_000 * MICROS
HOLDERS = ("a", "b")


class Counters(Protocol):
    """What both implementations do."""

    def reserve(self, now: int, holder: str, name: str, takes: Sequence[Take]) -> bool: ...
    def settle(self, now: int, holder: str, name: str) -> Sequence[int]: ...
    def restore(self, now: int, known: Sequence[Take]) -> None: ...
    def renew(self, now: int, holder: str) -> None: ...


class RedisCounters:
    """The script in a real Redis, told the time."""

    def __init__(self, server: RedisServer) -> None:
        self._redis = Redis(port=server.port)
        self._script = self._redis.script_load(SCRIPT)
        self._prefix = f"{{{secrets.token_hex(4)}}}:"
        self._takes: dict[str, Sequence[Take]] = {}

    def reserve(self, now: int, holder: str, name: str, takes: Sequence[Take]) -> bool:
        self._takes[name] = takes
        return granted(takes, self._run(now, holder, ("reserve", name, packed(takes))))

    def settle(self, now: int, holder: str, name: str) -> Sequence[int]:
        return self._run(now, holder, ("settle", name, packed(self._takes[name], truth=True)))

    def restore(self, now: int, known: Sequence[Take]) -> None:
        self._run(now, "nobody", ("restore", "", packed(known)))

    def charge(self, now: int, holder: str, name: str, takes: Sequence[Take]) -> None:
        self._run(now, holder, ("charge", name, packed(takes)))

    def renew(self, now: int, holder: str) -> None:
        self._run(now, holder, ("renew",))

    def keys(self) -> list[str]:
        """What is stored, without the prefix."""
        return sorted(key.decode().removeprefix(self._prefix) for key in self._redis.scan_iter(f"{self._prefix}*"))

    def seconds_left(self, key: str) -> float:
        """Until Redis forgets it."""
        return float(self._redis.pttl(f"{self._prefix}{key}")) / 1000

    def close(self) -> None:
        self._redis.close()

    def _run(self, now: int, holder: str, *operations: tuple[object, ...]) -> list[int]:
        payload = msgspec.msgpack.encode((now, holder, LEASE, operations))
        answer = self._redis.evalsha(self._script, 1, self._prefix, payload)
        results: list[list[int]] = msgspec.msgpack.decode(answer)
        return results[0]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """One Redis for this module."""
    with redis_server() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[], Counters]]:
    """Makes empty counters of each implementation in turn."""
    if request.param == "memory":
        yield lambda: MemoryCounters(LEASE)
        return
    server = request.getfixturevalue("redis")
    made: list[RedisCounters] = []

    def make_counters() -> Counters:
        made.append(RedisCounters(server))
        return made[-1]

    yield make_counters
    for counters in made:
        counters.close()


@dataclass
class Account:
    """One limit's history, kept whole: (time, amount) of all that was taken or found out, and what is in flight."""

    limit: Limit
    taken: list[list[int]] = field(default_factory=list)
    in_flight: int = 0
    spent: int = 0
    until: int = 0

    def used(self, now: int) -> int:
        if self.limit.algorithm == "concurrency":
            return self.in_flight
        if self.limit.algorithm == "calendar":
            self._forget(now)
            return self.spent + sum(amount for _, amount in self.taken)
        if self.limit.algorithm == "sliding_window":
            slot = now // self.limit.gain
            return sum(amount for when, amount in self.taken if when // self.limit.gain >= slot - self.limit.scale)
        level, last = Fraction(0), START
        for when, amount in [*self.taken, [now, 0]]:
            level = max(Fraction(0), level - Fraction((when - last) * self.limit.amount, self.limit.window))
            level, last = max(Fraction(0), level + amount), when
        return -(-level.numerator // level.denominator)

    def spend(self, now: int, amount: int) -> None:
        """Money that is known to be spent."""
        self._forget(now)
        self.spent += amount
        self.until = max(self.limit.gain, now + DAY)

    def _forget(self, now: int) -> None:
        """The period is over, and nothing happened for a day."""
        if self.limit.algorithm == "calendar" and now >= self.until:
            self.spent = 0
            self.taken.clear()

    def take(self, now: int, amount: int) -> list[int]:
        entry = [now, amount]
        self.spend(now, 0)
        if self.limit.algorithm == "concurrency":
            self.in_flight += amount
        else:
            self.taken.append(entry)
        return entry

    def charge(self, now: int, amount: int) -> None:
        """What nothing was taken for."""
        if self.limit.algorithm == "calendar":
            self.spend(now, amount)
        elif self.limit.algorithm != "concurrency":
            self.take(now, amount)

    def settle(self, now: int, entry: list[int], taken: int, truth: int) -> None:
        if self.limit.algorithm == "concurrency":
            self.in_flight -= taken
        elif self.limit.algorithm == "calendar":
            self.spend(now, truth)
            self.taken[:] = [each for each in self.taken if each is not entry]
        elif self.limit.algorithm == "token_bucket" or truth > taken:
            self.taken.append([now, truth - taken])
        else:
            entry[1] -= taken - truth


LIMITS = {
    "window": limit("total_tokens", "sliding_window", 100, 6),
    "other window": limit("requests", "sliding_window", 5, 1.234567),
    "bucket": limit("total_tokens", "token_bucket", 70, 10, burst=120),
    "odd bucket": limit("requests", "token_bucket", 7, 0.999983),
    "concurrency": limit("concurrency", "concurrency", 3),
    "budget": calendar_limit(300, START + 60 * MICROS),
    "total budget": calendar_limit(500, None),
    "soft budget": calendar_limit(100, START + 20 * MICROS, hard=False),
}
BUDGETS = sorted(key for key in LIMITS if "budget" in key)
AMOUNTS = st.integers(1, 130)
SMALL = st.integers(1, 6)
TAKES = st.lists(
    st.sampled_from(sorted(LIMITS)).flatmap(
        lambda key: st.tuples(st.just(key), SMALL if LIMITS[key].unit in ("requests", "concurrency") else AMOUNTS)
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda each: each[0],
).map(lambda chosen: [Take(Scoped(key, LIMITS[key]), 1 if key == "concurrency" else amount) for key, amount in chosen])

BOUNDARIES = st.sampled_from(
    [
        micros + near
        for limit in LIMITS.values()
        for micros in (limit.gain, limit.window, limit.scale * limit.gain, LEASE)
        for near in (-1, 0, 1)
        if limit.algorithm == "sliding_window"
    ]
    + [DAY - 1, DAY, DAY + 60 * MICROS]
)


@dataclass
class Held:
    """A reservation as the account knows it."""

    holder: str
    takes: list[Take]
    entries: list[list[int]]


class CounterMachine(RuleBasedStateMachine):
    """Reserves, settles, releases, lets leases expire; the account says what must come of it."""

    def __init__(self, make: Callable[[], Counters]) -> None:
        super().__init__()
        self.counters = make()
        self.now = START
        self.accounts = {key: Account(limit) for key, limit in LIMITS.items()}
        self.held: dict[str, Held] = {}
        self.returned: dict[str, Held] = {}
        self.over: list[tuple[str, Held]] = []
        self.heard_of = dict.fromkeys(HOLDERS, START)
        self.names = 0

    @rule(micros=st.one_of(st.integers(0, 3 * MICROS), st.integers(0, 30 * MICROS), BOUNDARIES))
    def time_passes(self, micros: int) -> None:
        self.now += micros

    @rule(holder=st.sampled_from(HOLDERS), takes=TAKES)
    def reserve(self, holder: str, takes: list[Take]) -> None:
        self._expire()
        self.names += 1
        name = f"r{self.names}"
        uses = [self.accounts[take.key].used(self.now) for take in takes]
        has_room = [used + take.amount <= take.limit.capacity for used, take in zip(uses, takes, strict=True)]
        is_granted = self.counters.reserve(self.now, holder, name, takes)
        assert is_granted == all(has_room)
        if not is_granted:
            assert [take.used for take in takes] == uses
            for take, fits in zip(takes, has_room, strict=True):
                self._check_wait(take, fits=fits)
            return
        self.heard_of[holder] = self.now
        entries = [self.accounts[take.key].take(self.now, take.amount) for take in takes]
        self.held[name] = Held(holder, takes, entries)
        for take in takes:
            assert take.used == self.accounts[take.key].used(self.now)
            assert take.wait == 0
            if take.limit.algorithm == "calendar":
                assert take.reset == (0 if take.limit.gain == MOST else max(0, take.limit.gain - self.now))
            elif take.key != "concurrency":
                assert self.accounts[take.key].used(self.now + take.reset) == 0

    def _check_wait(self, take: Take, *, fits: bool) -> None:
        """The wait is exactly as long as it must be."""
        if fits:
            assert take.wait == 0
        elif take.amount > take.limit.capacity:
            assert take.wait == NEVER
        elif take.limit.algorithm == "calendar":
            assert take.wait == (NEVER if take.limit.gain == MOST else max(1, take.limit.gain - self.now))
        elif take.key != "concurrency":
            account, room = self.accounts[take.key], take.limit.capacity - take.amount
            assert account.used(self.now + take.wait) <= room < account.used(self.now + take.wait - 1)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), excess=st.integers(-130, 40))
    def settle(self, data: st.DataObject, excess: int) -> None:
        """What was used turns out to be less, the same or more."""
        self._expire()
        if not self.held:
            self.renew(HOLDERS[0])  # or the counters would not hear of what has just come back
            return
        name = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held.pop(name)
        for take in held.takes:
            take.truth = max(0, take.amount + excess)
        spent = self.counters.settle(self.now, held.holder, name)
        for take, entry in zip(held.takes, held.entries, strict=True):
            self.accounts[take.key].settle(self.now, entry, take.amount, take.truth)
        assert list(spent) == [self.accounts[take.key].spent for take in held.takes]
        self.over.append((name, held))

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def settle_again(self, data: st.DataObject) -> None:
        """Nothing happens twice."""
        name, held = data.draw(st.sampled_from(self.over))
        for take in held.takes:
            take.truth = take.amount
        assert not self.counters.settle(self.now, held.holder, name)
        self._expire()

    @precondition(lambda self: self.returned)
    @rule(data=st.data(), amount=AMOUNTS)
    def settle_after_the_lease(self, data: st.DataObject, amount: int) -> None:
        """What came back too early is counted when the truth comes."""
        name = data.draw(st.sampled_from(sorted(self.returned)))
        held = self.returned.pop(name)
        self._expire()
        for take in held.takes:
            take.truth = amount
        spent = self.counters.settle(self.now, held.holder, name)
        for take in held.takes:
            self.accounts[take.key].charge(self.now, amount)
        assert list(spent) == [self.accounts[take.key].spent for take in held.takes]
        self.over.append((name, held))

    @rule(key=st.sampled_from(BUDGETS), known=st.integers(0, 400))
    def restore(self, key: str, known: int) -> None:
        """The ledger knows of more, or of less."""
        self._expire()
        self.counters.restore(self.now, [Take(Scoped(key, LIMITS[key]), known)])
        account = self.accounts[key]
        account.spend(self.now, 0)
        account.spend(self.now, max(0, known - account.spent))

    @rule(holder=st.sampled_from(HOLDERS))
    def renew(self, holder: str) -> None:
        self._expire()
        self.counters.renew(self.now, holder)
        self.heard_of[holder] = self.now

    @invariant()
    def nothing_is_over_the_limit_but_debt(self) -> None:
        """What was granted and is still held never sums to more than a window's limit."""
        for key, account in self.accounts.items():
            held = sum(
                take.amount
                for each in self.held.values()
                for take, entry in zip(each.takes, each.entries, strict=True)
                if take.key == key
                and (
                    account.limit.algorithm in ("concurrency", "calendar") or entry[0] > self.now - account.limit.window
                )
            )
            if account.limit.algorithm != "token_bucket":
                assert held <= account.limit.capacity

    def _expire(self) -> None:
        for name, held in list(self.held.items()):
            if self.heard_of[held.holder] + LEASE <= self.now:
                for take, entry in zip(held.takes, held.entries, strict=True):
                    self.accounts[take.key].settle(self.now, entry, take.amount, 0)
                self.returned[name] = self.held.pop(name)


def test_counters_agree_with_a_whole_account_of_what_happened(make: Callable[[], Counters]) -> None:
    """Reserve, settle, release, lease expiry, late and repeated settlement, on eight limits and two holders at once."""
    run_state_machine_as_test(
        lambda: CounterMachine(make),  # type: ignore[arg-type]  # a factory will do, says its documentation
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


@pytest.mark.parametrize("cost", [1, 3, 7])
def test_a_plain_window_grants_what_throttled_grants(make: Callable[[], Counters], cost: int) -> None:
    """Within a window that follows an idle one, throttled-py's sliding window decides the same of every call."""
    period, most = 60, 100
    allowed = limit("requests", "sliding_window", most, period)
    counters = make()
    oracle = MemoryStore().make_atomic(sliding_window.MemoryLimitAtomicAction)
    refusals = 0
    for window in range(0, 9, 3):
        for call in range(110):
            now = START + window * period * MICROS + call * MICROS // 2
            is_refused, *_ = oracle.do([str(window), "before"], [period, most, cost, now // 1000])
            name = f"{window}-{call}"
            is_granted = counters.reserve(now, "a", name, [Take(Scoped("k", allowed), cost, truth=cost)])
            assert is_granted == (not is_refused)
            refusals += not is_granted
            if is_granted:
                counters.settle(now, "a", name)
    assert refusals


def test_a_plain_bucket_grants_what_throttled_grants(make: Callable[[], Counters]) -> None:
    """A bucket that wins back next to nothing meanwhile holds as much as throttled-py's GCRA."""
    allowed = limit("requests", "token_bucket", 1, 86_400, burst=50)
    counters = make()
    oracle = Throttled(using="gcra", quota=per_day(1, burst=50), store=MemoryStore())
    for call, cost in enumerate([7, 20, 1, 30, 22, 3, 1, 1, 5]):
        is_granted = counters.reserve(START, "a", str(call), [Take(Scoped("k", allowed), cost)])
        assert is_granted == (not oracle.limit("k", cost=cost).limited)


def test_counters_that_nobody_uses_are_forgotten() -> None:
    """Keys that callers make up do not pile up; those in use stay."""
    counters = MemoryCounters()
    busy = limit("requests", "sliding_window", 10, 3600)
    idle = limit("requests", "token_bucket", 10, 1)
    counters.reserve(START, "a", "busy", [Take(Scoped("busy", busy), 3)])
    for number in range(50_000):
        now = START + number * MICROS // 100
        counters.reserve(now, "a", "x", [Take(Scoped(f"idle {number}", idle), 1)])
    assert len(counters) < 10_000
    assert counters.reserve(now, "a", "last", [Take(Scoped("busy", busy), 8)]) is False


class TestRedisAlone:
    """What only a distant counter needs."""

    LIMIT = limit("total_tokens", "sliding_window", 100, 3600)
    PLACES = limit("concurrency", "concurrency", 2)

    @pytest.fixture
    def counters(self, redis: RedisServer) -> Iterator[RedisCounters]:
        """Empty counters."""
        made = RedisCounters(redis)
        yield made
        made.close()

    def used(self, counters: RedisCounters, now: int = START) -> tuple[int, int]:
        """Tokens and places in use, as a refused reservation tells."""
        takes = [Take(Scoped("t", self.LIMIT), 101), Take(Scoped("c", self.PLACES), 1)]
        assert not counters.reserve(now, "b", "probe", takes)
        return takes[0].used, takes[1].used

    def takes(self, tokens: int) -> list[Take]:
        return [Take(Scoped("t", self.LIMIT), tokens), Take(Scoped("c", self.PLACES), 1)]

    def test_a_charge_without_a_reservation_counts_once(self, counters: RedisCounters) -> None:
        """What was counted elsewhere is told afterwards, as often as it takes; it takes no place any more."""
        for _ in range(3):
            counters.charge(START, "a", "n", self.takes(30))
        assert self.used(counters) == (30, 0)

    def test_a_charge_settles_a_reservation_that_nobody_confirmed(self, counters: RedisCounters) -> None:
        """The reservation was made after all: the truth is counted in its place, once."""
        counters.reserve(START, "a", "n", self.takes(80))
        assert self.used(counters) == (80, 1)
        for _ in range(2):
            counters.charge(START, "a", "n", self.takes(30))
        assert self.used(counters) == (30, 0)

    def test_a_reservation_that_comes_after_its_charge_is_void(self, counters: RedisCounters) -> None:
        """A command that was held up on the way must not take what nobody would give back."""
        counters.charge(START, "a", "n", self.takes(30))
        assert counters.reserve(START, "a", "n", self.takes(50)) is False
        assert self.used(counters) == (30, 0)

    def test_debt_may_exceed_the_limit(self, counters: RedisCounters) -> None:
        """A charge is not asked whether there is room."""
        counters.charge(START, "a", "n", self.takes(250))
        assert self.used(counters) == (250, 0)

    def test_many_reservations_come_back_in_parts(self, counters: RedisCounters) -> None:
        """A server that crashed with a crowd of calls does not stop Redis for long: each operation returns some."""
        many = limit("concurrency", "concurrency", 10_000)
        for number in range(500):
            counters.reserve(START, "gone", str(number), [Take(Scoped("m", many), 1)])
        later = START + LEASE
        probes = [Take(Scoped("m", many), 10_001) for _ in range(3)]
        for number, probe in enumerate(probes):
            assert not counters.reserve(later, "b", f"p{number}", [probe])
        assert probes[0].used > probes[1].used > probes[2].used == 0

    def test_nothing_lasts_but_for_a_time(self, counters: RedisCounters) -> None:
        """Once calls are over, what remains of them has an end."""
        tokens, place = self.takes(10)
        counters.reserve(START, "a", "n", [tokens, place])
        tokens.truth, place.truth = 10, 1
        counters.settle(START, "a", "n")
        assert counters.keys() == ["holders", "t"]

    def test_budgets_last_as_long_as_their_period_and_a_day_of_silence(self, counters: RedisCounters) -> None:
        """By the clock of Redis, and so that a month that is over leaves nothing behind; a total stays."""
        now, by_redis = time.time(), 0
        for name, ends in (("over", now - 3600), ("month", now + 30 * 86_400), ("total", None)):
            kept = calendar_limit(100, None if ends is None else round(ends * MICROS))
            counters.charge(by_redis, "a", name, [Take(Scoped(name, kept), 30)])
            more = Take(Scoped(name, kept), 71)
            assert not counters.reserve(by_redis, "b", f"{name}?", [more])
            assert more.used == 30
        lasts = [counters.seconds_left(name) for name in ("over", "month", "total")]
        assert lasts[:2] == [pytest.approx(86_400, abs=60), pytest.approx(30 * 86_400, abs=60)]
        assert lasts[2] > 100 * 365 * 86_400
