"""A real HTTP/1.1 server in the vendor's place. It answers, stalls, breaks off or lies as a test tells it."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

SSE_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "req-vendor-1"}
JSON_HEADERS = {"content-type": "application/json", "x-request-id": "req-vendor-1"}

Behaviour = Callable[["Exchange"], Awaitable[None]]


class _WatchedReader(asyncio.StreamReader):
    """Knows at once that the other side has closed, whoever is reading."""

    def __init__(self) -> None:
        super().__init__(limit=2**20)
        self.closed = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.closed.set()

    def set_exception(self, exc: type[BaseException] | BaseException) -> None:
        super().set_exception(exc)  # type: ignore[arg-type]  # typeshed wants an instance, asyncio hands either
        self.closed.set()


@dataclass(slots=True)
class Exchange:
    """One request as it came, and the means to answer it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter
    caller_closed: asyncio.Event
    """Set once Headgate has closed the connection."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def write(self, data: bytes) -> None:
        if self.writer.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def begin(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Status and headers of a chunked answer."""
        lines = [f"HTTP/1.1 {status} Whatever", "transfer-encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in (headers or SSE_HEADERS).items()]
        await self.write("\r\n".join([*lines, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.write(b"0\r\n\r\n")

    async def answer(self, status: int, body: bytes | Any, headers: dict[str, str] | None = None) -> None:
        """A whole answer; what is not bytes goes out as JSON."""
        data = body if isinstance(body, bytes) else json_bytes(body)
        lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in {**JSON_HEADERS, **(headers or {})}.items()]
        await self.write("\r\n".join([*lines, "", ""]).encode() + data)

    async def stream(self, events: Iterable[Any], *, done: bool = True) -> None:
        """Events as server-sent events, one HTTP chunk each."""
        await self.begin()
        for event in events:
            await self.chunk(sse(event))
        if done:
            await self.chunk(b"data: [DONE]\n\n")
        await self.end()

    def reset(self) -> None:
        """Breaks the connection with a TCP reset."""
        if self.writer.is_closing():
            return
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass(slots=True)
class Vendor:
    """Runs `behave` for each request; keeps every exchange in order, unless it is to forget them."""

    behave: Behaviour
    tls: ssl.SSLContext | None = None
    forgets: bool = False
    exchanges: list[Exchange] = field(default_factory=list)
    open_connections: int = 0
    connections: int = 0
    port: int = 0
    _server: asyncio.Server | None = None
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def base_url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(_WatchedReader(), self._serve)

        self._server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for exchange in self.exchanges:
            exchange.writer.transport.abort()

    async def exchange(self, number: int = 1) -> Exchange:
        """The request of that number, from 1, once it has come."""
        async with asyncio.timeout(5), self._arrived:
            await self._arrived.wait_for(lambda: len(self.exchanges) >= number)
        return self.exchanges[number - 1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(reader, _WatchedReader)
        self.open_connections += 1
        self.connections += 1
        try:
            while exchange := await _read_request(reader, writer):
                if not self.forgets:
                    async with self._arrived:
                        self.exchanges.append(exchange)
                        self._arrived.notify_all()
                await self.behave(exchange)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open_connections -= 1
            writer.close()


async def _read_request(reader: _WatchedReader, writer: asyncio.StreamWriter) -> Exchange | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    request_line, *header_lines = head.decode("latin-1").split("\r\n")[:-2]
    method, path, _ = request_line.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in header_lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Exchange(method, path, headers, body, writer, reader.closed)


def json_bytes(value: Any) -> bytes:
    """The value as JSON."""
    return json.dumps(value).encode()


def sse(event: Any, kind: str = "") -> bytes:
    """One server-sent event, its data as JSON unless it is bytes."""
    data = event if isinstance(event, bytes) else json_bytes(event)
    return (f"event: {kind}\n".encode() if kind else b"") + b"data: " + data + b"\n\n"


def text_chunk(text: str, **delta: Any) -> dict[str, Any]:
    """A Chat Completions chunk that carries text."""
    return _chunk({"index": 0, "delta": {"content": text, **delta}, "finish_reason": None})


def finish_chunk(reason: str = "stop") -> dict[str, Any]:
    """The chunk that ends the choice."""
    return _chunk({"index": 0, "delta": {}, "finish_reason": reason})


def usage_chunk(prompt: int = 5, completion: int = 3) -> dict[str, Any]:
    """The last chunk, with usage and no choices."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {**_chunk(), "usage": usage}


def _chunk(*choices: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": "vendor-model-1",
        "choices": list(choices),
    }


def completion(text: str = "Hello there", finish: str = "stop") -> dict[str, Any]:
    """A whole Chat Completions answer."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "vendor-model-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }


async def answers_text(exchange: Exchange) -> None:
    """A vendor in good health, plain or streamed as asked."""
    if exchange.json.get("stream"):
        await exchange.stream([text_chunk("Hello"), text_chunk(" there"), finish_chunk(), usage_chunk()])
    else:
        await exchange.answer(200, completion())


async def stalls_before_headers(exchange: Exchange) -> None:
    """Never answers."""
    await exchange.caller_closed.wait()


async def stalls_in_the_stream(exchange: Exchange) -> None:
    """Sends one word, and then nothing."""
    await exchange.begin()
    await exchange.chunk(sse(text_chunk("Hello")))
    await exchange.caller_closed.wait()


async def floods(exchange: Exchange) -> None:
    """Sends text without end, as fast as it is taken."""
    await exchange.begin()
    while not exchange.caller_closed.is_set():
        await exchange.chunk(sse(text_chunk("x" * 100_000)))


def at(vendor: Vendor, **settings: Any) -> dict[str, Any]:
    """A provider of OpenAI's wire at this vendor."""
    return {"adapter": "openai", "base_url": vendor.base_url, **settings}
