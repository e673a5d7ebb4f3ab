"""The mock as a transport: delays, pace, scripted failures, and counters of what became of each call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from headgate_server.config import MockOptions
from headgate_server.errors import ProviderBrokeOff, ProviderUnreachable
from headgate_server.transports.base import HttpRequest, HttpResponse
from headgate_server.transports.mock.failures import Break, Script, spoil
from headgate_server.transports.mock.wire import answer

FOR_EVER = 10 * 365 * 86400.0


class MockTransport:
    """Answers OpenAI requests itself. `opened` counts the calls that came, `closed` those that are over.

    `aborted` counts those of the closed ones that ended before their answer did: cancelled, closed early, or broken.
    """

    def __init__(self, options: MockOptions | None = None) -> None:
        self._options = options or MockOptions()
        self._script = Script(self._options.failures)
        self.opened = 0
        self.closed = 0
        self.aborted = 0

    @property
    def active(self) -> int:
        """Calls that hold their connection."""
        return self.opened - self.closed

    @property
    def connections(self) -> tuple[int, int]:
        return self.active, 0

    async def send(self, request: HttpRequest) -> HttpResponse:
        if request.method == "GET":
            return self._check()
        self.opened += 1
        try:
            return await self._answer(request, self.opened)
        except BaseException:
            self._on_close(ended=False)
            raise

    async def close(self) -> None:
        """There is nothing to close."""

    async def _answer(self, request: HttpRequest, number: int) -> HttpResponse:
        failure = self._script.next()
        if failure and failure.connect:
            raise ProviderUnreachable("no connection to the provider", vendor_detail="scripted failure of the mock")
        if failure and failure.stall == "headers":
            await asyncio.sleep(FOR_EVER)
        await asyncio.sleep(self._options.delay)
        reply = answer(urlsplit(request.url).path, request.body, self._options, number)
        ending: Break | None = None
        headers = {"x-request-id": f"req-mock-{number}"}
        if failure:
            reply, ending = spoil(reply, failure)
            if failure.retry_after is not None:
                headers["retry-after"] = f"{failure.retry_after:g}"
        return MockResponse(
            status=reply.status,
            headers={**headers, "content-type": reply.content_type},
            chunks=reply.chunks,
            ending=ending,
            chunks_per_second=self._options.tokens_per_second,
            on_close=self._on_close,
        )

    def _check(self) -> HttpResponse:
        """The list of models. Checks are no calls: they are not counted, and use up no scripted failure."""
        return MockResponse(
            status=200,
            headers={"content-type": "application/json"},
            chunks=[b'{"object":"list","data":[]}'],
            ending=None,
            chunks_per_second=0.0,
            on_close=lambda *, ended: None,
        )

    def _on_close(self, *, ended: bool) -> None:
        self.closed += 1
        self.aborted += not ended


class MockResponse:
    """One answer; see HttpResponse. At `chunks_per_second` 0 a read brings all that there is."""

    def __init__(
        self,
        *,
        status: int,
        headers: Mapping[str, str],
        chunks: Sequence[bytes],
        ending: Break | None,
        chunks_per_second: float,
        on_close: Callable[..., None],
    ) -> None:
        self.status = status
        self.headers = headers
        self._chunks = chunks
        self._ending = ending
        self._chunks_per_second = chunks_per_second
        self._on_close = on_close
        self._started = asyncio.get_running_loop().time()
        self._position = 0
        self._closed = False

    async def read(self) -> bytes:
        if self._position == len(self._chunks):
            return await self._end()
        start = self._position
        self._position = await self._arrived()
        return b"".join(self._chunks[start : self._position])

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._on_close(ended=self._ending is None and self._position == len(self._chunks))

    async def _end(self) -> bytes:
        if self._ending is Break.STALL:
            await asyncio.sleep(FOR_EVER)
        if self._ending is Break.RESET:
            raise ProviderBrokeOff("the provider broke off its answer", vendor_detail="scripted failure of the mock")
        return b""

    async def _arrived(self) -> int:
        elapsed = asyncio.get_running_loop().time() - self._started
        wait, count = arrival(self._position, len(self._chunks), elapsed, self._chunks_per_second)
        if wait:
            await asyncio.sleep(wait)
        return count


def arrival(read: int, total: int, elapsed: float, chunks_per_second: float) -> tuple[float, int]:
    """Seconds until there is more than the chunks already `read`, and how many chunks there are then."""
    if not chunks_per_second:
        return 0.0, total
    arrived = min(int(elapsed * chunks_per_second) + 1, total)
    if arrived > read:
        return 0.0, arrived
    return read / chunks_per_second - elapsed, read + 1
