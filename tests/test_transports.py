"""Both transports through the front door, before vendors that stall, break off, flood, lie and hide behind proxies."""

from __future__ import annotations

import asyncio
import json
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from headgate_server.errors import ProviderError, ProviderProtocolError
from headgate_server.sse import Decoder
from headgate_server.transports.aiohttp import AiohttpTransport
from headgate_server.transports.base import HttpRequest, HttpResponse, Transport
from headgate_server.transports.httpx2 import Httpx2Transport
from tests.conftest import LogLines, Serve
from tests.headgate_process import Failure, Headgate, ask, eventually, failing, until_failure
from tests.proxy import Proxy
from tests.test_leaving_callers import BEHAVIOURS, reached
from tests.vendor import (
    JSON_HEADERS,
    SSE_HEADERS,
    Behaviour,
    Exchange,
    Vendor,
    answers_text,
    completion,
    finish_chunk,
    sse,
    text_chunk,
    usage_chunk,
)

MIB = 1024 * 1024
GIB = 1024 * MIB
ANSWER = json.dumps(completion()).encode()
STREAM = b"".join(sse(e) for e in [text_chunk("Hello"), text_chunk(" there"), finish_chunk(), usage_chunk()])
STREAM += b"data: [DONE]\n\n"
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

TRANSPORTS: dict[str, Callable[..., Transport]] = {"aiohttp": AiohttpTransport, "httpx2": Httpx2Transport}


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """The name of each transport in turn."""
    return str(request.param)


Gate = Callable[..., Any]


@pytest.fixture
def gate(serve: Serve, transport: str) -> Gate:
    """A gateway over that transport, with this vendor as provider `v`: `async with gate(vendor, ...) as headgate`."""

    def start(vendor: Vendor, **settings: Any) -> Any:
        provider = {"adapter": "openai", "base_url": vendor.base_url, "transport": transport, **settings}
        return serve(providers={"v": provider})

    return start


async def text_of(call: Any) -> str:
    """The text of an answer, whole or streamed."""
    if hasattr(call, "__aiter__"):
        return "".join([event.text_delta async for event in call])
    answer = await call
    return str(answer.candidates[0].message.parts[0].text)


def both(headgate: Headgate, text: str = "Hi") -> list[Any]:
    """The same request, plain and streamed."""
    return [headgate.stub.Generate(ask("v/m", text)), headgate.stub.StreamGenerate(ask("v/m", text))]


def outcome(failed: Failure) -> tuple[str, str]:
    return failed.code.name, failed.reason


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


async def reset_in_the_body(exchange: Exchange) -> None:
    await exchange.begin(headers=JSON_HEADERS)
    await exchange.chunk(ANSWER[:20])
    await asyncio.sleep(0.05)
    exchange.reset()


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


# Too much


class Flood:
    """Sends the same bytes over and over, a gigabyte of them, and counts."""

    def __init__(
        self,
        piece: bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        head: bytes = b"",
        limit: int = GIB,
    ) -> None:
        self.sent = 0
        self._limit = limit
        self._piece, self._status, self._headers, self._head = piece, status, headers or JSON_HEADERS, head

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.begin(self._status, self._headers)
        await exchange.chunk(self._head or self._piece)
        while self.sent < self._limit and not exchange.caller_closed.is_set():
            await exchange.chunk(self._piece)
            self.sent += len(self._piece)
        await exchange.end()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("length", [False, True], ids=["chunked", "with content-length"])
async def test_a_gigabyte_is_not_read(gate: Gate, streamed: bool, length: bool) -> None:
    """An answer, or an event without end, is left at its limit; the vendor is hung up on."""
    flood = Flood(b"x" * MIB, headers=SSE_HEADERS if streamed else JSON_HEADERS, head=b"data: {")

    async def with_length(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % GIB)
        while flood.sent < GIB and not exchange.caller_closed.is_set():
            await exchange.write(b"x" * MIB)
            flood.sent += MIB

    async with Vendor(with_length if length else flood) as vendor, gate(vendor) as headgate:
        failed = await failing((headgate.stub.StreamGenerate if streamed else headgate.stub.Generate)(ask("v/m")))
        assert await eventually(lambda: vendor.open_connections == 0)
    assert outcome(failed) == ("UNAVAILABLE", "PROVIDER_PROTOCOL_ERROR")
    assert flood.sent < 128 * MIB


