"""Single values of the configuration: what they may be, and the words for what is wrong with them."""

from __future__ import annotations

import re
from decimal import Decimal
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Annotated, Any, Literal, get_type_hints
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, GetCoreSchemaHandler, SecretStr
from pydantic_core import CoreSchema, core_schema

from headgate_server.providers.hosts import Quirks

KIB = 1024
MIB = 1024 * KIB
MASK = "********"
SCOPES = ("key", "tenant", "model", "provider", "target")
LABEL = "label:"
ROLE = "role"
SQLITE = "sqlite:///"
DATABASES = {"sqlite": ("sql", "aiosqlite"), "postgresql": ("postgres", "psycopg"), "postgres": ("postgres", "psycopg")}

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_API_VERSION = re.compile(r"[0-9a-z.-]*")
_DATABASE = re.compile(r"/?[0-9]*")
_KEY_PREFIX = re.compile(r"[!-z]*\{[!-z]+\}[!-~]*")
_PROVIDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, brackets around an IPv6 host removed.

    Raises:
        ValueError: it is not of that form.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("must have brackets around an IPv6 address, such as [::1]:50051")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Only this machine can reach it. A name other than localhost counts as reachable by others."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def masked_password(proxy: str | None) -> str | None:
    """The proxy's address without user and password."""
    before, at, after = (proxy or "").rpartition("@")
    return f"{before.partition('//')[0]}//{MASK}@{after}" if at else proxy


def _listen_address(text: str) -> str:
    split_address(text)
    return text


def _provider_name(text: str) -> str:
    if not _PROVIDER_NAME.fullmatch(text):
        raise ValueError("a provider's name is 1 to 64 letters, digits, dots, underscores or hyphens")
    return text


def _alias_name(text: str) -> str:
    if not text or "/" in text or not text.isprintable() or " " in text:
        raise ValueError("an alias is a word without slash, such as fast-chat")
    if text.count("*") > 1:
        raise ValueError("an alias has at most one *")
    return text


def _base_url(text: str) -> str:
    if not text:
        return text
    url = urlsplit(text)
    plain = text.isascii() and text.isprintable() and " " not in text
    if not plain or url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
        raise ValueError("must be an http or https URL without query, such as https://api.example.com/v1")
    if url.username is not None:
        raise ValueError("must not hold a user name or password: use api_key or headers")
    if url.port == 0:
        raise ValueError("must not have port 0")
    return text.rstrip("/")


