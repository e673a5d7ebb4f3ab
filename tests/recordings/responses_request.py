"""A recorded Responses request as the contract says it: the test's own reader, apart from the adapter.

Everything that the contract has a word for is read into it. What remains goes to provider_options, and must be in
UNMODELLED.
"""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

from headgate import v1 as pb

Json = dict[str, Any]

ROLES = {
    "system": pb.ROLE_SYSTEM,
    "developer": pb.ROLE_DEVELOPER,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
}
CHOICES = {
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}
VISIBILITY = {"auto": pb.REASONING_VISIBILITY_SUMMARY, "detailed": pb.REASONING_VISIBILITY_FULL}
FORMATS = {"text": pb.RESPONSE_FORMAT_TYPE_TEXT, "json_object": pb.RESPONSE_FORMAT_TYPE_JSON}
ENCRYPTED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
UNMODELLED = {
    "background",
    "include",
    "moderation",
    "previous_response_id",
    "prompt",
    "prompt_cache_options",
    "reasoning",
    "service_tier",
    # OpenRouter
    "provider",
}


def read_responses_request(recorded: Json, issuer: str) -> pb.GenerateRequest:
    """The request in the contract's words."""
    body = {key: value for key, value in recorded.items() if value is not None}
    request = pb.GenerateRequest(model=f"{issuer}/{body.pop('model', '')}")
    if "instructions" in body:
        request.messages.add(role=pb.ROLE_SYSTEM, parts=[pb.Part(text=body.pop("instructions"))])
    _read_input(body.pop("input", []), issuer, request)
    request.tools.extend(_tool(tool, issuer) for tool in body.pop("tools", []))
    _read_tool_choice(body, request.tool_choice)
    _read_config(body, request.config)
    _read_reasoning(body, request.reasoning)
    request.end_user_id = body.pop("user", "") or body.pop("safety_identifier", "")
    request.prompt_cache_key = body.pop("prompt_cache_key", "")
    body.pop("stream", None)
    assert body.pop("store", False) is False, "what the adapter says by itself"
    assert body.keys() <= UNMODELLED, f"not read: {body.keys() - UNMODELLED}"
    if body:
        request.provider_options[issuer] = json.dumps(body)
    return request


def _read_input(items: str | list[Json], issuer: str, request: pb.GenerateRequest) -> None:
    """One message for each turn: what is said, all issued items that the model produced in a row, all results."""
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    for item in items:
        role, parts = _read_item(item, issuer)
        is_spoken = "role" in item and "id" not in item
        if is_spoken or not request.messages or request.messages[-1].role != role:
            request.messages.add(role=role)
        request.messages[-1].parts.extend(parts)


def _read_item(item: Json, issuer: str) -> tuple[pb.Role.ValueType, list[pb.Part]]:
    match item:
        case {"type": "additional_tools"}:
            return pb.ROLE_DEVELOPER, [_provider_item(item, issuer)]
        case {"type": "tool_search_output", "execution": "client"}:
            return pb.ROLE_TOOL, [_provider_item(item, issuer)]
        case {"role": "assistant"}:
            return pb.ROLE_ASSISTANT, _assistant(item, issuer)
        case {"role": role}:
            assert item.keys() <= {"type", "role", "content"}
            return ROLES[role], _content(item["content"])
        case {"type": "function_call_output"}:
            assert item.keys() == {"type", "call_id", "output"}
            result = pb.ToolResult(call_id=item["call_id"], parts=_content(item["output"]))
            return pb.ROLE_TOOL, [pb.Part(tool_result=result)]
        case {"type": "function_call"}:
            return pb.ROLE_ASSISTANT, [_tool_call(item, issuer)]
        case {"type": "reasoning"}:
            return pb.ROLE_ASSISTANT, _reasoning(item, issuer)
        case _:
            return pb.ROLE_ASSISTANT, [_provider_item(item, issuer)]


def _provider_item(item: Json, issuer: str) -> pb.Part:
    return pb.Part(provider_item=pb.ProviderItem(type=item["type"], json=json.dumps(item)), issuer=issuer)


def _identified(part: pb.Part, item: Json, issuer: str) -> pb.Part:
    if "id" in item:
        part.item_id = item["id"]
        part.issuer = issuer
    return part


def _assistant(item: Json, issuer: str) -> list[pb.Part]:
    content = item["content"]
    if isinstance(content, str):
        content = [{"type": "output_text", "text": content}]
    extras = {key: item[key] for key in item.keys() - {"type", "id", "role", "status", "content"}}
    parts = []
    for piece in content:
        assert piece["type"] == "output_text"
        citations = [_citation(annotation) for annotation in piece.get("annotations", [])]
        part = _identified(pb.Part(text=piece["text"], citations=citations), item, issuer)
        if extras:
            part.provider_metadata[issuer] = json.dumps(extras)
        parts.append(part)
    return parts


def _citation(annotation: Json) -> pb.Citation:
    assert annotation.keys() == {"type", "url", "title", "start_index", "end_index"}
    return pb.Citation(
        uri=annotation["url"],
        title=annotation["title"],
        start_offset=annotation["start_index"],
        end_offset=annotation["end_index"],
    )


