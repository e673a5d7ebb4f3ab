"""Cohere's own API v2, chat and embed <-> headgate.v1.

Translation only; upstream.py does the I/O. https://docs.cohere.com/reference/chat
"""

from __future__ import annotations

from collections.abc import Iterator

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, caller_raw, dumps
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.cohere.answer import decode
from headgate_server.providers.cohere.embed import decode_embed, encode_embed
from headgate_server.providers.cohere.errors import error
from headgate_server.providers.cohere.messages import MessageWriter
from headgate_server.providers.cohere.stream import Stream
from headgate_server.providers.losses import Losses, unsupported
from headgate_server.providers.options import with_caller_options

__all__ = ["CAPABILITIES", "Stream", "decode", "decode_embed", "encode", "encode_embed", "error", "headers"]

CAPABILITIES = frozenset(("generate", "stream", "embed", "tools", "json-schema", "reasoning"))
CHAT_PATH = "/chat"
MOST_TOP_P = 0.99


def headers(credential: str | None) -> dict[str, str]:
    """Authentication by API key."""
    return {"authorization": f"Bearer {credential}"} if credential else {}


def encode(request: pb.GenerateRequest, target: Target, *, stream: bool) -> HttpCall:
    """The request for a chat.

    Raises:
        InvalidRequest: a JSON text of the request is none.
        UnsupportedParameter: the request holds something that this wire cannot represent.
    """
    losses = Losses(request.routing.unsupported_policy)
    writer = MessageWriter(target, losses)
    config = request.config
    _tell_of_missing_settings(request, losses)
    body: JsonObject = {
        "model": target.model,
        "messages": writer.turns(request.messages),
        "documents": writer.documents or None,
        "citation_options": writer.citation_options(),
        "tools": _tools(request, writer) or None,
        "strict_tools": _strict_tools(request, losses),
        "tool_choice": _tool_choice(request.tool_choice, losses),
        "response_format": _response_format(config.response_format, losses),
        "thinking": _thinking(request.reasoning, losses),
        "max_tokens": config.max_output_tokens if config.HasField("max_output_tokens") else None,
        "temperature": config.temperature if config.HasField("temperature") else None,
        "p": _top_p(config, losses),
        "k": config.top_k if config.HasField("top_k") else None,
        "seed": config.seed if config.HasField("seed") else None,
        "stop_sequences": list(config.stop_sequences) or None,
        "frequency_penalty": config.frequency_penalty if config.HasField("frequency_penalty") else None,
        "presence_penalty": config.presence_penalty if config.HasField("presence_penalty") else None,
        "logprobs": config.logprobs if config.HasField("logprobs") else None,
        "stream": stream,
    }
    body = {name: value for name, value in body.items() if value is not None}
    with_caller_options(body, request, target)
    return HttpCall(CHAT_PATH, dumps(body), warnings=losses.warnings)


def _tell_of_missing_settings(request: pb.GenerateRequest, losses: Losses) -> None:
    """Settings that this wire does not have. One that asks for what happens anyway is no loss."""
    config = request.config
    asked = {
        "config.candidate_count": config.candidate_count > 1,
        "config.top_logprobs": bool(config.top_logprobs),
        "config.logit_bias": bool(config.logit_bias),
        "config.output_modalities": any(modality != "text" for modality in config.output_modalities),
        "config.verbosity": bool(config.verbosity),
        "end_user_id": bool(request.end_user_id),
        "prompt_cache_key": bool(request.prompt_cache_key),
    }
    for field, is_asked in asked.items():
        if is_asked:
            losses.setting(field, "this provider has no such setting")


def _top_p(config: pb.GenerationConfig, losses: Losses) -> float | None:
    if not config.HasField("top_p"):
        return None
    if config.top_p > MOST_TOP_P:
        losses.setting("config.top_p", f"this provider's range ends at {MOST_TOP_P}, which was sent")
    return min(config.top_p, MOST_TOP_P)


