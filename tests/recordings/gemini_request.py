"""A recorded generateContent request as the contract says it: the test's own reader, apart from the adapter.

Everything that the contract has a word for is read into it, in either spelling. What remains goes to provider_options,
and must be in UNMODELLED.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode
from itertools import count
from typing import Any

from headgate import v1 as pb

Json = dict[str, Any]

ROLES = {"user": pb.ROLE_USER, "model": pb.ROLE_ASSISTANT}
MODES = {
    "AUTO": pb.TOOL_CHOICE_MODE_AUTO,
    "VALIDATED": pb.TOOL_CHOICE_MODE_AUTO,
    "NONE": pb.TOOL_CHOICE_MODE_NONE,
    "ANY": pb.TOOL_CHOICE_MODE_REQUIRED,
}
CONFIG_FIELDS = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "candidateCount": "candidate_count",
    "maxOutputTokens": "max_output_tokens",
    "seed": "seed",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
    "responseLogprobs": "logprobs",
    "logprobs": "top_logprobs",
}
VERBATIM = {"parameters", "parametersJsonSchema", "responseSchema", "responseJsonSchema", "args", "response"}
HOSTED = {"executableCode", "codeExecutionResult", "toolCall", "toolResponse"}
UNMODELLED = {"cachedContent", "safetySettings", "toolConfig", "modelArmorConfig"}
SNAKE = re.compile(r"_([a-z])")


def camel(value: Any) -> Any:
    """The request in the camelCase spelling; schemas, arguments and results stay as they are."""
    if isinstance(value, list):
        return [camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    spelled = {SNAKE.sub(lambda match: match[1].upper(), name): inner for name, inner in value.items()}
    return {name: inner if name in VERBATIM else camel(inner) for name, inner in spelled.items()}


def read_gemini_request(recorded: Json, issuer: str, model: str) -> pb.GenerateRequest:
    """The request in the contract's words."""
    body = camel(recorded)
    body.pop("model", None)
    request = pb.GenerateRequest(model=f"{issuer}/{model}")
    if "systemInstruction" in body:
        parts = [_part(part, issuer, []) for part in body.pop("systemInstruction")["parts"]]
        request.messages.add(role=pb.ROLE_SYSTEM, parts=parts)
    _read_contents(body.pop("contents"), issuer, request)
    config = body.pop("generationConfig", {})
    _read_response_format(config, request.config.response_format)
    _read_thinking(config.pop("thinkingConfig", {}), request.reasoning)
    _read_config(config, request.config)
    tools = body.pop("tools", None) or []
    for tool in [tools] if isinstance(tools, dict) else tools:
        _read_tool(tool, issuer, request)
    _read_mode(body, request)
    assert body.keys() <= UNMODELLED, f"not read: {body.keys() - UNMODELLED}"
    if body:
        request.provider_options[issuer] = json.dumps(body)
    return request


def _read_contents(contents: list[Json], issuer: str, request: pb.GenerateRequest) -> None:
    """Calls without ids get ids, and their results the id of the first unanswered call of their name."""
    made = count(1)
    calls: list[tuple[str, str]] = []
    for content in contents:
        parts = content["parts"]
        for part in parts:
            if call := part.get("functionCall"):
                call.setdefault("id", f"call_{next(made):024x}")
                calls.append((call["name"], call["id"]))
        role = ROLES[content["role"]]
        answers = all("functionResponse" in part for part in parts)
        read = [_part(part, issuer, calls) for part in parts]
        request.messages.add(role=pb.ROLE_TOOL if answers else role, parts=read)


def _part(part: Json, issuer: str, calls: list[tuple[str, str]]) -> pb.Part:
    rest = dict(part)
    signature = rest.pop("thoughtSignature", "")
    read = pb.Part(signature=signature.encode(), issuer=issuer if signature else "")
    thought = rest.pop("thought", False)
    match rest:
        case {"text": text} if thought:
            read.reasoning.CopyFrom(pb.Reasoning(text=text, kind=pb.REASONING_KIND_SUMMARY))
        case {"text": text}:
            read.text = text
        case {"functionCall": call}:
            arguments = json.dumps(call["args"])
            read.tool_call.CopyFrom(pb.ToolCall(id=call["id"], name=call["name"], arguments=arguments))
        case {"functionResponse": response}:
            read.tool_result.CopyFrom(_tool_result(response, calls))
        case {"inlineData": blob}:
            read.media.CopyFrom(pb.Media(mime_type=blob["mimeType"], data=base64(blob["data"])))
        case {"fileData": file}:
            read.media.CopyFrom(pb.Media(mime_type=file.get("mimeType", ""), uri=file["fileUri"]))
        case {} if not rest and thought:
            read.reasoning.kind = pb.REASONING_KIND_OPAQUE
        case _:
            (member,) = rest.keys() & HOSTED
            read.provider_item.CopyFrom(pb.ProviderItem(type=member, json=json.dumps(rest)))
            read.issuer = issuer
    assert len(rest) <= 1
    return read


