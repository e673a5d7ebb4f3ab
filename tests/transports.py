"""What the suites over both transports share."""

from __future__ import annotations

import asyncio
import json
import ssl
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import trustme

from headgate_server.transports.aiohttp import AiohttpTransport
from headgate_server.transports.base import Transport
from headgate_server.transports.httpx2 import Httpx2Transport
from tests.headgate_process import Failure, Headgate, ask
from tests.vendor import (
    JSON_HEADERS,
    Exchange,
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

Gate = Callable[..., Any]


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


def compressed(encoding: str, pieces: Iterator[bytes]) -> bytes:
    """The pieces as one body of that content encoding."""
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    return b"".join(packer.compress(piece) for piece in pieces) + packer.flush()


async def reset_in_the_body(exchange: Exchange) -> None:
    await exchange.begin(headers=JSON_HEADERS)
    await exchange.chunk(ANSWER[:20])
    await asyncio.sleep(0.05)
    exchange.reset()


def tls_of(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """What a vendor with a certificate for these names serves with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context
