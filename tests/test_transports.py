"""Both transports before vendors that stall, break off and close, and callers who leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conftest import LogLines, Serve
from tests.headgate_process import ask, eventually, failing, until_failure
from tests.proxy import Proxy
from tests.test_leaving_callers import BEHAVIOURS, reached
from tests.transports import ANSWER, Gate, both, outcome, reset_in_the_body, text_of
from tests.vendor import (
    JSON_HEADERS,
    Behaviour,
    Exchange,
    Vendor,
    answers_text,
    sse,
    text_chunk,
)

# Callers who leave


@pytest.mark.parametrize("moment", BEHAVIOURS)
async def test_a_cancel_closes_the_vendors_connection(gate: Gate, logged: LogLines, moment: str) -> None:
    """Whatever the call is waiting for, the vendor sees the close at once and nothing is left."""
    async with Vendor(BEHAVIOURS[moment]) as vendor, gate(vendor) as headgate:
        call = headgate.stub.StreamGenerate(ask("v/m"))
        await reached(call, vendor, moment)
        call.cancel()
        async with asyncio.timeout(1):
            await vendor.exchanges[0].caller_closed.wait()
        assert await headgate.idle()
        assert await eventually(lambda: vendor.open_connections == 0)
    assert logged.errors == []


async def test_after_cancel_churn_every_slot_is_usable_and_no_connection_is_open(gate: Gate) -> None:
    """200 cancels at every moment of a call over ten connections, then ten calls at once."""
    numbers = iter(range(10_000))
    all_ten = asyncio.Barrier(10)

    async def behave(exchange: Exchange) -> None:
        if exchange.json["messages"][0]["content"] == "answer":
            await all_ten.wait()
            await answers_text(exchange)
        else:
            await list(BEHAVIOURS.values())[next(numbers) % len(BEHAVIOURS)](exchange)

    async with Vendor(behave) as vendor, gate(vendor, max_connections=10) as headgate:
        for churn in range(20):
            calls = [headgate.stub.StreamGenerate(ask("v/m", "stall")) for _ in range(10)]
            if churn % 4:
                await vendor.exchange(len(vendor.exchanges) + 10 - len(vendor.exchanges) % 10)
            for call in calls:
                call.cancel()
            assert await headgate.idle()
        assert await eventually(lambda: vendor.open_connections == 0)
        for _ in range(2):
            answers = await asyncio.gather(*(headgate.stub.Generate(ask("v/m", "answer")) for _ in range(10)))
            assert len(answers) == 10
        assert vendor.open_connections == 10


async def test_an_exhausted_pool_refuses_with_a_hint(gate: Gate) -> None:
    """A call beyond max_connections hears GATEWAY_OVERLOADED at once, with RetryInfo; a freed slot serves again."""

    async def behave(exchange: Exchange) -> None:
        if exchange.json.get("stream"):
            await BEHAVIOURS["in the stream"](exchange)
        await answers_text(exchange)

    async with Vendor(behave) as vendor, gate(vendor, max_connections=1) as headgate:
        held = headgate.stub.StreamGenerate(ask("v/m"))
        await held.read()
        failed = await failing(headgate.stub.Generate(ask("v/m")))
        held.cancel()
        assert await headgate.idle()
        assert await text_of(headgate.stub.Generate(ask("v/m"))) == "Hello there"
    assert outcome(failed) == ("UNAVAILABLE", "GATEWAY_OVERLOADED")
    assert failed.details["RetryInfo"].retry_delay.seconds == 1


# Clocks


async def test_headers_that_take_their_time_are_not_the_connect_clocks_affair(gate: Gate) -> None:
    """The connect clock stops once there is a connection; slow headers are for the total clock."""

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.6)
        await answers_text(exchange)

    async with Vendor(slow) as vendor:
        async with gate(vendor, clocks={"connect": 0.3, "total": 20}) as headgate:
            assert [await text_of(call) for call in both(headgate)] == ["Hello there"] * 2
        async with gate(vendor, clocks={"total": 0.3}) as headgate:
            failed = [await failing(call) for call in both(headgate)]
    assert [outcome(f) for f in failed] == [("UNAVAILABLE", "PROVIDER_TIMEOUT")] * 2
    assert [f.facts["phase"] for f in failed] == ["total", "total"]


async def test_a_tls_handshake_or_a_proxy_that_hangs_is_the_connect_clocks_affair(serve: Serve, transport: str) -> None:
    """Whatever stands between the gateway and a connection counts as connecting."""
    async with Proxy(silent=True) as silent:
        common = {"adapter": "openai", "transport": transport, "clocks": {"connect": 0.3}}
        providers = {
            "handshake": {**common, "base_url": f"https://127.0.0.1:{silent.port}/v1"},
            "tunnel": {**common, "base_url": "https://vendor.invalid/v1", "proxy": silent.url()},
        }
        async with serve(providers=providers) as headgate:
            for name in providers:
                failed = await failing(headgate.stub.Generate(ask(f"{name}/m")))
                assert (failed.reason, failed.facts["phase"]) == ("PROVIDER_TIMEOUT", "connect")
                assert await eventually(lambda: silent.open_connections == 0)


async def test_a_cancel_in_the_tls_handshake_closes_the_connection(serve: Serve, transport: str) -> None:
    """A caller who leaves that early leaves no socket behind."""
    async with Proxy(silent=True) as silent:
        provider = {"adapter": "openai", "transport": transport, "base_url": f"https://127.0.0.1:{silent.port}/v1"}
        async with serve(providers={"v": provider}) as headgate:
            call = headgate.stub.Generate(ask("v/m"))
            assert await eventually(lambda: silent.open_connections == 1)
            await asyncio.sleep(0.05)
            call.cancel()
            assert await eventually(lambda: silent.open_connections == 0)


# Answers that break off


async def closes(exchange: Exchange) -> None:
    exchange.writer.close()


async def resets(exchange: Exchange) -> None:
    exchange.reset()


async def half_the_headers(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-type: appl")
    exchange.writer.close()


async def no_http(exchange: Exchange) -> None:
    await exchange.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    exchange.writer.close()


async def half_a_chunk(exchange: Exchange) -> None:
    await exchange.begin(headers=JSON_HEADERS)
    await exchange.write(b"1000\r\n" + ANSWER[:20])
    exchange.writer.close()


async def half_the_length(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER[:20]))
    exchange.writer.close()


async def no_chunk(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.write(b"hello\r\nworld\r\n")
    await exchange.caller_closed.wait()


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (closes, "PROVIDER_UNREACHABLE"),
        (resets, "PROVIDER_UNREACHABLE"),
        (half_the_headers, "PROVIDER_UNREACHABLE"),
        (no_http, "PROVIDER_PROTOCOL_ERROR"),
        (half_a_chunk, "PROVIDER_PROTOCOL_ERROR"),
        (half_the_length, "PROVIDER_PROTOCOL_ERROR"),
        (reset_in_the_body, "PROVIDER_PROTOCOL_ERROR"),
        (no_chunk, "PROVIDER_PROTOCOL_ERROR"),
    ],
)
async def test_an_answer_that_breaks_off_says_where(
    gate: Gate, logged: LogLines, behaviour: Behaviour, reason: str
) -> None:
    """Before the headers a vendor was not reached; after them it broke the protocol. Both may be retried."""
    async with Vendor(behaviour) as vendor, gate(vendor) as headgate:
        failed = [await failing(call) for call in both(headgate)]
        assert await eventually(lambda: vendor.open_connections == 0)
    assert [outcome(f) for f in failed] == [("UNAVAILABLE", reason)] * 2
    assert logged.errors == []


async def test_a_break_after_content_ends_the_stream_as_interrupted(gate: Gate) -> None:
    """What came before the break is delivered, and marked as partial."""

    async def breaks(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("Hello")))
        await asyncio.sleep(0.1)
        await exchange.write(b"40\r\ndata: {")
        exchange.writer.close()

    async with Vendor(breaks) as vendor, gate(vendor) as headgate:
        events, failed = await until_failure(headgate.stub.StreamGenerate(ask("v/m")))
    assert outcome(failed) == ("ABORTED", "STREAM_INTERRUPTED")
    assert failed.facts["cause"] == "PROVIDER_PROTOCOL_ERROR"
    assert "".join(event.text_delta for event in events) == "Hello"
    assert events[-1].generation_end.partial


# Pooled connections that have died


async def test_a_connection_that_the_vendor_closed_while_idle_is_not_used_again(gate: Gate) -> None:
    """The vendor's idle timeout costs a new connection, not a call."""
    proceed = asyncio.Event()

    async def closes_when_idle(exchange: Exchange) -> None:
        await answers_text(exchange)
        await proceed.wait()
        exchange.writer.close()

    async with Vendor(closes_when_idle) as vendor, gate(vendor) as headgate:
        for _ in range(3):
            assert await text_of(headgate.stub.Generate(ask("v/m"))) == "Hello there"
            proceed.set()
            assert await eventually(lambda: vendor.open_connections == 0)
    assert vendor.connections == 3


