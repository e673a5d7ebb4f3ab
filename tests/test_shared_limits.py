"""Limits that several servers share in a real Redis, which is killed, frozen and slowed down meanwhile."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

import grpc
import grpc.aio
import pytest
from headgate import v1 as pb
from redis.asyncio import Redis

from headgate_server.config import Config, LimitStore
from headgate_server.limits.quota import Algorithm, Scoped, Take, limit
from headgate_server.limits.shared import MOST_OWED, OWED_AT_ONCE, SharedLimiter
from headgate_server.limits.wire import STALLED_SECONDS
from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, ask, eventually, failing
from tests.redis_server import RedisServer, SlowPath, redis_server
from tests.tools import headgate_serve
from tests.vendor import Exchange, Vendor, answers_text

MINUTE = 60
BUDGET = 0.02
NOISE = 2.0
"""How much longer than the time budget a call may take on a busy machine before a test calls it wrong."""
TOKENS = 10_000_000
PLENTY = {"unit": "requests", "limit": 1_000_000, "window": MINUTE}


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    with redis_server() as server:
        yield server


def limits(url: str, *rules: dict[str, Any], **store: Any) -> dict[str, Any]:
    """A limits section of these rules, counted in that Redis."""
    return {"rules": list(rules), "store": {"type": "redis", "url": url, **store}}


def at(vendor: Vendor) -> dict[str, Any]:
    """A provider of OpenAI's wire at this vendor."""
    return {"v": {"adapter": "openai", "base_url": vendor.base_url, "max_connections": 2000}}


def small(most: int = 100) -> pb.GenerateRequest:
    """A request of a few bytes with this much output at most."""
    return ask("v/m", config=pb.GenerationConfig(max_output_tokens=most))


def estimate(request: pb.GenerateRequest) -> int:
    """What is reserved for it: a token for each byte, and the output."""
    return request.ByteSize() + request.config.max_output_tokens


