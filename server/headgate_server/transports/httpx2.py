"""The second transport: httpx2 over HTTP/1.1, without the client on top, which would keep cookies.

One task holds each exchange from connect to close, and reads ahead into a small buffer. So a read can be given up
without harm, which httpx2 itself does not offer: a cancel inside its iterators closes the connection.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import h11
import httpx2

from headgate_server.errors import (
    ProviderBrokeOff,
    ProviderError,
    ProviderProtocolError,
    ProviderTimeout,
    ProviderUnreachable,
)
from headgate_server.transports.base import HttpRequest, HttpResponse
from headgate_server.transports.connections import (
    ACCEPT_ENCODING,
    KEEPALIVE_SECONDS,
    READ_BUFFER_BYTES,
    STALE_SECONDS,
    ClientCertificate,
    Slots,
    tls_context,
)

NO_CLOCKS = httpx2.Timeout(None).as_dict()


class Httpx2Transport:
    """Holds at most `max_connections` connections, and refuses rather than queues beyond them."""

    def __init__(
        self,
        max_connections: int,
        *,
        ca_file: Path | None = None,
        client_certificate: ClientCertificate | None = None,
        proxy: str = "",
    ) -> None:
        self._slots = Slots(max_connections)
        self._exchanges: set[asyncio.Task[None]] = set()
        self._pool = httpx2.AsyncHTTPTransport(
            verify=tls_context(ca_file, client_certificate),
            trust_env=False,
            http1=True,
            http2=False,  # httpx2 sends no reset for a cancelled stream
            limits=httpx2.Limits(
                max_connections=max_connections,
                max_keepalive_connections=max_connections,
                keepalive_expiry=KEEPALIVE_SECONDS,
            ),
            proxy=httpx2.Proxy(proxy) if proxy else None,
        )

    @property
    def connections(self) -> tuple[int, int]:
        return self._slots.connections

    async def send(self, request: HttpRequest) -> HttpResponse:
        began = time.monotonic()
        while True:
            answer = Httpx2Response(self._slots)
            try:
                await self._begin(request, answer)
            except _StaleConnectionError as stale:
                if time.monotonic() - began > STALE_SECONDS:
                    raise stale.meaning from stale
            else:
                return answer

    async def close(self) -> None:
        for task in tuple(self._exchanges):
            task.cancel()
        await asyncio.gather(*self._exchanges, return_exceptions=True)
        await self._pool.aclose()

    async def _begin(self, request: HttpRequest, answer: Httpx2Response) -> None:
        """Starts the exchange and waits for its headers."""
        self._slots.take(answer)
        task = asyncio.create_task(self._exchange(request, answer))
        self._exchanges.add(task)
        task.add_done_callback(self._exchanges.discard)
        task.add_done_callback(lambda _: self._slots.give_back(answer))
        answer.exchange = task
        try:
            await answer.began
        except BaseException:
            self._slots.give_back(answer)
            task.cancel()
            await asyncio.wait((task,))
            raise

    async def _exchange(self, request: HttpRequest, answer: Httpx2Response) -> None:
        try:
            async with aclosing(await self._connect(request)) as response:
                answer.begin(response)
                async with aclosing(response.aiter_bytes()) as pieces:
                    async for piece in pieces:
                        await answer.put(piece)
        except asyncio.CancelledError:
            answer.end(ProviderUnreachable("the gateway closed the connection to the provider"))
            raise
        except (httpx2.HTTPError, OSError) as exception:
            answer.end(_in_body(exception))
        except Exception as exception:
            answer.end(exception)
        else:
            answer.end()

    async def _connect(self, request: HttpRequest) -> httpx2.Response:
        """Connects under the connect clock, which covers name, proxy and TLS, sends, and waits for the headers."""
        opened: list[Any] = []

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                opened.append(info["return_value"])
            elif event == "http11.send_request_headers.started" and info["request"].method != b"CONNECT":
                clock.reschedule(None)

        call = httpx2.Request(
            request.method,
            request.url,
            headers={"accept-encoding": ACCEPT_ENCODING, **request.headers},
            content=request.body,
            extensions={"timeout": NO_CLOCKS, "trace": trace},
        )
        try:
            async with asyncio.timeout(request.connect_timeout) as clock:
                return await self._pool.handle_async_request(call)
        except BaseException as exception:
            for stream in opened:
                await stream.aclose()  # httpx2 leaves it open when a TLS handshake is cancelled
            if not isinstance(exception, httpx2.HTTPError | OSError):
                raise
            meaning = _before_headers(exception)
            if opened or not _broke(exception):
                raise meaning from exception
            raise _StaleConnectionError(meaning) from exception


class Httpx2Response:
    """One answer; see HttpResponse. What has been read ahead is kept here until it is asked for."""

    exchange: asyncio.Task[None]

    def __init__(self, slots: Slots) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._slots = slots
        self._pieces: list[bytes] = []
        self._size = 0
        self._ended = False
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def read(self) -> bytes:
        while not self._pieces and not self._ended:
            self._news.clear()
            await self._news.wait()
        if self._pieces:
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
            self._room.set()
            return data
        if self._error:
            raise self._error
        return b""

    def close(self) -> None:
        self._slots.give_back(self)
        self.exchange.cancel()

    def begin(self, response: httpx2.Response) -> None:
        """Status and headers have come."""
        self.status = response.status_code
        self.headers = dict(response.headers)
        if not self.began.done():
            self.began.set_result(None)

    async def put(self, piece: bytes) -> None:
        """Adds to what can be read, and waits while that is enough for now."""
        self._pieces.append(piece)
        self._size += len(piece)
        self._news.set()
        if self._size >= READ_BUFFER_BYTES:
            self._room.clear()
            await self._room.wait()

    def end(self, error: Exception | None = None) -> None:
        """Nothing more will come; `error` says why, unless the body is complete."""
        self._ended = True
        self._news.set()
        if self.began.done():
            self._error = error
        elif error:
            self.began.set_exception(error)


class _StaleConnectionError(Exception):
    """A pooled connection broke unanswered. It had been closed before, if that shows at once."""

    def __init__(self, meaning: ProviderError) -> None:
        super().__init__(meaning.message)
        self.meaning = meaning


def _broke(exception: BaseException) -> bool:
    """The connection was closed or reset; the other protocol errors are about what was said on it."""
    match exception:
        case httpx2.ConnectError():
            return False
        case httpx2.NetworkError():
            return True
        case httpx2.RemoteProtocolError():
            reasons = [str(cause) for cause in _causes(exception) if isinstance(cause, h11.RemoteProtocolError)]
            return not reasons or reasons[0].startswith("peer ")  # "peer unexpectedly closed connection"
        case _:
            return False


def _before_headers(exception: BaseException) -> ProviderError:
    detail = _detail(exception)
    causes = list(_causes(exception))
    match exception:
        case TimeoutError() | httpx2.TimeoutException():
            return ProviderTimeout(
                "no connection to the provider in time (connect clock)",
                facts={"phase": "connect"},
                vendor_detail=detail,
            )
        case httpx2.ProxyError():
            return ProviderUnreachable("the proxy did not connect to the provider", vendor_detail=detail)
        case httpx2.ConnectError() if any(isinstance(cause, ssl.SSLError) for cause in causes):
            return ProviderUnreachable("no TLS connection to the provider", vendor_detail=detail)
        case httpx2.ConnectError() if any(isinstance(cause, socket.gaierror) for cause in causes):
            return ProviderUnreachable("the provider's host name was not found", vendor_detail=detail)
        case httpx2.ConnectError():
            return ProviderUnreachable("no connection to the provider", vendor_detail=detail)
        case _ if _broke(exception):
            return ProviderUnreachable("the provider closed the connection unanswered", vendor_detail=detail)
        case httpx2.RemoteProtocolError():
            return ProviderProtocolError("the provider did not answer in HTTP", vendor_detail=detail)
        case _:
            return ProviderUnreachable("no connection to the provider", vendor_detail=detail)


def _in_body(exception: BaseException) -> ProviderError:
    return ProviderBrokeOff("the provider broke off its answer", vendor_detail=_detail(exception))


def _detail(exception: BaseException) -> str:
    """The exception and what led to it, innermost last; httpx2 wraps without repeating the text."""
    return "; ".join(dict.fromkeys(f"{type(cause).__name__}: {cause}" for cause in _causes(exception)))


def _causes(exception: BaseException) -> Iterator[BaseException]:
    """The exception and what led to it. httpcore2 clears `__cause__` on the way, so `__context__` is followed too."""
    seen: set[int] = set()
    following: BaseException | None = exception
    while following is not None and id(following) not in seen:
        yield following
        seen.add(id(following))
        following = following.__cause__ or following.__context__
