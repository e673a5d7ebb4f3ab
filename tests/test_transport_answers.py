"""Both transports before answers that are odd or wrong, and what they send themselves."""

from __future__ import annotations

import asyncio
import json
import zlib
from typing import Any

import grpc
import pytest

from tests.headgate_process import ask, failing
from tests.transports import ANSWER, STREAM, UNAVAILABLE, Gate, both, compressed, outcome, text_of
from tests.vendor import (
    JSON_HEADERS,
    SSE_HEADERS,
    Exchange,
    Vendor,
    answers_text,
    completion,
    finish_chunk,
    sse,
    text_chunk,
)


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
