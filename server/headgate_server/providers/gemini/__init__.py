"""Gemini generateContent, streamGenerateContent and batchEmbedContents <-> headgate.v1.

Translation only; upstream.py does the I/O. https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, caller_object, caller_raw, dumps
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.gemini.answer import decode
from headgate_server.providers.gemini.contents import ContentWriter
from headgate_server.providers.gemini.embed import decode_embed, encode_embed
from headgate_server.providers.gemini.errors import error
from headgate_server.providers.gemini.stream import Stream
from headgate_server.providers.losses import Losses, unsupported
from headgate_server.providers.options import with_caller_options

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
BUDGET_MODELS = re.compile(r"(?:.*/)?gemini-2\.5")
# What the levels mean to models that take a budget: https://ai.google.dev/gemini-api/docs/openai#thinking
BUDGETS = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
VENDOR_DECIDES = -1


def headers(credential: str | None) -> dict[str, str]:
    """Authentication by API key."""
    return {"x-goog-api-key": credential} if credential else {}


def encode(request: pb.GenerateRequest, target: Target, *, stream: bool) -> HttpCall:
    """The request for generateContent or streamGenerateContent.

    Raises:
        InvalidRequest: a JSON text of the request is none.
        UnsupportedParameter: the request holds something that this vendor cannot represent.
    """
    losses = Losses(request.routing.unsupported_policy)
    name = target.model if "/" in target.model else f"models/{target.model}"
    return HttpCall(f"/{quote(name)}:{method(stream)}", dumps(body(request, target, losses)), warnings=losses.warnings)


def method(stream: bool) -> str:
    """The custom method, which streams events only when asked to."""
    return "streamGenerateContent?alt=sse" if stream else "generateContent"


def body(request: pb.GenerateRequest, target: Target, losses: Losses) -> JsonObject:
    """The body, which is the same at the Gemini API and at Vertex AI."""
    writer = ContentWriter(target, losses)
    written: JsonObject = {
        "systemInstruction": writer.system_instruction(request.messages),
        "contents": writer.contents(request.messages),
        "tools": _tools(request, target, writer) or None,
        "toolConfig": _tool_config(request, losses),
        "generationConfig": _generation_config(request, target, losses) or None,
    }
    written = {name: value for name, value in written.items() if value is not None}
    if request.end_user_id:
        losses.setting("end_user_id", "this provider has no such setting")
    if request.prompt_cache_key:
        losses.setting("prompt_cache_key", "this provider has no such setting")
    return with_caller_options(written, request, target)


def _generation_config(request: pb.GenerateRequest, target: Target, losses: Losses) -> JsonObject:
    config = request.config
    written: JsonObject = {
        "temperature": config.temperature if config.HasField("temperature") else None,
        "topP": config.top_p if config.HasField("top_p") else None,
        "topK": config.top_k if config.HasField("top_k") else None,
        "candidateCount": config.candidate_count if config.HasField("candidate_count") else None,
        "maxOutputTokens": config.max_output_tokens if config.HasField("max_output_tokens") else None,
        "stopSequences": list(config.stop_sequences) or None,
        "seed": config.seed if config.HasField("seed") else None,
        "presencePenalty": config.presence_penalty if config.HasField("presence_penalty") else None,
        "frequencyPenalty": config.frequency_penalty if config.HasField("frequency_penalty") else None,
        "responseLogprobs": config.logprobs if config.HasField("logprobs") else None,
        "logprobs": config.top_logprobs if config.HasField("top_logprobs") else None,
        "responseModalities": [modality.upper() for modality in config.output_modalities] or None,
        **_response_format(config.response_format, losses),
        "thinkingConfig": _thinking_config(request.reasoning, target, losses) or None,
    }
    if config.logit_bias:
        losses.setting("config.logit_bias", "this provider has no such setting")
    if config.verbosity:
        losses.setting("config.verbosity", "this provider has no such setting")
    return {name: value for name, value in written.items() if value is not None}


def _response_format(form: pb.ResponseFormat, losses: Losses) -> JsonObject:
    """The name of the schema is only a label and has no place here; a schema is always enforced."""
    match form.type:
        case pb.RESPONSE_FORMAT_TYPE_TEXT:
            return {"responseMimeType": "text/plain"}
        case pb.RESPONSE_FORMAT_TYPE_JSON:
            return {"responseMimeType": "application/json"}
        case pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA:
            if form.description:
                losses.setting("config.response_format.description", "this provider reads only the schema's own")
            if form.HasField("strict") and not form.strict:
                losses.setting("config.response_format.strict", "this provider always enforces the schema")
            path = "config.response_format.schema"
            member = "responseSchema" if _in_google_dialect(form.schema, path) else "responseJsonSchema"
            return {"responseMimeType": "application/json", member: caller_raw(form.schema, path)}
        case _:
            return {}


def _thinking_config(config: pb.ReasoningConfig, target: Target, losses: Losses) -> JsonObject:
    """How much the model thinks: a budget, or a level, which the vendor does not take together."""
    written: JsonObject = {}
    effort = config.effort.lower()
    if config.HasField("budget_tokens"):
        written["thinkingBudget"] = config.budget_tokens
        if effort:
            losses.setting("reasoning.effort", "the budget is sent in its place")
    elif effort == "none" or (config.HasField("enabled") and not config.enabled):
        written["thinkingBudget"] = 0
    elif effort and BUDGET_MODELS.match(target.model):
        if effort not in BUDGETS:
            losses.setting("reasoning.effort", "this model knows minimal, low, medium and high")
        written["thinkingBudget"] = BUDGETS.get(effort, BUDGETS["high"])
    elif effort:
        written["thinkingLevel"] = _level(effort, losses)
    elif config.enabled:
        written["thinkingBudget"] = VENDOR_DECIDES
    match config.visibility:
        case pb.REASONING_VISIBILITY_NONE:
            written["includeThoughts"] = False
        case pb.REASONING_VISIBILITY_SUMMARY | pb.REASONING_VISIBILITY_FULL:
            written["includeThoughts"] = True
    return written


def _level(effort: str, losses: Losses) -> str:
    if effort != "max":
        return effort.upper()
    losses.setting("reasoning.effort", "this provider's highest level is sent")
    return "XHIGH"


def _tools(request: pb.GenerateRequest, target: Target, writer: ContentWriter) -> list[JsonObject]:
    """Functions that follow each other are one tool of the vendor's; a hosted tool is one each."""
    written: list[JsonObject] = []
    for number, tool in enumerate(request.tools):
        path = f"tools[{number}]"
        match tool.WhichOneof("kind"):
            case "function":
                declaration = _declaration(tool.function, f"{path}.function")
                writer.merge(declaration, tool.provider_metadata, f"{path}.provider_metadata")
                if not written or "functionDeclarations" not in written[-1]:
                    written.append({"functionDeclarations": []})
                written[-1]["functionDeclarations"].append(declaration)
            case "free_text":
                raise unsupported(f"{path}.free_text", "this provider has no tools with free-text arguments")
            case "provider" if tool.provider.issuer == target.issuer:
                config = caller_object(tool.provider.config_json or "{}", f"{path}.provider.config_json")
                hosted: JsonObject = {tool.provider.type: config}
                writer.merge(hosted, tool.provider_metadata, f"{path}.provider_metadata")
                written.append(hosted)
            case "provider":
                raise unsupported(f"{path}.provider", f"is a tool of {tool.provider.issuer}")
            case _:
                raise unsupported(path, "is a kind of tool that this gateway does not know")
        writer.cache_breakpoint(tool, path)
    return written