async def outcome(call: Any) -> str:
    """OK, or the reason of the failure."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"


async def remaining(headgate: Headgate, name: str, request: pb.GenerateRequest | None = None) -> int:
    """What a call is told to be left after it."""
    call = headgate.stub.Generate(request or small())
    await call
    trailer: dict[str, Any] = dict(await call.trailing_metadata())
    return int(trailer[f"x-ratelimit-remaining-{name}"])


async def settled(headgate: Headgate, vendor: Vendor, capacity: int) -> int:
    """How far what is left of the tokens is from what the vendor has counted; polls, for settling takes a moment."""
    for _ in range(100):
        left = await remaining(headgate, "tokens")
        if not (apart := capacity - 8 * len(vendor.exchanges) - left):
            break
        await asyncio.sleep(0.02)
    return apart


async def state(headgate: Headgate) -> pb.ServingState.ValueType:
    """What the Health RPC says of the server as a whole."""
    return (await headgate.stub.Health(pb.HealthRequest())).state


async def until(headgate: Headgate, expected: pb.ServingState.ValueType) -> None:
    """Waits until Health says so."""
    async with asyncio.timeout(10):
        while await state(headgate) != expected:
            await asyncio.sleep(0.02)


async def test_two_servers_never_pass_a_limit_and_never_waste_it(serve: Serve, redis: RedisServer) -> None:
    """1,000 calls at once over two servers: exactly as many are let through as the token limit has estimates and the
    concurrency limit places, the vendor never sees more, and what is settled is what the vendor counted."""
    proceed = asyncio.Event()
    in_flight = most_in_flight = 0

    async def counts(exchange: Exchange) -> None:
        nonlocal in_flight, most_in_flight
        in_flight += 1
        most_in_flight = max(most_in_flight, in_flight)
        await proceed.wait()
        in_flight -= 1
        await answers_text(exchange)

    request = small()
    room = 150
    rules = limits(
        redis.url,
        {"unit": "total_tokens", "limit": estimate(request) * room + 50, "window": 3600},
        {"unit": "concurrency", "limit": 200},
        timeout=10,
    )
    async with Vendor(counts) as vendor:
        async with serve(providers=at(vendor), limits=rules) as one, serve(providers=at(vendor), limits=rules) as two:
            calls = [asyncio.ensure_future(outcome((one, two)[n % 2].stub.Generate(request))) for n in range(1000)]
            await vendor.exchange(room)
            assert await eventually(lambda: sum(call.done() for call in calls) == 1000 - room, seconds=60)
            proceed.set()
            outcomes = await asyncio.gather(*calls)
            assert outcomes.count("OK") == room == len(vendor.exchanges) == most_in_flight
            assert all(each == "OK" or "total tokens" in each for each in outcomes)
            capacity = estimate(request) * room + 50
            for headgate in (one, two):
                assert await settled(headgate, vendor, capacity) == 0


async def test_two_servers_never_pass_a_concurrency_limit(serve: Serve, redis: RedisServer) -> None:
    """1,000 calls over two servers, sent again until they are let through: never more than the limit at the vendor."""
    in_flight = most_in_flight = 0

    async def counts(exchange: Exchange) -> None:
        nonlocal in_flight, most_in_flight
        in_flight += 1
        most_in_flight = max(most_in_flight, in_flight)
        await asyncio.sleep(0.005)
        in_flight -= 1
        await answers_text(exchange)

    rules = limits(redis.url, {"unit": "concurrency", "limit": 20}, timeout=10)

    async def persist(headgate: Headgate) -> None:
        while True:
            said = await outcome(headgate.stub.Generate(small()))
            if said == "OK":
                return
            assert "20 calls are allowed at a time" in said
            await asyncio.sleep(0.05)

    async with Vendor(counts) as vendor:
        async with serve(providers=at(vendor), limits=rules) as one, serve(providers=at(vendor), limits=rules) as two:
            await asyncio.gather(*(persist((one, two)[n % 2]) for n in range(1000)))
    assert len(vendor.exchanges) == 1000
    assert most_in_flight <= 20


async def load(headgate: Headgate, disturb: Callable[[], None], calls: int = 400) -> tuple[list[str], list[float]]:
    """Calls at 200/s, with the disturbance in the middle: their outcomes and how long each took."""
    outcomes: list[str] = []
    took: list[float] = []

    async def one() -> None:
        started = time.perf_counter()
        outcomes.append(await outcome(headgate.stub.Generate(small())))
        took.append(time.perf_counter() - started)

    running = []
    for number in range(calls):
        if number == calls // 2:
            disturb()
        running.append(asyncio.create_task(one()))
        await asyncio.sleep(0.005)
    await asyncio.gather(*running)
    return outcomes, took


@pytest.mark.parametrize("disturbance", ["kill", "freeze", "slow"])
async def test_no_call_fails_or_waits_long_without_redis(
    serve: Serve, redis: RedisServer, logged: LogLines, disturbance: str
) -> None:
    """Under load Redis is killed, frozen or slowed down: every call is answered, within the time budget, and Health
    tells of it; when Redis is well again it learns what was used meanwhile."""
    async with SlowPath(redis.port) as path, Vendor(answers_text) as vendor:
        rules = limits(path.url, PLENTY, {"unit": "total_tokens", "limit": TOKENS, "window": 3600})

        def disturb() -> None:
            match disturbance:
                case "kill":
                    redis.kill()
                case "freeze":
                    redis.freeze()
                case "slow":
                    path.delay = 0.05

        async with serve(providers=at(vendor), limits=rules) as headgate:
            await headgate.stub.Generate(small())
            outcomes, took = await load(headgate, disturb)
            assert set(outcomes) == {"OK"}
            assert quantiles(took, n=100)[98] < BUDGET + NOISE
            await until(headgate, pb.SERVING_STATE_DEGRADED)
            health = headgate.stub.Health(pb.HealthRequest())
            trailer: dict[str, Any] = dict(await health.trailing_metadata())
            assert trailer["x-ratelimit-state"].startswith("counting locally since ")
            match disturbance:
                case "kill":
                    redis.start()
                case "freeze":
                    redis.thaw()
                case "slow":
                    path.delay = 0.0
            await until(headgate, pb.SERVING_STATE_SERVING)
            if disturbance == "kill":
                left = await remaining(headgate, "tokens")
                assert 0 < TOKENS - left < 8 * len(vendor.exchanges), (
                    "Redis learns what came after it had lost the rest"
                )
            else:
                assert await settled(headgate, vendor, TOKENS) == 0, "nothing is lost, and nothing counted twice"
    events = [line["event"] for line in logged.lines if line["event"].startswith("limits_")]
    assert events[:2] == ["limits_degraded", "limits_restored"]


async def test_calls_are_refused_without_redis_if_policy_says_so(serve: Serve, redis: RedisServer) -> None:
    """Fail closed: UNAVAILABLE with RetryInfo, until Redis is back."""
    async with Vendor(answers_text) as vendor:
        rules = limits(redis.url, PLENTY, on_failure="closed")
        async with serve(providers=at(vendor), limits=rules) as headgate:
            assert await outcome(headgate.stub.Generate(small())) == "OK"
            redis.kill()
            failed = await failing(headgate.stub.Generate(small()))
            assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "GATEWAY_OVERLOADED")
            assert failed.details["RetryInfo"].retry_delay.seconds == 1
            await until(headgate, pb.SERVING_STATE_DEGRADED)
            redis.start()
            await until(headgate, pb.SERVING_STATE_SERVING)
            assert await outcome(headgate.stub.Generate(small())) == "OK"
    assert len(vendor.exchanges) == 2


async def test_limits_hold_in_each_server_while_redis_is_away(serve: Serve, redis: RedisServer) -> None:
    """Counted locally is still counted; a server that starts without Redis does so from its first call."""
    redis.kill()
    rule = {"unit": "requests", "limit": 3, "window": 3600}
    async with Vendor(answers_text) as vendor:
        async with serve(providers=at(vendor), limits=limits(redis.url, rule)) as headgate:
            assert await state(headgate) == pb.SERVING_STATE_DEGRADED
            outcomes = [await outcome(headgate.stub.Generate(small())) for _ in range(5)]
            assert [each == "OK" for each in outcomes] == [True, True, True, False, False]
            redis.start()
            await until(headgate, pb.SERVING_STATE_SERVING)
            refused = await failing(headgate.stub.Generate(small()))
            assert refused.reason == "RATE_LIMITED", "Redis was told of the three"


async def test_a_crashed_server_gives_back_what_it_held(serve: Serve, redis: RedisServer, tmp_path: Path) -> None:
    """A server that is killed in the middle of a call is not heard of for a lease; then others have its place."""

    async def stalls(exchange: Exchange) -> None:
        await exchange.caller_closed.wait()

    async with Vendor(stalls) as vendor:
        rules = limits(redis.url, {"unit": "concurrency", "limit": 1}, lease=1)
        config = tmp_path / "headgate.yaml"
        config.write_text(
            f'providers: {{v: {{adapter: openai, base_url: "{vendor.base_url}"}}}}\n'
            "limits:\n  rules: [{unit: concurrency, limit: 1}]\n"
            f'  store: {{type: redis, url: "{redis.url}", lease: 1}}\n'
        )
        async with headgate_serve("--config", str(config)) as crashing:
            async with grpc.aio.insecure_channel(crashing.address) as channel:
                lost = asyncio.ensure_future(failing(pb.InferenceServiceStub(channel).Generate(small())))
                await vendor.exchange()
                async with serve(providers=at(vendor), limits=rules) as headgate:
                    assert (await failing(headgate.stub.Generate(small()))).reason == "RATE_LIMITED"
                    await asyncio.sleep(1.5)
                    held = await failing(headgate.stub.Generate(small()))
                    assert held.reason == "RATE_LIMITED", "a server that lives renews its lease"
                    crashing.process.send_signal(signal.SIGKILL)
                    await lost
                    vendor.behave = answers_text
                    async with asyncio.timeout(10):
                        while await outcome(headgate.stub.Generate(small())) != "OK":
                            await asyncio.sleep(0.05)


async def test_a_call_that_ends_by_cancel_is_settled(serve: Serve, redis: RedisServer) -> None:
    """A caller that leaves frees its place for the other server's callers."""

    async def stalls(exchange: Exchange) -> None:
        await exchange.caller_closed.wait()

    rules = limits(redis.url, {"unit": "concurrency", "limit": 1})
    async with Vendor(stalls) as vendor:
        async with serve(providers=at(vendor), limits=rules) as one, serve(providers=at(vendor), limits=rules) as two:
            call = one.stub.Generate(small())
            waiting = asyncio.ensure_future(outcome(call))
            await vendor.exchange()
            assert await outcome(two.stub.Generate(small())) != "OK"
            call.cancel()
            await asyncio.wait([waiting])
            vendor.behave = answers_text
            async with asyncio.timeout(5):
                while await outcome(two.stub.Generate(small())) != "OK":
                    await asyncio.sleep(0.01)


