"""Budgets that several servers share in a real Redis, which is killed and loses all that it knew."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from headgate import v1 as pb
from redis import Redis

from tests.budgets.priced import INPUT, OUTPUT, USUAL, answers, budget, estimate, priced, small
from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, eventually, failing
from tests.redis_server import RedisServer, redis_server
from tests.vendor import Exchange, Vendor, answers_text

ENDED = "SELECT count(*) FROM headgate_calls WHERE outcome = 'OK'"


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    with redis_server() as server:
        yield server


def shared(redis: RedisServer, limits: dict[str, Any], **store: Any) -> dict[str, Any]:
    """These limits, counted in that Redis."""
    return {**limits, "store": {"type": "redis", "url": redis.url, "timeout": 10, **store}}


def settled(*servers: Headgate) -> int:
    """Nanos that these servers have heard from Redis to be spent."""
    return sum(sum(server.application.runtime.limits.limiter.watch.spent.values()) for server in servers)


async def refused(headgate: Headgate, request: pb.GenerateRequest) -> bool:
    """Whether there is no money for it; nothing else may go wrong."""
    call = headgate.stub.Generate(request)
    if await call.code() == grpc.StatusCode.OK:
        return False
    assert (await failing(call)).reason == "BUDGET_EXCEEDED"
    return True


async def test_a_thousand_calls_over_two_servers_spend_no_more_than_there_is(
    serve: Serve, redis: RedisServer, logged: LogLines
) -> None:
    """Calls of random cost, by random limits of output that the vendor sometimes passes: what it charged is at most the
    budget and its own excess, what is settled is what it charged, no money is left that would have let a call through,
    and each threshold is told by one server alone."""
    dice = random.Random(9)
    charged = excess = 0

    async def charges(exchange: Exchange) -> None:
        nonlocal charged, excess
        await asyncio.sleep(dice.uniform(0, 0.02))
        most = exchange.json["max_tokens"]
        more = 50 if dice.random() < 0.1 else 0
        output = most + more if more else dice.randint(1, most)
        charged += 5 * INPUT + output * OUTPUT
        excess += more * OUTPUT
        await answers(5, output)(exchange)

    amount = 500_000_000
    limits = shared(redis, budget(amount, soft=[0.25, 0.5, 0.75]))
    async with Vendor(charges) as vendor:
        providers = {"v": priced(vendor, max_connections=2000)}
        async with serve(providers=providers, limits=limits) as one, serve(providers=providers, limits=limits) as two:
            requests = [small(most=dice.randint(1, 500)) for _ in range(1000)]
            outcomes = await asyncio.gather(
                *(refused((one, two)[n % 2], request) for n, request in enumerate(requests))
            )
            assert 0 < outcomes.count(False) == len(vendor.exchanges) < 1000
            assert await eventually(lambda: settled(one, two) == charged, seconds=10)
            assert charged <= amount + excess
            left = amount - charged
            request = small(most=1)
            request.config.max_output_tokens = max((left - request.ByteSize() * INPUT - 100 * INPUT) // OUTPUT, 1)
            assert await refused(one, request) == (estimate(request) > left)
    told = [line["share"] for line in logged.lines if line["event"] == "budget_threshold_passed"]
    assert sorted(told) == ["0.25", "0.5", "0.75"]
    assert [line["event"] for line in logged.lines].count("budget_exceeded") <= 2, "each server says so once"


@pytest.mark.parametrize("policy", ["open", "closed"])
async def test_without_redis_money_is_not_there_anew(serve: Serve, redis: RedisServer, policy: str) -> None:
    """A server goes on from what it heard last, or refuses; when Redis is back it learns what was spent meanwhile."""
    request = small()
    limits = shared(redis, budget(estimate(request) + 4 * USUAL), on_failure=policy)
    async with Vendor(answers_text) as vendor:
        async with serve(providers={"v": priced(vendor)}, limits=limits) as headgate:
            for _ in range(3):
                assert not await refused(headgate, request)
            assert await eventually(lambda: settled(headgate) == 3 * USUAL)
            redis.kill()
            assert await eventually(lambda: bool(headgate.application.runtime.limits.limiter.trouble), seconds=5)
            if policy == "closed":
                assert (await failing(headgate.stub.Generate(request))).reason == "GATEWAY_OVERLOADED"
                return
            assert not await refused(headgate, request)
            assert not await refused(headgate, request)
            assert await refused(headgate, request)
            redis.start()
            assert await eventually(lambda: not headgate.application.runtime.limits.limiter.trouble, seconds=5)
            assert await eventually(lambda: settled(headgate) == 5 * USUAL, seconds=5)


async def test_a_redis_that_lost_everything_is_told_what_the_ledger_knows(
    serve: Serve, redis: RedisServer, tmp_path: Path
) -> None:
    """However many servers tell it, it is counted once; and so it is when nothing was lost."""
    request = small()
    limits = shared(redis, budget(estimate(request) + 5 * USUAL))
    ledger = {"url": f"sqlite:///{tmp_path}/ledger.db"}
    async with Vendor(answers_text) as vendor, AsyncExitStack() as stack:
        providers = {"v": priced(vendor)}
        one = await stack.enter_async_context(serve(providers=providers, limits=limits, ledger=ledger))
        for _ in range(5):
            assert not await refused(one, request)
        assert await eventually(lambda: settled(one) == 5 * USUAL)
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as rows:
            assert await eventually(lambda: rows.execute(ENDED).fetchone() == (5,))
        redis.kill()
        redis.start()
        two = await stack.enter_async_context(serve(providers=providers, limits=limits))
        with Redis(port=redis.port) as store:
            assert await eventually(lambda: store.keys("*cost*"), seconds=10)
        assert not await refused(two, request)
        assert await eventually(lambda: settled(two) == USUAL)
        assert await refused(two, request), "six are spent: five by the ledger's word"
        assert len(vendor.exchanges) == 6


async def test_a_counter_that_is_missing_is_noticed_before_money_is_spent_again(
    serve: Serve, redis: RedisServer
) -> None:
    """Redis was emptied, or has put it out to save memory, and the connection stands: the servers know better."""
    request = small()
    limits = shared(redis, budget(estimate(request) + 5 * USUAL - 1))
    async with Vendor(answers_text) as vendor:
        async with serve(providers={"v": priced(vendor)}, limits=limits) as headgate:
            for _ in range(5):
                assert not await refused(headgate, request)
            assert await eventually(lambda: settled(headgate) == 5 * USUAL)
            with Redis(port=redis.port) as store:
                store.flushall()
            assert await refused(headgate, request)
            assert not await refused(headgate, small(most=99))
        assert len(vendor.exchanges) == 6
