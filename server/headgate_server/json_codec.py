"""JSON in and out: what vendors send, and the JSON texts that callers pass through us byte for byte."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from headgate_server.errors import InvalidRequest, ProviderProtocolError

JsonObject = dict[str, Any]

dumps = msgspec.json.Encoder().encode
_loads = msgspec.json.Decoder().decode


def loads(data: bytes | str) -> Any:
    """The value of a JSON text; lone surrogates become U+FFFD, NaN and Infinity are read as floats.

    Raises:
        ValueError: this is no JSON, no UTF-8, or it is nested too deep.
    """
    try:
        return _loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except msgspec.DecodeError:
        return _loads_what_msgspec_rejects(data)


def loads_object(data: bytes) -> JsonObject:
    """The object that a vendor sent.

    Raises:
        ProviderProtocolError: `data` is not a JSON object.
    """
    try:
        value = loads(data)
    except ValueError as error:
        raise ProviderProtocolError("the provider sent something that is not JSON", vendor_detail=clip(data)) from error
    if not isinstance(value, dict):
        raise ProviderProtocolError("the provider sent JSON that is not an object", vendor_detail=clip(data))
    return value


def caller_object(text: str, field: str) -> JsonObject:
    """The object in a JSON text field of the request; `field` is its path.

    Raises:
        InvalidRequest: the text is not a JSON object.
    """
    try:
        value = loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest.at(field, "must be a JSON object")
    return value


def caller_raw(text: str, field: str) -> msgspec.Raw:
    """A JSON object text field of the request, to go out byte for byte.

    Raises:
        InvalidRequest: the text is not a JSON object.
    """
    caller_object(text, field)
    return msgspec.Raw(text)


def is_json(text: str) -> bool:
    """Whether the text parses."""
    try:
        loads(text)
    except ValueError:
        return False
    return True


def text_of(value: object) -> str:
    """The value as JSON text."""
    return dumps(value).decode()


def merge_patch(target: Any, patch: Any) -> Any:
    """`target` with `patch` applied as JSON Merge Patch (RFC 7396). Changes `target`; a Raw text is parsed
    where the patch reaches into it."""
    if not isinstance(patch, dict):
        return patch
    if isinstance(target, msgspec.Raw):
        target = loads(bytes(target))
    if not isinstance(target, dict):
        target = {}
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = merge_patch(target.get(key), value)
    return target


def clip(data: bytes, limit: int = 2048) -> str:
    """The beginning of a vendor's body, for the log."""
    return data[:limit].decode("utf-8", "replace")


def _loads_what_msgspec_rejects(data: bytes | str) -> Any:
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    try:
        return _without_surrogates(json.loads(text))
    except RecursionError:
        raise ValueError("nested too deep") from None


def _without_surrogates(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        case list():
            return [_without_surrogates(item) for item in value]
        case dict():
            return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
        case _:
            return value
