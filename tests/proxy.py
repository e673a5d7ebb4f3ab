"""A real HTTP proxy: it tunnels for CONNECT, and forwards what has a whole URL in its request line."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


@dataclass(slots=True)
class Proxy:
    """Keeps the head of every request it was sent; with `refusal`, answers that instead of connecting."""

    refusal: bytes = b""
    silent: bool = False
    """Accept connections, and never say a word."""
    open_connections: int = 0
    heads: list[str] = field(default_factory=list)
    port: int = 0
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    def url(self, user: str = "") -> str:
        return f"http://{user}{'@' if user else ''}127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self.open_connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            if self.silent:
                while await reader.read(65536):
                    pass
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head.decode("latin-1"))
            method, target, _ = head.decode("latin-1").split(" ", 2)
            if self.refusal:
                writer.write(self.refusal)
                await writer.drain()
            elif method == "CONNECT":
                host, _, port = target.rpartition(":")
                vendor_reader, vendor_writer = await asyncio.open_connection(host, int(port))
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await self._join(reader, writer, vendor_reader, vendor_writer)
            else:
                url = urlsplit(target)
                vendor_reader, vendor_writer = await asyncio.open_connection(url.hostname, url.port)
                vendor_writer.write(head.replace(target.encode(), url.path.encode(), 1))
                await self._join(reader, writer, vendor_reader, vendor_writer)
        self.open_connections -= 1
        writer.close()

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        vendor_reader: asyncio.StreamReader,
        vendor_writer: asyncio.StreamWriter,
    ) -> None:
        self._open.add(vendor_writer)
        await asyncio.gather(_copy(reader, vendor_writer), _copy(vendor_reader, writer))


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()
