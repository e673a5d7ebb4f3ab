"""A recorded Chat Completions request as the contract says it: the test's own reader, apart from the adapter.

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

ROLES = {
    "system": pb.ROLE_SYSTEM,
    "developer": pb.ROLE_DEVELOPER,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}
CHOICES = {
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}
AUDIO_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg"}
FUNCTION_KEYS = {"name", "description", "parameters", "strict"}
TTL = {"5m": 300, "1h": 3600}
UNMODELLED = {
    # OpenAI
    "audio",
    "service_tier",
    "web_search_options",
    # OpenRouter
    "models",
    "provider",
    "transforms",
    # Mistral
    "safe_prompt",
    # Cerebras
    "clear_thinking",
    # z.ai
    "thinking",
    # Together
    "min_p",
    "repetition_penalty",
    # an invalid request made on purpose
    "tool_choice",
}


def read_chat_request(recorded: Json, issuer: str) -> pb.GenerateRequest:
    """The request in the contract's words."""
    body = {key: value for key, value in recorded.items() if value is not None}
    request = pb.GenerateRequest(model=f"{issuer}/{body.pop('model')}")
    request.messages.extend(_message(message, issuer) for message in body.pop("messages", []))
    request.tools.extend(_tool(tool, issuer) for tool in body.pop("tools", []))
    _read_legacy_functions(body, request)
    _read_config(body, request.config)
    _read_tool_choice(body, request.tool_choice)
    _read_reasoning(body, request.reasoning)
    request.end_user_id = body.pop("user", "") or body.pop("safety_identifier", "")
    request.prompt_cache_key = body.pop("prompt_cache_key", "")
    body.pop("stream", None)
    body.pop("stream_options", None)
    assert body.keys() <= UNMODELLED, f"not read: {body.keys() - UNMODELLED}"
    if body:
        request.provider_options[issuer] = json.dumps(body)
    return request


def _message(message: Json, issuer: str) -> pb.Message:
    rest = {key: value for key, value in message.items() if value is not None}
    role = rest.pop("role")
    read = pb.Message(role=ROLES[role], name=rest.pop("name", ""))
    content = rest.pop("content", None)
    if role == "tool":
        result = pb.ToolResult(call_id=rest.pop("tool_call_id"), parts=_content(content))
        read.parts.add(tool_result=result)
    else:
        thoughts = [rest.pop(name) for name in ("reasoning_content", "reasoning") if name in rest]
        if thoughts:
            read.parts.add(reasoning=pb.Reasoning(text=thoughts[0]))
        read.parts.extend(_content(content))
        read.parts.extend(_tool_call(call) for call in rest.pop("tool_calls", []))
    if rest:
        read.provider_metadata[issuer] = json.dumps(rest)
    return read


def _content(content: str | list[Json] | None) -> list[pb.Part]:
    if isinstance(content, str):
        return [pb.Part(text=content)] if content else []
    return [_part(item) for item in content or []]


def _part(item: Json) -> pb.Part:
    match item["type"]:
        case "text":
            part = pb.Part(text=item["text"])
        case "image_url":
            image = item["image_url"]
            part = pb.Part(media=_media(image if isinstance(image, str) else image["url"]))
            part.media.kind = pb.MEDIA_KIND_IMAGE
            part.media.detail = "" if isinstance(image, str) else image.get("detail", "")
        case "input_audio":
            audio = item["input_audio"]
            data = b64decode(audio["data"])
            part = pb.Part(media=pb.Media(mime_type=AUDIO_TYPES[audio["format"]], data=data))
        case "file":
            part = pb.Part(media=_media(item["file"]["file_data"]))
            part.media.filename = item["file"].get("filename", "")
        case kind:
            raise AssertionError(f"content of type {kind}")
    if control := item.get("cache_control"):
        part.cache_breakpoint.CopyFrom(_breakpoint(control))
    return part


def _media(url: str) -> pb.Media:
    if not url.startswith("data:"):
        return pb.Media(uri=url)
    mime_type, _, data = url.removeprefix("data:").partition(";base64,")
    return pb.Media(mime_type=mime_type, data=b64decode(data))


def _breakpoint(control: Json) -> pb.CacheBreakpoint:
    if "ttl" not in control:
        return pb.CacheBreakpoint()
    return pb.CacheBreakpoint(ttl=Duration(seconds=TTL[control["ttl"]]))


def _tool_call(call: Json) -> pb.Part:
    if call["type"] == "custom":
        name, arguments = call["custom"]["name"], call["custom"]["input"]
        kind = pb.TOOL_CALL_KIND_FREE_TEXT
    else:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        kind = pb.TOOL_CALL_KIND_FUNCTION
    return pb.Part(tool_call=pb.ToolCall(id=call["id"], name=name, arguments=arguments, kind=kind))