def _token_url(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    _base_url(text)
    return text


def _header_name(text: str) -> str:
    if not _HEADER_NAME.fullmatch(text):
        raise ValueError("is not a header name")
    return text.lower()


def _header_value(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise ValueError("must be printable ASCII text")
    return text


def _api_key(secret: SecretStr) -> SecretStr:
    key = secret.get_secret_value()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError("must be printable ASCII text, and not empty")
    return secret


def _api_version(text: str) -> str:
    if not _API_VERSION.fullmatch(text):
        raise ValueError("must be a version such as 2024-10-21")
    return text


def _installed(transport: str) -> str:
    if find_spec(transport) is None:
        raise ValueError(f"{transport} is not installed: pip install 'headgate-server[{transport}]'")
    return transport


def _proxy_url(text: str) -> str:
    url = urlsplit(text)
    if text and (url.scheme != "http" or not url.hostname or url.path.strip("/") or url.query or url.fragment):
        raise ValueError("must be an http URL without path, such as http://egress.example.com:3128")
    return text


def _redis_url(secret: SecretStr) -> SecretStr:
    if not _is_redis_url(secret.get_secret_value()):
        raise ValueError(
            "must be a redis, rediss or unix URL, such as redis://redis.example.com:6379/0, with options that redis-py "
            "knows; in a password, /, ?, # and @ are written %2F, %3F, %23 and %40"
        )
    return secret


def _is_redis_url(text: str) -> bool:
    """Whether redis-py takes it as it is meant; what is wrong is not said, for that may quote the password."""
    try:
        url = urlsplit(text)
        named = url.hostname or (url.scheme == "unix" and url.path)
        cut_short = url.netloc.count("@") > 1 or "@" in url.path + url.query or url.fragment
        if url.scheme not in ("redis", "rediss", "unix") or not named or cut_short or url.port == 0:
            return False
        if url.scheme != "unix" and not _DATABASE.fullmatch(url.path):
            return False
        if find_spec("redis"):
            from redis.asyncio.connection import ConnectionPool  # an extra

            ConnectionPool.from_url(text).make_connection()  # type: ignore[no-untyped-call]  # redis-py leaves it so
    except Exception:  # whatever the library makes of it
        return False
    return True


def _database_url(secret: SecretStr) -> SecretStr:
    scheme, found, _ = secret.get_secret_value().partition("://")
    if not found or scheme not in DATABASES:
        raise ValueError("must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE")
    extra, driver = DATABASES[scheme]
    for package in ("sqlalchemy", "alembic", driver):
        if find_spec(package) is None:
            raise ValueError(f"{package} is not installed: pip install 'headgate-server[{extra}]'")
    return secret


def _store_type(store: str) -> str:
    return _installed(store) if store == "redis" else store


def _key_prefix(text: str) -> str:
    if not _KEY_PREFIX.fullmatch(text):
        raise ValueError("must have a word in braces, such as {headgate}:, which keeps its keys together in a cluster")
    return text


def _scope(text: str) -> str:
    label = text.removeprefix(LABEL)
    if text not in SCOPES and (label == text or not label):
        raise ValueError(f"must be {', '.join(SCOPES)} or {LABEL}NAME")
    return text


def _scope_or_role(text: str) -> str:
    return text if text == ROLE else _scope(text)


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class _QuirkOverrides:
    """Makes pydantic check a mapping against the fields of the Quirks dataclass, each of them optional."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        fields = {
            name: core_schema.typed_dict_field(handler.generate_schema(hint), required=False)
            for name, hint in get_type_hints(Quirks).items()
        }
        return core_schema.typed_dict_schema(fields, extra_behavior="forbid")


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NumberFromZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SecondsFromZero = NumberFromZero
Price = Annotated[Decimal, Field(ge=0, allow_inf_nan=False, max_digits=18, decimal_places=9)]
Count = Annotated[int, Field(ge=1)]
CountFromZero = Annotated[int, Field(ge=0)]
Size = Annotated[ByteSize, Field(ge=KIB, le=1024 * MIB)]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
ProviderName = Annotated[str, AfterValidator(_provider_name)]
AliasName = Annotated[str, AfterValidator(_alias_name)]
StrategyName = Literal["priority", "weighted", "least-busy", "latency", "cost"]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[str, AfterValidator(_header_value)]
Scope = Annotated[str, AfterValidator(_scope)]
ScopeOrRole = Annotated[str, AfterValidator(_scope_or_role)]
LowerCase = BeforeValidator(_lower)
ApiKey = Annotated[SecretStr, AfterValidator(_api_key)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], LowerCase]
Component = Literal[
    "access",
    "budgets",
    "configuration",
    "credentials",
    "health",
    "identity",
    "ledger",
    "limits",
    "security",
    "server",
    "status",
    "tracing",
]
TokenUrl = Annotated[str, AfterValidator(_token_url)]
ApiVersion = Annotated[str, AfterValidator(_api_version)]
TransportName = Annotated[Literal["aiohttp", "httpx2"], AfterValidator(_installed)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
StoreType = Annotated[Literal["memory", "redis"], AfterValidator(_store_type)]
KeyPrefix = Annotated[str, AfterValidator(_key_prefix)]
ProxyUrl = Annotated[str, AfterValidator(_proxy_url)]
QuirkOverrides = Annotated[dict[str, Any], _QuirkOverrides()]
