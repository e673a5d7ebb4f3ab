"""Retries through the front door: how often, how soon, and when not at all."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from headgate import v1 as pb

from tests.conftest import LogLines, Serve
from tests.faults import answers, refuses_with
from tests.headgate_process import ask, eventually, failing
from tests.vendor import Behaviour, Exchange, Vendor

AT_ONCE_SECONDS = 1.0
"""More than a call takes that waits for nothing, on a busy machine."""


def at(vendor: Vendor, **settings: Any) -> dict[str, Any]:
    """A provider of OpenAI's wire at this vendor, which is not left alone however often it fails."""
    never = {"consecutive_failures": 0}
    return {"adapter": "openai", "base_url": vendor.base_url, "breaker": never, **settings}


def retrying(**settings: Any) -> dict[str, Any]:
    """Routing whose retries come soon."""
    return {"retry": {"base_delay": 0.001, **settings}}


def fails_first(times: int, behaviour: Behaviour) -> Behaviour:
    """So many failures, then good health."""
    left = times

    async def behave(exchange: Exchange) -> None:
        nonlocal left
        left -= 1
        await (behaviour if left >= 0 else answers)(exchange)

    return behave


async def test_a_storm_does_not_double_the_load(serve: Serve) -> None:
    """Of a target that fails every time, retries ask a fifth more at most, and what was saved up before."""
    calls, ratio, reserve = 60, 0.2, 3
    async with Vendor(refuses_with(500)) as vendor:
        routing = retrying(max_attempts=4, budget_ratio=ratio, budget_reserve=reserve)
        async with serve(providers={"v": at(vendor)}, routing=routing) as headgate:
            for _ in range(calls):
                assert (await failing(headgate.stub.Generate(ask("v/m")))).reason == "PROVIDER_ERROR"
    assert calls < len(vendor.exchanges) <= calls * (1 + ratio) + reserve


@pytest.mark.parametrize(
    ("of_target", "of_call", "of_request", "most"),
    [(3, 8, None, 3), (8, 3, None, 3), (8, 8, 2, 2), (3, 8, 7, 3)],
    ids=["target", "call", "request", "a request can only lower it"],
)
async def test_attempts_are_capped(
    serve: Serve, of_target: int, of_call: int, of_request: int | None, most: int
) -> None:
    """By retry.max_attempts, routing.max_attempts and execution.max_attempts, whichever is least."""
    async with Vendor(refuses_with(503)) as vendor:
        routing = {**retrying(max_attempts=of_target), "max_attempts": of_call}
        async with serve(providers={"v": at(vendor)}, routing=routing) as headgate:
            request = ask("v/m")
            if of_request is not None:
                request.execution.max_attempts = of_request
            failed = await failing(headgate.stub.Generate(request))
    assert (failed.reason, failed.facts["attempt_count"]) == ("PROVIDER_OVERLOADED", str(most))
    assert len(vendor.exchanges) == most


@pytest.mark.parametrize(("deadline", "longest"), [(5.0, 30.0), (60.0, 8.0)], ids=["deadline", "configuration"])
async def test_a_retry_after_that_is_too_far_away_is_passed_on_instead(
    serve: Serve, deadline: float, longest: float
) -> None:
    """Neither beyond the caller's deadline nor beyond max_retry_after is a vendor waited for: the caller hears when."""
    async with Vendor(refuses_with(429, retry_after="9")) as vendor:
        async with serve(providers={"v": at(vendor)}, routing=retrying(max_retry_after=longest)) as headgate:
            began = time.monotonic()
            failed = await failing(headgate.stub.Generate(ask("v/m"), timeout=deadline))
    assert time.monotonic() - began < AT_ONCE_SECONDS
    assert (failed.code.name, failed.reason) == ("RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED")
    assert failed.details["RetryInfo"].retry_delay.seconds == 9
    assert len(vendor.exchanges) == 1


