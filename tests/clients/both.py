"""One face for Client and AsyncClient, so that each rule is tested of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from headgate import AsyncClient, Client, Stream, v1 as pb
from headgate.testing import ScriptedServer


class ThreadedStream:
    """A Stream, each of whose steps is made in a thread."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def text(self) -> AsyncIterator[str]:
        return _threaded(self._stream.text)

    def __aiter__(self) -> AsyncIterator[pb.StreamGenerateResponse]:
        return _threaded(iter(self._stream))

    async def final(self) -> Any:
        return await asyncio.to_thread(self._stream.final)

    def close(self) -> None:
        self._stream.close()

    async def __aenter__(self) -> ThreadedStream:
        self._stream.__enter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._stream.__exit__(*error)


class ThreadedClient:
    """A Client, each of whose calls is made in a thread."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def stream(self, *arguments: Any, **options: Any) -> ThreadedStream:
        return ThreadedStream(self._client.stream(*arguments, **options))

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._client, name)
        return lambda *arguments, **options: asyncio.to_thread(method, *arguments, **options)


async def _threaded(iterator: Iterator[Any]) -> AsyncIterator[Any]:
    try:
        while (item := await asyncio.to_thread(next, iterator, None)) is not None:
            yield item
    finally:
        getattr(iterator, "close", lambda: None)()


@asynccontextmanager
async def connected(kind: str, address: str, **options: Any) -> AsyncIterator[ThreadedClient | AsyncClient]:
    """A client of this kind."""
    options = {"channel_options": {"grpc.use_local_subchannel_pool": 1}, **options}
    if kind == "async":
        async with AsyncClient(address, **options) as client:
            yield client
    else:
        with Client(address, **options) as client:
            yield ThreadedClient(client)


async def ended(server: ScriptedServer) -> str:
    """How the last call ended."""
    return await asyncio.to_thread(server.calls[-1].wait)
