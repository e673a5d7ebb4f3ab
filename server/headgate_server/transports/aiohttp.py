"""The transport on the request path: aiohttp over HTTP/1.1, where closing a connection tells the vendor to stop."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import aiohttp
from yarl import URL

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

MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 128


class _Sending:
    """One call on its way, and whether a connection was opened for it rather than taken from the pool."""

    opened = False


_sending: ContextVar[_Sending] = ContextVar("_sending")


class AiohttpTransport:
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
        self._open: set[AiohttpResponse] = set()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=KEEPALIVE_SECONDS,
                ttl_dns_cache=30,
                ssl=tls_context(ca_file, client_certificate),
                socket_factory=_open_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"accept-encoding": ACCEPT_ENCODING},
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            max_line_size=MAX_HEADER_BYTES,
            proxy=proxy or None,
            read_bufsize=READ_BUFFER_BYTES,
            skip_auto_headers=("user-agent",),
            trust_env=False,
        )

    @property
    def connections(self) -> tuple[int, int]:
        return self._slots.connections

    async def send(self, request: HttpRequest) -> HttpResponse:
        sending = _Sending()
        self._slots.take(sending)
        try:
            response = await self._request(request, sending)
        except BaseException as exception:
            self._slots.give_back(sending)
            if isinstance(exception, aiohttp.ClientError | OSError):
                raise _before_headers(exception) from exception
            raise
        answer = AiohttpResponse(response, self, sending)
        self._open.add(answer)
        return answer

    async def close(self) -> None:
        for answer in tuple(self._open):
            answer.close()  # the session alone would leave their readers waiting
        await self._session.close()

    def closed(self, answer: AiohttpResponse, sending: _Sending) -> None:
        """The answer's connection is free again, or gone."""
        self._open.discard(answer)
        self._slots.give_back(sending)

    async def _request(self, request: HttpRequest, sending: _Sending) -> aiohttp.ClientResponse:
        """The answer. Connections from the pool may turn out to be closed: then the next one is tried."""
        _sending.set(sending)
        began = time.monotonic()
        while True:
            try:
                return await self._session.request(
                    request.method,
                    URL(request.url, encoded=True),
                    data=request.body,
                    headers=request.headers,
                    allow_redirects=False,
                    timeout=_to_connect_within(request.connect_timeout),
                )
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if sending.opened or time.monotonic() - began > STALE_SECONDS:
                    raise


class AiohttpResponse:
    """One answer; see HttpResponse."""

    def __init__(self, response: aiohttp.ClientResponse, transport: AiohttpTransport, sending: _Sending) -> None:
        self._response = response
        self._transport = transport
        self._sending = sending
        self.headers: Mapping[str, str] = MappingProxyType(
            {name.lower(): _text(value) for name, value in response.headers.items()}
        )

    @property
    def status(self) -> int:
        return self._response.status

    async def read(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as exception:
            raise _in_body(exception) from exception

    def close(self) -> None:
        if self._response.content.is_eof():
            self._response.release()
        else:
            self._response.close()
        self._transport.closed(self, self._sending)


@lru_cache(maxsize=64)
def _to_connect_within(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=seconds)


def _open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    _sending.get().opened = True
    family, kind, protocol, _, _ = address
    return socket.socket(family, kind, protocol)


def _text(header: str) -> str:
    """A header as text that can be encoded: aiohttp leaves bytes that are not UTF-8 as surrogates."""
    return header if header.isascii() else header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _before_headers(exception: BaseException) -> ProviderError:
    detail = f"{type(exception).__name__}: {exception}"
    match exception:
        case aiohttp.ConnectionTimeoutError():
            return ProviderTimeout(
                "no connection to the provider in time (connect clock)",
                facts={"phase": "connect"},
                vendor_detail=detail,
            )
        case aiohttp.ClientHttpProxyError():
            return ProviderUnreachable("the proxy did not connect to the provider", vendor_detail=detail)
        case aiohttp.ClientResponseError():
            return ProviderProtocolError("the provider did not answer in HTTP", vendor_detail=detail)
        case aiohttp.ClientSSLError():
            return ProviderUnreachable("no TLS connection to the provider", vendor_detail=detail)
        case aiohttp.ClientConnectorDNSError():
            return ProviderUnreachable("the provider's host name was not found", vendor_detail=detail)
        case aiohttp.ServerDisconnectedError():
            return ProviderUnreachable("the provider closed the connection unanswered", vendor_detail=detail)
        case _:
            return ProviderUnreachable("no connection to the provider", vendor_detail=detail)


def _in_body(exception: BaseException) -> ProviderError:
    return ProviderBrokeOff(
        "the provider broke off its answer", vendor_detail=f"{type(exception).__name__}: {exception}"
    )
