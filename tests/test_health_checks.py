"""Idle providers are looked after; what that finds shows in Health and decides who is asked first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from headgate import v1 as pb

from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, ask
from tests.vendor import Exchange, Vendor, answers_text, at

CHECKED = {"retry": {"max_attempts": 1}, "health": {"interval": 0.1, "timeout": 0.3}}


async def lists_models(exchange: Exchange) -> None:
    """A vendor in good health, its list of models included."""
    if exchange.method == "GET":
        await exchange.answer(200, {"object": "list", "data": []})
    else:
        await answers_text(exchange)


def listing(status: int) -> Any:
    """A vendor whose list of models answers that status; it generates all the same."""

    async def behave(exchange: Exchange) -> None:
        if exchange.method == "GET":
            await exchange.answer(status, {"error": {"message": "no"}})
        else:
            await answers_text(exchange)

    return behave


async def stalls(exchange: Exchange) -> None:
    await exchange.caller_closed.wait()


async def provider(headgate: Headgate, name: str = "v") -> pb.ProviderHealth:
    """What Health says of it."""
    health = await headgate.stub.Health(pb.HealthRequest())
    return next(found for found in health.providers if found.provider == name)


async def until(headgate: Headgate, state: pb.ServingState.ValueType, name: str = "v") -> pb.ProviderHealth:
    """Waits until Health shows the state."""
    async with asyncio.timeout(5):
        while (found := await provider(headgate, name)).state != state:
            await asyncio.sleep(0.02)
    return found


async def test_an_idle_provider_is_asked_for_its_models(serve: Serve) -> None:
    """With its key, at /models; an answer makes it SERVING before its first call, and counts as no call."""
    async with Vendor(lists_models) as vendor:
        async with serve(providers={"v": at(vendor, api_key="sk-1")}, routing=CHECKED) as headgate:
            assert (await provider(headgate)).state == pb.SERVING_STATE_UNSPECIFIED
            found = await until(headgate, pb.SERVING_STATE_SERVING)
            checks = [(e.method, e.path, e.headers["authorization"]) for e in vendor.exchanges]
            assert (await headgate.stub.Generate(ask("v/m"), timeout=10)).candidates
    assert set(checks) == {("GET", "/v1/models", "Bearer sk-1")}
    assert (found.total_calls, found.in_flight, found.circuit) == (0, 0, pb.CIRCUIT_STATE_CLOSED)
    assert found.HasField("last_success_time")


@pytest.mark.parametrize(
    ("behave", "state", "detail"),
    [
        (stalls, pb.SERVING_STATE_NOT_SERVING, "check: PROVIDER_TIMEOUT"),
        (listing(500), pb.SERVING_STATE_NOT_SERVING, "check: PROVIDER_ERROR"),
        (listing(503), pb.SERVING_STATE_NOT_SERVING, "check: PROVIDER_OVERLOADED"),
        (listing(401), pb.SERVING_STATE_DEGRADED, "check: PROVIDER_CREDENTIALS_REJECTED"),
        (listing(404), pb.SERVING_STATE_SERVING, ""),
    ],
    ids=["stalls", "500", "503", "401", "404"],
)
async def test_what_a_check_finds_shows_in_health(
    serve: Serve, behave: Any, state: pb.ServingState.ValueType, detail: str
) -> None:
    """Not every host lists models, and not every key may: only silence and 5xx mean that nothing works there."""
    async with Vendor(behave) as vendor, serve(providers={"v": at(vendor)}, routing=CHECKED) as headgate:
        assert (await until(headgate, state)).detail == detail


async def test_a_provider_found_unreachable_is_asked_last_until_it_answers(serve: Serve, logged: LogLines) -> None:
    """Callers do not pay for finding out; one check that succeeds puts it back, and both are logged once."""
    healthy = asyncio.Event()

    async def recovers(exchange: Exchange) -> None:
        if not healthy.is_set():
            exchange.reset()
        else:
            await lists_models(exchange)

    async with Vendor(recovers) as first, Vendor(lists_models) as second:
        targets = [{"provider": name, "model": "m"} for name in ("first", "second")]
        providers = {"first": at(first), "second": at(second)}
        async with serve(providers=providers, models={"fast": {"targets": targets}}, routing=CHECKED) as headgate:
            await until(headgate, pb.SERVING_STATE_NOT_SERVING, "first")
            answer = await headgate.stub.Generate(ask("fast"), timeout=10)
            assert [attempt.provider for attempt in answer.attempts] == ["second"]
            healthy.set()
            await until(headgate, pb.SERVING_STATE_SERVING, "first")
            answer = await headgate.stub.Generate(ask("fast"), timeout=10)
            assert [attempt.provider for attempt in answer.attempts] == ["first"]
    events = [
        line["event"] for line in logged.lines if line.get("provider") == "first" and line["component"] == "health"
    ]
    assert events == ["provider_check_failed", "provider_reachable_again"]


async def test_a_busy_provider_is_not_checked(serve: Serve) -> None:
    """Its traffic says more than a check could."""
    async with Vendor(lists_models) as vendor, serve(providers={"v": at(vendor)}, routing=CHECKED) as headgate:
        for _ in range(25):
            await headgate.stub.Generate(ask("v/m"), timeout=10)
            await asyncio.sleep(0.02)
        assert [exchange.method for exchange in vendor.exchanges].count("GET") == 0


async def test_checks_can_be_switched_off(serve: Serve) -> None:
    """interval 0 asks nobody."""
    off = {"health": {"interval": 0}}
    async with Vendor(lists_models) as vendor, serve(providers={"v": at(vendor)}, routing=off):
        await asyncio.sleep(0.3)
        assert vendor.exchanges == []


async def test_a_vendors_outage_does_not_take_the_replica_away(serve: Serve) -> None:
    """Kubernetes readiness speaks of this process alone: callers get the rich error instead."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with Vendor(stalls) as vendor, serve(providers={"v": at(vendor)}, routing=CHECKED) as headgate:
        await until(headgate, pb.SERVING_STATE_NOT_SERVING)
        stub: Any = health_pb2_grpc.HealthStub(headgate.channel)
        for name in ("", "readiness", "headgate.v1.InferenceService"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
