"""How both clients reach a server: address, credentials, channel settings, and the metadata of calls."""

from __future__ import annotations

import ipaddress
import os
import pkgutil
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypedDict

import grpc
from headgate import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

DEFAULT_ADDRESS = "localhost:50051"
TIMEOUT = 600.0
LONGEST = 365 * 86_400.0  # gRPC takes what it cannot count, such as infinity, for a deadline that has passed
LOOK_SECONDS = 10.0  # for what a server answers by itself
KEEPALIVE_SECONDS = 30
MAX_RECONNECT_SECONDS = 10  # by default gRPC leaves an address that was long down alone for two minutes
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
RETRY_BYTES = 64 * 1024 * 1024  # gRPC's own 256 KiB would leave requests with images out of retries

REQUEST_ID = "x-request-id"
_NAME = re.compile(r"[0-9A-Za-z_.-]+")

Metadata: TypeAlias = tuple[tuple[str, str], ...]


class ConnectionOptions(TypedDict, total=False):
    """How a client reaches its server."""

    api_key: str
    """Goes as `authorization: Bearer`; by default the environment's HEADGATE_API_KEY."""
    token: Callable[[], str | Awaitable[str]]
    """Gives the bearer token of each call, for tokens that expire; only AsyncClient awaits it."""
    timeout: float
    """Seconds that a call may take unless it says otherwise: 600."""
    tls: bool
    """By default on, except at loopback addresses and Unix sockets."""
    ca: str | Path | bytes
    """The authorities that sign the server's certificate, as PEM or a file of it; by default gRPC's own list."""
    certificate: str | Path | bytes
    """This side's certificate for mutual TLS, as PEM or a file of it."""
    private_key: str | Path | bytes
    """Its key, as PEM or a file of it."""
    metadata: Mapping[str, str]
    """gRPC metadata of every call."""
    tracing: bool | TracerProvider
    """OpenTelemetry spans of calls, and `traceparent`; needs the extra [otel]."""
    interceptors: Sequence[Any]
    """gRPC client interceptors, the outermost first: those of grpc for Client, of grpc.aio for AsyncClient."""
    channel_options: Mapping[str, str | int]
    """Channel arguments of gRPC, over the ones set here."""


@dataclass(frozen=True, slots=True)
class Connection:
    """What a client needs to know; `credentials` are None in plain text."""

    address: str
    credentials: grpc.ChannelCredentials | None = field(repr=False)
    channel_options: Sequence[tuple[str, str | int]] = field(repr=False)
    metadata: Metadata = field(repr=False)
    token: Callable[[], str | Awaitable[str]] | None = field(repr=False)
    timeout: float
    tracing: bool | TracerProvider = field(repr=False)
    interceptors: Sequence[Any] = field(repr=False)

    @classmethod
    def to(cls, address: str, options: ConnectionOptions) -> Connection:
        """The connection that arguments and environment describe.

        Raises:
            TypeError: an option is unknown, or contradicts another.
            ValueError: the address is a web page's, or a key or metadata is no text for a header.
            OSError: a file cannot be read.
        """
        if unknown := sorted(set(options) - ConnectionOptions.__optional_keys__):
            raise TypeError(f"there is no option {unknown[0]!r}")
        address = address or os.environ.get("HEADGATE_ADDRESS", "") or DEFAULT_ADDRESS
        if address.startswith(("http://", "https://")):
            raise ValueError(f"{address}: an address is HOST:PORT, or what else gRPC resolves")
        token = options.get("token")
        if token and options.get("api_key"):
            raise TypeError("give api_key or token, not both")
        api_key = "" if token else options.get("api_key", os.environ.get("HEADGATE_API_KEY", ""))
        metadata = dict(options.get("metadata") or {})
        if api_key:
            metadata["authorization"] = f"Bearer {api_key}"
        return cls(
            address=address,
            credentials=_credentials(address, options),
            channel_options=tuple({**CHANNEL_OPTIONS, **(options.get("channel_options") or {})}.items()),
            metadata=headers(metadata),
            token=token,
            timeout=options.get("timeout", TIMEOUT),
            tracing=options.get("tracing", False),
            interceptors=options.get("interceptors", ()),
        )

    def call(self, options: Mapping[str, Any]) -> Call:
        """How a call with these options is sent; ValueError for metadata that is no text for a header."""
        metadata = self.metadata
        request_id = options.get("request_id")
        if more := options.get("metadata"):
            given = dict(headers(more))
            request_id = request_id or given.pop(REQUEST_ID, None)
            metadata = tuple({**dict(metadata), **given}.items())
        if request_id:
            headers({REQUEST_ID: request_id})
        else:
            request_id = os.urandom(16).hex()
        timeout = options.get("timeout")
        seconds = min(self.timeout if timeout is None else timeout, LONGEST)
        return Call(seconds, (*metadata, (REQUEST_ID, request_id)), request_id)


class Call(NamedTuple):
    """How one call is sent: seconds, metadata, and the id that it bears."""

    timeout: float
    metadata: Metadata
    request_id: str

    def bearing(self, token: str) -> Metadata:
        """The metadata with this token, asked for just before the call is made; ValueError if it is no text for one."""
        return (*self.metadata, *headers({"authorization": f"Bearer {token}"}))


def service_config() -> str:
    """The service config that clients of any language should have: retries, round robin, health checking, as JSON."""
    data = pkgutil.get_data("headgate", "service_config.json")
    assert data is not None
    return data.decode()


CHANNEL_OPTIONS: Mapping[str, str | int] = {
    "grpc.service_config": service_config(),
    "grpc.keepalive_time_ms": KEEPALIVE_SECONDS * 1000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.http2.max_pings_without_data": 0,  # a model may think for minutes before its first word
    "grpc.max_reconnect_backoff_ms": MAX_RECONNECT_SECONDS * 1000,
    "grpc.per_rpc_retry_buffer_size": RETRY_BYTES,
    "grpc.primary_user_agent": f"headgate-python/{__version__}",
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
}


def headers(metadata: Mapping[str, str]) -> Metadata:
    """Metadata as gRPC takes it.

    Raises:
        ValueError: a name is none, or a value no printable ASCII; values are secrets and are not named.
    """
    for name, value in metadata.items():
        if not _NAME.fullmatch(name) or name.lower().endswith("-bin"):
            raise ValueError(f"metadata {name!r}: a name has letters, digits, _, - and ., and does not end with -bin")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"metadata {name}: must be printable ASCII text")
    return tuple((name.lower(), value) for name, value in metadata.items())


def is_loopback(address: str) -> bool:
    """Whether nobody else can listen to what goes to this address."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    targets = re.sub(r"^(ipv4:|ipv6:|dns:(///)?)", "", address).split(",")
    return all(map(_is_loopback_host, targets))


def _is_loopback_host(target: str) -> bool:
    host = target.rpartition(":")[0] if target.count(":") == 1 or target.startswith("[") else target
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _credentials(address: str, options: ConnectionOptions) -> grpc.ChannelCredentials | None:
    ca, certificate, private_key = (_pem(options.get(name)) for name in ("ca", "certificate", "private_key"))
    if (certificate is None) != (private_key is None):
        raise TypeError("certificate and private_key belong together")
    needs_tls = ca is not None or certificate is not None
    tls = options.get("tls", needs_tls or not is_loopback(address))
    if needs_tls and not tls:
        raise TypeError("ca and certificate need tls")
    return grpc.ssl_channel_credentials(ca, private_key, certificate) if tls else None


def _pem(given: Any) -> bytes | None:
    if given is None or isinstance(given, bytes):
        return given
    return Path(given).read_bytes()
