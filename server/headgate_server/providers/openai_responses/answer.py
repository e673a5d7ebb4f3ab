"""What a Responses answer and its events have in common, and the reading of a whole answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from headgate import v1 as pb

from headgate_server.errors import GatewayError, ProviderError, ProviderProtocolError
from headgate_server.json_codec import JsonObject, is_json, loads_object, text_of
from headgate_server.providers.base import Target
from headgate_server.providers.call_ids import new_call_id
from headgate_server.providers.failures import provider_error
from headgate_server.providers.openai.answer import read_logprobs
from headgate_server.providers.openai.errors import reported_error
from headgate_server.providers.openai.usage import cost, within
from headgate_server.providers.reading import (
    count,
    create_time,
    decode_base64,
    extras,
    mapping,
    metadata,
    objects,
    text,
)

INCOMPLETE = {
    "max_output_tokens": pb.FINISH_REASON_MAX_TOKENS,
    "content_filter": pb.FINISH_REASON_CONTENT_FILTER,
}
STATUS = {
    "": pb.FINISH_REASON_UNSPECIFIED,
    "completed": pb.FINISH_REASON_STOP,
    "cancelled": pb.FINISH_REASON_CANCELLED,
}
# Vendor items that stand for a call which the caller, not the vendor, executes or approves.
CALLERS_ITEMS = frozenset(("apply_patch_call", "computer_call", "local_shell_call", "mcp_approval_request"))
# The settings of the request, which the vendor says back.
ECHOED = frozenset(
    (
        "background",
        "frequency_penalty",
        "include",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "parallel_tool_calls",
        "presence_penalty",
        "previous_response_id",
        "prompt",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "safety_identifier",
        "store",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "truncation",
        "user",
    )
)
ANSWER_FIELDS = ECHOED | frozenset(
    (
        "created_at",
        "error",
        "id",
        "incomplete_details",
        "model",
        "object",
        "output",
        "output_text",
        "service_tier",
        "status",
        "usage",
    )
)
MESSAGE_FIELDS = frozenset(("type", "id", "role", "status", "content"))
TEXT_FIELDS = frozenset(("type", "text", "annotations", "logprobs"))
REFUSAL_FIELDS = frozenset(("type", "refusal"))
REASONING_FIELDS = frozenset(("type", "id", "status", "summary", "content", "encrypted_content"))
CALL_FIELDS = frozenset(("type", "id", "status", "call_id", "name", "arguments", "input"))
IMAGE_FIELDS = frozenset(("type", "id", "status", "result"))
FILE_ANNOTATIONS = frozenset(("file_citation", "container_file_citation", "file_path"))

Place = tuple[Literal["content", "summary", "whole"], int]
"""Where in its item a part stands: which content part, which summary, or the item itself."""


def decode(body: bytes, target: Target) -> pb.GenerateResponse:
    """The whole answer.

    Raises:
        ProviderProtocolError: the body is not an answer.
        GatewayError: the vendor reports an error in a 200 answer.
    """
    answer = loads_object(body)
    if error := failure(answer, target):
        raise error
    if not isinstance(answer.get("output"), list):
        raise ProviderProtocolError("the provider answered without output")
    parts = [part for item in objects(answer["output"]) for _, part in item_parts(item, target.issuer)]
    candidate = pb.Candidate(
        message=pb.Message(role=pb.ROLE_ASSISTANT, parts=parts),
        finish=finish(answer, parts),
    )
    response = pb.GenerateResponse(
        candidates=[candidate],
        model=text(answer.get("model")),
        provider_response_id=text(answer.get("id")),
        service_tier=text(answer.get("service_tier")),
        create_time=create_time(answer.get("created_at")),
        provider_metadata=metadata(extras(answer, ANSWER_FIELDS), target.issuer),
    )
    if reported := mapping(answer.get("usage")):
        response.usage.CopyFrom(usage(reported))
        if price := cost(reported):
            response.cost.CopyFrom(price)
    return response


def failure(answer: JsonObject, target: Target) -> GatewayError | None:
    """The error that an answer with status `failed` holds, or what stands in an answer's place."""
    if error := reported_error(answer, target):
        return error
    if answer.get("status") == "failed":
        return provider_error(ProviderError)
    return None