async def test_an_error_of_a_gigabyte_is_not_read(gate: Gate) -> None:
    """The body of an error is for the log alone: little of it will do."""
    flood = Flood(b"x" * MIB, status=500)
    async with Vendor(flood) as vendor, gate(vendor) as headgate:
        failed = [await failing(call) for call in both(headgate)]
        assert await eventually(lambda: vendor.open_connections == 0)
    assert [f.code for f in failed] == [UNAVAILABLE] * 2
    assert flood.sent < 32 * MIB


@pytest.mark.parametrize("kind", ["one header", "many headers", "endless", "status line"])
async def test_oversized_headers_are_refused(gate: Gate, kind: str) -> None:
    """Headers of 200 KiB, however they are cut, are no answer; headers without end are not waited for."""

    async def heads(exchange: Exchange) -> None:
        if kind == "status line":
            await exchange.write(b"HTTP/1.1 200 " + b"O" * 200_000 + b"\r\n\r\n")
            return
        await exchange.write(b"HTTP/1.1 200 OK\r\n")
        if kind == "one header":
            await exchange.write(b"x-big: " + b"a" * 200_000 + b"\r\n")
        elif kind == "many headers":
            await exchange.write(b"".join(b"x-%d: %b\r\n" % (n, b"a" * 1000) for n in range(200)))
        else:
            while not exchange.caller_closed.is_set():
                await exchange.write(b"x: " + b"a" * 1000 + b"\r\n")
        await exchange.write(b"content-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER))

    async with Vendor(heads) as vendor, gate(vendor, clocks={"total": 10}) as headgate:
        failed = [await failing(call) for call in both(headgate)]
        assert await eventually(lambda: vendor.open_connections == 0)
    assert [outcome(f) for f in failed] == [("UNAVAILABLE", "PROVIDER_PROTOCOL_ERROR")] * 2


@cache
def bomb(encoding: str) -> bytes:
    """A gigabyte in a megabyte."""
    return compressed(encoding, (b"x" * MIB for _ in range(1024)))


def compressed(encoding: str, pieces: Iterator[bytes]) -> bytes:
    """The pieces as one body of that content encoding."""
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    return b"".join(packer.compress(piece) for piece in pieces) + packer.flush()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_compressed_gigabyte_is_not_unpacked(gate: Gate, encoding: str, streamed: bool) -> None:
    """A megabyte that stands for a gigabyte costs the limit at most, however few reads it arrives in."""

    async def explodes(exchange: Exchange) -> None:
        headers = {**(SSE_HEADERS if streamed else JSON_HEADERS), "content-encoding": encoding}
        await exchange.answer(200, bomb(encoding), headers)

    bomb(encoding)
    async with Vendor(explodes) as vendor, gate(vendor) as headgate:
        tracemalloc.start()
        try:
            failed = await failing((headgate.stub.StreamGenerate if streamed else headgate.stub.Generate)(ask("v/m")))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert outcome(failed) == ("UNAVAILABLE", "PROVIDER_PROTOCOL_ERROR")
    assert peak < 160 * MIB


def test_an_event_of_empty_data_lines_has_a_limit_too() -> None:
    """Lines of `data:` without a value cost memory like any other, and may never complete an event."""
    decoder = Decoder(max_event_bytes=1000)
    with pytest.raises(ProviderProtocolError):
        decoder.feed(b"data:\n" * 10_000)


async def test_joining_deltas_has_a_limit(gate: Gate) -> None:
    """max_coalesce_delay is for slow vendors: what a fast one sends in that time is not all held back."""
    flood = Flood(sse(text_chunk("x" * 1000)) * 100, headers=SSE_HEADERS, limit=96 * MIB)
    request = ask("v/m")
    request.stream.max_coalesce_delay.FromMilliseconds(1000)
    async with Vendor(flood) as vendor, gate(vendor) as headgate:
        largest = 0
        async for event in (call := headgate.stub.StreamGenerate(request)):
            largest = max(largest, len(event.text_delta))
            if flood.sent > 8 * MIB:
                call.cancel()
                break
    assert largest < 4 * MIB


@pytest.mark.parametrize("kind", ["large", "broken off"])
async def test_the_status_counts_whatever_becomes_of_an_errors_body(gate: Gate, kind: str) -> None:
    """A rejected key is a rejected key, though its page has a megabyte or breaks off."""

    async def rejects(exchange: Exchange) -> None:
        if kind == "large":
            await exchange.answer(401, b"<html>" + b" " * MIB)
        else:
            await exchange.begin(401)
            await exchange.chunk(b'{"error"')
            exchange.writer.close()

    async with Vendor(rejects) as vendor, gate(vendor) as headgate:
        failed = [await failing(call) for call in both(headgate)]
    assert [f.reason for f in failed] == ["PROVIDER_CREDENTIALS_REJECTED"] * 2


# Answers that are not what they should be


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b'{"error": {"message": "no streams here"}}'),
        ("application/json", b'{"detail": "no streams here"}'),
        ("text/html", b"<html>\n<p>data: none\n</html>\n"),
        ("text/event-stream", b""),
    ],
)
async def test_a_stream_that_is_no_stream_is_the_vendors_error(gate: Gate, kind: str, body: bytes) -> None:
    """A 200 whose body is JSON, HTML or nothing, where events were asked for, is no answer."""

    async def misanswers(exchange: Exchange) -> None:
        await exchange.answer(200, body, {"content-type": kind})

    async with Vendor(misanswers) as vendor, gate(vendor) as headgate:
        failed = await failing(headgate.stub.StreamGenerate(ask("v/m")))
    assert failed.code is UNAVAILABLE
    assert failed.reason in ("PROVIDER_ERROR", "PROVIDER_PROTOCOL_ERROR")


