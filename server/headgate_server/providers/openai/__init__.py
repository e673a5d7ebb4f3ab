"""OpenAI Chat Completions and Embeddings <-> headgate.v1, for OpenAI and the hosts that speak its wire.

Translation only; upstream.py does the I/O. https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, caller_raw, dumps
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.hosts import Quirks
from headgate_server.providers.losses import Losses, unsupported
from headgate_server.providers.openai.answer import decode
from headgate_server.providers.openai.embed import decode_embed, encode_embed
from headgate_server.providers.openai.errors import error
from headgate_server.providers.openai.messages import MessageWriter
from headgate_server.providers.openai.stream import Stream
from headgate_server.providers.options import with_caller_options
from headgate_server.providers.tools import (
    allowed_names,
    forces_one,
    tool_name,
    write_free_text,
    write_function,
    write_hosted,
)

__all__ = [
    "CAPABILITIES",
    "Stream",
    "decode",
    "decode_embed",
    "encode",
    "encode_embed",
    "error",
    "headers",
]

CAPABILITIES = frozenset(("generate", "stream", "embed", "tools", "json-schema", "reasoning"))
CHAT_PATH = "/chat/completions"
TOOL_CHOICES = {
    pb.TOOL_CHOICE_MODE_AUTO: "auto",
    pb.TOOL_CHOICE_MODE_NONE: "none",
    pb.TOOL_CHOICE_MODE_REQUIRED: "required",
}
FIELDS = {
    "max_completion_tokens": "config.max_output_tokens",
    "top_k": "config.top_k",
    "stop": "config.stop_sequences",
    "seed": "config.seed",
    "presence_penalty": "config.presence_penalty",
    "frequency_penalty": "config.frequency_penalty",
    "n": "config.candidate_count",
    "logprobs": "config.logprobs",
    "top_logprobs": "config.top_logprobs",
    "logit_bias": "config.logit_bias",
    "modalities": "config.output_modalities",
    "verbosity": "config.verbosity",
    "parallel_tool_calls": "tool_choice.parallel_calls",
    "prompt_cache_key": "prompt_cache_key",
    "safety_identifier": "end_user_id",
}
DEFAULT_EFFORT = "medium"


def headers(credential: str | None) -> dict[str, str]:
    """Authentication."""
    return {"authorization": f"Bearer {credential}"} if credential else {}


def encode(request: pb.GenerateRequest, target: Target, *, stream: bool) -> HttpCall:
    """The chat completion request.

    Raises:
        InvalidRequest: a JSON text of the request is none.
        UnsupportedParameter: the request holds something that this host cannot represent.
    """
    quirks = target.host.quirks
    losses = Losses(request.routing.unsupported_policy)
    writer = MessageWriter(target, losses)
    config = request.config
    choice = request.tool_choice
    body: JsonObject = {
        "model": target.model,
        "messages": writer.messages(request.messages),
        "tools": _tools(request, target, writer),
        "tool_choice": _tool_choice(request, target),
        "parallel_tool_calls": choice.parallel_calls if choice.HasField("parallel_calls") else None,
        "response_format": response_format(config.response_format, quirks, losses),
        "max_completion_tokens": config.max_output_tokens if config.HasField("max_output_tokens") else None,
        "temperature": config.temperature if config.HasField("temperature") else None,
        "top_p": config.top_p if config.HasField("top_p") else None,
        "top_k": config.top_k if config.HasField("top_k") else None,
        "stop": list(config.stop_sequences) or None,
        "seed": config.seed if config.HasField("seed") else None,
        "presence_penalty": config.presence_penalty if config.HasField("presence_penalty") else None,
        "frequency_penalty": config.frequency_penalty if config.HasField("frequency_penalty") else None,
        "n": config.candidate_count if config.HasField("candidate_count") else None,
        "logprobs": config.logprobs if config.HasField("logprobs") else None,
        "top_logprobs": config.top_logprobs if config.HasField("top_logprobs") else None,
        "logit_bias": {str(token): _plain(bias) for token, bias in config.logit_bias.items()} or None,
        "modalities": list(config.output_modalities) or None,
        "verbosity": config.verbosity or None,
        "prompt_cache_key": request.prompt_cache_key or None,
        "safety_identifier": request.end_user_id or None,
        **_reasoning(request.reasoning, quirks, losses),
        "stream": stream or None,
        "stream_options": {"include_usage": True} if stream and quirks.stream_usage else None,
    }
    body = _in_the_words_of(quirks, body, losses)
    with_caller_options(body, request, target)
    return HttpCall(CHAT_PATH, dumps(body), warnings=losses.warnings)


def _in_the_words_of(quirks: Quirks, body: JsonObject, losses: Losses) -> JsonObject:
    """The body with the host's names, without what is not set and what the host does not have."""
    worded: JsonObject = {}
    for name, value in body.items():
        if value is None:
            continue
        if name in quirks.lacks:
            losses.setting(FIELDS.get(name, name), "this provider has no such setting")
        else:
            worded[quirks.renames.get(name, name)] = value
    return worded


def _tools(request: pb.GenerateRequest, target: Target, writer: MessageWriter) -> list[JsonObject] | None:
    allowed = allowed_names(request.tool_choice)
    sends_all = target.host.quirks.allowed_tools or not allowed
    return [
        _tool(tool, f"tools[{number}]", target, writer)
        for number, tool in enumerate(request.tools)
        if sends_all or tool_name(tool) in allowed
    ] or None