def _tool(tool: Json, issuer: str) -> pb.Tool:
    read = pb.Tool()
    if tool["type"] == "custom":
        custom = tool["custom"]
        read.free_text.name = custom["name"]
        read.free_text.description = custom.get("description", "")
        if "format" in custom:
            read.free_text.format_json = json.dumps(custom["format"])
    elif tool["type"] == "function":
        _read_function(tool["function"], read.function)
        extra = {key: tool[key] for key in tool.keys() - {"type", "function", "cache_control"}}
        if inner := {key: tool["function"][key] for key in tool["function"].keys() - FUNCTION_KEYS}:
            extra["function"] = inner
        if extra:
            read.provider_metadata[issuer] = json.dumps(extra)
    else:
        read.provider.issuer = issuer
        read.provider.type = tool["type"]
        read.provider.config_json = json.dumps({key: tool[key] for key in tool if key != "type"})
    if control := tool.get("cache_control"):
        read.cache_breakpoint.CopyFrom(_breakpoint(control))
    return read


def _read_function(function: Json, read: pb.FunctionTool) -> None:
    read.name = function["name"]
    read.description = function.get("description") or ""
    if function.get("parameters") is not None:
        read.parameters_schema = json.dumps(function["parameters"])
    if function.get("strict") is not None:
        read.strict = function["strict"]


def _read_legacy_functions(body: Json, request: pb.GenerateRequest) -> None:
    for function in body.pop("functions", []):
        _read_function(function, request.tools.add().function)
    if "function_call" in body:
        body["tool_choice"] = body.pop("function_call")


def _read_config(body: Json, config: pb.GenerationConfig) -> None:
    for ours, theirs in (
        ("max_output_tokens", "max_tokens"),
        ("max_output_tokens", "max_completion_tokens"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("top_k", "top_k"),
        ("seed", "seed"),
        ("seed", "random_seed"),
        ("presence_penalty", "presence_penalty"),
        ("frequency_penalty", "frequency_penalty"),
        ("candidate_count", "n"),
        ("logprobs", "logprobs"),
        ("top_logprobs", "top_logprobs"),
        ("verbosity", "verbosity"),
    ):
        if theirs in body:
            setattr(config, ours, body.pop(theirs))
    stop = body.pop("stop", [])
    config.stop_sequences.extend([stop] if isinstance(stop, str) else stop)
    config.output_modalities.extend(body.pop("modalities", []))
    for token, bias in body.pop("logit_bias", {}).items():
        config.logit_bias[int(token)] = bias
    if "response_format" in body:
        _read_response_format(body.pop("response_format"), config.response_format)


def _read_response_format(recorded: Json, form: pb.ResponseFormat) -> None:
    match recorded["type"]:
        case "text":
            form.type = pb.RESPONSE_FORMAT_TYPE_TEXT
        case "json_object":
            form.type = pb.RESPONSE_FORMAT_TYPE_JSON
        case "json_schema":
            schema = recorded["json_schema"]
            form.type = pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA
            form.name = schema.get("name", "")
            form.description = schema.get("description", "")
            form.schema = json.dumps(schema["schema"])
            if "strict" in schema:
                form.strict = schema["strict"]


def _read_tool_choice(body: Json, choice: pb.ToolChoice) -> None:
    if "parallel_tool_calls" in body:
        choice.parallel_calls = body.pop("parallel_tool_calls")
    match body.get("tool_choice"):
        case {"type": "function", "function": {"name": name}}:
            choice.mode = pb.TOOL_CHOICE_MODE_REQUIRED
            choice.allowed_tools.append(name)
        case str(word) if word in CHOICES:
            choice.mode = CHOICES[word]
        case _:
            return
    del body["tool_choice"]


def _read_reasoning(body: Json, reasoning: pb.ReasoningConfig) -> None:
    if "reasoning_effort" in body:
        reasoning.effort = body.pop("reasoning_effort")
    if "enable_thinking" in body:
        reasoning.enabled = body.pop("enable_thinking")
    match body.get("thinking"):
        case {"type": ("enabled" | "disabled") as switch}:
            reasoning.enabled = switch == "enabled"
            body["thinking"] = {key: value for key, value in body["thinking"].items() if key != "type"}
            if not body["thinking"]:
                del body["thinking"]
    if body.pop("reasoning_format", "") == "parsed":
        reasoning.visibility = pb.REASONING_VISIBILITY_FULL
    unified = body.pop("reasoning", {})
    if "enabled" in unified:
        reasoning.enabled = unified["enabled"]
    if "effort" in unified:
        reasoning.effort = unified["effort"]
    if "max_tokens" in unified:
        reasoning.budget_tokens = unified["max_tokens"]
    assert unified.keys() <= {"enabled", "effort", "max_tokens"}
