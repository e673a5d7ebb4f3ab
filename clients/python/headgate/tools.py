"""Tools the model may call, from typed Python functions."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, get_type_hints

from google.protobuf.message import Message
from headgate import v1 as pb
from headgate.content import part
from headgate.schemas import Schema, object_schema, schema_of, strict as strict_schema, value_of

_ARGUMENTS = re.compile(r"^\s*(?:Args|Arguments|Parameters):\s*$", re.MULTILINE)
_ARGUMENT = re.compile(r"^\s{1,8}\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_SPHINX = re.compile(r"^\s*:param\s+(?:[^:]*\s)?(\w+):\s*(.*)$", re.MULTILINE)
_SECTION = re.compile(
    r"^\s*(?:Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$|^\s*:\w+.*:", re.MULTILINE
)


@dataclasses.dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the model sees it (`proto`), and the function that answers its calls; without one, you answer them."""

    proto: pb.Tool
    function: Callable[..., Any] | None = None
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Types of the function's parameters, by name."""

    @property
    def name(self) -> str:
        """What the model calls it by; a hosted tool's type."""
        kind = self.proto.WhichOneof("kind")
        return self.proto.provider.type if kind == "provider" else str(getattr(self.proto, kind or "function").name)

    def call(self, call: pb.ToolCall) -> Any:
        """What the function answers to a call; something to await if it is async.

        Raises:
            ValueError: the arguments are no JSON object, or not of the declared types.
        """
        assert self.function is not None
        if call.kind == pb.TOOL_CALL_KIND_FREE_TEXT:
            return self.function(call.arguments)
        return self.function(**self.arguments(call.arguments))

    def arguments(self, text: str) -> dict[str, Any]:
        """The function's arguments that a call's JSON stands for.

        Raises:
            ValueError: they are no JSON object, or not of the declared types.
        """
        given = json.loads(text or "{}")
        if not isinstance(given, dict):
            raise ValueError("arguments must be a JSON object")
        if unknown := [name for name in given if name not in self.parameters]:
            raise ValueError(f"there is no parameter {', '.join(unknown)}")
        return {name: value_of(self.parameters[name], value, name) for name, value in given.items()}


ToolLike: TypeAlias = Tool | pb.Tool | Callable[..., Any] | Mapping[str, Any]
"""A function, a type of arguments without a function, a dict in OpenAI's shape, or the contract's own."""


def tool(function: Callable[..., Any], *, name: str = "", description: str = "", strict: bool | None = None) -> Tool:
    """The tool for a typed function, sync or async: its docstring says what it does and what its parameters are.

    A type (pydantic model, dataclass, TypedDict) declares a tool that you answer yourself. `strict` has the vendor
    enforce the schema; then every parameter is required.

    Raises:
        TypeError: a parameter has no type, or one that JSON does not have; or there is no name.
    """
    summary, descriptions = _documentation(function)
    if isinstance(function, type):
        parameters: dict[str, Any] = {}
        schema = schema_of(function)
    else:
        parameters, required = _parameters(function)
        schema = object_schema(parameters, required, descriptions)
    if strict:
        schema = strict_schema(schema) or _refuse_strict(function)
    name = name or getattr(function, "__name__", "")
    if not name or name == "<lambda>":
        raise TypeError(f"{function}: the tool needs a name: tool(..., name=...)")
    declared = pb.FunctionTool(
        name=name,
        description=description or summary,
        parameters_schema=json.dumps(schema, ensure_ascii=False),
        strict=strict,
    )
    return Tool(pb.Tool(function=declared), None if isinstance(function, type) else function, parameters)


def read_tool(given: ToolLike) -> Tool:
    """Any of what tools may be given as.

    Raises:
        TypeError: a function lacks types, or this is no tool.
        ValueError: a dict is not in OpenAI's shape.
    """
    match given:
        case Tool():
            return given
        case pb.Tool():
            return Tool(given)
        case Mapping():
            return Tool(_openai_tool(given))
    if callable(given):
        return tool(given)
    raise TypeError(f"{type(given).__name__} is no tool")


