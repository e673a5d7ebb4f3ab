"""Calls without a deadline get the server's, and are told so; only the caller's own yields DEADLINE_EXCEEDED."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from headgate import v1 as pb

from tests.conftest import LogLines, Serve
from tests.headgate_process import ask, eventually, failing, until_failure
from tests.vendor import (
    Exchange,
    Vendor,
    answers_text,
    floods,
    stalls_before_headers,
    stalls_in_the_stream,
)


def patient(seconds: float) -> dict[str, Any]:
    """Routing with that default deadline."""
    return {"default_deadline": seconds, "retry": {"max_attempts": 1}}


def at(vendor: Vendor) -> dict[str, Any]:
    """The provider `v` at this vendor."""
    return {"v": {"adapter": "openai", "base_url": vendor.base_url}}


async def test_a_call_without_deadline_is_warned(serve: Serve) -> None:
    """Generate, StreamGenerate and Embed say so in their warnings; with a deadline none does."""
    async with serve(providers={"demo": {"adapter": "mock"}}, routing=patient(30)) as headgate:
        inputs = [pb.EmbedInput(text="a")]
        for timeout in (None, 10):
            plain = await headgate.stub.Generate(ask("demo/echo"), timeout=timeout)
            events = [event async for event in headgate.stub.StreamGenerate(ask("demo/echo"), timeout=timeout)]
            embed = await headgate.stub.Embed(pb.EmbedRequest(model="demo/embed", inputs=inputs), timeout=timeout)
            for warnings in (plain.warnings, events[0].generation_start.warnings, embed.warnings):
                told = [warning.message for warning in warnings if warning.code == "default-deadline"]
                assert told == ([] if timeout else ["the call has no deadline: it ends after 30 s"])


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_default_deadline_is_a_timeout_of_ours(serve: Serve, streamed: bool) -> None:
    """Before the commit point it is UNAVAILABLE, and its phase says that it was the default."""
    async with Vendor(stalls_before_headers) as vendor, serve(providers=at(vendor), routing=patient(0.2)) as headgate:
        rpc = headgate.stub.StreamGenerate if streamed else headgate.stub.Generate
        failed = await failing(rpc(ask("v/m")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_TIMEOUT")
    assert failed.facts["phase"] == "default_deadline"


@pytest.mark.parametrize("streamed", [False, True])
async def test_no_other_target_is_blamed_for_the_default_deadline(
    serve: Serve, logged: LogLines, streamed: bool
) -> None:
    """The time is up for the whole call: the next target is not asked, and its record stays clean."""
    async with Vendor(stalls_before_headers) as slow, Vendor(answers_text) as healthy:
        providers = {**at(slow), "w": at(healthy)["v"]}
        models = {"m": {"targets": [{"provider": name, "model": "x"} for name in providers]}}
        async with serve(providers=providers, models=models, routing=patient(0.2)) as headgate:
            rpc = headgate.stub.StreamGenerate if streamed else headgate.stub.Generate
            failed = await failing(rpc(ask("m")))
    assert (failed.facts["provider"], failed.facts["attempt_count"]) == ("v", "1")
    assert [attempt["provider"] for line in logged.calls for attempt in line["attempts"]] == ["v"]


async def test_after_the_commit_point_the_default_deadline_interrupts(serve: Serve) -> None:
    """What was delivered is said to be partial."""
    async with Vendor(stalls_in_the_stream) as vendor, serve(providers=at(vendor), routing=patient(0.3)) as headgate:
        events, failed = await until_failure(headgate.stub.StreamGenerate(ask("v/m")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.ABORTED, "STREAM_INTERRUPTED")
    assert failed.facts["phase"] == "default_deadline"
    assert events[-1].generation_end.partial


async def test_the_callers_own_deadline_stays_the_callers(serve: Serve, logged: LogLines) -> None:
    """However short the server's default: a call with a deadline has that one alone."""
    async with Vendor(stalls_before_headers) as vendor, serve(providers=at(vendor), routing=patient(0.05)) as headgate:
        call = headgate.stub.Generate(ask("v/m"), timeout=0.3)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await headgate.idle()
    assert [line["code"] for line in logged.calls] == ["DEADLINE_EXCEEDED"]


async def until_the_end(call: Any) -> grpc.StatusCode:
    """Reads the rest; the code that the stream ends with."""
    async with asyncio.timeout(5):
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_a_caller_who_stops_reading_does_not_hold_its_call(serve: Serve, logged: LogLines) -> None:
    """Without a deadline and without reading, the call ends all the same, and so does the vendor's generation.

    One who reads on later still hears how it ended.
    """
    async with Vendor(floods) as vendor, serve(providers=at(vendor), routing=patient(0.5)) as headgate:
        call = headgate.stub.StreamGenerate(ask("v/m"))
        first = await call.read()
        assert isinstance(first, pb.StreamGenerateResponse)
        async with asyncio.timeout(5):
            await vendor.exchanges[0].caller_closed.wait()
        await eventually(lambda: len(headgate.application.calls) == 0, seconds=10)
        code = await until_the_end(call)
    assert code is grpc.StatusCode.ABORTED
    (line,) = logged.calls
    assert (line["code"], line["reason"]) == ("ABORTED", "STREAM_INTERRUPTED")
    assert [attempt["outcome"] for attempt in line["attempts"]] == ["CANCELLED"]
    assert logged.errors == []


async def test_calls_of_the_default_deadline_do_not_wait_for_its_end(serve: Serve) -> None:
    """The timer of a call goes with the call."""
    async with Vendor(answers_text) as vendor, serve(providers=at(vendor), routing=patient(0.3)) as headgate:
        for _ in range(3):
            assert (await headgate.stub.Generate(ask("v/m"))).candidates
            await asyncio.sleep(0.3)
        assert await headgate.idle()


async def test_the_default_deadline_is_not_held_against_the_target(serve: Serve) -> None:
    """Earlier targets may have used up the time: the circuit of the one that was left the rest stays closed."""

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.4)
        await answers_text(exchange)

    async with Vendor(stalls_before_headers) as stalling, Vendor(slow) as healthy:
        providers = {
            "a": {"adapter": "openai", "base_url": stalling.base_url, "clocks": {"total": 0.3}},
            "b": {"adapter": "openai", "base_url": healthy.base_url, "breaker": {"consecutive_failures": 1}},
        }
        models = {"fast": {"targets": [{"provider": "a", "model": "m"}, {"provider": "b", "model": "m"}]}}
        async with serve(providers=providers, models=models, routing=patient(0.5)) as headgate:
            for _ in range(2):
                failed = await failing(headgate.stub.Generate(ask("fast")))
                assert failed.facts["phase"] == "default_deadline"
            assert (await headgate.stub.Generate(ask("b/m"), timeout=10)).candidates
