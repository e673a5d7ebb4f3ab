"""What an answer and its stream have in common, and the reading of a whole answer."""

from __future__ import annotations

from headgate import v1 as pb

from headgate_server.errors import ProviderProtocolError
from headgate_server.json_codec import JsonObject, is_json, loads_object, text_of
from headgate_server.providers.base import Target
from headgate_server.providers.call_ids import new_call_id
from headgate_server.providers.cohere import citations
from headgate_server.providers.cohere.errors import failure, reported_error
from headgate_server.providers.cohere.usage import usage
from headgate_server.providers.reading import extras, label, mapping, metadata, number, objects, text

FINISH = {
    "COMPLETE": pb.FINISH_REASON_STOP,
    "STOP_SEQUENCE": pb.FINISH_REASON_STOP,
    "MAX_TOKENS": pb.FINISH_REASON_MAX_TOKENS,
    "TOOL_CALL": pb.FINISH_REASON_TOOL_CALLS,
}
TOOL_PLAN = "tool_plan"
ANSWER_FIELDS = frozenset(("id", "message", "finish_reason", "usage", "logprobs"))
MESSAGE_FIELDS = frozenset(("role", "content", TOOL_PLAN, "tool_calls", "citations"))
CALL_FIELDS = frozenset(("id", "type", "function"))
BLOCK_FIELDS = {
    "text": frozenset(("type", "text")),
    "thinking": frozenset(("type", "thinking")),
    TOOL_PLAN: frozenset((TOOL_PLAN,)),
}
GROWING = frozenset(BLOCK_FIELDS)


def decode(body: bytes, target: Target) -> pb.GenerateResponse:
    """The whole answer.

    Raises:
        ProviderProtocolError: the body is not an answer.
        GatewayError: the vendor reports an error in a 200 answer.
    """
    answer = loads_object(body)
    if error := reported_error(answer) or failure(label(answer.get("finish_reason")), answer, ""):
        raise error
    message = answer.get("message")
    if not isinstance(message, dict):
        raise ProviderProtocolError("the provider answered without a message")
    candidate = pb.Candidate(
        message=pb.Message(role=pb.ROLE_ASSISTANT, parts=_parts(answer, message, target.issuer)),
        finish=finish(answer),
        provider_metadata=metadata(extras(message, MESSAGE_FIELDS), target.issuer),
    )
    response = pb.GenerateResponse(
        candidates=[candidate],
        provider_response_id=label(answer.get("id")),
        provider_metadata=metadata(extras(answer, ANSWER_FIELDS), target.issuer),
    )
    if reported := mapping(answer.get("usage")):
        response.usage.CopyFrom(usage(reported))
    return response


def finish(ended: JsonObject) -> pb.Finish:
    """How the answer ended, from the object that holds finish_reason."""
    word = label(ended.get("finish_reason"))
    reason = FINISH.get(word, pb.FINISH_REASON_OTHER) if word else pb.FINISH_REASON_UNSPECIFIED
    return pb.Finish(reason=reason, provider_reason=word)


def block_part(block: JsonObject, issuer: str) -> pb.Part:
    """A content block as a part. The tool plan is thinking whose extras say where it belongs when it goes back."""
    match block.get("type"):
        case "text":
            part = pb.Part(text=text(block.get("text")))
        case ("thinking" | "tool_plan") as kind:
            reasoning = pb.Reasoning(text=text(block.get(kind)), kind=pb.REASONING_KIND_FULL)
            part = pb.Part(reasoning=reasoning)
        case kind:
            return pb.Part(provider_item=pb.ProviderItem(type=label(kind), json=text_of(block)), issuer=issuer)
    part.provider_metadata.update(metadata(extras(block, BLOCK_FIELDS[block["type"]]), issuer))
    return part


def call_part(found: JsonObject, issuer: str) -> pb.Part:
    """A tool call as a part, with its arguments so far."""
    function = mapping(found.get("function"))
    call = pb.ToolCall(
        id=label(found.get("id")) or new_call_id(),
        name=label(function.get("name")),
        arguments=text(function.get("arguments")),
        kind=pb.TOOL_CALL_KIND_FUNCTION,
    )
    return pb.Part(tool_call=call, provider_metadata=metadata(extras(found, CALL_FIELDS), issuer))


def log_probabilities(items: list[JsonObject]) -> pb.LogProbs:
    """A log probability for each token. Cohere gives the text of several together: it stands with their first."""
    found = pb.LogProbs()
    for item in items:
        said = text(item.get("text"))
        values = item.get("logprobs")
        for value in values if isinstance(values, list) else ():
            found.tokens.add(token=said, logprob=number(value))
            said = ""
    return found


def _parts(answer: JsonObject, message: JsonObject, issuer: str) -> list[pb.Part]:
    """Content, then the plan, then the calls, as they stream."""
    blocks = {index: block_part(block, issuer) for index, block in enumerate(_content(message))}
    plan = text(message.get(TOOL_PLAN))
    planned = block_part({"type": TOOL_PLAN, TOOL_PLAN: plan}, issuer) if plan else None
    for found in objects(message.get("citations")):
        if part := citations.place(found, blocks, planned):
            part.citations.extend(citations.read(found))
            part.issuer = issuer
    texts = [part for part in blocks.values() if part.WhichOneof("content") == "text"]
    if texts and (items := objects(answer.get("logprobs"))):
        texts[-1].logprobs.CopyFrom(log_probabilities(items))
    calls = [_whole_call(found, issuer) for found in objects(message.get("tool_calls"))]
    return [*blocks.values(), *([planned] if planned else []), *calls]


def _content(message: JsonObject) -> list[JsonObject]:
    content = message.get("content")
    return [{"type": "text", "text": content}] if isinstance(content, str) else objects(content)


def _whole_call(found: JsonObject, issuer: str) -> pb.Part:
    part = call_part(found, issuer)
    part.tool_call.arguments = part.tool_call.arguments or "{}"
    part.incomplete = not is_json(part.tool_call.arguments)
    return part
