"""Anthropic Messages <-> headgate.v1, for Anthropic and the hosts that speak its wire.

Translation only; upstream.py does the I/O. https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from headgate import v1 as pb

from headgate_server.errors import InvalidRequest
from headgate_server.json_codec import JsonObject, caller_raw, dumps, merge_patch
from headgate_server.providers.anthropic.answer import decode
from headgate_server.providers.anthropic.errors import error
from headgate_server.providers.anthropic.messages import MessageWriter
from headgate_server.providers.anthropic.stream import Stream
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.losses import Losses, unsupported
from headgate_server.providers.options import caller_options
from headgate_server.providers.tools import allowed_names, forces_one, tool_name, write_function, write_hosted

__all__ = [
    "CAPABILITIES",
    "DEFAULT_MAX_OUTPUT_TOKENS",
    "Stream",
    "decode",
    "decode_embed",
    "encode",
    "encode_embed",
    "error",
    "headers",
]

CAPABILITIES = frozenset(("generate", "stream", "tools", "json-schema", "reasoning"))
MESSAGES_PATH = "/messages"
VERSION = "2023-06-01"
TOOL_CHOICES = {
    pb.TOOL_CHOICE_MODE_UNSPECIFIED: "auto",
    pb.TOOL_CHOICE_MODE_AUTO: "auto",
    pb.TOOL_CHOICE_MODE_NONE: "none",
    pb.TOOL_CHOICE_MODE_REQUIRED: "any",
}
# The least that a current model allows; https://platform.claude.com/docs/en/about-claude/models/overview.
DEFAULT_MAX_OUTPUT_TOKENS = 32_000
ROOM_TO_ANSWER = 4096
# Models before Claude 4.6 take a budget only; https://platform.claude.com/docs/en/build-with-claude/adaptive-thinking.
NEEDS_BUDGET = re.compile(r"claude-(3-.*|(opus|sonnet|haiku)-4(-[015])?([-@]\d{8})?)")
LEAST_BUDGET = 1024
MOST_DEFAULT_BUDGET = 4096
LEAST_EFFORT = "low"
MOST_TEMPERATURE = 1.0
BETA = re.compile(r"[\w.-]+", re.ASCII)


def headers(credential: str | None) -> dict[str, str]:
    """Authentication and the version of the API."""
    version = {"anthropic-version": VERSION}
    return {"x-api-key": credential, **version} if credential else version


def encode(request: pb.GenerateRequest, target: Target, *, stream: bool) -> HttpCall:
    """The request for a message.

    Raises:
        InvalidRequest: a JSON text of the request is none.
        UnsupportedParameter: the request holds something that this wire cannot represent.
    """
    losses = Losses(request.routing.unsupported_policy)
    writer = MessageWriter(target, losses)
    config = request.config
    _tell_of_missing_settings(request, losses)
    system, messages = writer.conversation(request.messages)
    thinking = _thinking(request, target, losses)
    body: JsonObject = {
        "model": target.model,
        "max_tokens": _max_tokens(config, thinking, losses),
        "system": system or None,
        "messages": messages,
        "tools": _tools(request, target, writer),
        "tool_choice": _tool_choice(request),
        "thinking": thinking,
        "output_config": _output_config(request, losses),
        "temperature": _temperature(config, losses),
        "top_p": config.top_p if config.HasField("top_p") else None,
        "top_k": config.top_k if config.HasField("top_k") else None,
        "stop_sequences": list(config.stop_sequences) or None,
        "metadata": {"user_id": request.end_user_id} if request.end_user_id else None,
        "stream": stream or None,
    }
    body = {name: value for name, value in body.items() if value is not None}
    call = HttpCall(MESSAGES_PATH, b"", warnings=losses.warnings)
    options = caller_options(request, target)
    if betas := _betas(options.pop("betas", None), f'provider_options["{target.issuer}"]'):
        call.headers["anthropic-beta"] = betas
    merge_patch(body, options)
    call.body = dumps(body)
    return call


def encode_embed(request: pb.EmbedRequest, inputs: Sequence[pb.EmbedInput], target: Target) -> HttpCall:
    """Anthropic has no embeddings."""
    raise unsupported("model", "this provider has no embeddings")


def decode_embed(body: bytes, rows: int, target: Target) -> pb.EmbedResponse:
    """Anthropic has no embeddings."""
    raise unsupported("model", "this provider has no embeddings")


def _tell_of_missing_settings(request: pb.GenerateRequest, losses: Losses) -> None:
    """Settings that this wire does not have. One that asks for what happens anyway is no loss."""
    config = request.config
    asked = {
        "config.seed": config.HasField("seed"),
        "config.presence_penalty": bool(config.presence_penalty),
        "config.frequency_penalty": bool(config.frequency_penalty),
        "config.candidate_count": config.candidate_count > 1,
        "config.logprobs": config.logprobs,
        "config.top_logprobs": bool(config.top_logprobs),
        "config.logit_bias": bool(config.logit_bias),
        "config.output_modalities": any(modality != "text" for modality in config.output_modalities),
        "config.verbosity": bool(config.verbosity),
        "prompt_cache_key": bool(request.prompt_cache_key),
    }
    for field, is_asked in asked.items():
        if is_asked:
            losses.setting(field, "this provider has no such setting")


def _max_tokens(config: pb.GenerationConfig, thinking: JsonObject | None, losses: Losses) -> int:
    if config.HasField("max_output_tokens"):
        return config.max_output_tokens
    budget = (thinking or {}).get("budget_tokens", 0)
    limit: int = max(DEFAULT_MAX_OUTPUT_TOKENS, budget + ROOM_TO_ANSWER)
    losses.default("config.max_output_tokens", f"this provider demands a limit: {limit} was sent")
    return limit


def _temperature(config: pb.GenerationConfig, losses: Losses) -> float | None:
    if not config.HasField("temperature"):
        return None
    if config.temperature > MOST_TEMPERATURE:
        losses.setting("config.temperature", "this provider's range ends at 1, which was sent")
    return min(config.temperature, MOST_TEMPERATURE)


def _thinking(request: pb.GenerateRequest, target: Target, losses: Losses) -> JsonObject | None:
    """Whether to think, and how much of it is shown; how hard is said in output_config."""
    config = request.reasoning
    budget = config.budget_tokens if config.HasField("budget_tokens") else None
    if config.effort == "none" or budget == 0 or (config.HasField("enabled") and not config.enabled):
        return {"type": "disabled"}
    thinking: JsonObject
    if budget is not None and budget > 0:
        thinking = {"type": "enabled", "budget_tokens": budget}
    elif not config.enabled and budget is None:
        if config.visibility != pb.REASONING_VISIBILITY_UNSPECIFIED:
            losses.setting("reasoning.visibility", "this provider takes it only beside enabled or budget_tokens")
        return None
    elif NEEDS_BUDGET.fullmatch(target.model):
        thinking = {"type": "enabled", "budget_tokens": _default_budget(request.config)}
        losses.default("reasoning.budget_tokens", f"this model demands one: {thinking['budget_tokens']} was sent")
    else:
        thinking = {"type": "adaptive"}
    match config.visibility:
        case pb.REASONING_VISIBILITY_NONE:
            thinking["display"] = "omitted"
        case pb.REASONING_VISIBILITY_SUMMARY | pb.REASONING_VISIBILITY_FULL:
            thinking["display"] = "summarized"
    return thinking


def _default_budget(config: pb.GenerationConfig) -> int:
    """Half of the limit, which includes thinking, between the vendor's least and our most."""
    limit = config.max_output_tokens or DEFAULT_MAX_OUTPUT_TOKENS
    return max(LEAST_BUDGET, min(MOST_DEFAULT_BUDGET, limit // 2))


def _output_config(request: pb.GenerateRequest, losses: Losses) -> JsonObject | None:
    """How hard to think and write, and the schema of the text. A schema's name says nothing to this vendor."""
    written: JsonObject = {}
    match request.reasoning.effort:
        case "" | "none":
            pass
        case "minimal":
            losses.setting("reasoning.effort", f"this provider's least is {LEAST_EFFORT}, which was sent")
            written["effort"] = LEAST_EFFORT
        case effort:
            written["effort"] = effort
    form = request.config.response_format
    match form.type:
        case pb.RESPONSE_FORMAT_TYPE_JSON:
            losses.setting("config.response_format.type", "this provider promises JSON only by a schema")
        case pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA:
            if form.description:
                losses.setting("config.response_format.description", "this provider reads it only in the schema")
            schema = caller_raw(form.schema, "config.response_format.schema")
            written["format"] = {"type": "json_schema", "schema": schema}
    return written or None


def _tools(request: pb.GenerateRequest, target: Target, writer: MessageWriter) -> list[JsonObject] | None:
    """All tools, or those allowed: this vendor cannot be told which of several it may call."""
    allowed = allowed_names(request.tool_choice)
    return [
        _tool(tool, f"tools[{number}]", target, writer)
        for number, tool in enumerate(request.tools)
        if not allowed or tool_name(tool) in allowed
    ] or None


def _tool(tool: pb.Tool, path: str, target: Target, writer: MessageWriter) -> JsonObject:
    written: JsonObject
    match tool.WhichOneof("kind"):
        case "function":
            written = write_function(tool.function, f"{path}.function", schema="input_schema")
            written.setdefault("input_schema", {"type": "object", "properties": {}})
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
    writer.merge(written, tool.provider_metadata, f"{path}.provider_metadata")
    return written


def _tool_choice(request: pb.GenerateRequest) -> JsonObject | None:
    choice = request.tool_choice
    if choice.mode == pb.TOOL_CHOICE_MODE_UNSPECIFIED and not choice.HasField("parallel_calls"):
        return None
    written: JsonObject = {"type": TOOL_CHOICES.get(choice.mode, "auto")}
    if forces_one(choice):
        written = {"type": "tool", "name": _name_of(choice.allowed_tools[0], request.tools)}
    if choice.HasField("parallel_calls") and choice.mode != pb.TOOL_CHOICE_MODE_NONE:
        written["disable_parallel_tool_use"] = not choice.parallel_calls
    return written


def _name_of(name: str, tools: Sequence[pb.Tool]) -> str:
    """What this vendor calls the tool: also a hosted one by its name."""
    for tool in tools:
        if tool.HasField("provider") and tool.provider.type == name:
            return tool.provider.name or name
    return name


def _betas(betas: object, field: str) -> str:
    """The anthropic-beta header that the SDKs' option `betas` stands for.

    Raises:
        InvalidRequest: it is no list of beta names.
    """
    if betas is None:
        return ""
    names = [betas] if isinstance(betas, str) else betas
    if not isinstance(names, list) or not all(isinstance(name, str) and BETA.fullmatch(name) for name in names):
        raise InvalidRequest.at(f"{field}.betas", "must be a list of beta names")
    return ",".join(names)
