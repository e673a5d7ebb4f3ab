"""OpenAI Responses <-> headgate.v1, for OpenAI and the hosts that speak this wire. Translation only.

Reasoning goes round without being stored at the vendor: it is asked for in encrypted form and sent back as it came.
https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from headgate import v1 as pb

from headgate_server.errors import GatewayError, ProviderModelMissing, ProviderResourceNotFound
from headgate_server.json_codec import JsonObject, caller_object, dumps, merge_patch
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.failures import PUBLIC_TEXTS
from headgate_server.providers.hosts import Quirks
from headgate_server.providers.losses import Losses, unsupported
from headgate_server.providers.openai import (
    DEFAULT_EFFORT,
    TOOL_CHOICES,
    errors as openai_errors,
    headers,
    response_format,
)
from headgate_server.providers.openai.embed import decode_embed, encode_embed
from headgate_server.providers.openai_responses.answer import decode
from headgate_server.providers.openai_responses.input import ItemWriter
from headgate_server.providers.openai_responses.stream import Stream
from headgate_server.providers.options import caller_options
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
PATH = "/responses"
# These are refused with encrypted reasoning asked for: models of before reasoning, by OpenAI's names.
NO_REASONING = re.compile(r"(?:ft:|openai/)*(?:gpt-[34](?!\d)|chatgpt-|gpt-5-chat)")
ENCRYPTED_REASONING = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
STORING = frozenset(("background", "conversation", "store"))
# Settings of Chat Completions that OpenAI's Responses does not have; some hosts do.
CHAT_ONLY = frozenset(
    ("frequency_penalty", "logit_bias", "modalities", "n", "presence_penalty", "seed", "stop", "top_k")
)
FIELDS = {
    "frequency_penalty": "config.frequency_penalty",
    "include": "config.logprobs",
    "logit_bias": "config.logit_bias",
    "modalities": "config.output_modalities",
    "n": "config.candidate_count",
    "parallel_tool_calls": "tool_choice.parallel_calls",
    "presence_penalty": "config.presence_penalty",
    "prompt_cache_key": "prompt_cache_key",
    "safety_identifier": "end_user_id",
    "seed": "config.seed",
    "stop": "config.stop_sequences",
    "top_k": "config.top_k",
    "top_logprobs": "config.top_logprobs",
}
SUMMARIES = {
    pb.REASONING_VISIBILITY_SUMMARY: "auto",
    pb.REASONING_VISIBILITY_FULL: "detailed",
}


def encode(request: pb.GenerateRequest, target: Target, *, stream: bool) -> HttpCall:
    """The request for one response.

    Raises:
        InvalidRequest: a JSON text of the request is none.
        UnsupportedParameter: the request holds something that this host cannot represent.
    """
    quirks = target.host.quirks
    losses = Losses(request.routing.unsupported_policy)
    writer = ItemWriter(target, losses)
    options = caller_options(request, target)
    config = request.config
    choice = request.tool_choice
    form = response_format(config.response_format, quirks, losses)
    body: JsonObject = {
        "model": target.model or None,
        "input": writer.items(request.messages) or None,
        "tools": _tools(request, target, writer, losses),
        "tool_choice": _tool_choice(request, quirks),
        "parallel_tool_calls": choice.parallel_calls if choice.HasField("parallel_calls") else None,
        "text": _text(form, config, quirks, losses),
        "reasoning": _reasoning(request.reasoning, quirks, losses),
        "max_output_tokens": config.max_output_tokens if config.HasField("max_output_tokens") else None,
        "temperature": config.temperature if config.HasField("temperature") else None,
        "top_p": config.top_p if config.HasField("top_p") else None,
        "top_logprobs": config.top_logprobs if config.HasField("top_logprobs") else None,
        "include": _include(config, target),
        "store": None if STORING & options.keys() else False,
        "prompt_cache_key": request.prompt_cache_key or None,
        "safety_identifier": request.end_user_id or None,
        "stream": stream or None,
        **_chat_settings(config),
        "response_format": form if "response_format" in quirks.responses_fields else None,
    }
    body = _in_the_words_of(quirks, body, losses)
    merge_patch(body, options)
    return HttpCall(PATH, dumps(body), warnings=losses.warnings)


def error(status: int, headers: Mapping[str, str], body: bytes, target: Target) -> GatewayError:
    """The error of an answer with status 400 or more.

    A 404 without a code is about a stored item or response: that of a model has one.
    """
    found = openai_errors.error(status, headers, body, target)
    if isinstance(found, ProviderModelMissing) and found.facts.get("provider_code") == "invalid_request_error":
        public = PUBLIC_TEXTS[ProviderResourceNotFound]
        return ProviderResourceNotFound(public, facts=found.facts, vendor_detail=found.vendor_detail)
    return found


def _in_the_words_of(quirks: Quirks, body: JsonObject, losses: Losses) -> JsonObject:
    """The body with the host's names, without what is not set and what the host does not have."""
    lacks = (quirks.lacks | CHAT_ONLY) - quirks.responses_fields
    worded: JsonObject = {}
    for name, value in body.items():
        if value is None:
            continue
        if name in lacks:
            losses.setting(FIELDS.get(name, name), "this provider has no such setting")
        else:
            worded[quirks.renames.get(name, name)] = value
    return worded


