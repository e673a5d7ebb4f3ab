"""JSON Schema of Python types, and values of those types from JSON.

Known are str, int, float, bool, None, Any, list, set, tuple, dict with str keys, Literal, Enum, unions, datetime, date,
Annotated with a description, dataclasses, TypedDicts and pydantic models, which describe themselves.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
import types
from collections.abc import Collection, Mapping
from datetime import date, datetime
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

T = TypeVar("T")
Schema = dict[str, Any]

_PLAIN: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    type(None): {"type": "null"},
    datetime: {"type": "string", "format": "date-time"},
    date: {"type": "string", "format": "date"},
    Any: {},
    object: {},
}


def schema_of(kind: Any) -> Schema:
    """The JSON Schema of a type; definitions of pydantic models stand in `$defs` at its root.

    Raises:
        TypeError: JSON has no such thing.
    """
    definitions: Schema = {}
    schema = _schema(kind, definitions, ())
    return _rooted({**schema, "$defs": definitions}) if definitions else schema


def object_schema(fields: Mapping[str, Any], required: Collection[str], descriptions: Mapping[str, str]) -> Schema:
    """The schema of an object with these fields; raises as `schema_of` does."""
    definitions: Schema = {}
    schema = _object(fields, required, descriptions, definitions, ())
    return {**schema, "$defs": definitions} if definitions else schema


def parsed(kind: type[T], text: str) -> T:
    """The value that a JSON text stands for.

    Raises:
        ValueError: it is no JSON, or not of this type; the text says where.
    """
    try:
        value: T = value_of(kind, json.loads(text))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def value_of(kind: Any, data: Any, place: str = "$") -> Any:
    """The value of this type that JSON data stand for; raises as `parsed` does."""
    if _is_pydantic(kind):
        return kind.model_validate(data)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Annotated, Required, NotRequired):
        return value_of(arguments[0], data, place)
    if origin in (Union, types.UnionType):
        return _value_of_union(arguments, data, place)
    if origin is Literal:
        return _expect(any(data == value and type(data) is type(value) for value in arguments), kind, data, place)
    if kind in (Any, object):
        return data
    if kind in (None, type(None)):
        return _expect(data is None, kind, data, place)
    if kind is float:
        return float(_expect(isinstance(data, int | float) and not isinstance(data, bool), kind, data, place))
    if kind is int and isinstance(data, float) and data.is_integer():
        return int(data)
    if kind in (str, int, bool):
        return _expect(type(data) is kind, kind, data, place)
    if isinstance(kind, type) and issubclass(kind, enum.Enum | date):
        return _converted(kind if issubclass(kind, enum.Enum) else kind.fromisoformat, data, place)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        _, required = _dataclass_fields(kind)
        return kind(**_members(get_type_hints(kind, include_extras=True), required, data, place))
    if is_typeddict(kind):
        return _members(get_type_hints(kind, include_extras=True), kind.__required_keys__, data, place)
    return _value_of_collection(origin or kind, arguments, data, place)


def strict(schema: Schema) -> Schema | None:
    """The schema as vendors enforce it, with closed objects that require all of their fields; None if it cannot be so.

    Source: https://platform.openai.com/docs/guides/structured-outputs, whose rules are the tightest: the root is an
    object, there are no objects of any keys and no tuples.
    """
    rooted = _rooted(schema)
    if rooted.get("type") != "object":
        return None
    closed = _strict(json.loads(json.dumps(rooted)))
    return closed if isinstance(closed, dict) else None


def _rooted(schema: Schema) -> Schema:
    """The schema with an object at its root, where a model that holds itself has but a reference to its definition."""
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    definition = schema.get("$defs", {}).get(name)
    return {**definition, "$defs": schema["$defs"]} if definition else schema


def _schema(kind: Any, definitions: Schema, outer: tuple[Any, ...]) -> Schema:
    if _is_pydantic(kind):
        schema: Schema = kind.model_json_schema()
        for name, definition in schema.pop("$defs", {}).items():
            if definitions.setdefault(name, definition) != definition:
                raise TypeError(f"there are two different models of the name {name}")
        return schema
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        description = next((extra for extra in arguments[1:] if isinstance(extra, str)), "")
        return _described(_schema(arguments[0], definitions, outer), description)
    if origin in (Required, NotRequired):
        return _schema(arguments[0], definitions, outer)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(argument, definitions, outer) for argument in arguments]}
    if origin is Literal:
        return _enumeration(list(arguments))
    if kind in _PLAIN:
        return dict(_PLAIN[kind])
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enumeration([member.value for member in kind])
    if kind in outer:
        raise TypeError(f"{kind.__name__} holds itself: use a pydantic model")
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        fields, required = _dataclass_fields(kind)
        return _object(fields, required, {}, definitions, (*outer, kind))
    if is_typeddict(kind):
        fields = get_type_hints(kind, include_extras=True)
        return _object(fields, kind.__required_keys__, {}, definitions, (*outer, kind))
    return _collection(origin or kind, arguments, definitions, outer)


def _enumeration(values: list[Any]) -> Schema:
    """The values, with their type where they have one in common, which vendors ask for."""
    kinds = {type(value) for value in values}
    return {**_PLAIN.get(kinds.pop(), {}), "enum": values} if len(kinds) == 1 else {"enum": values}


def _collection(origin: Any, arguments: tuple[Any, ...], definitions: Schema, outer: tuple[Any, ...]) -> Schema:
    if not isinstance(origin, type):
        raise TypeError(f"{origin!r} has no JSON Schema")
    if issubclass(origin, tuple) and arguments and arguments[-1] is not Ellipsis:
        items = [_schema(argument, definitions, outer) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if issubclass(origin, Mapping):
        if arguments and arguments[0] is not str:
            raise TypeError("keys of JSON objects are str")
        values = _schema(arguments[1], definitions, outer) if arguments else {}
        return {"type": "object", "additionalProperties": values}
    if issubclass(origin, Collection) and not issubclass(origin, str | bytes):
        schema: Schema = {"type": "array", "items": _schema(arguments[0], definitions, outer) if arguments else {}}
        return {**schema, "uniqueItems": True} if issubclass(origin, set | frozenset) else schema
    raise TypeError(f"{origin.__name__} has no JSON Schema")


def _object(
    fields: Mapping[str, Any],
    required: Collection[str],
    descriptions: Mapping[str, str],
    definitions: Schema,
    outer: tuple[Any, ...],
) -> Schema:
    properties = {
        name: _described(_schema(kind, definitions, outer), descriptions.get(name, "")) for name, kind in fields.items()
    }
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in fields if name in required],
        "additionalProperties": False,
    }


def _described(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description} if description else schema


def _dataclass_fields(kind: Any) -> tuple[dict[str, Any], set[str]]:
    hints = get_type_hints(kind, include_extras=True)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    missing = dataclasses.MISSING
    required = {field.name for field in fields if field.default is missing and field.default_factory is missing}
    return {field.name: hints[field.name] for field in fields}, required


def _members(fields: Mapping[str, Any], required: Collection[str], data: Any, place: str) -> dict[str, Any]:
    _expect(isinstance(data, dict), dict, data, place)
    if missing := [name for name in fields if name in required and name not in data]:
        raise ValueError(f"{place}: lacks {', '.join(missing)}")
    if unknown := [name for name in data if name not in fields]:
        raise ValueError(f"{place}: has no {', '.join(unknown)}")
    return {name: value_of(fields[name], value, f"{place}.{name}") for name, value in data.items()}


def _value_of_union(kinds: tuple[Any, ...], data: Any, place: str) -> Any:
    reasons = []
    for kind in kinds:
        try:
            return value_of(kind, data, place)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; ".join(reasons))


def _value_of_collection(origin: Any, arguments: tuple[Any, ...], data: Any, place: str) -> Any:
    if not isinstance(origin, type):
        raise TypeError(f"{origin!r} cannot be read from JSON")
    if issubclass(origin, Mapping):
        _expect(isinstance(data, dict), origin, data, place)
        kind = arguments[1] if arguments else Any
        return {key: value_of(kind, value, f"{place}.{key}") for key, value in data.items()}
    _expect(isinstance(data, list), origin, data, place)
    if issubclass(origin, tuple) and arguments and arguments[-1] is not Ellipsis:
        _expect(len(data) == len(arguments), f"list of {len(arguments)}", data, place)
        kinds = arguments
    else:
        kinds = (arguments[0] if arguments else Any,) * len(data)
    values = [value_of(kind, value, f"{place}[{i}]") for i, (kind, value) in enumerate(zip(kinds, data, strict=True))]
    return _converted(origin, values, place) if issubclass(origin, tuple | set | frozenset) else values


def _converted(convert: Any, data: Any, place: str) -> Any:
    try:
        return convert(data)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error


def _expect(holds: bool, kind: Any, data: Any, place: str) -> Any:
    if not holds:
        raise ValueError(f"{place}: {json.dumps(data)[:60]} is no {getattr(kind, '__name__', kind)}")
    return data


def _strict(schema: Any) -> Any:
    """The closed schema, or None when it has something that must stay open or that vendors do not enforce."""
    if isinstance(schema, list):
        closed = [_strict(item) for item in schema]
        return None if None in closed else closed
    if not isinstance(schema, dict):
        return schema
    if "prefixItems" in schema:
        return None
    schema.pop("uniqueItems", None)
    if schema.get("type") == "object":
        if "properties" not in schema or schema.get("additionalProperties", False) is not False:
            return None
        schema |= {"required": list(schema["properties"]), "additionalProperties": False}
        for described in schema["properties"].values():
            described.pop("default", None)
    for key in ("properties", "$defs"):
        for name, inner in schema.get(key, {}).items():
            schema[key][name] = _strict(inner)
            if schema[key][name] is None:
                return None
    for key in ("items", "anyOf", "allOf", "oneOf"):
        if key in schema:
            schema[key] = _strict(schema[key])
            if schema[key] is None:
                return None
    return None if schema == {} else schema


def _is_pydantic(kind: Any) -> bool:
    """Whether this is a pydantic model; who has none has not imported pydantic."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)