async def test_a_plain_answer_to_a_stream_is_never_an_empty_success(gate: Gate) -> None:
    """A vendor that ignores `stream` has its answer delivered, or refused; its text does not get lost."""

    async def ignores_stream(exchange: Exchange) -> None:
        await exchange.answer(200, completion())

    async with Vendor(ignores_stream) as vendor, gate(vendor) as headgate:
        try:
            text = await text_of(headgate.stub.StreamGenerate(ask("v/m")))
        except grpc.aio.AioRpcError:
            text = "refused"
    assert text in ("Hello there", "refused")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_refused(gate: Gate, status: int) -> None:
    """The credential goes where the configuration says, and nowhere that a vendor points to."""
    async with Vendor(answers_text) as elsewhere:

        async def redirects(exchange: Exchange) -> None:
            await exchange.answer(status, b"", {"location": f"{elsewhere.base_url}/chat/completions"})

        async with Vendor(redirects) as vendor, gate(vendor, api_key="sk-1") as headgate:
            failed = [await failing(call) for call in both(headgate)]
        assert elsewhere.exchanges == []
    assert [outcome(f) for f in failed] == [("UNAVAILABLE", "PROVIDER_PROTOCOL_ERROR")] * 2


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
async def test_compressed_answers_are_read(gate: Gate, encoding: str) -> None:
    """A whole body, and events that are flushed one by one."""
    arrived = asyncio.Event()

    async def packs(exchange: Exchange) -> None:
        streamed = exchange.json.get("stream")
        headers = {**(SSE_HEADERS if streamed else JSON_HEADERS), "content-encoding": encoding}
        if encoding == "identity":
            await exchange.answer(200, STREAM if streamed else ANSWER, headers)
        elif not streamed:
            await exchange.answer(200, compressed(encoding, iter([ANSWER])), headers)
        else:
            packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
            await exchange.begin(headers=headers)
            first, rest = STREAM.split(b"\n\n", 1)
            await exchange.chunk(packer.compress(first + b"\n\n") + packer.flush(zlib.Z_SYNC_FLUSH))
            await arrived.wait()
            await exchange.chunk(packer.compress(rest) + packer.flush())
            await exchange.end()

    async with Vendor(packs) as vendor, gate(vendor) as headgate:
        unary, stream = both(headgate)
        assert await text_of(unary) == "Hello there"
        events = []
        async for event in stream:
            events.append(event)
            arrived.set()
    assert "".join(event.text_delta for event in events) == "Hello there"