async def test_a_target_that_cools_down_is_waited_for_or_passed_by(serve: Serve, logged: LogLines) -> None:
    """After a 429 a call with another target goes there, one with time waits, and one without hears when to come."""
    cools = 0.6
    limits = fails_first(1, refuses_with(429, retry_after=str(cools)))
    async with Vendor(limits) as limited, Vendor(answers) as healthy:
        providers = {"a": at(limited, retry={"max_attempts": 1}), "b": at(healthy)}
        models = {"m": {"targets": [{"provider": name, "model": "x"} for name in providers]}}
        async with serve(providers=providers, models=models) as headgate:
            assert (await failing(headgate.stub.Generate(ask("a/x")))).reason == "PROVIDER_RATE_LIMITED"
            limited_at = time.monotonic()
            elsewhere = await headgate.stub.Generate(ask("m"))
            hurried = await failing(headgate.stub.Generate(ask("a/x"), timeout=cools / 2))
            hurried_at = time.monotonic()
            assert len(limited.exchanges) == 1
            waited = await headgate.stub.Generate(ask("a/x"), timeout=30)
    assert [attempt.provider for attempt in elsewhere.attempts] == ["b"]
    assert hurried_at - limited_at < cools / 2
    assert (hurried.reason, "attempt_count" in hurried.facts) == ("PROVIDER_RATE_LIMITED", False)
    assert 0 < hurried.details["RetryInfo"].retry_delay.ToMilliseconds() <= cools * 1000
    assert int(hurried.trailer["grpc-retry-pushback-ms"]) > 0
    assert time.monotonic() - limited_at >= cools
    assert len(waited.attempts) == 1
    assert logged.errors == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_what_will_not_pass_is_not_asked_for_again(serve: Serve, status: int) -> None:
    """The request, the key or the model is wrong: asking once more changes nothing."""
    async with Vendor(refuses_with(status)) as vendor:
        async with serve(providers={"v": at(vendor)}, routing=retrying()) as headgate:
            failed = await failing(headgate.stub.Generate(ask("v/m")))
    assert failed.facts["attempt_count"] == "1"
    assert len(vendor.exchanges) == 1


async def test_one_batch_of_an_embed_is_retried_alone(serve: Serve) -> None:
    """The others are not asked for again, and the rows come in order."""
    failed: list[str] = []

    async def fails_b_once(exchange: Exchange) -> None:
        (text,) = exchange.json["input"]
        if text == "b" and not failed:
            failed.append(text)
            await refuses_with(500)(exchange)
            return
        row = {"index": 0, "embedding": [float("abc".index(text)), 1.0]}
        await exchange.answer(200, {"data": [row], "model": "m", "usage": {"prompt_tokens": 1}})

    async with Vendor(fails_b_once) as vendor:
        provider = at(vendor, quirks={"embed_batch": 1})
        async with serve(providers={"v": provider}, routing=retrying()) as headgate:
            inputs = [pb.EmbedInput(text=text) for text in "abc"]
            answer = await headgate.stub.Embed(
                pb.EmbedRequest(model="v/m", inputs=inputs, layout=pb.EMBED_LAYOUT_FLOAT_LIST)
            )
    assert [row.values[0] for row in answer.vectors] == [0.0, 1.0, 2.0]
    assert sorted(exchange.json["input"][0] for exchange in vendor.exchanges) == ["a", "b", "b", "c"]
    assert sorted(attempt.outcome for attempt in answer.attempts) == [pb.ATTEMPT_OUTCOME_OK] * 3 + [
        pb.ATTEMPT_OUTCOME_FAILED
    ]


@pytest.mark.parametrize("rpc", ["Generate", "StreamGenerate"])
async def test_a_caller_who_leaves_between_two_tries_ends_the_call(serve: Serve, logged: LogLines, rpc: str) -> None:
    """Nothing is asked any more; the log has the one attempt that failed."""
    async with Vendor(refuses_with(500, retry_after="5")) as vendor:
        async with serve(providers={"v": at(vendor)}, routing=retrying()) as headgate:
            call = getattr(headgate.stub, rpc)(ask("v/m"), timeout=30)
            waiting = asyncio.ensure_future(failing(call))
            await vendor.exchange()
            state = headgate.application.runtime.providers["v"].states.of("m")
            await eventually(lambda: not state.in_flight)
            call.cancel()
            await asyncio.wait((waiting,))
            assert await headgate.idle()
    (line,) = logged.calls
    assert line["code"] == "CANCELLED"
    assert [attempt["outcome"] for attempt in line["attempts"]] == ["FAILED"]
    assert len(vendor.exchanges) == 1
    assert logged.errors == []


async def test_calls_in_the_queue_keep_a_retry_after_that_came_meanwhile(serve: Serve) -> None:
    """One place, five calls, the first is told to wait: the others are not sent into the same refusal."""

    async def limits(exchange: Exchange) -> None:
        await asyncio.sleep(0.1)
        await exchange.answer(429, {"error": {"type": "rate_limit"}}, {"retry-after": "20"})

    async with Vendor(limits) as vendor:
        provider = {"adapter": "openai", "base_url": vendor.base_url, "concurrency": {"limit": 1}}
        async with serve(providers={"v": provider}) as headgate:
            calls = [failing(headgate.stub.Generate(ask("v/m"), timeout=10)) for _ in range(5)]
            failures = await asyncio.gather(*calls)
    assert {failed.reason for failed in failures} == {"PROVIDER_RATE_LIMITED"}
    assert len(vendor.exchanges) == 1
