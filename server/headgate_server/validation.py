"""What the contract demands of a request, whoever the vendor is. Pure; every violation is named, not only the first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice

import msgspec
from google.protobuf.duration_pb2 import Duration
from headgate import v1 as pb

from headgate_server.errors import InvalidRequest, Violation
from headgate_server.routing import STRATEGIES

MAX_MODEL_BYTES = 256
MAX_LABELS = 16
MAX_LABEL_KEY_BYTES = 64
MAX_LABEL_VALUE_BYTES = 256
MAX_COALESCE_MILLISECONDS = 1000
MAX_VIOLATIONS = 64

ELEMENT_TYPES = frozenset(pb.ElementType.values())
EMBED_LAYOUTS = frozenset(pb.EmbedLayout.values())
FALLBACK_TRIGGERS = frozenset(pb.FallbackTrigger.values())
MEDIA_KINDS = frozenset(pb.MediaKind.values())
REASONING_KINDS = frozenset(pb.ReasoningKind.values())
RESPONSE_FORMAT_TYPES = frozenset(pb.ResponseFormatType.values())
ROLES = frozenset(pb.Role.values())
TOOL_CALL_KINDS = frozenset(pb.ToolCallKind.values())
TOOL_CHOICE_MODES = frozenset(pb.ToolChoiceMode.values())
UNSUPPORTED_POLICIES = frozenset(pb.UnsupportedPolicy.values())


class Found(list[Violation]):
    """The violations so far. A request that is wrong all over is not read to its end.

    `has_media` says that some was seen, wherever it stands.
    """

    has_media = False

    def append(self, violation: Violation) -> None:
        super().append(violation)
        if len(self) >= MAX_VIOLATIONS:
            raise InvalidRequest.of(self)


_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def check_generate(request: pb.GenerateRequest) -> bool:
    """Whether there is media in it.

    Raises:
        InvalidRequest: with every violation.
    """
    found = Found()
    _generate(request, found)
    _refuse(found)
    return found.has_media


def check_embed(request: pb.EmbedRequest) -> bool:
    """Whether there is media in it.

    Raises:
        InvalidRequest: with every violation.
    """
    found = Found()
    _embed(request, found)
    _refuse(found)
    return found.has_media


def check_list_models(request: pb.ListModelsRequest) -> bool:
    """Whether there is media in it: never.

    Raises:
        InvalidRequest: the page size is negative.
    """
    if request.page_size < 0:
        raise InvalidRequest.at("page_size", "must not be negative")
    return False


def _refuse(found: Found) -> None:
    if found:
        raise InvalidRequest.of(found)


def _generate(request: pb.GenerateRequest, found: Found) -> None:
    _model(request.model, "model", "is required", found)
    if not request.messages and not request.provider_options:
        found.append(Violation("messages", "at least one message is required"))
    _messages(request, found)
    _tools(request, found)
    if request.HasField("config"):
        _config(request.config, found)
    if request.HasField("reasoning") and request.reasoning.budget_tokens < -1:
        found.append(Violation("reasoning.budget_tokens", "must be at least -1"))
    if request.HasField("stream"):
        delay = request.stream.max_coalesce_delay
        if not 0 <= delay.ToMilliseconds() <= MAX_COALESCE_MILLISECONDS or delay.nanos < 0:
            limit = f"must be between 0 and {MAX_COALESCE_MILLISECONDS} ms"
            found.append(Violation("stream.max_coalesce_delay", limit))
    _common(request, found)


def _embed(request: pb.EmbedRequest, found: Found) -> None:
    _model(request.model, "model", "is required", found)
    if not request.inputs:
        found.append(Violation("inputs", "at least one input is required"))
    for index, item in enumerate(request.inputs):
        path = f"inputs[{index}]"
        match item.WhichOneof("input"):
            case None:
                found.append(Violation(path, "is empty"))
            case "text":
                if not item.text:
                    found.append(Violation(f"{path}.text", "is empty"))
            case "token_ids":
                if not item.token_ids.values:
                    found.append(Violation(f"{path}.token_ids.values", "is empty"))
            case "content":
                if not item.content.parts:
                    found.append(Violation(f"{path}.content.parts", "is empty"))
                for number, part in enumerate(item.content.parts):
                    _part(part, f"{path}.content.parts[{number}]", found)
    if request.HasField("dimensions") and not request.dimensions:
        found.append(Violation("dimensions", "must be at least 1"))
    _known(ELEMENT_TYPES, request.element_type, "element_type", found)
    _known(EMBED_LAYOUTS, request.layout, "layout", found)
    _common(request, found)


def _model(name: str, path: str, missing: str, found: Found) -> None:
    """Names are kept and logged, so that they cannot be of any length."""
    if not name:
        found.append(Violation(path, missing))
    elif len(name.encode()) > MAX_MODEL_BYTES:
        found.append(Violation(path, f"is longer than {MAX_MODEL_BYTES} bytes"))


def _messages(request: pb.GenerateRequest, found: Found) -> None:
    call_ids: set[str] = set()
    # With vendor options the conversation may continue one that the vendor stores, calls included.
    complete = not request.provider_options
    for index, message in enumerate(request.messages):
        path = f"messages[{index}]"
        if not message.role:
            found.append(Violation(f"{path}.role", "is required"))
        elif message.role not in ROLES:
            _known(ROLES, message.role, f"{path}.role", found)
        parts, extras = message.parts, message.provider_metadata
        if extras:
            _json_objects(extras, f"{path}.provider_metadata", found)
        elif not parts:
            found.append(Violation(f"{path}.parts", "at least one part is required"))
        for number, part in enumerate(parts):
            part_path = f"{path}.parts[{number}]"
            content = _part(part, part_path, found)
            if content == "tool_call":
                call_ids.add(part.tool_call.id)
            elif content == "tool_result" and complete and part.tool_result.call_id not in call_ids:
                found.append(Violation(f"{part_path}.tool_result.call_id", "no earlier tool call has this id"))


def _part(part: pb.Part, path: str, found: Found) -> str | None:
    """Which content the part has."""
    content = part.WhichOneof("content")
    match content:
        case "text" | "refusal":
            pass
        case None:
            found.append(Violation(path, "the part has no content"))
        case "reasoning":
            _known(REASONING_KINDS, part.reasoning.kind, f"{path}.reasoning.kind", found)
        case "tool_call":
            _tool_call(part, f"{path}.tool_call", found)
        case "tool_result":
            _tool_result(part.tool_result, f"{path}.tool_result", found)
        case "media":
            found.has_media = True
            _media(part.media, f"{path}.media", found)
        case "provider_item":
            if not _is_object(part.provider_item.json):
                found.append(Violation(f"{path}.provider_item.json", "is not a JSON object"))
    opaque = part.signature or part.item_id or content == "provider_item"
    if opaque and not part.issuer:
        found.append(Violation(f"{path}.issuer", "is required beside signature, item_id or provider_item"))
    if part.provider_metadata:
        _json_objects(part.provider_metadata, f"{path}.provider_metadata", found)
    return content


def _tool_call(part: pb.Part, path: str, found: Found) -> None:
    call = part.tool_call
    _known(TOOL_CALL_KINDS, call.kind, f"{path}.kind", found)
    if not call.name:
        found.append(Violation(f"{path}.name", "is required"))
    is_function = call.kind in (pb.TOOL_CALL_KIND_UNSPECIFIED, pb.TOOL_CALL_KIND_FUNCTION)
    if is_function and call.arguments and not part.incomplete and not _is_json(call.arguments):
        found.append(Violation(f"{path}.arguments", "is not JSON; a part that was cut short is marked incomplete"))
    if call.provider_json and not _is_object(call.provider_json):
        found.append(Violation(f"{path}.provider_json", "is not a JSON object"))


def _tool_result(result: pb.ToolResult, path: str, found: Found) -> None:
    if result.structured_json and not _is_json(result.structured_json):
        found.append(Violation(f"{path}.structured_json", "is not JSON"))
    for number, part in enumerate(result.parts):
        where = f"{path}.parts[{number}]"
        if part.WhichOneof("content") in ("text", "media", "provider_item"):
            _part(part, where, found)
        else:
            found.append(Violation(where, "a tool result holds text, media or provider items"))


def _media(media: pb.Media, path: str, found: Found) -> None:
    _known(MEDIA_KINDS, media.kind, f"{path}.kind", found)
    match media.WhichOneof("source"):
        case None:
            found.append(Violation(path, "has neither data nor uri nor file"))
        case "data":
            if not media.data:
                found.append(Violation(f"{path}.data", "is empty"))
            if not media.mime_type:
                found.append(Violation(f"{path}.mime_type", "is required beside data"))
        case "uri":
            if not media.uri:
                found.append(Violation(f"{path}.uri", "is empty"))
        case "file":
            if not media.file.id:
                found.append(Violation(f"{path}.file.id", "is required"))
            if not media.file.issuer:
                found.append(Violation(f"{path}.file.issuer", "is required"))
    if media.provider_json and not _is_object(media.provider_json):
        found.append(Violation(f"{path}.provider_json", "is not a JSON object"))


def _tools(request: pb.GenerateRequest, found: Found) -> None:
    names: set[str] = set()
    for index, tool in enumerate(request.tools):
        path = f"tools[{index}]"
        match tool.WhichOneof("kind"):
            case None:
                found.append(Violation(path, "has no kind"))
            case "function":
                names.add(tool.function.name)
                if not tool.function.name:
                    found.append(Violation(f"{path}.function.name", "is required"))
                schema = tool.function.parameters_schema
                if schema and not _is_object(schema):
                    found.append(Violation(f"{path}.function.parameters_schema", "is not a JSON object"))
            case "free_text":
                names.add(tool.free_text.name)
                if not tool.free_text.name:
                    found.append(Violation(f"{path}.free_text.name", "is required"))
                if tool.free_text.format_json and not _is_object(tool.free_text.format_json):
                    found.append(Violation(f"{path}.free_text.format_json", "is not a JSON object"))
            case "provider":
                names.update((tool.provider.type, tool.provider.name))
                for field in ("issuer", "type"):
                    if not getattr(tool.provider, field):
                        found.append(Violation(f"{path}.provider.{field}", "is required"))
                if tool.provider.config_json and not _is_object(tool.provider.config_json):
                    found.append(Violation(f"{path}.provider.config_json", "is not a JSON object"))
        if tool.provider_metadata:
            _json_objects(tool.provider_metadata, f"{path}.provider_metadata", found)
    if request.HasField("tool_choice"):
        _tool_choice(request, names, found)


def _tool_choice(request: pb.GenerateRequest, names: set[str], found: Found) -> None:
    choice = request.tool_choice
    _known(TOOL_CHOICE_MODES, choice.mode, "tool_choice.mode", found)
    if choice.mode == pb.TOOL_CHOICE_MODE_REQUIRED and not request.tools and not request.provider_options:
        found.append(Violation("tool_choice.mode", "REQUIRED needs at least one tool"))
    for index, name in enumerate(choice.allowed_tools):
        if name not in names and not request.provider_options:
            found.append(Violation(f"tool_choice.allowed_tools[{index}]", "names none of the tools"))


def _config(config: pb.GenerationConfig, found: Found) -> None:
    for field in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        value: float = getattr(config, field)
        if not math.isfinite(value):
            found.append(Violation(f"config.{field}", "is not a finite number"))
    if config.temperature < 0:
        found.append(Violation("config.temperature", "must not be negative"))
    if not 0 <= config.top_p <= 1:
        found.append(Violation("config.top_p", "must be between 0 and 1"))
    for token, bias in config.logit_bias.items():
        if not math.isfinite(bias):
            found.append(Violation(f"config.logit_bias[{token}]", "is not a finite number"))
    for field in ("max_output_tokens", "candidate_count"):
        if config.HasField(field) and not getattr(config, field):  # type: ignore[arg-type]  # a closed list of names
            found.append(Violation(f"config.{field}", "must be at least 1"))
    for index, text in enumerate(config.stop_sequences):
        if not text:
            found.append(Violation(f"config.stop_sequences[{index}]", "is empty"))
    if config.HasField("response_format"):
        _response_format(config.response_format, found)


def within_bounds(labels: Mapping[str, str]) -> dict[str, str]:
    """Of the labels of a request that may be none what a valid one may have."""
    return {key[:MAX_LABEL_KEY_BYTES]: labels[key][:MAX_LABEL_VALUE_BYTES] for key in islice(labels, MAX_LABELS)}


def _response_format(form: pb.ResponseFormat, found: Found) -> None:
    path = "config.response_format"
    _known(RESPONSE_FORMAT_TYPES, form.type, f"{path}.type", found)
    if form.type == pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA:
        if not form.schema:
            found.append(Violation(f"{path}.schema", "is required for JSON_SCHEMA"))
        elif not _is_object(form.schema):
            found.append(Violation(f"{path}.schema", "is not a JSON object"))
    elif form.schema:
        found.append(Violation(f"{path}.schema", "is only for JSON_SCHEMA"))


def _common(request: pb.GenerateRequest | pb.EmbedRequest, found: Found) -> None:
    if len(request.labels) > MAX_LABELS:
        found.append(Violation("labels", f"more than {MAX_LABELS}"))
    for key in request.labels:  # items() of a protobuf's map takes twice as long
        value = request.labels[key]
        if not 0 < len(key.encode()) <= MAX_LABEL_KEY_BYTES:
            found.append(Violation("labels", f"a key is empty or longer than {MAX_LABEL_KEY_BYTES} bytes"))
        if len(value.encode()) > MAX_LABEL_VALUE_BYTES:
            found.append(Violation("labels", f"a value is longer than {MAX_LABEL_VALUE_BYTES} bytes"))
    if request.provider_options:
        _json_objects(request.provider_options, "provider_options", found)
    if request.HasField("routing"):
        _known(UNSUPPORTED_POLICIES, request.routing.unsupported_policy, "routing.unsupported_policy", found)
        if request.routing.strategy and request.routing.strategy not in STRATEGIES:
            found.append(Violation("routing.strategy", f"is not one of {', '.join(STRATEGIES)}"))
        for index, trigger in enumerate(request.routing.fallback_triggers):
            if trigger == pb.FALLBACK_TRIGGER_UNSPECIFIED:
                found.append(Violation(f"routing.fallback_triggers[{index}]", "is unspecified"))
            _known(FALLBACK_TRIGGERS, trigger, f"routing.fallback_triggers[{index}]", found)
        for index, model in enumerate(request.routing.fallbacks):
            _model(model, f"routing.fallbacks[{index}]", "is empty", found)
    if request.HasField("execution"):
        _execution(request.execution, found)


def _execution(execution: pb.ExecutionPolicy, found: Found) -> None:
    durations: tuple[tuple[str, Duration], ...] = (
        ("attempt_timeout", execution.attempt_timeout),
        ("first_token_timeout", execution.first_token_timeout),
        ("idle_timeout", execution.idle_timeout),
        ("hedge_delay", execution.hedge_delay),
    )
    for name, duration in durations:
        if duration.seconds < 0 or duration.nanos < 0:
            found.append(Violation(f"execution.{name}", "must not be negative"))
    if execution.HasField("max_attempts") and not execution.max_attempts:
        found.append(Violation("execution.max_attempts", "must be at least 1"))


def _known(values: frozenset[int], value: int, path: str, found: Found) -> None:
    """proto3 enums are open: a number of a newer contract arrives as such, and must not be taken for something else."""
    if value and value not in values:
        found.append(Violation(path, f"{value} is not a known value"))


def _json_objects(texts: Mapping[str, str], path: str, found: Found) -> None:
    for key, text in texts.items():
        if not _is_object(text):
            found.append(Violation(f'{path}["{key}"]', "is not a JSON object"))


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
