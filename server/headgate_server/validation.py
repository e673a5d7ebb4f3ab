"""What the contract demands of a request, whoever the vendor is. Pure; every violation is named, not only the first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from google.protobuf.duration_pb2 import Duration
from headgate import v1 as pb

from headgate_server.errors import InvalidRequest, UnsupportedParameter, Violation

MAX_LABELS = 16
MAX_LABEL_KEY_BYTES = 64
MAX_LABEL_VALUE_BYTES = 256
MAX_COALESCE_MILLISECONDS = 1000
NAMED_IN_MESSAGE = 3

Violations = Iterator[Violation]
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def check_generate(request: pb.GenerateRequest) -> None:
    """Raises InvalidRequest with every violation, or UnsupportedParameter for what this server does not do yet."""
    _refuse(_generate(request))
    _refuse_unsupported(_not_yet(request.routing, request.execution))


def check_embed(request: pb.EmbedRequest) -> None:
    """Raises InvalidRequest with every violation, or UnsupportedParameter for what this server does not do yet."""
    _refuse(_embed(request))
    _refuse_unsupported(_not_yet(request.routing, request.execution))


def check_list_models(request: pb.ListModelsRequest) -> None:
    """Raises InvalidRequest for a negative page size."""
    if request.page_size < 0:
        raise InvalidRequest.at("page_size", "must not be negative")


def _refuse(violations: Iterable[Violation]) -> None:
    found = list(violations)
    if found:
        named = "; ".join(f"{v.field}: {v.description}" for v in found[:NAMED_IN_MESSAGE])
        more = f"; and {len(found) - NAMED_IN_MESSAGE} more" if len(found) > NAMED_IN_MESSAGE else ""
        raise InvalidRequest(f"invalid request: {named}{more}", violations=found)


def _generate(request: pb.GenerateRequest) -> Violations:
    if not request.model:
        yield Violation("model", "is required")
    if not request.messages and not request.provider_options:
        yield Violation("messages", "at least one message is required")
    yield from _messages(request)
    yield from _tools(request)
    if request.HasField("config"):
        yield from _config(request.config)
    if request.HasField("reasoning") and request.reasoning.budget_tokens < -1:
        yield Violation("reasoning.budget_tokens", "must be at least -1")
    delay = request.stream.max_coalesce_delay
    if not 0 <= delay.ToMilliseconds() <= MAX_COALESCE_MILLISECONDS or delay.nanos < 0:
        yield Violation("stream.max_coalesce_delay", f"must be between 0 and {MAX_COALESCE_MILLISECONDS} ms")
    yield from _common(request)


def _embed(request: pb.EmbedRequest) -> Violations:
    if not request.model:
        yield Violation("model", "is required")
    if not request.inputs:
        yield Violation("inputs", "at least one input is required")
    for index, item in enumerate(request.inputs):
        path = f"inputs[{index}]"
        match item.WhichOneof("input"):
            case None:
                yield Violation(path, "is empty")
            case "text":
                if not item.text:
                    yield Violation(f"{path}.text", "is empty")
            case "token_ids":
                if not item.token_ids.values:
                    yield Violation(f"{path}.token_ids.values", "is empty")
            case "content":
                if not item.content.parts:
                    yield Violation(f"{path}.content.parts", "is empty")
                for number, part in enumerate(item.content.parts):
                    yield from _part(part, f"{path}.content.parts[{number}]")
    if request.HasField("dimensions") and not request.dimensions:
        yield Violation("dimensions", "must be at least 1")
    yield from _known(pb.ElementType, request.element_type, "element_type")
    yield from _known(pb.EmbedLayout, request.layout, "layout")
    yield from _common(request)


def _messages(request: pb.GenerateRequest) -> Violations:
    call_ids: set[str] = set()
    # With vendor options the conversation may continue one that the vendor stores, calls included.
    complete = not request.provider_options
    for index, message in enumerate(request.messages):
        path = f"messages[{index}]"
        if message.role == pb.ROLE_UNSPECIFIED:
            yield Violation(f"{path}.role", "is required")
        else:
            yield from _known(pb.Role, message.role, f"{path}.role")
        if not message.parts and not message.provider_metadata:
            yield Violation(f"{path}.parts", "at least one part is required")
        if message.provider_metadata:
            yield from _json_objects(message.provider_metadata, f"{path}.provider_metadata")
        for number, part in enumerate(message.parts):
            part_path = f"{path}.parts[{number}]"
            yield from _part(part, part_path)
            if part.HasField("tool_call"):
                call_ids.add(part.tool_call.id)
            elif complete and part.HasField("tool_result") and part.tool_result.call_id not in call_ids:
                yield Violation(f"{part_path}.tool_result.call_id", "no earlier tool call has this id")


def _part(part: pb.Part, path: str) -> Violations:
    match part.WhichOneof("content"):
        case "text" | "refusal":
            pass
        case None:
            yield Violation(path, "the part has no content")
        case "reasoning":
            yield from _known(pb.ReasoningKind, part.reasoning.kind, f"{path}.reasoning.kind")
        case "tool_call":
            yield from _tool_call(part, f"{path}.tool_call")
        case "tool_result":
            yield from _tool_result(part.tool_result, f"{path}.tool_result")
        case "media":
            yield from _media(part.media, f"{path}.media")
        case "provider_item":
            if not _is_object(part.provider_item.json):
                yield Violation(f"{path}.provider_item.json", "is not a JSON object")
    opaque = part.signature or part.item_id or part.HasField("provider_item")
    if opaque and not part.issuer:
        yield Violation(f"{path}.issuer", "is required beside signature, item_id or provider_item")
    if part.provider_metadata:
        yield from _json_objects(part.provider_metadata, f"{path}.provider_metadata")


def _tool_call(part: pb.Part, path: str) -> Violations:
    call = part.tool_call
    yield from _known(pb.ToolCallKind, call.kind, f"{path}.kind")
    if not call.name:
        yield Violation(f"{path}.name", "is required")
    is_function = call.kind in (pb.TOOL_CALL_KIND_UNSPECIFIED, pb.TOOL_CALL_KIND_FUNCTION)
    if is_function and call.arguments and not part.incomplete and not _is_json(call.arguments):
        yield Violation(f"{path}.arguments", "is not JSON; a part that was cut short is marked incomplete")
    if call.provider_json and not _is_object(call.provider_json):
        yield Violation(f"{path}.provider_json", "is not a JSON object")


def _tool_result(result: pb.ToolResult, path: str) -> Violations:
    if result.structured_json and not _is_json(result.structured_json):
        yield Violation(f"{path}.structured_json", "is not JSON")
    for number, part in enumerate(result.parts):
        where = f"{path}.parts[{number}]"
        if part.WhichOneof("content") in ("text", "media", "provider_item"):
            yield from _part(part, where)
        else:
            yield Violation(where, "a tool result holds text, media or provider items")


def _media(media: pb.Media, path: str) -> Violations:
    yield from _known(pb.MediaKind, media.kind, f"{path}.kind")
    match media.WhichOneof("source"):
        case None:
            yield Violation(path, "has neither data nor uri nor file")
        case "data":
            if not media.data:
                yield Violation(f"{path}.data", "is empty")
            if not media.mime_type:
                yield Violation(f"{path}.mime_type", "is required beside data")
        case "uri":
            if not media.uri:
                yield Violation(f"{path}.uri", "is empty")
        case "file":
            if not media.file.id:
                yield Violation(f"{path}.file.id", "is required")
            if not media.file.issuer:
                yield Violation(f"{path}.file.issuer", "is required")
    if media.provider_json and not _is_object(media.provider_json):
        yield Violation(f"{path}.provider_json", "is not a JSON object")


def _tools(request: pb.GenerateRequest) -> Violations:
    names: set[str] = set()
    for index, tool in enumerate(request.tools):
        path = f"tools[{index}]"
        match tool.WhichOneof("kind"):
            case None:
                yield Violation(path, "has no kind")
            case "function":
                names.add(tool.function.name)
                if not tool.function.name:
                    yield Violation(f"{path}.function.name", "is required")
                schema = tool.function.parameters_schema
                if schema and not _is_object(schema):
                    yield Violation(f"{path}.function.parameters_schema", "is not a JSON object")
            case "free_text":
                names.add(tool.free_text.name)
                if not tool.free_text.name:
                    yield Violation(f"{path}.free_text.name", "is required")
                if tool.free_text.format_json and not _is_object(tool.free_text.format_json):
                    yield Violation(f"{path}.free_text.format_json", "is not a JSON object")
            case "provider":
                names.update((tool.provider.type, tool.provider.name))
                for field in ("issuer", "type"):
                    if not getattr(tool.provider, field):
                        yield Violation(f"{path}.provider.{field}", "is required")
                if tool.provider.config_json and not _is_object(tool.provider.config_json):
                    yield Violation(f"{path}.provider.config_json", "is not a JSON object")
        if tool.provider_metadata:
            yield from _json_objects(tool.provider_metadata, f"{path}.provider_metadata")
    choice = request.tool_choice
    yield from _known(pb.ToolChoiceMode, choice.mode, "tool_choice.mode")
    if choice.mode == pb.TOOL_CHOICE_MODE_REQUIRED and not request.tools and not request.provider_options:
        yield Violation("tool_choice.mode", "REQUIRED needs at least one tool")
    for index, name in enumerate(choice.allowed_tools):
        if name not in names and not request.provider_options:
            yield Violation(f"tool_choice.allowed_tools[{index}]", "names none of the tools")


def _config(config: pb.GenerationConfig) -> Violations:
    for field in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        value: float = getattr(config, field)
        if not math.isfinite(value):
            yield Violation(f"config.{field}", "is not a finite number")
    if config.temperature < 0:
        yield Violation("config.temperature", "must not be negative")
    if not 0 <= config.top_p <= 1:
        yield Violation("config.top_p", "must be between 0 and 1")
    for token, bias in config.logit_bias.items():
        if not math.isfinite(bias):
            yield Violation(f"config.logit_bias[{token}]", "is not a finite number")
    for field in ("max_output_tokens", "candidate_count"):
        if config.HasField(field) and not getattr(config, field):  # type: ignore[arg-type]  # a closed list of names
            yield Violation(f"config.{field}", "must be at least 1")
    for index, text in enumerate(config.stop_sequences):
        if not text:
            yield Violation(f"config.stop_sequences[{index}]", "is empty")
    if config.HasField("response_format"):
        yield from _response_format(config.response_format)


def _response_format(form: pb.ResponseFormat) -> Violations:
    path = "config.response_format"
    yield from _known(pb.ResponseFormatType, form.type, f"{path}.type")
    if form.type == pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA:
        if not form.schema:
            yield Violation(f"{path}.schema", "is required for JSON_SCHEMA")
        elif not _is_object(form.schema):
            yield Violation(f"{path}.schema", "is not a JSON object")
    elif form.schema:
        yield Violation(f"{path}.schema", "is only for JSON_SCHEMA")


def _common(request: pb.GenerateRequest | pb.EmbedRequest) -> Violations:
    if len(request.labels) > MAX_LABELS:
        yield Violation("labels", f"more than {MAX_LABELS}")
    for key, value in request.labels.items():
        if not 0 < len(key.encode()) <= MAX_LABEL_KEY_BYTES:
            yield Violation("labels", f"a key is empty or longer than {MAX_LABEL_KEY_BYTES} bytes")
        if len(value.encode()) > MAX_LABEL_VALUE_BYTES:
            yield Violation("labels", f"a value is longer than {MAX_LABEL_VALUE_BYTES} bytes")
    if request.provider_options:
        yield from _json_objects(request.provider_options, "provider_options")
    if request.HasField("routing"):
        yield from _known(pb.UnsupportedPolicy, request.routing.unsupported_policy, "routing.unsupported_policy")
        for index, trigger in enumerate(request.routing.fallback_triggers):
            if trigger == pb.FALLBACK_TRIGGER_UNSPECIFIED:
                yield Violation(f"routing.fallback_triggers[{index}]", "is unspecified")
            yield from _known(pb.FallbackTrigger, trigger, f"routing.fallback_triggers[{index}]")
        for index, model in enumerate(request.routing.fallbacks):
            if not model:
                yield Violation(f"routing.fallbacks[{index}]", "is empty")
    if request.HasField("execution"):
        yield from _execution(request.execution)


def _execution(execution: pb.ExecutionPolicy) -> Violations:
    durations: tuple[tuple[str, Duration], ...] = (
        ("attempt_timeout", execution.attempt_timeout),
        ("first_token_timeout", execution.first_token_timeout),
        ("idle_timeout", execution.idle_timeout),
        ("hedge_delay", execution.hedge_delay),
    )
    for name, duration in durations:
        if duration.seconds < 0 or duration.nanos < 0:
            yield Violation(f"execution.{name}", "must not be negative")
    if execution.HasField("max_attempts") and not execution.max_attempts:
        yield Violation("execution.max_attempts", "must be at least 1")


def _not_yet(routing: pb.RoutingPolicy, execution: pb.ExecutionPolicy) -> Iterator[str]:
    """Fields of the contract that this server does not implement yet: never ignored, always refused."""
    if routing.strategy not in ("", "priority"):
        yield "routing.strategy"
    if routing.affinity_key:
        yield "routing.affinity_key"
    if pb.FALLBACK_TRIGGER_CONTENT_FILTER in routing.fallback_triggers:
        yield "routing.fallback_triggers"
    if execution.hedge_delay.ToNanoseconds():
        yield "execution.hedge_delay"


def _refuse_unsupported(fields: Iterable[str]) -> None:
    found = [Violation(field, "is not implemented by this server yet") for field in fields]
    if found:
        message = "; ".join(f"{violation.field}: {violation.description}" for violation in found)
        raise UnsupportedParameter(message, violations=found)


def _known(enum: Any, value: int, path: str) -> Violations:
    """proto3 enums are open: a number of a newer contract arrives as such, and must not be taken for something else."""
    if value and value not in enum.values():
        yield Violation(path, f"{value} is not a known value")


def _json_objects(texts: Mapping[str, str], path: str) -> Violations:
    for key, text in texts.items():
        if not _is_object(text):
            yield Violation(f'{path}["{key}"]', "is not a JSON object")


def _is_json(text: str) -> bool:
    try:
        _decode_raw(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _is_object(text: str) -> bool:
    try:
        _decode_object(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
