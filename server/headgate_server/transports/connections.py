"""What every transport over sockets holds to: how many connections, for how long, how large, and whom to trust."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
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

    @property
    def connections(self) -> tuple[int, int]:
        """How many are in use, and how many can be."""
        return len(self._taken), self._limit

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


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What a vendor is shown that asks for a certificate: files in PEM. Without `key_file` one file holds both."""

    file: Path
    key_file: Path | None = None


def tls_context(ca_file: Path | None, client_certificate: ClientCertificate | None = None) -> ssl.SSLContext:
    """Trusts the authorities in that file, or else the system's; always verifies, and speaks HTTP/1.1 only.

    Raises:
        OSError: a file cannot be read, or holds no certificate or key, or these do not match (ssl.SSLError is one).
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    if client_certificate:
        no_prompt = ""  # for the password of an encrypted key, which OpenSSL would ask for on the terminal
        context.load_cert_chain(client_certificate.file, client_certificate.key_file, password=no_prompt)
    return context
