"""Tools as several vendors write them, and which of them are sent where a vendor cannot be told which are allowed."""

from __future__ import annotations

from collections.abc import Sequence

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, caller_object, caller_raw


def allowed_names(choice: pb.ToolChoice) -> Sequence[str]:
    """What the tools are called that alone may be used; empty for all, and where the choice itself says it."""
    return () if choice.mode == pb.TOOL_CHOICE_MODE_NONE or forces_one(choice) else choice.allowed_tools


def forces_one(choice: pb.ToolChoice) -> bool:
    """One tool is to be called and no other."""
    return choice.mode == pb.TOOL_CHOICE_MODE_REQUIRED and len(choice.allowed_tools) == 1


def tool_name(tool: pb.Tool) -> str:
    """What the contract's tool_choice calls the tool."""
    match tool.WhichOneof("kind"):
        case "function":
            return tool.function.name
        case "free_text":
            return tool.free_text.name
        case _:
            return tool.provider.type


def write_function(function: pb.FunctionTool, path: str, schema: str = "parameters") -> JsonObject:
    """A function, whose parameters stand under the member `schema` if it has any."""
    written: JsonObject = {"name": function.name}
    if function.description:
        written["description"] = function.description
    if function.parameters_schema:
        written[schema] = caller_raw(function.parameters_schema, f"{path}.parameters_schema")
    if function.HasField("strict"):
        written["strict"] = function.strict
    return written


def write_free_text(tool: pb.FreeTextTool, path: str) -> JsonObject:
    """A tool whose argument is a text, which OpenAI calls custom."""
    written: JsonObject = {"name": tool.name}
    if tool.description:
        written["description"] = tool.description
    if tool.format_json:
        written["format"] = caller_raw(tool.format_json, f"{path}.format_json")
    return written


def write_hosted(tool: pb.ProviderTool, path: str) -> JsonObject:
    """A tool that the vendor runs, with its settings beside its type."""
    written: JsonObject = {"type": tool.type}
    if tool.name:
        written["name"] = tool.name
    if tool.config_json:
        written |= caller_object(tool.config_json, f"{path}.config_json")
    return written