def item_parts(item: JsonObject, issuer: str) -> list[tuple[Place, pb.Part]]:
    """The parts of one output item, each with its place; they share the item's id."""
    match item.get("type"):
        case "message":
            parts = list(_spoken(item, issuer))
        case "reasoning":
            parts = list(_thought(item, issuer))
        case "function_call" | "custom_tool_call":
            parts = [(("whole", 0), _tool_call(item, issuer))]
        case "image_generation_call" if item.get("result"):
            parts = [(("whole", 0), _image(item, issuer))]
        case _:
            return [(("whole", 0), provider_item(item, issuer))]
    for _, part in parts:
        part.item_id = text(item.get("id"))
        part.issuer = issuer
    if parts and item.get("status") == "incomplete":
        parts[-1][1].incomplete = True
    return parts


def provider_item(item: JsonObject, issuer: str) -> pb.Part:
    """A vendor's object that the contract does not model, verbatim."""
    kind = item.get("type")
    found = pb.ProviderItem(type=kind if isinstance(kind, str) else "", json=text_of(item))
    return pb.Part(provider_item=found, issuer=issuer)


def item_metadata(item: JsonObject, issuer: str, content: JsonObject | None = None) -> dict[str, str]:
    """What a message item holds beyond the contract, such as its phase; a content part's own under `content`."""
    found = extras(item, MESSAGE_FIELDS)
    if content:
        found["content"] = content
    return metadata(found, issuer)


def _spoken(item: JsonObject, issuer: str) -> Iterator[tuple[Place, pb.Part]]:
    for index, content in enumerate(objects(item.get("content"))):
        match content.get("type"):
            case "output_text":
                part = pb.Part(
                    text=text(content.get("text")),
                    citations=[citation(annotation) for annotation in objects(content.get("annotations"))],
                    logprobs=read_logprobs(content.get("logprobs")),
                )
                more = extras(content, TEXT_FIELDS)
            case "refusal":
                part = pb.Part(refusal=text(content.get("refusal")))
                more = extras(content, REFUSAL_FIELDS)
            case _:
                part = provider_item(content, issuer)
                more = {}
        part.provider_metadata.update(item_metadata(item, issuer, more))
        yield ("content", index), part


def _thought(item: JsonObject, issuer: str) -> Iterator[tuple[Place, pb.Part]]:
    found = [
        *_thoughts("summary", item, pb.REASONING_KIND_SUMMARY),
        *_thoughts("content", item, pb.REASONING_KIND_FULL),
    ]
    if not found:
        found = [(("whole", 0), pb.Part(reasoning=pb.Reasoning(kind=pb.REASONING_KIND_OPAQUE)))]
    found[-1][1].signature = text(item.get("encrypted_content")).encode()
    found[-1][1].provider_metadata.update(metadata(extras(item, REASONING_FIELDS), issuer))
    yield from found


def _thoughts(
    member: Literal["summary", "content"], item: JsonObject, kind: pb.ReasoningKind.ValueType
) -> Iterator[tuple[Place, pb.Part]]:
    for index, thought in enumerate(objects(item.get(member))):
        yield (member, index), pb.Part(reasoning=pb.Reasoning(text=text(thought.get("text")), kind=kind))


def _tool_call(item: JsonObject, issuer: str) -> pb.Part:
    call = started_call(item)
    call.arguments = _arguments(item)
    incomplete = False
    if call.kind == pb.TOOL_CALL_KIND_FUNCTION:
        call.arguments = call.arguments or "{}"
        incomplete = not is_json(call.arguments)
    more = metadata(extras(item, CALL_FIELDS), issuer)
    return pb.Part(tool_call=call, provider_metadata=more, incomplete=incomplete)


def started_call(item: JsonObject) -> pb.ToolCall:
    """The call of an item, its arguments aside."""
    is_free_text = item.get("type") == "custom_tool_call"
    return pb.ToolCall(
        id=text(item.get("call_id")) or new_call_id(),
        name=text(item.get("name")),
        kind=pb.TOOL_CALL_KIND_FREE_TEXT if is_free_text else pb.TOOL_CALL_KIND_FUNCTION,
    )