@pytest.mark.parametrize("way", [closes, resets])
async def test_a_pooled_connection_that_dies_under_a_request_is_replaced(gate: Gate, way: Behaviour) -> None:
    """When request and close cross on the wire the request goes out again, however many connections are stale."""
    used: set[Any] = set()

    async def behave(exchange: Exchange) -> None:
        if exchange.writer in used:
            await way(exchange)
            return
        used.add(exchange.writer)
        await asyncio.sleep(0.05)
        await answers_text(exchange)

    async with Vendor(behave) as vendor, gate(vendor) as headgate:
        for _ in range(3):
            texts = await asyncio.gather(*(text_of(headgate.stub.Generate(ask("v/m"))) for _ in range(3)))
            assert texts == ["Hello there"] * 3
        assert await text_of(headgate.stub.StreamGenerate(ask("v/m"))) == "Hello there"


async def test_a_new_connection_that_dies_is_not_tried_again(gate: Gate) -> None:
    """Only a connection from the pool may have been dead before: anything else could make the vendor work twice."""
    async with Vendor(closes) as vendor, gate(vendor) as headgate:
        await failing(headgate.stub.Generate(ask("v/m")))
    assert len(vendor.exchanges) == 1


async def test_a_pooled_connection_that_dies_late_is_not_replaced(gate: Gate) -> None:
    """A close more than a second after the request is the vendor's answer to it, and it may have worked for us."""

    async def dies_at_the_second_request(exchange: Exchange) -> None:
        if len(vendor.exchanges) == 1:
            await answers_text(exchange)
        else:
            await asyncio.sleep(1.5)
            exchange.writer.close()

    async with Vendor(dies_at_the_second_request) as vendor, gate(vendor) as headgate:
        await headgate.stub.Generate(ask("v/m"))
        failed = await failing(headgate.stub.Generate(ask("v/m")))
    assert failed.reason == "PROVIDER_UNREACHABLE"
    assert len(vendor.exchanges) == 2
    assert vendor.connections == 1
