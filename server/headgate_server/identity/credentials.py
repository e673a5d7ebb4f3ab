"""What a caller presents: one token, and keys of its own for vendors. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set

from headgate_server.errors import CallerCredentialsRejected, InvalidRequest
from headgate_server.identity.records import Refused

AUTHORIZATION = "authorization"
API_KEY = "x-api-key"
PROVIDER_KEY = "x-provider-key-"

Metadata = Mapping[str, str | bytes]
NONE: Set[str] = frozenset()


def presented_token(metadata: Metadata, repeated: Set[str] = NONE) -> str | None:
    """The token of `authorization: Bearer` or `x-api-key`; None if there is neither.

    Raises:
        Refused: it is of another scheme, or there are several, so that nobody can know which one a proxy looked at.
    """
    if AUTHORIZATION in repeated or API_KEY in repeated:
        raise Refused("contradictory")
    authorization, api_key = metadata.get(AUTHORIZATION), metadata.get(API_KEY)
    if authorization is None:
        return _token(api_key) if api_key is not None else None
    scheme, _, rest = str(authorization).partition(" ")
    if scheme.lower() != "bearer":
        raise Refused("unknown_scheme")
    token = _token(rest.strip())
    if api_key is not None and api_key != token:
        raise Refused("contradictory")
    return token


def provider_keys(
    metadata: Metadata, issuers: Collection[str], *, allowed: bool, repeated: Set[str] = NONE
) -> dict[str, str]:
    """The caller's own vendor keys by issuer, from `x-provider-key-<issuer>`.

    Raises:
        CallerCredentialsRejected: the operator does not allow them.
        InvalidRequest: there is no such issuer, or that is no key, or two.
    """
    found: dict[str, str] = {}
    for name, value in metadata.items():
        if not name.startswith(PROVIDER_KEY):
            continue
        if not allowed:
            raise CallerCredentialsRejected("callers' own provider keys are not accepted here")
        if name in repeated:
            raise InvalidRequest.at(name, "is given more than once")
        issuer = name.removeprefix(PROVIDER_KEY)
        if issuer not in issuers:
            raise InvalidRequest.at(name, "no provider of this issuer is configured")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable() or not value.strip():
            raise InvalidRequest.at(name, "is not a key: it must be printable ASCII text")
        found[issuer] = value.strip()
    return found


def _token(value: str | bytes) -> str:
    if not isinstance(value, str) or not value or not value.isascii():
        raise Refused("malformed")
    return value
