"""A caller that leaves: the vendor learns of it at once, one outcome is logged, nothing is left."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from headgate import v1 as pb

from tests.conftest import LogLines, Serve
from tests.headgate_process import ask
from tests.vendor import Exchange, Vendor, floods, stalls_before_headers, stalls_in_the_stream

WITHIN_SECONDS = 1.0


async def stalls_before_content(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.chunk(b": waiting\n\n")
    await exchange.caller_closed.wait()


BEHAVIOURS = {
    "before the headers": stalls_before_headers,
    "before the first event": stalls_before_content,
    "in the stream": stalls_in_the_stream,
    "while a write is blocked": floods,
}


async def reached(call: Any, vendor: Vendor, moment: str) -> None:
    """Waits until the call is at that moment."""
    await vendor.exchange()
    if moment in ("in the stream", "while a write is blocked"):
        await call.read()
    await asyncio.sleep(0.2 if moment == "while a write is blocked" else 0.02)


@pytest.mark.parametrize("moment", BEHAVIOURS)
@pytest.mark.parametrize("way", ["cancel", "disconnect", "deadline"])
async def test_the_vendors_connection_closes_when_the_caller_leaves(
    serve: Serve, logged: LogLines, moment: str, way: str
) -> None:
    """The vendor sees the close at once; the call has one outcome, one attempt, no ERROR line, and is gone."""
    async with Vendor(BEHAVIOURS[moment]) as vendor:
        providers = {"vendor": {"adapter": "openai", "base_url": vendor.base_url}}
        async with serve(providers=providers) as headgate:
            channel = grpc.aio.insecure_channel(headgate.address, options=(("grpc.use_local_subchannel_pool", 1),))
            deadline = 0.5 if way == "deadline" else None
            began = time.monotonic()
            call = pb.InferenceServiceStub(channel).StreamGenerate(ask("vendor/m"), timeout=deadline)
            await reached(call, vendor, moment)
            if way == "cancel":
                call.cancel()
            elif way == "disconnect":
                await channel.close()
            else:
                await asyncio.sleep(0.5 - (time.monotonic() - began))
            left = time.monotonic()
            async with asyncio.timeout(2):
                await vendor.exchanges[0].caller_closed.wait()
            assert time.monotonic() - left < WITHIN_SECONDS
            assert await headgate.idle()
            await channel.close()
    assert logged.errors == []
    (line,) = logged.calls
    assert line["code"] == ("DEADLINE_EXCEEDED" if way == "deadline" else "CANCELLED")
    assert [attempt["outcome"] for attempt in line["attempts"]] == ["CANCELLED"]


async def test_a_unary_callers_cancel_closes_the_vendors_connection(serve: Serve, logged: LogLines) -> None:
    """Generate and Embed are cancelled upstream like streams."""
    async with Vendor(stalls_before_headers) as vendor:
        providers = {"vendor": {"adapter": "openai", "base_url": vendor.base_url}}
        async with serve(providers=providers) as headgate:
            embed = pb.EmbedRequest(model="vendor/m", inputs=[pb.EmbedInput(text="a")])
            rpcs: list[Any] = [
                lambda: headgate.stub.Generate(ask("vendor/m")),
                lambda: headgate.stub.Embed(embed),
            ]
            for number, rpc in enumerate(rpcs):
                call = rpc()
                exchange = await vendor.exchange(number + 1)
                call.cancel()
                async with asyncio.timeout(WITHIN_SECONDS):
                    await exchange.caller_closed.wait()
            assert await headgate.idle()
    assert [line["code"] for line in logged.calls] == ["CANCELLED"] * 2
    assert logged.errors == []


async def test_the_deadline_is_the_callers_own_error(serve: Serve) -> None:
    """DEADLINE_EXCEEDED is for the caller's deadline alone; our own clock answers PROVIDER_TIMEOUT."""
    async with Vendor(stalls_before_headers) as vendor:
        slow = {"adapter": "openai", "base_url": vendor.base_url, "clocks": {"total": 0.2}}
        async with serve(providers={"vendor": slow}) as headgate:
            with pytest.raises(grpc.aio.AioRpcError) as ours:
                await headgate.stub.Generate(ask("vendor/m"), timeout=5)
            with pytest.raises(grpc.aio.AioRpcError) as theirs:
                await headgate.stub.Generate(ask("vendor/m"), timeout=0.1)
    assert ours.value.code() is grpc.StatusCode.UNAVAILABLE
    assert theirs.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
