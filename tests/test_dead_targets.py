"""One of two targets is dead, or slow: callers see no error, and soon they do not even wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from headgate import v1 as pb

from tests.conftest import LogLines, Serve
from tests.faults import answers, port_without_answer, port_without_listener
from tests.headgate_process import Headgate, ask
from tests.vendor import Exchange, Vendor

CONNECT_SECONDS = 1.0
FAILURES_TO_OPEN = 5
CALLS = 40
STRATEGIES = ("priority", "weighted", "least-busy", "latency", "cost")
QUICK_SECONDS, SLOW_SECONDS, SLOWEST_SECONDS = 0.005, 0.5, 1.5
FEW = 4
"""Calls of twenty that a busy machine may send astray: a quick target is slow when nobody runs it."""


def beside(healthy: Vendor, dead_port: int, strategy: str = "priority") -> dict[str, Any]:
    """Alias `m` over a dead provider and a healthy one, in that order."""
    clocks = {"connect": CONNECT_SECONDS}
    breaker = {"consecutive_failures": FAILURES_TO_OPEN, "open_for": 60}
    dead = {"adapter": "openai", "base_url": f"http://127.0.0.1:{dead_port}/v1", "clocks": clocks, "breaker": breaker}
    targets = [{"provider": provider, "model": "x"} for provider in ("dead", "healthy")]
    return {
        "providers": {"dead": dead, "healthy": {"adapter": "openai", "base_url": healthy.base_url}},
        "models": {"m": {"targets": targets, "strategy": strategy}},
    }


async def timed(headgate: Headgate) -> tuple[float, list[str]]:
    """One call: its seconds, and the providers that were asked."""
    began = time.monotonic()
    answer = await headgate.stub.Generate(ask("m"))
    assert answer.provider == "healthy"
    return time.monotonic() - began, [attempt.provider for attempt in answer.attempts]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_target_that_refuses_connections_costs_no_caller_an_answer(
    serve: Serve, logged: LogLines, strategy: str
) -> None:
    """Whichever strategy picks it: it is asked until its circuit opens, no more often, and nobody sees an error."""
    async with Vendor(answers) as healthy:
        with port_without_listener() as port:
            async with serve(**beside(healthy, port, strategy)) as headgate:
                calls = [await timed(headgate) for _ in range(CALLS)]
    asked_in_vain = sum(providers.count("dead") for _, providers in calls)
    assert asked_in_vain <= FAILURES_TO_OPEN
    if strategy in ("priority", "cost"):
        assert asked_in_vain == FAILURES_TO_OPEN
    assert logged.errors == []


async def test_a_target_that_never_answers_a_connect_is_waited_for_until_its_circuit_opens(
    serve: Serve, logged: LogLines
) -> None:
    """The first calls pay one connect timeout each; from then on nobody does, one at a time or all at once."""
    async with Vendor(answers) as healthy:
        with port_without_answer() as port:
            async with serve(**beside(healthy, port)) as headgate:
                before = [await timed(headgate) for _ in range(FAILURES_TO_OPEN)]
                after = [await timed(headgate) for _ in range(CALLS)]
                after += await asyncio.gather(*(timed(headgate) for _ in range(CALLS)))
                health = await headgate.stub.Health(pb.HealthRequest())
    assert [providers for _, providers in before] == [["dead", "healthy"]] * FAILURES_TO_OPEN
    assert [providers for _, providers in after] == [["healthy"]] * 2 * CALLS
    assert all(seconds >= CONNECT_SECONDS for seconds, _ in before)
    assert max(seconds for seconds, _ in after) < CONNECT_SECONDS
    circuits = {provider.provider: provider.circuit for provider in health.providers}
    assert circuits == {"dead": pb.CIRCUIT_STATE_OPEN, "healthy": pb.CIRCUIT_STATE_CLOSED}
    assert logged.errors == []


async def test_a_burst_at_a_target_that_just_died_is_answered_by_the_other(serve: Serve, logged: LogLines) -> None:
    """Calls that begin before the first failure is known wait for one connect timeout, not for several."""
    async with Vendor(answers) as healthy:
        with port_without_answer() as port:
            async with serve(**beside(healthy, port)) as headgate:
                calls = await asyncio.gather(*(timed(headgate) for _ in range(CALLS)))
                after = await asyncio.gather(*(timed(headgate) for _ in range(CALLS)))
    assert all(providers in (["dead", "healthy"], ["healthy"]) for _, providers in calls)
    assert [providers for _, providers in after] == [["healthy"]] * CALLS
    assert logged.errors == []


Ask = Callable[[Headgate], Awaitable[str]]


async def generate(headgate: Headgate) -> str:
    return (await headgate.stub.Generate(ask("m"))).provider


async def stream(headgate: Headgate) -> str:
    events = [event async for event in headgate.stub.StreamGenerate(ask("m"))]
    return events[0].generation_start.provider


async def embed(headgate: Headgate) -> str:
    return (await headgate.stub.Embed(pb.EmbedRequest(model="m", inputs=[pb.EmbedInput(text="Hi")]))).provider


@pytest.mark.parametrize("rpc", [generate, stream, embed])
async def test_latency_moves_traffic_away_from_a_slow_target_within_twenty_calls(serve: Serve, rpc: Ask) -> None:
    """The quicker of two has the traffic until it is the slower one; what is slow from the start hardly gets any."""
    seconds = {"a": QUICK_SECONDS, "b": SLOW_SECONDS}  # so far apart that no pause of the machine swaps them

    def behaviour(name: str) -> Callable[[Exchange], Awaitable[None]]:
        async def behave(exchange: Exchange) -> None:
            await asyncio.sleep(seconds[name])
            await answers(exchange)

        return behave

    async with Vendor(behaviour("a")) as first, Vendor(behaviour("b")) as second:
        providers = {
            name: {"adapter": "openai", "base_url": vendor.base_url} for name, vendor in (("a", first), ("b", second))
        }
        targets = [{"provider": name, "model": "x"} for name in providers]
        models = {"m": {"targets": targets, "strategy": "latency"}}
        async with serve(providers=providers, models=models) as headgate:
            learning = [await rpc(headgate) for _ in range(20)]
            learnt = [await rpc(headgate) for _ in range(20)]
            seconds.update(a=SLOWEST_SECONDS, b=QUICK_SECONDS)
            moving = [await rpc(headgate) for _ in range(20)]
            moved = [await rpc(headgate) for _ in range(20)]
    assert learning.count("a") > 10
    assert learnt.count("b") < FEW
    assert moving.count("b") > 10
    assert moved.count("a") < FEW