async def test_a_forgotten_script_is_sent_again(serve: Serve, redis: RedisServer) -> None:
    """SCRIPT FLUSH, or a failover to a replica that never saw it, costs one more round trip."""
    rule = {"unit": "requests", "limit": 10, "window": 3600}
    async with Vendor(answers_text) as vendor, Redis(port=redis.port) as client:
        async with serve(providers=at(vendor), limits=limits(redis.url, rule)) as headgate:
            assert await remaining(headgate, "requests") == 9
            await client.script_flush()
            assert await remaining(headgate, "requests") == 8
            assert await state(headgate) == pb.SERVING_STATE_SERVING


async def test_a_reload_keeps_the_connection(serve: Serve, redis: RedisServer) -> None:
    """Rules change while the store stays: nobody connects again; another store is another limiter."""
    async with Vendor(answers_text) as vendor, Redis(port=redis.port) as client:

        def config(limit: int, **store: Any) -> Config:
            rule = {"unit": "requests", "limit": limit, "window": 3600}
            sections = {"providers": at(vendor), "limits": limits(redis.url, rule, **store)}
            return Config.model_validate({"auth": {"anonymous": True}, **sections})

        async def connected() -> list[str]:
            return [each["id"] for each in await client.client_list() if each["cmd"] in ("evalsha", "script|load")]

        rule = {"unit": "requests", "limit": 5, "window": 3600}
        async with serve(providers=at(vendor), limits=limits(redis.url, rule)) as headgate:
            assert await remaining(headgate, "requests") == 4
            before = await connected()
            await headgate.application.reload(config(7))
            assert await remaining(headgate, "requests") == 5
            assert await connected() == before
            await headgate.application.reload(config(7, key_prefix="{other}:"))
            assert await remaining(headgate, "requests") == 6
            assert await connected() != before


