"""What transports/base.py promises, of each transport by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from headgate_server.errors import ProviderError, ProviderProtocolError
from headgate_server.transports.base import HttpRequest, HttpResponse
from tests.headgate_process import eventually
from tests.test_leaving_callers import BEHAVIOURS
from tests.transports import MIB, TRANSPORTS, Flood, reset_in_the_body
from tests.vendor import (
    Exchange,
    Vendor,
)


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
