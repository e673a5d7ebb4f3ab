"""What a message and its stream have in common, and the reading of a whole message."""

from __future__ import annotations

from typing import Any

import msgspec
from headgate import v1 as pb

from headgate_server.errors import ProviderProtocolError
from headgate_server.json_codec import JsonObject, loads_object, text_of
from headgate_server.providers.anthropic import citations
from headgate_server.providers.anthropic.errors import reported_error
from headgate_server.providers.anthropic.usage import usage
from headgate_server.providers.base import Target
from headgate_server.providers.call_ids import new_call_id
from headgate_server.providers.reading import extras, label, mapping, metadata, objects, text

# https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons
FINISH = {
    "end_turn": pb.FINISH_REASON_STOP,
    "stop_sequence": pb.FINISH_REASON_STOP,
    "max_tokens": pb.FINISH_REASON_MAX_TOKENS,
    "tool_use": pb.FINISH_REASON_TOOL_CALLS,
    "pause_turn": pb.FINISH_REASON_PAUSE,
    "compaction": pb.FINISH_REASON_PAUSE,
    "refusal": pb.FINISH_REASON_REFUSAL,
    "model_context_window_exceeded": pb.FINISH_REASON_CONTEXT_LENGTH,
}
STOP_FIELDS = frozenset(("stop_reason", "stop_sequence"))
ANSWER_FIELDS = STOP_FIELDS | frozenset(("id", "type", "role", "model", "content", "usage"))
BLOCK_FIELDS = {
    "text": frozenset(("type", "text", "citations")),
    "thinking": frozenset(("type", "thinking", "signature")),
    "redacted_thinking": frozenset(("type", "data")),
    "tool_use": frozenset(("type", "id", "name", "input")),
}


class _Block(msgspec.Struct):
    input: msgspec.Raw = msgspec.Raw(b"")


class _Inputs(msgspec.Struct):
    content: list[_Block]


_inputs = msgspec.json.Decoder(_Inputs)


def decode(body: bytes, target: Target) -> pb.GenerateResponse:
    """The whole answer.

    Raises:
        ProviderProtocolError: the body is not an answer.
        GatewayError: the vendor reports an error in a 200 answer.
    """
    answer = loads_object(body)
    if error := reported_error(answer):
        raise error
    content = answer.get("content")
    if not isinstance(content, list):
        raise ProviderProtocolError("the provider answered without content")
    inputs = _inputs_as_written(body, content)
    parts = [block_part(block, target.issuer, arguments) for block, arguments in zip(content, inputs, strict=True)]
    reported = mapping(answer.get("usage"))
    response = pb.GenerateResponse(
        candidates=[pb.Candidate(message=pb.Message(role=pb.ROLE_ASSISTANT, parts=parts), finish=finish(answer))],
        model=label(answer.get("model")),
        provider_response_id=label(answer.get("id")),
        service_tier=label(reported.get("service_tier")),
        provider_metadata=metadata(extras(answer, ANSWER_FIELDS), target.issuer),
    )
    if reported:
        response.usage.CopyFrom(usage(reported))
    return response


def block_part(block: Any, issuer: str, arguments: str) -> pb.Part:
    """A content block as a part. `arguments` are the tool input as the model wrote it.

    Raises:
        ProviderProtocolError: it is no content block.
    """
    found = mapping(block)
    match found.get("type"):
        case "text":
            cited = [citations.read(citation) for citation in objects(found.get("citations"))]
            part = pb.Part(text=text(found.get("text")), citations=cited, issuer=issuer if cited else "")
        case "thinking":
            reasoning = pb.Reasoning(text=text(found.get("thinking")), kind=pb.REASONING_KIND_FULL)
            part = _signed(pb.Part(reasoning=reasoning), text(found.get("signature")), issuer)
        case "redacted_thinking":
            reasoning = pb.Reasoning(kind=pb.REASONING_KIND_OPAQUE)
            part = _signed(pb.Part(reasoning=reasoning), text(found.get("data")), issuer)
        case "tool_use":
            call_id = label(found.get("id")) or new_call_id()
            call = pb.ToolCall(id=call_id, name=label(found.get("name")), arguments=arguments)
            call.kind = pb.TOOL_CALL_KIND_FUNCTION
            part = pb.Part(tool_call=call)
        case str(kind):
            return pb.Part(provider_item=pb.ProviderItem(type=kind, json=text_of(found)), issuer=issuer)
        case _:
            raise ProviderProtocolError("the provider sent content of an unknown form")
    part.provider_metadata.update(metadata(extras(found, BLOCK_FIELDS[found["type"]]), issuer))
    return part


def finish(stopped: JsonObject) -> pb.Finish:
    """How the message ended, from the object that holds stop_reason."""
    word = label(stopped.get("stop_reason"))
    details = mapping(stopped.get("stop_details"))
    return pb.Finish(
        reason=FINISH.get(word, pb.FINISH_REASON_OTHER) if word else pb.FINISH_REASON_UNSPECIFIED,
        provider_reason=word,
        stop_sequence=label(stopped.get("stop_sequence")),
        detail=label(details.get("explanation")) or label(details.get("category")),
    )


def _signed(part: pb.Part, signature: str, issuer: str) -> pb.Part:
    if signature:
        part.signature = signature.encode()
        part.issuer = issuer
    return part


def _inputs_as_written(body: bytes, content: list[Any]) -> list[str]:
    """The tool inputs byte for byte, where the body can be read that way."""
    try:
        written = [bytes(block.input).decode() for block in _inputs.decode(body).content]
    except (msgspec.DecodeError, RecursionError, ValueError):
        written = [""] * len(content)
    found = [mapping(block).get("input") for block in content]
    return [
        (as_written or text_of(value)) if isinstance(value, dict) else "{}"
        for as_written, value in zip(written, found, strict=True)
    ]