def base64(data: str) -> bytes:
    """The bytes of base64 in either alphabet, padded or not: the vendor takes them all."""
    return urlsafe_b64decode(data.replace("+", "-").replace("/", "_").rstrip("=") + "=" * (-len(data.rstrip("=")) % 4))


def _tool_result(response: Json, calls: list[tuple[str, str]]) -> pb.ToolResult:
    call_id = response.get("id")
    if call_id is None:
        place = next(place for place, (name, _) in enumerate(calls) if name == response["name"])
        _, call_id = calls.pop(place)
    read = pb.ToolResult(call_id=call_id, name=response["name"])
    match response["response"]:
        case {"output": str(text), **more} if not more:
            read.parts.add(text=text)
        case {"error": str(text), **more} if not more:
            read.failed = True
            read.parts.add(text=text)
        case structure:
            read.structured_json = json.dumps(structure)
    return read


def _read_config(body: Json, config: pb.GenerationConfig) -> None:
    for theirs, ours in CONFIG_FIELDS.items():
        if theirs in body:
            value = body.pop(theirs)
            setattr(config, ours, int(value) if theirs == "topK" else value)
    config.stop_sequences.extend(body.pop("stopSequences", []))
    config.output_modalities.extend(modality.lower() for modality in body.pop("responseModalities", []))
    assert not body, f"not read: {body.keys()}"


def _read_response_format(body: Json, form: pb.ResponseFormat) -> None:
    mime_type = body.pop("responseMimeType", "")
    schema = body.pop("responseSchema", None) or body.pop("responseJsonSchema", None)
    if schema is not None:
        assert mime_type == "application/json"
        form.type = pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA
        form.schema = json.dumps(schema)
    elif mime_type:
        form.type = {"application/json": pb.RESPONSE_FORMAT_TYPE_JSON, "text/plain": pb.RESPONSE_FORMAT_TYPE_TEXT}[
            mime_type
        ]


def _read_thinking(body: Json, reasoning: pb.ReasoningConfig) -> None:
    if "thinkingBudget" in body:
        reasoning.budget_tokens = body.pop("thinkingBudget")
    reasoning.effort = body.pop("thinkingLevel", "").lower()
    if "includeThoughts" in body:
        shown = body.pop("includeThoughts")
        reasoning.visibility = pb.REASONING_VISIBILITY_SUMMARY if shown else pb.REASONING_VISIBILITY_NONE
    assert not body, f"not read: {body.keys()}"


def _read_tool(tool: Json, issuer: str, request: pb.GenerateRequest) -> None:
    for declaration in tool.get("functionDeclarations", []):
        read = request.tools.add().function
        read.name = declaration["name"]
        read.description = declaration.get("description", "")
        for member in ("parameters", "parametersJsonSchema"):
            if member in declaration:
                read.parameters_schema = json.dumps(declaration[member])
        assert declaration.keys() <= {"name", "description", "parameters", "parametersJsonSchema"}
    for member, config in tool.items():
        if member != "functionDeclarations":
            read_tool = request.tools.add().provider
            read_tool.issuer = issuer
            read_tool.type = member
            read_tool.config_json = json.dumps(config)


def _read_mode(body: Json, request: pb.GenerateRequest) -> None:
    config = body.get("toolConfig", {})
    calling = config.pop("functionCallingConfig", None)
    if not config:
        body.pop("toolConfig", None)
    if calling is None:
        return
    mode = calling["mode"].upper()
    request.tool_choice.mode = MODES[mode]
    request.tool_choice.allowed_tools.extend(calling.get("allowedFunctionNames", []))
    if mode == "VALIDATED":
        for tool in request.tools:
            tool.function.strict = True