def _tool(tool: pb.Tool, path: str, target: Target, writer: MessageWriter) -> JsonObject:
    written: JsonObject
    match tool.WhichOneof("kind"):
        case "function":
            written = {"type": "function", "function": write_function(tool.function, f"{path}.function")}
        case "free_text" if target.host.quirks.free_text_tools:
            written = {"type": "custom", "custom": write_free_text(tool.free_text, f"{path}.free_text")}
        case "free_text":
            raise unsupported(f"{path}.free_text", "this provider has no tools with free-text arguments")
        case "provider" if tool.provider.issuer == target.issuer:
            written = write_hosted(tool.provider, f"{path}.provider")
        case "provider":
            raise unsupported(f"{path}.provider", f"is a tool of {tool.provider.issuer}")
        case _:
            raise unsupported(path, "is a kind of tool that this gateway does not know")
    if tool.HasField("cache_breakpoint"):
        written |= writer.cache_control(tool.cache_breakpoint, f"{path}.cache_breakpoint")
    if tool.provider_metadata:
        writer.merge(written, tool.provider_metadata, f"{path}.provider_metadata")
    return written


def _tool_choice(request: pb.GenerateRequest, target: Target) -> str | JsonObject | None:
    choice = request.tool_choice
    mode = TOOL_CHOICES.get(choice.mode)
    if not choice.allowed_tools or choice.mode == pb.TOOL_CHOICE_MODE_NONE:
        return mode
    named = [_reference(name, request.tools) for name in choice.allowed_tools]
    if forces_one(choice):
        return named[0]
    mode = mode or "auto"
    if not target.host.quirks.allowed_tools:
        return mode
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}


def _reference(name: str, tools: Sequence[pb.Tool]) -> JsonObject:
    for tool in tools:
        if tool_name(tool) == name:
            match tool.WhichOneof("kind"):
                case "free_text":
                    return {"type": "custom", "custom": {"name": name}}
                case "provider":
                    return {"type": tool.provider.type}
    return {"type": "function", "function": {"name": name}}


def response_format(form: pb.ResponseFormat, quirks: Quirks, losses: Losses) -> JsonObject | None:
    """The form of the text; None is the vendor's default."""
    match form.type:
        case pb.RESPONSE_FORMAT_TYPE_TEXT:
            return {"type": "text"}
        case pb.RESPONSE_FORMAT_TYPE_JSON:
            return {"type": "json_object"}
        case pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA if not quirks.json_schema:
            losses.setting("config.response_format.schema", "this provider promises JSON, but not by a schema")
            return {"type": "json_object"}
        case pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA:
            schema: JsonObject = {"name": form.name or "response"}
            if form.description:
                schema["description"] = form.description
            if form.schema:
                schema["schema"] = caller_raw(form.schema, "config.response_format.schema")
            if form.HasField("strict"):
                schema["strict"] = form.strict
            return {"type": "json_schema", "json_schema": schema}
        case _:
            return None


def _reasoning(config: pb.ReasoningConfig, quirks: Quirks, losses: Losses) -> JsonObject:
    """How much the model thinks, in the host's own fields."""
    enabled = config.enabled if config.HasField("enabled") else None
    budget = config.budget_tokens if config.HasField("budget_tokens") else None
    if quirks.reasoning_object:
        return _reasoning_object(config, enabled, budget)
    written: JsonObject = {}
    effort = config.effort
    if quirks.thinking_switch:
        if effort == "none" and (quirks.thinking_switch == "thinking" or not quirks.reasoning_effort):
            enabled, effort = False, ""
        if enabled is not None:
            written |= _switched(quirks.thinking_switch, enabled)
    elif enabled is not None and not effort:
        effort = DEFAULT_EFFORT if enabled else "none"
    if effort and quirks.reasoning_effort:
        written["reasoning_effort"] = effort
    elif effort:
        losses.setting("reasoning.effort", "this provider cannot be told how hard to think")
    if budget is not None and quirks.thinking_budget:
        written[quirks.thinking_budget] = budget if budget >= 0 else None
    elif budget is not None:
        losses.setting("reasoning.budget_tokens", "this provider takes no budget for thinking")
    _show(config.visibility, written, quirks, losses)
    return written


def _reasoning_object(config: pb.ReasoningConfig, enabled: bool | None, budget: int | None) -> JsonObject:
    """OpenRouter's unified object."""
    reasoning: dict[str, Any] = {
        "enabled": enabled,
        "effort": config.effort or None,
        "max_tokens": budget if budget is not None and budget >= 0 else None,
        "exclude": True if config.visibility == pb.REASONING_VISIBILITY_NONE else None,
    }
    reasoning = {name: value for name, value in reasoning.items() if value is not None}
    return {"reasoning": reasoning} if reasoning else {}


def _switched(switch: str, enabled: bool) -> JsonObject:
    match switch:
        case "thinking":
            return {"thinking": {"type": "enabled" if enabled else "disabled"}}
        case "chat_template_kwargs":
            return {"chat_template_kwargs": {"enable_thinking": enabled}}
        case _:
            return {"enable_thinking": enabled}


def _show(visibility: pb.ReasoningVisibility.ValueType, written: JsonObject, quirks: Quirks, losses: Losses) -> None:
    match visibility:
        case pb.REASONING_VISIBILITY_UNSPECIFIED:
            pass
        case pb.REASONING_VISIBILITY_NONE if quirks.reasoning_format:
            written["reasoning_format"] = "hidden"
        case pb.REASONING_VISIBILITY_FULL if quirks.reasoning_format:
            written["reasoning_format"] = "parsed"
        case _:
            losses.setting("reasoning.visibility", "this provider shows what it shows")


def _plain(number: float) -> float | int:
    """A whole number as an integer, which is what the schema asks for."""
    return int(number) if number.is_integer() else number
