"""The transport on the request path: aiohttp over HTTP/1.1, where closing a connection tells the vendor to stop."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import aiohttp
from yarl import URL

from headgate_server.errors import (
    GatewayOverloaded,
    ProviderError,
    ProviderProtocolError,
    ProviderTimeout,
    ProviderUnreachable,
)
from headgate_server.transports.base import HttpRequest, HttpResponse

KEEPALIVE_SECONDS = 30.0
READ_BUFFER_BYTES = 64 * 1024


class AiohttpTransport:
    """Holds at most `max_connections` connections, and refuses rather than queues beyond them."""

    def __init__(self, max_connections: int) -> None:
        self._max_connections = max_connections
        self._in_use = 0
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=KEEPALIVE_SECONDS,
                ttl_dns_cache=30,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=READ_BUFFER_BYTES,
            skip_auto_headers=("user-agent",),
        )

    async def send(self, request: HttpRequest) -> HttpResponse:
        if self._in_use >= self._max_connections:
            raise GatewayOverloaded(
                f"all {self._max_connections} connections to the provider are in use", retry_after=1.0
            )
        self._in_use += 1
        try:
            response = await self._session.request(
                request.method,
                URL(request.url, encoded=True),
                data=request.body,
                headers=request.headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=request.connect_timeout),
            )
        except BaseException as exception:
            self._in_use -= 1
            if isinstance(exception, aiohttp.ClientError | OSError | TimeoutError):
                raise _before_headers(exception) from exception
            raise
        return AiohttpResponse(response, self)

    async def close(self) -> None:
        await self._session.close()

    def returned(self) -> None:
        """A connection is free again, or gone."""
        self._in_use -= 1


class AiohttpResponse:
    """One answer; see HttpResponse."""

    def __init__(self, response: aiohttp.ClientResponse, transport: AiohttpTransport) -> None:
        self._response = response
        self._transport = transport
        self._closed = False
        self.headers: Mapping[str, str] = MappingProxyType(
            {name.lower(): value for name, value in response.headers.items()}
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
        if self._closed:
            return
        self._closed = True
        if self._response.content.is_eof():
            self._response.release()
        else:
            self._response.close()
        self._transport.returned()


def _before_headers(exception: BaseException) -> ProviderError:
    detail = f"{type(exception).__name__}: {exception}"
    match exception:
        case aiohttp.ConnectionTimeoutError():
            return ProviderTimeout(
                "no connection to the provider in time (connect clock)",
                facts={"phase": "connect"},
                vendor_detail=detail,
            )
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
    return ProviderProtocolError(
        "the provider broke off its answer", vendor_detail=f"{type(exception).__name__}: {exception}"
    )
