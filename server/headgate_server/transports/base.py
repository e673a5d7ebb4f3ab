"""The seam between upstream.py and an HTTP client, or something that answers in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One HTTP request, ready to send. Times are in seconds."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    connect_timeout: float


class HttpResponse(Protocol):
    """An answer whose status and headers have come, and whose body is read piece by piece.

    Header names are lower case. Whoever holds it calls `close` exactly once, on every way out.
    """

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    async def read(self) -> bytes:
        """What has arrived of the body since the last read, waiting for at least one byte; empty at its end.

        A cancelled read loses nothing: the next one goes on where it stopped.

        Raises:
            ProviderError: the connection broke, or the body is malformed.
        """
        ...

    def close(self) -> None:
        """Gives the connection back if the body has ended, else closes it at once, so that the vendor stops."""
        ...


class Transport(Protocol):
    """Sends requests. Holds the connections."""

    @property
    def connections(self) -> tuple[int, int]:
        """How many are in use, and how many can be; 0 for no limit."""
        ...

    async def send(self, request: HttpRequest) -> HttpResponse:
        """Connects, sends, and waits for the headers of the answer. Redirects are not followed.

        A cancel closes the connection before it propagates.

        Raises:
            ProviderUnreachable: name resolution, connect or TLS failed, or the connection broke before the headers.
            ProviderTimeout: no connection within `connect_timeout`.
            GatewayOverloaded: every connection of the pool is in use.
        """
        ...

    async def close(self) -> None:
        """Closes every connection."""
        ...