def _arguments(item: JsonObject) -> str:
    if item.get("type") == "custom_tool_call":
        return text(item.get("input"))
    arguments = item.get("arguments")
    return text_of(arguments) if isinstance(arguments, dict) else text(arguments)


def _image(item: JsonObject, issuer: str) -> pb.Part:
    """A generated image as media, which every caller understands; ItemWriter makes the vendor's item of it again."""
    form = text(item.get("output_format")) or "png"
    media = pb.Media(kind=pb.MEDIA_KIND_IMAGE, mime_type=f"image/{form}", data=decode_base64(item.get("result")))
    return pb.Part(media=media, provider_metadata=metadata(extras(item, IMAGE_FIELDS), issuer))


def citation(annotation: JsonObject) -> pb.Citation:
    """An annotation of any type; what is not an address, a title or a span stays as JSON, the type included."""
    is_file = annotation.get("type") in FILE_ANNOTATIONS
    name = "filename" if is_file else "title"
    start, end = count(annotation.get("start_index")), count(annotation.get("end_index"))
    modelled = {"url", name}
    found = pb.Citation(uri=text(annotation.get("url")), title=text(annotation.get(name)))
    if start is not None and end is not None and start <= end:
        found.start_offset, found.end_offset = start, end
        modelled |= {"start_index", "end_index"}
    if annotation.get("type") == "url_citation":
        modelled.add("type")
    if more := extras(annotation, frozenset(modelled)):
        found.provider_json = text_of(more)
    return found


def content_text(part: pb.Part) -> str:
    """What the deltas of a part add up to."""
    match part.WhichOneof("content"):
        case "text":
            return part.text
        case "refusal":
            return part.refusal
        case "reasoning":
            return part.reasoning.text
        case "tool_call":
            return part.tool_call.arguments
        case _:
            return ""


def finish(answer: JsonObject, parts: Iterable[pb.Part]) -> pb.Finish:
    """How the answer ended. The vendor says `completed` also of refusals and of calls that wait for their results."""
    status = text(answer.get("status"))
    if status == "incomplete":
        word = text(mapping(answer.get("incomplete_details")).get("reason"))
        return pb.Finish(reason=INCOMPLETE.get(word, pb.FINISH_REASON_OTHER), provider_reason=word or status)
    reason = STATUS.get(status, pb.FINISH_REASON_OTHER)
    if reason == pb.FINISH_REASON_STOP:
        if any(part.HasField("refusal") for part in parts):
            reason = pb.FINISH_REASON_REFUSAL
        elif any(_waits_for_the_caller(part) for part in parts):
            reason = pb.FINISH_REASON_TOOL_CALLS
    return pb.Finish(reason=reason, provider_reason=status)


def _waits_for_the_caller(part: pb.Part) -> bool:
    match part.WhichOneof("content"):
        case "tool_call":
            return True
        case "provider_item" if part.provider_item.type == "tool_search_call":
            return bool(loads_object(part.provider_item.json.encode()).get("execution") == "client")
        case "provider_item":
            return part.provider_item.type in CALLERS_ITEMS
        case _:
            return False


def usage(reported: JsonObject) -> pb.Usage:
    """Usage by the one rule, which is also this vendor's."""
    sent = mapping(reported.get("input_tokens_details"))
    generated = mapping(reported.get("output_tokens_details"))
    input_tokens = count(reported.get("input_tokens"))
    output_tokens = count(reported.get("output_tokens"))
    return pb.Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=count(reported.get("total_tokens")),
        cache_read_tokens=within(input_tokens, count(sent.get("cached_tokens"))),
        cache_write_tokens=within(input_tokens, count(sent.get("cache_write_tokens"))),
        audio_input_tokens=within(input_tokens, count(sent.get("audio_tokens"))),
        image_input_tokens=within(input_tokens, count(sent.get("image_tokens"))),
        reasoning_tokens=within(output_tokens, count(generated.get("reasoning_tokens"))),
        audio_output_tokens=within(output_tokens, count(generated.get("audio_tokens"))),
        provider_json=text_of(reported),
    )
