"""Where the server listens: for calls, for calls with client certificates, and for probes."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from contextlib import suppress

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as grpc_health

from headgate_server.config.tree import Server as ServerConfig
from headgate_server.tls import CertificateFiles

MAX_PENDING_CALLS = 100_000
PROBE_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 64 * 1024),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_allowed_incoming_connections", 100),
    ("grpc.server_handshake_timeout_ms", 5_000),
)


class Listeners:
    """The ports of one server, and the certificates that they show."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        tls = config.tls
        self.mtls_port = 0
        """The port for clients with certificates, where it is another, once it is bound."""
        self._main = CertificateFiles(tls, asks_clients=not tls.mtls_listen) if tls else None
        self._mtls = CertificateFiles(tls, asks_clients=True) if tls and tls.mtls_listen else None

    @property
    def certificates(self) -> Sequence[CertificateFiles]:
        """Those of each port."""
        return tuple(files for files in (self._main, self._mtls) if files)

    def bind(self, server: grpc.aio.Server) -> int:
        """Binds them all; the port of `server.listen`.

        Raises:
            OSError: an address cannot be bound.
        """
        if self._config.tls and self._config.tls.mtls_listen:
            self.mtls_port = _bind(server, self._config.tls.mtls_listen, self._mtls)
        return _bind(server, self._config.listen, self._main)


class ProbeServer:
    """A server of its own that holds health checks alone, in plain text, whatever the other one asks of its clients."""

    def __init__(self, listen: str, health: grpc_health.HealthServicer) -> None:
        self._listen = listen
        self._server = grpc.aio.server(options=PROBE_OPTIONS, maximum_concurrent_rpcs=1000)
        health_pb2_grpc.add_HealthServicer_to_server(health, self._server)
        self.port = 0
        """Where it listens, once it does."""

    async def start(self) -> None:
        """Listens.

        Raises:
            OSError: the address cannot be bound.
        """
        self.port = _bind(self._server, self._listen, None)
        await self._server.start()

    async def close(self) -> None:
        """Answers nobody any more."""
        await self._server.stop(0)


def _bind(server: grpc.aio.Server, address: str, certificates: CertificateFiles | None) -> int:
    try:
        if certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, certificates.credentials())
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}") from error


def channel_options(server: ServerConfig) -> list[tuple[str, int]]:
    """The configuration as options of gRPC's core."""
    options: dict[str, float | None] = {
        "grpc.so_reuseport": 0,
        "grpc.max_receive_message_length": server.max_request_bytes,
        "grpc.max_send_message_length": -1,  # the chain refuses with a reason what is larger than max_reply_bytes
        "grpc.max_metadata_size": server.max_metadata_bytes,  # between the two limits the core refuses at random
        "grpc.absolute_max_metadata_size": server.max_metadata_bytes,
        "grpc.max_allowed_incoming_connections": server.max_connections or None,
        # Calls that Python has not taken yet: beyond this the core answers CANCELLED, where admission says why.
        "grpc.server.max_pending_requests": MAX_PENDING_CALLS,
        "grpc.server.max_pending_requests_hard_limit": MAX_PENDING_CALLS,
        "grpc.max_concurrent_streams": server.max_concurrent_streams,
        "grpc.keepalive_time_ms": server.keepalive_time * 1000,
        "grpc.keepalive_timeout_ms": server.keepalive_timeout * 1000,
        "grpc.http2.ping_timeout_ms": server.keepalive_timeout * 1000,  # by which the core goes; a minute otherwise
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_ping_interval_without_data_ms": server.min_ping_interval * 1000,
        "grpc.server_handshake_timeout_ms": server.handshake_timeout * 1000,
        "grpc.max_connection_idle_ms": server.max_connection_idle and server.max_connection_idle * 1000,
        "grpc.max_connection_age_ms": server.max_connection_age and server.max_connection_age * 1000,
        "grpc.max_connection_age_grace_ms": server.max_connection_age_grace * 1000,
    }
    return [(name, int(value)) for name, value in options.items() if value is not None]


def raise_open_file_limit() -> None:
    """Takes as many open files as the system lets this process have: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # macOS calls it unlimited, and refuses that
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
