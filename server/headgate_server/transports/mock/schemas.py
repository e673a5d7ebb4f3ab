"""A value that a JSON Schema admits: what the mock's tool calls have as arguments."""

from __future__ import annotations

import math
from typing import Any

Schema = dict[str, Any]

MAX_DEPTH = 16
MAX_ITEMS = 16
STRING_FORMATS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "email": "someone@example.com",
    "time": "00:00:00Z",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def example(schema: Schema) -> Any:
    """The same value each time. Patterns and rarer keywords are not considered."""
    return _Examples(schema).of(schema, "text", 0)


class _Examples:
    def __init__(self, root: Schema) -> None:
        self._root = root

    def of(self, schema: Any, name: str, depth: int) -> Any:
        """A value for `schema`; text takes the `name` of its property."""
        schema = self._resolved(schema, depth)
        if depth > MAX_DEPTH:
            return None
        if "const" in schema:
            return schema["const"]
        for listed in ("enum", "examples"):
            if schema.get(listed):
                return schema[listed][0]
        if "default" in schema:
            return schema["default"]
        match _type(schema):
            case "object":
                properties = schema.get("properties") or {}
                return {key: self.of(properties.get(key), key, depth + 1) for key in schema.get("required") or ()}
            case "array":
                count = min(max(schema.get("minItems", 1), 1), MAX_ITEMS)
                return [self.of(schema.get("items"), name, depth + 1)] * count
            case "string":
                return _text(schema, name)
            case "integer":
                return math.ceil(_number(schema))
            case "number":
                return _number(schema)
            case "boolean":
                return True
            case _:
                return None

    def _resolved(self, schema: Any, depth: int) -> Schema:
        """The schema with `$ref` followed, `allOf` merged and the first of `anyOf` and `oneOf` taken."""
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            return {}
        merged = {key: value for key, value in schema.items() if key not in ("$ref", "allOf", "anyOf", "oneOf")}
        parts = [self._referenced(schema["$ref"])] if "$ref" in schema else []
        parts += schema.get("allOf") or []
        parts += [schema[choice][0] for choice in ("anyOf", "oneOf") if schema.get(choice)]
        for part in parts:
            merged = {**self._resolved(part, depth + 1), **merged}
        return merged

    def _referenced(self, reference: str) -> Any:
        found: Any = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        return found


def _type(schema: Schema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind is None:
        kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
    return str(kind)


def _text(schema: Schema, name: str) -> str:
    if schema.get("format") in STRING_FORMATS:
        return STRING_FORMATS[schema["format"]]
    return name.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]


def _number(schema: Schema) -> Any:
    if "minimum" in schema:
        return schema["minimum"]
    if "exclusiveMinimum" in schema:
        return math.floor(schema["exclusiveMinimum"]) + 1
    return min(1, schema.get("maximum", 1))
