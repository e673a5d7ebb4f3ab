"""Both transports before vendors that send too much: nothing is read, unpacked or kept without end."""

from __future__ import annotations

import tracemalloc
from functools import cache

import pytest

from headgate_server.errors import ProviderProtocolError
from headgate_server.sse import Decoder
from tests.headgate_process import ask, eventually, failing
from tests.transports import ANSWER, GIB, MIB, UNAVAILABLE, Flood, Gate, both, compressed, outcome
from tests.vendor import (
    JSON_HEADERS,
    SSE_HEADERS,
    Exchange,
    Vendor,
    sse,
    text_chunk,
)


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
