"""A recorded request to Cohere's chat as the contract says it: the test's own reader, apart from the adapter.

Everything that the contract has a word for is read into it; there is nothing else in the recordings.
"""

from __future__ import annotations

import json
from typing import Any

from headgate import v1 as pb

Json = dict[str, Any]

ROLES = {"system": pb.ROLE_SYSTEM, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT, "tool": pb.ROLE_TOOL}
CHOICES = {"REQUIRED": pb.TOOL_CHOICE_MODE_REQUIRED, "NONE": pb.TOOL_CHOICE_MODE_NONE}


def read_cohere_request(recorded: Json, issuer: str) -> pb.GenerateRequest:
    """The request in the contract's words."""
    body = {key: value for key, value in recorded.items() if value is not None}
    request = pb.GenerateRequest(model=f"{issuer}/{body.pop('model')}")
    for message in body.pop("messages"):
        request.messages.append(_message(message))
    for document in body.pop("documents", []):
        request.messages[-1].parts.append(_document(document, cited=True))
    for tool in body.pop("tools", []):
        assert tool.keys() == {"type", "function"}
        function = tool["function"]
        assert function.keys() <= {"name", "description", "parameters"}
        read = request.tools.add().function
        read.name, read.description = function["name"], function.get("description", "")
        read.parameters_schema = json.dumps(function["parameters"])
    if "tool_choice" in body:
        request.tool_choice.mode = CHOICES[body.pop("tool_choice")]
    if "temperature" in body:
        request.config.temperature = body.pop("temperature")
    match body.pop("response_format", None):
        case {"type": "json_object", "json_schema": schema}:
            request.config.response_format.type = pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA
            request.config.response_format.schema = json.dumps(schema)
    match body.pop("thinking", None):
        case {"type": "enabled", **more}:
            assert not more
            request.reasoning.enabled = True
    body.pop("stream", None)
    assert not body, f"not read: {body.keys()}"
    return request


def _message(message: Json) -> pb.Message:
    rest = dict(message)
    role = rest.pop("role")
    content = rest.pop("content", None)
    if role == "tool":
        result = pb.ToolResult(call_id=rest.pop("tool_call_id"), parts=_parts(content))
        parts = [pb.Part(tool_result=result)]
    else:
        parts = _parts(content)
    for call in rest.pop("tool_calls", []):
        function = call["function"]
        read = pb.ToolCall(id=call["id"], name=function["name"], arguments=function["arguments"])
        parts.append(pb.Part(tool_call=read))
    assert not rest, f"not read: {rest.keys()}"
    return pb.Message(role=ROLES[role], parts=parts)


def _parts(content: str | list[Json] | None) -> list[pb.Part]:
    if isinstance(content, str):
        return [pb.Part(text=content)]
    return [_part(block) for block in content or []]


def _part(block: Json) -> pb.Part:
    match block:
        case {"type": "text", "text": text}:
            return pb.Part(text=text)
        case {"type": "image_url", "image_url": {"url": url}}:
            return pb.Part(media=pb.Media(kind=pb.MEDIA_KIND_IMAGE, uri=url))
        case {"type": "document", "document": document}:
            return _document(document, cited=False)
    raise AssertionError(f"not read: {block}")


def _document(document: Json, *, cited: bool) -> pb.Part:
    rest = dict(document)
    data = rest.pop("data")
    media = pb.Media(kind=pb.MEDIA_KIND_DOCUMENT, citations_enabled=cited, provider_json=json.dumps(rest))
    if data.keys() == {"title", "text"}:
        media.mime_type, media.title, media.data = "text/plain", data["title"], data["text"].encode()
    else:
        media.mime_type, media.data = "application/json", json.dumps(data).encode()
    return pb.Part(media=media)