@pytest.mark.parametrize("encoding", ["gzip", "br"])
async def test_a_body_that_is_not_of_its_encoding_is_the_vendors_error(gate: Gate, encoding: str) -> None:
    """Bytes that cannot be unpacked are no answer, whether they are not gzip or an encoding nobody asked for."""

    async def lies(exchange: Exchange) -> None:
        await exchange.answer(200, b"\x8b\x02\x80garbage\x03", {"content-encoding": encoding})

    async with Vendor(lies) as vendor, gate(vendor) as headgate:
        failed = [await failing(call) for call in both(headgate)]
    assert [outcome(f) for f in failed] == [("UNAVAILABLE", "PROVIDER_PROTOCOL_ERROR")] * 2


async def test_bytes_may_arrive_one_by_one(gate: Gate) -> None:
    """Boundaries of packets and chunks mean nothing, in the headers, in a character, in an event."""
    text = "Grüße 🌍"

    async def drips(exchange: Exchange) -> None:
        streamed = exchange.json.get("stream")
        body = ANSWER.replace(b"Hello there", text.encode())
        if streamed:
            body = b"".join(json_event(e) for e in [text_chunk("Grüße "), text_chunk("🌍"), finish_chunk()])
            body += b"data: [DONE]\r\n\r\n"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n"
        wire = head % (b"text/event-stream" if streamed else b"application/json")
        wire += b"".join(b"1\r\n%b\r\n" % body[n : n + 1] for n in range(len(body))) + b"0\r\n\r\n"
        for n in range(len(wire)):
            await exchange.write(wire[n : n + 1])
            await asyncio.sleep(0)

    async with Vendor(drips) as vendor, gate(vendor) as headgate:
        assert [await text_of(call) for call in both(headgate)] == [text] * 2


def json_event(event: Any) -> bytes:
    """A server-sent event with its characters as they are, and CRLF."""
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\r\n\r\n"


async def test_unicode_line_separators_do_not_end_an_event(gate: Gate) -> None:
    """U+2028, U+2029, U+0085 and vertical tabs are text, whatever Python calls a line."""
    text = "a\u2028b\u2029c\u0085d\u000be\u000cf\u001cg"

    async def separates(exchange: Exchange) -> None:
        if exchange.json.get("stream"):
            await exchange.begin()
            for event in [text_chunk(text), finish_chunk()]:
                await exchange.chunk(json_event(event))
            await exchange.end()
        else:
            await exchange.answer(200, json.dumps(completion(text), ensure_ascii=False).encode())

    async with Vendor(separates) as vendor, gate(vendor) as headgate:
        assert [await text_of(call) for call in both(headgate)] == [text] * 2


async def test_a_lone_surrogate_from_the_vendor_becomes_the_replacement_character(gate: Gate) -> None:
    r"""A `\ud83d` without its other half cannot go into a protobuf string, and must not fail the call."""

    async def halves(exchange: Exchange) -> None:
        if exchange.json.get("stream"):
            await exchange.stream([text_chunk("a\ud83db"), finish_chunk()])
        else:
            await exchange.answer(200, completion("a\ud83db"))

    async with Vendor(halves) as vendor, gate(vendor) as headgate:
        assert [await text_of(call) for call in both(headgate)] == ["a\ufffdb"] * 2


