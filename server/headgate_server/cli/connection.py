"""The connection to a running server, and the credentials that go along."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc

from headgate_server.cli.exits import USAGE, Failed

Metadata = tuple[tuple[str, str | bytes], ...]
OPTIONS = (("grpc.max_receive_message_length", -1),)


@dataclass(frozen=True, slots=True)
class Connection:
    """How a server is reached: in plain text without `credentials`."""

    address: str
    credentials: grpc.ChannelCredentials | None
    metadata: Metadata = field(repr=False)

    def channel(self) -> grpc.Channel:
        """A channel to it."""
        if self.credentials:
            return grpc.secure_channel(self.address, self.credentials, options=OPTIONS)
        return grpc.insecure_channel(self.address, options=OPTIONS)


def connection(
    address: str, key: str, tls: bool, ca_file: Path | None, cert_file: Path | None, key_file: Path | None
) -> Connection:
    """The connection that the command line describes.

    Raises:
        Failed: a file cannot be read, the key is no text for a header, or a certificate or its key is missing.
    """
    if not key.isascii() or not key.isprintable():
        raise Failed(USAGE, "error: --key: must be printable ASCII text")
    if (cert_file is None) != (key_file is None):
        raise Failed(USAGE, "error: --cert-file and --key-file belong together")
    metadata: Metadata = (("authorization", f"Bearer {key}"),) if key else ()
    if not tls:
        return Connection(address, None, metadata)
    credentials = grpc.ssl_channel_credentials(_read(ca_file), _read(key_file), _read(cert_file))
    return Connection(address, credentials, metadata)


def _read(file: Path | None) -> bytes | None:
    try:
        return file.read_bytes() if file else None
    except OSError as error:
        raise Failed(USAGE, f"error: {file}: {error.strerror}") from error