def result_of(call: pb.ToolCall, value: object) -> pb.Part:
    """The part that answers a call: text and parts as they are, anything else as JSON.

    Raises:
        TypeError, ValueError: JSON cannot say the value.
    """
    result = pb.ToolResult(call_id=call.id, name=call.name)
    if isinstance(value, str | pb.Part):
        result.parts.append(part(value))
    elif isinstance(value, list) and value and all(isinstance(item, pb.Part) for item in value):
        result.parts.extend(value)
    else:
        text = json.dumps(value, default=_plain, ensure_ascii=False, allow_nan=False)
        result.parts.append(part(text))
        result.structured_json = text
    return pb.Part(tool_result=result)


def failed_result(call: pb.ToolCall, message: str) -> pb.Part:
    """The part that tells the model how its call failed."""
    return pb.Part(tool_result=pb.ToolResult(call_id=call.id, name=call.name, parts=[part(message)], failed=True))


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives something to await."""
    called = getattr(function, "__call__", function)  # noqa: B004  # an object with async __call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def refuse_async(tools: Iterable[Tool]) -> None:
    """Raises TypeError if there is an async function among the tools."""
    for each in tools:
        if each.function and is_async(each.function):
            raise TypeError(f"{each.name} is async: only AsyncClient awaits it")


def _parameters(function: Callable[..., Any]) -> tuple[dict[str, Any], set[str]]:
    signed = function if inspect.isroutine(function) else type(function).__call__
    hints = get_type_hints(signed, include_extras=True)
    parameters, required = {}, set()
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"{function}: a tool's parameters are named, {parameter} is not")
        if name not in hints:
            raise TypeError(f"{function}: the parameter {name} needs a type")
        parameters[name] = hints[name]
        if parameter.default is parameter.empty:
            required.add(name)
    return parameters, required


def _documentation(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """What a docstring says before its first section, and of each parameter in Google's or Sphinx's style."""
    text = inspect.cleandoc(function.__doc__ or "")
    if isinstance(function, type) and dataclasses.is_dataclass(function) and text.startswith(f"{function.__name__}("):
        text = ""  # the docstring that a dataclass makes itself
    first = _SECTION.search(text)
    summary = (text[: first.start()] if first else text).strip()
    descriptions = dict(_SPHINX.findall(text))
    if section := _ARGUMENTS.search(text):
        name = ""
        for line in text[section.end() :].strip("\n").splitlines():
            if not line.strip() or not line[0].isspace():
                break
            if found := _ARGUMENT.match(line):
                name, descriptions[found[1]] = found[1], found[2].strip()
            elif name:
                descriptions[name] += f" {line.strip()}"
    return summary, descriptions


def _refuse_strict(function: Callable[..., Any]) -> Schema:
    raise TypeError(f"{function}: a strict schema cannot have objects of any keys")


def _openai_tool(given: Any) -> pb.Tool:
    match given:
        case {"type": "function", "function": {"name": str(name)}}:
            fields = given["function"]
            function = pb.FunctionTool(name=name, description=fields.get("description") or "")
            function.parameters_schema = _json_text(fields.get("parameters"))
            if fields.get("strict") is not None:
                function.strict = fields["strict"]
            return pb.Tool(function=function)
        case {"type": "custom", "custom": {"name": str(name)}}:
            fields = given["custom"]
            free_text = pb.FreeTextTool(name=name, description=fields.get("description") or "")
            free_text.format_json = _json_text(fields.get("format"))
            return pb.Tool(free_text=free_text)
    raise ValueError(f"a tool of type {given.get('type')!r} is none of OpenAI's function and custom")


def _json_text(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """What json.dumps takes, for what it does not."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Message):
        from google.protobuf import json_format

        return json_format.MessageToDict(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set | frozenset | Sequence):
        return list(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} cannot be told as JSON")
