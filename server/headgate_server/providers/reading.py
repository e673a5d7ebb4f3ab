"""Values out of a vendor's JSON: null stands for absent everywhere, new members are kept as extras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from headgate_server.errors import ProviderProtocolError
from headgate_server.json_codec import JsonObject, text_of

MAX_UINT32 = 2**32 - 1
END_OF_TIME = 253402300799


def text(value: object) -> str:
    """A string that may be null.

    Raises:
        ProviderProtocolError: it is something else.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise ProviderProtocolError("the provider's answer has something else where a string belongs")


def label(value: object) -> str:
    """An id, a name or another word that decides nothing: a number is taken as its digits, anything else as none."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def mapping(value: object) -> JsonObject:
    """An object that may be null; anything else is read as an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[JsonObject]:
    """An array of objects that may be null; other elements are passed over."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def count(value: object) -> int | None:
    """A number of tokens; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_UINT32:
        return value
    return None


def number(value: object) -> float:
    """A float; 0 for anything else."""
    try:
        return float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:
        return 0.0


def decode_base64(data: object) -> bytes:
    """The bytes of a base64 string.

    Raises:
        ProviderProtocolError: it is none.
    """
    try:
        return msgspec.convert(text(data), bytes)  # as strict as base64, in a quarter of the time
    except msgspec.ValidationError:
        raise ProviderProtocolError("the provider sent media that is not base64") from None


def create_time(created: object) -> Timestamp | None:
    """When the vendor created the answer, from Unix seconds."""
    if isinstance(created, int | float) and 0 < created <= END_OF_TIME:
        return Timestamp(seconds=int(created))
    return None


def extras(found: Mapping[str, Any], modelled: frozenset[str]) -> JsonObject:
    """The members that the contract has no field for; null and empty containers say nothing and are left out."""
    return {key: value for key, value in found.items() if key not in modelled and value not in (None, [], {})}


def metadata(found: JsonObject, issuer: str) -> dict[str, str]:
    """Extras as a provider_metadata map."""
    return {issuer: text_of(found)} if found else {}