def _chat_settings(config: pb.GenerationConfig) -> JsonObject:
    """What only some hosts of this wire have; one candidate of text is what all give."""
    return {
        "top_k": config.top_k if config.HasField("top_k") else None,
        "stop": list(config.stop_sequences) or None,
        "seed": config.seed if config.HasField("seed") else None,
        "presence_penalty": config.presence_penalty if config.HasField("presence_penalty") else None,
        "frequency_penalty": config.frequency_penalty if config.HasField("frequency_penalty") else None,
        "n": config.candidate_count if config.candidate_count > 1 else None,
        "logit_bias": {str(token): bias for token, bias in config.logit_bias.items()} or None,
        "modalities": [form for form in config.output_modalities if form != "text"] or None,
    }


def _include(config: pb.GenerationConfig, target: Target) -> list[str] | None:
    """What the answer holds beyond its default: reasoning to send back, and log probabilities where asked for."""
    included = []
    if not NO_REASONING.match(target.model):
        included.append(ENCRYPTED_REASONING)
    if config.logprobs:
        included.append(LOGPROBS)
    return included or None


def _tools(request: pb.GenerateRequest, target: Target, writer: ItemWriter, losses: Losses) -> list[JsonObject] | None:
    allowed = allowed_names(request.tool_choice)
    sends_all = target.host.quirks.allowed_tools or not allowed
    return [
        _tool(tool, f"tools[{number}]", target, writer, losses)
        for number, tool in enumerate(request.tools)
        if sends_all or tool_name(tool) in allowed
    ] or None


def _tool(tool: pb.Tool, path: str, target: Target, writer: ItemWriter, losses: Losses) -> JsonObject:
    written: JsonObject
    match tool.WhichOneof("kind"):
        case "function":
            written = {"type": "function", **write_function(tool.function, f"{path}.function")}
            written.setdefault("parameters", {"type": "object", "properties": {}})
        case "free_text" if target.host.quirks.free_text_tools:
            written = {"type": "custom", **write_free_text(tool.free_text, f"{path}.free_text")}
        case "free_text":
            raise unsupported(f"{path}.free_text", "this provider has no tools with free-text arguments")
        case "provider" if tool.provider.issuer == target.issuer:
            written = write_hosted(tool.provider, f"{path}.provider")
        case "provider":
            raise unsupported(f"{path}.provider", f"is a tool of {tool.provider.issuer}")
        case _:
            raise unsupported(path, "is a kind of tool that this gateway does not know")
    if tool.HasField("cache_breakpoint"):
        losses.setting(f"{path}.cache_breakpoint", "this provider marks only what is said to the model")
    writer.merge(written, tool.provider_metadata, f"{path}.provider_metadata")
    return written


def _tool_choice(request: pb.GenerateRequest, quirks: Quirks) -> str | JsonObject | None:
    choice = request.tool_choice
    mode = TOOL_CHOICES.get(choice.mode)
    if not choice.allowed_tools or choice.mode == pb.TOOL_CHOICE_MODE_NONE:
        return mode
    named = [_reference(name, request.tools) for name in choice.allowed_tools]
    if forces_one(choice):
        return named[0]
    mode = mode or "auto"
    if not quirks.allowed_tools:
        return mode
    return {"type": "allowed_tools", "mode": mode, "tools": named}


def _reference(name: str, tools: Sequence[pb.Tool]) -> JsonObject:
    for number, tool in enumerate(tools):
        if tool_name(tool) == name:
            match tool.WhichOneof("kind"):
                case "free_text":
                    return {"type": "custom", "name": name}
                case "provider":
                    return _hosted_reference(tool.provider, f"tools[{number}].provider.config_json")
    return {"type": "function", "name": name}


def _hosted_reference(tool: pb.ProviderTool, path: str) -> JsonObject:
    """A hosted tool by its type; an MCP server also by its label."""
    reference = {"type": tool.type}
    if tool.config_json and "server_label" in (config := caller_object(tool.config_json, path)):
        reference["server_label"] = config["server_label"]
    return reference


def _text(form: JsonObject | None, config: pb.GenerationConfig, quirks: Quirks, losses: Losses) -> JsonObject | None:
    written: JsonObject = {}
    if form:
        written["format"] = _flat(form)
    if config.verbosity and "verbosity" in quirks.lacks:
        losses.setting("config.verbosity", "this provider has no such setting")
    elif config.verbosity:
        written["verbosity"] = config.verbosity
    return written or None


def _flat(form: JsonObject) -> JsonObject:
    """The format as Responses has it: what describes the schema stands beside the type."""
    return {"type": form["type"], **form.get("json_schema", {})}


def _reasoning(config: pb.ReasoningConfig, quirks: Quirks, losses: Losses) -> JsonObject | None:
    """How much the model thinks, and which summary of it is shown; none is the vendor's default."""
    written: JsonObject = {}
    effort = config.effort
    if config.HasField("enabled") and not effort:
        effort = DEFAULT_EFFORT if config.enabled else "none"
    if effort:
        written["effort"] = effort
    if config.visibility in SUMMARIES:
        written["summary"] = SUMMARIES[config.visibility]
    if config.HasField("budget_tokens") and quirks.reasoning_object:
        written["max_tokens"] = config.budget_tokens
    elif config.HasField("budget_tokens"):
        losses.setting("reasoning.budget_tokens", "this provider takes no budget for thinking")
    return written or None