def _tool_call(item: Json, issuer: str) -> pb.Part:
    call = pb.ToolCall(id=item["call_id"], name=item["name"], arguments=item["arguments"])
    part = _identified(pb.Part(tool_call=call), item, issuer)
    extras = {key: item[key] for key in item.keys() - {"type", "id", "status", "call_id", "name", "arguments"}}
    if extras:
        part.provider_metadata[issuer] = json.dumps(extras)
    return part


def _reasoning(item: Json, issuer: str) -> list[pb.Part]:
    thoughts = [
        *(pb.Reasoning(text=s["text"], kind=pb.REASONING_KIND_SUMMARY) for s in item["summary"]),
        *(pb.Reasoning(text=c["text"], kind=pb.REASONING_KIND_FULL) for c in item.get("content") or []),
    ]
    thoughts = thoughts or [pb.Reasoning(kind=pb.REASONING_KIND_OPAQUE)]
    parts = [_identified(pb.Part(reasoning=thought), item, issuer) for thought in thoughts]
    if item.get("encrypted_content"):
        parts[-1].signature = item["encrypted_content"].encode()
        parts[-1].issuer = issuer
    return parts


def _content(content: str | list[Json]) -> list[pb.Part]:
    if isinstance(content, str):
        return [pb.Part(text=content)]
    return [_part(item) for item in content]


def _part(item: Json) -> pb.Part:
    match item["type"]:
        case "input_text":
            part = pb.Part(text=item["text"])
        case "input_image":
            part = pb.Part(media=_media(item["image_url"]))
            part.media.kind = pb.MEDIA_KIND_IMAGE
            part.media.detail = item.get("detail", "")
        case "input_file":
            part = pb.Part(media=_media(item.get("file_data") or item["file_url"]))
            part.media.kind = pb.MEDIA_KIND_DOCUMENT
            part.media.filename = item.get("filename", "")
        case kind:
            raise AssertionError(f"content of type {kind}")
    if item.get("prompt_cache_breakpoint"):
        part.cache_breakpoint.SetInParent()
    return part


def _media(url: str) -> pb.Media:
    if not url.startswith("data:"):
        return pb.Media(uri=url)
    mime_type, _, data = url.removeprefix("data:").partition(";base64,")
    return pb.Media(mime_type=mime_type, data=b64decode(data))


def _tool(tool: Json, issuer: str) -> pb.Tool:
    read = pb.Tool()
    if tool["type"] != "function":
        read.provider.issuer = issuer
        read.provider.type = tool["type"]
        if config := {key: tool[key] for key in tool if key != "type"}:
            read.provider.config_json = json.dumps(config)
        return read
    read.function.name = tool["name"]
    read.function.description = tool.get("description") or ""
    read.function.parameters_schema = json.dumps(tool["parameters"])
    if tool.get("strict") is not None:
        read.function.strict = tool["strict"]
    extras = {key: tool[key] for key in tool.keys() - {"type", "name", "description", "parameters", "strict"}}
    if extras:
        read.provider_metadata[issuer] = json.dumps(extras)
    return read


def _read_tool_choice(body: Json, choice: pb.ToolChoice) -> None:
    if "parallel_tool_calls" in body:
        choice.parallel_calls = body.pop("parallel_tool_calls")
    match body.pop("tool_choice", None):
        case {"type": "function", "name": name}:
            choice.mode = pb.TOOL_CHOICE_MODE_REQUIRED
            choice.allowed_tools.append(name)
        case {"type": "allowed_tools", "mode": mode, "tools": tools}:
            choice.mode = CHOICES[mode]
            choice.allowed_tools.extend(tool["name"] for tool in tools)
        case str(word):
            choice.mode = CHOICES[word]


def _read_config(body: Json, config: pb.GenerationConfig) -> None:
    for name in ("max_output_tokens", "temperature", "top_p", "top_logprobs"):
        if name in body:
            setattr(config, name, body.pop(name))
    text = body.pop("text", {})
    if "verbosity" in text:
        config.verbosity = text["verbosity"]
    if "format" in text:
        _read_format(text["format"], config.response_format)
    included = [word for word in body.pop("include", []) if word != ENCRYPTED]
    if included == [LOGPROBS]:
        config.logprobs = True
    elif included:
        body["include"] = [ENCRYPTED, *included]


def _read_format(recorded: Json, form: pb.ResponseFormat) -> None:
    if recorded["type"] != "json_schema":
        form.type = FORMATS[recorded["type"]]
        return
    form.type = pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA
    form.name = recorded["name"]
    form.description = recorded.get("description") or ""
    form.schema = json.dumps(recorded["schema"])
    if recorded.get("strict") is not None:
        form.strict = recorded["strict"]


def _read_reasoning(body: Json, reasoning: pb.ReasoningConfig) -> None:
    recorded = {key: value for key, value in body.pop("reasoning", {}).items() if value is not None}
    reasoning.effort = recorded.pop("effort", "")
    if "summary" in recorded:
        reasoning.visibility = VISIBILITY[recorded.pop("summary")]
    if recorded:
        body["reasoning"] = recorded