async def test_header_bytes_that_are_no_text_do_not_fail_a_call(gate: Gate) -> None:
    """A request id is the vendor's bytes, and goes into a protobuf string."""

    async def names_itself(exchange: Exchange) -> None:
        head = b"HTTP/1.1 200 OK\r\nx-request-id: req-\xff\xfe\r\ncontent-length: %d\r\n\r\n"
        body = STREAM if exchange.json.get("stream") else ANSWER
        await exchange.write(head % len(body) + body)

    async with Vendor(names_itself) as vendor, gate(vendor) as headgate:
        assert [await text_of(call) for call in both(headgate)] == ["Hello there"] * 2


async def test_early_hints_and_bodies_without_length_are_http_too(gate: Gate) -> None:
    """Informational answers are skipped; the answer of an HTTP/1.0 server ends where the connection does."""

    async def is_old(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
        body = STREAM if exchange.json.get("stream") else ANSWER
        await exchange.write(b"HTTP/1.0 200 OK\r\nx-request-id: r\r\n\r\n" + body)
        exchange.writer.close()

    async with Vendor(is_old) as vendor, gate(vendor) as headgate:
        assert [await text_of(call) for call in both(headgate)] == ["Hello there"] * 2


async def test_events_of_one_packet_travel_together(gate: Gate) -> None:
    """What has arrived is read at once, though each event is an HTTP chunk of its own."""

    async def burst(exchange: Exchange) -> None:
        await exchange.begin()
        events = [text_chunk(f"word{n} ") for n in range(64)]
        await exchange.write(b"".join(b"%x\r\n%b\r\n" % (len(sse(e)), sse(e)) for e in [*events, finish_chunk()]))
        await exchange.end()

    async with Vendor(burst) as vendor, gate(vendor) as headgate:
        events = [event async for event in headgate.stub.StreamGenerate(ask("v/m"))]
    deltas = [event.text_delta for event in events if event.HasField("text_delta")]
    assert "".join(deltas) == "".join(f"word{n} " for n in range(64))
    assert len(deltas) <= 2


# What is sent


async def test_the_vendor_gets_the_same_headers_from_either_transport(gate: Gate) -> None:
    """Nothing that tells of a client library, and no cookie that an earlier answer set."""

    async def bakes(exchange: Exchange) -> None:
        await exchange.answer(200, completion(), {"set-cookie": "session=1; Path=/"})

    async with Vendor(bakes) as vendor, gate(vendor, api_key="sk-1") as headgate:
        for _ in range(2):
            await headgate.stub.Generate(ask("v/m"))
    for exchange in vendor.exchanges:
        assert exchange.headers.pop("host") == f"127.0.0.1:{vendor.port}"
        assert exchange.headers.pop("content-length") == str(len(exchange.body))
        assert exchange.headers == {
            "accept": "application/json",
            "accept-encoding": "gzip, deflate",
            "authorization": "Bearer sk-1",
            "content-type": "application/json",
        }


async def test_a_proxy_of_the_environment_is_not_used_behind_the_configurations_back(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the configuration reads the environment: the transports do not."""
    monkeypatch.setenv("no_grpc_proxy", "127.0.0.1")  # our own client reads the environment
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    async with Vendor(answers_text) as vendor, gate(vendor) as headgate:
        assert await text_of(headgate.stub.Generate(ask("v/m"))) == "Hello there"


# TLS and proxies


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A private certificate authority."""
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def tls_of(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """What a vendor with a certificate for these names serves with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def test_a_private_authority_is_trusted_where_it_is_configured(
    gate: Gate, authority: trustme.CA, ca_file: Path
) -> None:
    """With ca_file the vendor's certificate is good; HTTP/1.1 is spoken though the vendor offers HTTP/2."""
    async with Vendor(answers_text, tls=tls_of(authority, "127.0.0.1")) as vendor:
        async with gate(vendor, ca_file=ca_file) as headgate:
            assert [await text_of(call) for call in both(headgate)] == ["Hello there"] * 2
    protocol = vendor.exchanges[0].writer.get_extra_info("ssl_object").selected_alpn_protocol()
    assert protocol == "http/1.1"


@pytest.mark.parametrize("way", ["unknown authority", "another name"])
async def test_a_certificate_that_proves_nothing_is_refused(
    gate: Gate, logged: LogLines, authority: trustme.CA, ca_file: Path, way: str
) -> None:
    """An unknown authority, or a certificate for somebody else, means that the vendor was not reached."""
    name = "127.0.0.1" if way == "unknown authority" else "other.example"
    settings = {} if way == "unknown authority" else {"ca_file": ca_file}
    async with Vendor(answers_text, tls=tls_of(authority, name)) as vendor, gate(vendor, **settings) as headgate:
        failed = [await failing(call) for call in both(headgate)]
    assert [outcome(f) for f in failed] == [("UNAVAILABLE", "PROVIDER_UNREACHABLE")] * 2
    assert vendor.exchanges == []
    assert logged.errors == []


async def test_a_cancel_closes_a_tls_connection(gate: Gate, authority: trustme.CA, ca_file: Path) -> None:
    """The vendor learns of it though TLS has a farewell of its own."""
    async with Vendor(BEHAVIOURS["in the stream"], tls=tls_of(authority, "127.0.0.1")) as vendor:
        async with gate(vendor, ca_file=ca_file) as headgate:
            call = headgate.stub.StreamGenerate(ask("v/m"))
            await call.read()
            call.cancel()
            async with asyncio.timeout(1):
                await vendor.exchanges[0].caller_closed.wait()


@pytest.mark.parametrize("user", ["", "gate:s%20cret"])
async def test_a_proxy_is_used(gate: Gate, authority: trustme.CA, ca_file: Path, user: str) -> None:
    """Plain requests are forwarded, TLS is tunnelled, and only the proxy learns the proxy's password."""
    async with Proxy() as proxy:
        async with Vendor(answers_text) as vendor:
            async with gate(vendor, proxy=proxy.url(user), api_key="sk-1") as headgate:
                assert [await text_of(call) for call in both(headgate)] == ["Hello there"] * 2
        async with Vendor(answers_text, tls=tls_of(authority, "127.0.0.1")) as secure:
            async with gate(secure, proxy=proxy.url(user), ca_file=ca_file, api_key="sk-1") as headgate:
                assert [await text_of(call) for call in both(headgate)] == ["Hello there"] * 2
    forwarded, *_, tunnelled = proxy.heads
    assert forwarded.startswith(f"POST {vendor.base_url}/chat/completions HTTP/1.1\r\n")
    assert tunnelled.startswith(f"CONNECT 127.0.0.1:{secure.port} HTTP/1.1\r\n")
    assert "sk-1" not in tunnelled
    for head in (forwarded, tunnelled):
        assert ("proxy-authorization: basic z2f0ztpzignyzxq=" in head.lower()) == bool(user)
    assert "proxy-authorization" not in secure.exchanges[0].headers


async def test_a_proxy_that_refuses_means_that_the_vendor_was_not_reached(
    gate: Gate, authority: trustme.CA, ca_file: Path
) -> None:
    """Neither a refusal nor a dead proxy is taken for the vendor's answer."""
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"
    async with Vendor(answers_text, tls=tls_of(authority, "127.0.0.1")) as vendor, Proxy(refusal) as proxy:
        async with gate(vendor, proxy=proxy.url(), ca_file=ca_file) as headgate:
            refused = await failing(headgate.stub.Generate(ask("v/m")))
        async with gate(vendor, proxy="http://127.0.0.1:1", ca_file=ca_file) as headgate:
            dead = await failing(headgate.stub.Generate(ask("v/m")))
    assert outcome(refused) == outcome(dead) == ("UNAVAILABLE", "PROVIDER_UNREACHABLE")


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/v1", "http://nowhere.invalid/v1", "https://nowhere.invalid/v1"]
)
async def test_a_vendor_that_is_not_there_is_unreachable(serve: Serve, transport: str, address: str) -> None:
    """Neither a closed port nor a name that nobody has is tried over and over."""
    provider = {"adapter": "openai", "base_url": address, "transport": transport}
    async with serve(providers={"v": provider}) as headgate:
        failed = [await failing(call) for call in both(headgate)]
    assert [outcome(f) for f in failed] == [("UNAVAILABLE", "PROVIDER_UNREACHABLE")] * 2


# The seam's own promises


@asynccontextmanager
async def sending(
    transport: str, vendor: Vendor, limit: int = 4
) -> AsyncIterator[Callable[[], Awaitable[HttpResponse]]]:
    """Sends a request over a transport of its own."""
    over = TRANSPORTS[transport](limit)
    request = HttpRequest("POST", f"{vendor.base_url}/x", {"content-type": "application/json"}, b"{}", 5.0)
    try:
        yield lambda: over.send(request)
    finally:
        await over.close()


async def rest_of(response: HttpResponse) -> bytes:
    """All that is still to be read."""
    read = b""
    while piece := await response.read():
        read += piece
    return read


async def test_a_read_that_is_given_up_loses_nothing(transport: str) -> None:
    """Reads under a clock of a few milliseconds, while bytes drip in, add up to the whole body."""
    body = bytes(range(256)) * 4

    async def drips(exchange: Exchange) -> None:
        await exchange.begin()
        for n in range(0, len(body), 16):
            await exchange.chunk(body[n : n + 16])
            await asyncio.sleep(0.004)
        await exchange.end()

    async with Vendor(drips) as vendor, sending(transport, vendor) as send:
        response = await send()
        read, given_up = b"", 0
        while True:
            try:
                async with asyncio.timeout(0.002):
                    if not (piece := await response.read()):
                        break
            except TimeoutError:
                given_up += 1
                continue
            read += piece
        response.close()
    assert read == body
    assert given_up > 10


async def test_a_slow_reader_holds_the_vendor_back(transport: str) -> None:
    """What nobody reads is not taken from the socket: memory is bounded by buffers, not by the vendor's zeal."""
    flood = Flood(b"x" * MIB)
    async with Vendor(flood) as vendor, sending(transport, vendor) as send:
        response = await send()
        await response.read()
        await asyncio.sleep(0.5)
        assert flood.sent < 24 * MIB
        assert len(await response.read()) < 2 * MIB
        response.close()
        async with asyncio.timeout(1):
            await vendor.exchanges[0].caller_closed.wait()


async def test_a_slot_is_free_as_soon_as_its_answer_is_closed(transport: str) -> None:
    """With one connection, each next call may follow the close at once, whether the body had ended or not."""

    async def behave(exchange: Exchange) -> None:
        if len(vendor.exchanges) % 2:
            await BEHAVIOURS["in the stream"](exchange)
        await exchange.answer(200, {})

    async with Vendor(behave) as vendor, sending(transport, vendor, limit=1) as send:
        for _ in range(6):
            response = await send()
            await response.read()
            response.close()


async def test_an_answer_reports_a_break_as_often_as_it_is_read(transport: str) -> None:
    """After a broken connection every read says so; the body never looks complete."""
    async with Vendor(reset_in_the_body) as vendor, sending(transport, vendor) as send:
        response = await send()
        for _ in range(2):
            with pytest.raises(ProviderProtocolError):
                await rest_of(response)
        response.close()


async def test_closing_a_transport_ends_what_is_under_way(transport: str) -> None:
    """Nothing is left waiting for a vendor when the gateway stops."""
    async with Vendor(BEHAVIOURS["in the stream"]) as vendor:
        over = TRANSPORTS[transport](4)
        response = await over.send(HttpRequest("POST", f"{vendor.base_url}/x", {}, b"{}", 5.0))
        await response.read()
        reading = asyncio.ensure_future(response.read())
        await asyncio.sleep(0.01)
        await over.close()
        with pytest.raises(ProviderError):
            await asyncio.wait_for(reading, 2)
        response.close()
        assert await eventually(lambda: vendor.open_connections == 0)


def test_the_suite_knows_every_transport() -> None:
    """A transport that can be configured runs through all of the above."""
    from headgate_server.config import Provider

    for name in TRANSPORTS:
        assert Provider.model_validate({"adapter": "openai", "transport": name}).transport == name