def _declaration(function: pb.FunctionTool, path: str) -> JsonObject:
    written: JsonObject = {"name": function.name}
    if function.description:
        written["description"] = function.description
    if function.parameters_schema:
        path = f"{path}.parameters_schema"
        member = "parameters" if _in_google_dialect(function.parameters_schema, path) else "parametersJsonSchema"
        written[member] = caller_raw(function.parameters_schema, path)
    return written


def _in_google_dialect(schema: str, path: str) -> bool:
    """It is no JSON Schema but Google's own Schema object, whose types are OBJECT, STRING, ... or their numbers."""
    found = caller_object(schema, path)
    kind = found.get("type", found.get("type_"))
    return isinstance(kind, int) or (isinstance(kind, str) and kind.isupper())


def _tool_config(request: pb.GenerateRequest, losses: Losses) -> JsonObject | None:
    """The function calling mode. VALIDATED is AUTO with enforced schemas, and takes allowed names as ANY does."""
    choice = request.tool_choice
    allowed = list(_allowed(request, losses))
    validated = bool(allowed) or any(tool.function.strict for tool in request.tools)
    match choice.mode:
        case pb.TOOL_CHOICE_MODE_REQUIRED:
            mode = "ANY"
        case pb.TOOL_CHOICE_MODE_NONE:
            mode = "NONE"
        case _ if validated:
            mode = "VALIDATED"
        case pb.TOOL_CHOICE_MODE_AUTO:
            mode = "AUTO"
        case _:
            mode = ""
    if choice.HasField("parallel_calls") and not choice.parallel_calls:
        losses.setting("tool_choice.parallel_calls", "this provider cannot be kept from parallel calls")
    if not mode:
        return None
    config: JsonObject = {"mode": mode}
    if allowed and mode != "NONE":
        config["allowedFunctionNames"] = allowed
    return {"functionCallingConfig": config}


def _allowed(request: pb.GenerateRequest, losses: Losses) -> Iterator[str]:
    """The functions among the allowed tools."""
    hosted = {tool.provider.type for tool in request.tools if tool.HasField("provider")}
    for number, name in enumerate(request.tool_choice.allowed_tools):
        if name in hosted:
            losses.setting(f"tool_choice.allowed_tools[{number}]", "only functions can be restricted; it stays allowed")
        else:
            yield name
