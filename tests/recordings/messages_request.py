"""A recorded Messages request as the contract says it: the test's own reader, apart from the adapter.

Everything that the contract has a word for is read into it. What remains goes to provider_options, and must be in
UNMODELLED.
"""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

from google.protobuf.duration_pb2 import Duration
from headgate import v1 as pb

Json = dict[str, Any]

ROLES = {"system": pb.ROLE_SYSTEM, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT}
CHOICES = {
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "any": pb.TOOL_CHOICE_MODE_REQUIRED,
    "tool": pb.TOOL_CHOICE_MODE_REQUIRED,
}
CONFIG = {"max_tokens": "max_output_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
FUNCTION_KEYS = {"name", "description", "input_schema", "strict", "cache_control"}
TTL = {"5m": 300, "1h": 3600}
UNMODELLED = {"cache_control", "container", "mcp_servers"}


def read_messages_request(recorded: Json, issuer: str, betas: str = "") -> pb.GenerateRequest:
    """The request in the contract's words; `betas` is the anthropic-beta header."""
    body = {key: value for key, value in recorded.items() if value is not None}
    request = pb.GenerateRequest(model=f"{issuer}/{body.pop('model')}")
    if "system" in body:
        request.messages.add(role=pb.ROLE_SYSTEM, parts=_parts(body.pop("system"), issuer))
    for message in body.pop("messages"):
        request.messages.add(role=ROLES[message["role"]], parts=_parts(message["content"], issuer))
        assert message.keys() == {"role", "content"}
    request.tools.extend(_tool(tool, issuer) for tool in body.pop("tools", []))
    for name, ours in CONFIG.items():
        if name in body:
            setattr(request.config, ours, body.pop(name))
    request.config.stop_sequences.extend(body.pop("stop_sequences", []))
    request.end_user_id = body.pop("metadata", {}).get("user_id", "")
    _read_output(body, request)
    _read_tool_choice(body.pop("tool_choice", None), request.tool_choice)
    _read_thinking(body.pop("thinking", None), request.reasoning)
    body.pop("stream", None)
    assert body.keys() <= UNMODELLED, f"not read: {body.keys() - UNMODELLED}"
    if betas:
        body["betas"] = betas.split(",")
    if body:
        request.provider_options[issuer] = json.dumps(body)
    return request


def _parts(content: str | list[Json], issuer: str) -> list[pb.Part]:
    if isinstance(content, str):
        return [pb.Part(text=content)]
    return [_part({key: value for key, value in block.items() if value is not None}, issuer) for block in content]


def _part(block: Json, issuer: str) -> pb.Part:
    part = pb.Part()
    match block["type"]:
        case "text":
            part.text = block["text"]
            part.citations.extend(_citation(found) for found in block.get("citations", []))
            if part.citations:
                part.issuer = issuer
        case "thinking":
            part.reasoning.text = block["thinking"]
            part.signature, part.issuer = block["signature"].encode(), issuer
        case "redacted_thinking":
            part.reasoning.kind = pb.REASONING_KIND_OPAQUE
            part.signature, part.issuer = block["data"].encode(), issuer
        case "tool_use":
            call = part.tool_call
            call.id, call.name, call.arguments = block["id"], block["name"], json.dumps(block["input"])
        case "tool_result":
            result = part.tool_result
            result.call_id = block["tool_use_id"]
            result.parts.extend(_parts(block.get("content", []), issuer))
            result.failed = block.get("is_error", False)
        case "image" | "document":
            part.media.CopyFrom(_media(block))
        case kind:
            part.provider_item.type, part.provider_item.json, part.issuer = kind, json.dumps(block), issuer
            return part
    if "cache_control" in block:
        part.cache_breakpoint.CopyFrom(_breakpoint(block["cache_control"]))
    return part


def _citation(found: Json) -> pb.Citation:
    rest = dict(found)
    citation = pb.Citation(cited_text=rest.pop("cited_text"), uri=rest.pop("url", "") or rest.pop("source", ""))
    citation.title = rest.pop("title", None) or rest.pop("document_title", None) or ""
    if "document_index" in rest:
        citation.document_index = rest.pop("document_index")
    citation.opaque = rest.pop("encrypted_index", "").encode()
    citation.provider_json = json.dumps(rest)
    return citation


def _media(block: Json) -> pb.Media:
    media = pb.Media(kind=pb.MEDIA_KIND_IMAGE if block["type"] == "image" else pb.MEDIA_KIND_DOCUMENT)
    media.title, media.context = block.get("title", ""), block.get("context", "")
    media.citations_enabled = block.get("citations", {}).get("enabled", False)
    source = block["source"]
    match source["type"]:
        case "base64":
            media.mime_type, media.data = source["media_type"], b64decode(source["data"])
        case "text":
            media.mime_type, media.data = source["media_type"], source["data"].encode()
        case "url":
            media.uri = source["url"]
        case "file":
            media.file.id = source["file_id"]
    return media


def _breakpoint(control: Json) -> pb.CacheBreakpoint:
    if "ttl" not in control:
        return pb.CacheBreakpoint()
    return pb.CacheBreakpoint(ttl=Duration(seconds=TTL[control["ttl"]]))


def _tool(tool: Json, issuer: str) -> pb.Tool:
    read = pb.Tool()
    rest = dict(tool)
    if control := rest.pop("cache_control", None):
        read.cache_breakpoint.CopyFrom(_breakpoint(control))
    if rest.get("type", "custom") != "custom":
        read.provider.issuer, read.provider.type, read.provider.name = issuer, rest.pop("type"), rest.pop("name", "")
        read.provider.config_json = json.dumps(rest) if rest else ""
        return read
    read.function.name, read.function.description = tool["name"], tool.get("description", "")
    read.function.parameters_schema = json.dumps(tool["input_schema"])
    if "strict" in tool:
        read.function.strict = tool["strict"]
    if extras := {key: value for key, value in rest.items() if key not in FUNCTION_KEYS}:
        read.provider_metadata[issuer] = json.dumps(extras)
    return read


def _read_tool_choice(recorded: Json | None, choice: pb.ToolChoice) -> None:
    if recorded is None:
        return
    choice.mode = CHOICES[recorded["type"]]
    if "name" in recorded:
        choice.allowed_tools.append(recorded["name"])
    if "disable_parallel_tool_use" in recorded:
        choice.parallel_calls = not recorded["disable_parallel_tool_use"]


def _read_output(body: Json, request: pb.GenerateRequest) -> None:
    output = dict(body.pop("output_config", {}))
    request.reasoning.effort = output.pop("effort", "")
    form = output.pop("format", None) or body.pop("output_format", None)
    assert not output
    if form:
        request.config.response_format.type = pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA
        request.config.response_format.schema = json.dumps(form["schema"])


def _read_thinking(recorded: Json | None, reasoning: pb.ReasoningConfig) -> None:
    match recorded:
        case {"type": "enabled", "budget_tokens": budget}:
            reasoning.enabled, reasoning.budget_tokens = True, budget
        case {"type": ("adaptive" | "disabled") as switch}:
            reasoning.enabled = switch == "adaptive"