def _thinking(config: pb.ReasoningConfig, losses: Losses) -> JsonObject | None:
    """Whether to think, and at most how much; https://docs.cohere.com/docs/reasoning."""
    budget = config.budget_tokens if config.HasField("budget_tokens") else None
    if config.visibility in (pb.REASONING_VISIBILITY_NONE, pb.REASONING_VISIBILITY_SUMMARY):
        losses.setting("reasoning.visibility", "this provider always shows its thinking in full")
    if config.effort == "none" or budget == 0 or (config.HasField("enabled") and not config.enabled):
        return {"type": "disabled"}
    if config.effort:
        losses.setting("reasoning.effort", "this provider limits thinking by budget_tokens only")
    if budget is not None and budget > 0:
        return {"type": "enabled", "token_budget": budget}
    if config.enabled or config.effort or budget is not None:
        return {"type": "enabled"}
    return None


def _response_format(form: pb.ResponseFormat, losses: Losses) -> JsonObject | None:
    """The form of the text. A schema is always enforced, and its name says nothing to this vendor."""
    match form.type:
        case pb.RESPONSE_FORMAT_TYPE_TEXT:
            return {"type": "text"}
        case pb.RESPONSE_FORMAT_TYPE_JSON:
            return {"type": "json_object"}
        case pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA:
            if form.description:
                losses.setting("config.response_format.description", "this provider reads it only in the schema")
            if form.HasField("strict") and not form.strict:
                losses.setting("config.response_format.strict", "this provider always enforces the schema")
            schema = caller_raw(form.schema, "config.response_format.schema")
            return {"type": "json_object", "json_schema": schema}
        case _:
            return None


def _tools(request: pb.GenerateRequest, writer: MessageWriter) -> list[JsonObject]:
    """All tools, or those allowed: this vendor cannot be told which of several it may call."""
    return [_tool(tool, f"tools[{number}]", writer) for number, tool in _sent_tools(request)]


def _sent_tools(request: pb.GenerateRequest) -> Iterator[tuple[int, pb.Tool]]:
    choice = request.tool_choice
    sends_all = not choice.allowed_tools or choice.mode == pb.TOOL_CHOICE_MODE_NONE
    for number, tool in enumerate(request.tools):
        if sends_all or tool.function.name in choice.allowed_tools:
            yield number, tool


def _tool(tool: pb.Tool, path: str, writer: MessageWriter) -> JsonObject:
    match tool.WhichOneof("kind"):
        case "function":
            function = tool.function
        case "free_text":
            raise unsupported(f"{path}.free_text", "this provider has no tools with free-text arguments")
        case "provider":
            raise unsupported(f"{path}.provider", "this provider hosts no tools")
        case _:
            raise unsupported(path, "is a kind of tool that this gateway does not know")
    described: JsonObject = {"name": function.name}
    if function.description:
        described["description"] = function.description
    if function.parameters_schema:
        described["parameters"] = caller_raw(function.parameters_schema, f"{path}.function.parameters_schema")
    else:
        described["parameters"] = {"type": "object", "properties": {}}
    written: JsonObject = {"type": "function", "function": described}
    writer.tell_of_cache_breakpoint(tool, path)
    writer.merge(written, tool.provider_metadata, f"{path}.provider_metadata")
    return written


def _strict_tools(request: pb.GenerateRequest, losses: Losses) -> bool | None:
    """One switch for all tools; https://docs.cohere.com/docs/structured-outputs#structured-outputs-tools."""
    sent = list(_sent_tools(request))
    if not any(tool.function.strict for _, tool in sent):
        return None
    for number, tool in sent:
        if not tool.function.strict:
            losses.setting(
                f"tools[{number}].function.strict", "this provider enforces the schemas of all tools or none"
            )
    return True


def _tool_choice(choice: pb.ToolChoice, losses: Losses) -> str | None:
    """AUTO is what happens without it."""
    if choice.HasField("parallel_calls") and not choice.parallel_calls:
        losses.setting("tool_choice.parallel_calls", "this provider cannot be kept from parallel calls")
    match choice.mode:
        case pb.TOOL_CHOICE_MODE_REQUIRED:
            return "REQUIRED"
        case pb.TOOL_CHOICE_MODE_NONE:
            return "NONE"
        case _:
            return None