async def test_redis_holds_nothing_for_ever(serve: Serve, redis: RedisServer) -> None:
    """Every counter has an end, and nothing is left of calls that are over."""
    rules = limits(redis.url, PLENTY, {"unit": "concurrency", "limit": 5})
    async with Vendor(answers_text) as vendor, Redis(port=redis.port) as client:
        async with serve(providers=at(vendor), limits=rules) as headgate:
            await headgate.stub.Generate(small())
        keys = [key async for key in client.scan_iter()]
        assert all(key.startswith(b"{headgate}:") for key in keys)
        lasting = [key for key in keys if await client.pttl(key) < 0]
    assert lasting == [b"{headgate}:holders"]


async def test_nobody_waits_for_a_redis_that_does_not_even_read(redis: RedisServer) -> None:
    """When what is written piles up in this machine, reservations end within the time budget all the same, the breaker
    opens, and when Redis reads again it is asked again."""
    limiter = SharedLimiter(LimitStore.model_validate({"type": "redis", "url": redis.url}))
    counted = limit("requests", "sliding_window", 1000, MINUTE)
    more_than_sockets_hold, take = Take(Scoped("x" * 16_000_000, counted), 1), Take(Scoped("x", counted), 1)
    await limiter.start()
    try:
        redis.freeze()
        async with asyncio.timeout(STALLED_SECONDS / 2):
            decided = [await limiter.reserve([more_than_sockets_hold])]
            decided += await asyncio.gather(*(limiter.reserve([take]) for _ in range(50)))
        assert all(reservation.granted and not reservation.shared for reservation in decided)
        assert limiter.trouble
        redis.thaw()
        assert await eventually(lambda: not limiter.trouble, seconds=10)
        reservation = await limiter.reserve([take])
        assert reservation.shared
    finally:
        await limiter.close()


async def use(limiter: SharedLimiter, key: str, algorithm: Algorithm, used: int) -> None:
    """One call that takes one, and has used so much in the end."""
    counted = Scoped(key, limit("requests", algorithm, 1000, MINUTE))
    take = Take(counted, 1)
    reservation = await limiter.reserve([take])
    take.truth = used
    limiter.settle(reservation)


async def test_redis_is_told_in_small_pieces_and_only_of_what_was_used(redis: RedisServer) -> None:
    """Neither what was given back nor places that are free again are worth a word; the rest does not hold up calls."""
    limiter = SharedLimiter(LimitStore.model_validate({"type": "redis", "url": redis.url}))
    counters = OWED_AT_ONCE * 2 + 5
    for n in range(counters):
        await use(limiter, f"used {n}", "sliding_window", 1)
        await use(limiter, f"unused {n}", "sliding_window", 0)
        await use(limiter, f"place {n}", "concurrency", 1)
    await limiter.start()
    try:
        counted = limit("requests", "sliding_window", 1000, MINUTE)
        takes = [Take(Scoped(f"used {n}", counted), 1) for n in range(counters)]
        await limiter.reserve(takes)
        assert [take.used for take in takes] == [2] * counters
        async with Redis(port=redis.port) as client:
            assert len([key async for key in client.scan_iter("*charged:*")]) == 3
    finally:
        await limiter.close()


async def test_what_redis_is_to_be_told_is_bounded(logged: LogLines) -> None:
    """Callers whose counters are too many to be kept are not; the log says that something was lost."""
    limiter = SharedLimiter(LimitStore.model_validate({"type": "redis", "url": "redis://127.0.0.1:1"}))
    for n in range(MOST_OWED):
        await use(limiter, str(n), "sliding_window", 1)
    assert "settlement_lost" not in [line["event"] for line in logged.lines]
    await use(limiter, "0", "sliding_window", 1)
    assert "settlement_lost" not in [line["event"] for line in logged.lines]
    await use(limiter, "one more", "sliding_window", 1)
    assert "settlement_lost" in [line["event"] for line in logged.lines]
