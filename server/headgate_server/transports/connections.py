"""What every transport over sockets holds to: how many connections, for how long, how large, and whom to trust."""

from __future__ import annotations

import ssl
from pathlib import Path

from headgate_server.errors import GatewayOverloaded

ACCEPT_ENCODING = "gzip, deflate"
KEEPALIVE_SECONDS = 30.0
READ_BUFFER_BYTES = 64 * 1024
STALE_SECONDS = 1.0
"""A pooled connection that breaks unanswered within this time had been closed before the request was sent on it."""


class Slots:
    """The connections in use: at most so many, and refused rather than queued for beyond them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: set[object] = set()

    def take(self, holder: object) -> None:
        """Counts a connection as the holder's.

        Raises:
            GatewayOverloaded: all are in use.
        """
        if len(self._taken) >= self._limit:
            raise GatewayOverloaded(f"all {self._limit} connections to the provider are in use", retry_after=1.0)
        self._taken.add(holder)

    def give_back(self, holder: object) -> None:
        """The holder's connection is free again, or gone; more than once is no harm."""
        self._taken.discard(holder)


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Trusts the authorities in that file, or else the system's; always verifies, and speaks HTTP/1.1 only.

    Raises:
        OSError: the file cannot be read, or holds no certificate (ssl.SSLError is one).
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context
