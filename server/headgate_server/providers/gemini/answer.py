"""What generateContent answers and its chunks have in common, and the reading of a whole answer.

Consecutive text parts of one kind, answer or thought, are one part: where the vendor cut them says nothing. A text part
that bears a signature or anything else beside its text stands alone, as does every other part. Empty text parts that
bear nothing are left out. Stream and unary keep the same rule, so that they agree.
https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from headgate import v1 as pb

from headgate_server.errors import ProviderProtocolError
from headgate_server.json_codec import JsonObject, loads_object, text_of
from headgate_server.providers.base import Target
from headgate_server.providers.call_ids import new_call_id
from headgate_server.providers.gemini.errors import reported_error
from headgate_server.providers.gemini.grounding import citations
from headgate_server.providers.gemini.usage import usage
from headgate_server.providers.media import media_kind
from headgate_server.providers.reading import (
    decode_base64,
    extras,
    label,
    mapping,
    metadata,
    number,
    objects,
    text,
)

FINISH = {
    "STOP": pb.FINISH_REASON_STOP,
    "MAX_TOKENS": pb.FINISH_REASON_MAX_TOKENS,
    "SAFETY": pb.FINISH_REASON_CONTENT_FILTER,
    "RECITATION": pb.FINISH_REASON_CONTENT_FILTER,
    "BLOCKLIST": pb.FINISH_REASON_CONTENT_FILTER,
    "PROHIBITED_CONTENT": pb.FINISH_REASON_CONTENT_FILTER,
    "SPII": pb.FINISH_REASON_CONTENT_FILTER,
    "MODEL_ARMOR": pb.FINISH_REASON_CONTENT_FILTER,
    "IMAGE_SAFETY": pb.FINISH_REASON_CONTENT_FILTER,
    "IMAGE_PROHIBITED_CONTENT": pb.FINISH_REASON_CONTENT_FILTER,
    "IMAGE_RECITATION": pb.FINISH_REASON_CONTENT_FILTER,
    "MALFORMED_FUNCTION_CALL": pb.FINISH_REASON_ERROR,
    "MALFORMED_RESPONSE": pb.FINISH_REASON_ERROR,
    "UNEXPECTED_TOOL_CALL": pb.FINISH_REASON_ERROR,
    "TOO_MANY_TOOL_CALLS": pb.FINISH_REASON_ERROR,
    "MISSING_THOUGHT_SIGNATURE": pb.FINISH_REASON_ERROR,
}
ANSWER_FIELDS = frozenset(("candidates", "usageMetadata", "modelVersion", "responseId", "createTime"))
CANDIDATE_FIELDS = frozenset(("index", "content", "finishReason", "finishMessage", "logprobsResult"))
CANDIDATE_EXTRAS = frozenset(
    (
        "avgLogprobs",
        "citationMetadata",
        "continuationToken",
        "groundingAttributions",
        "groundingMetadata",
        "safetyRatings",
        "tokenCount",
        "urlContextMetadata",
    )
)
PART_FIELDS = frozenset(("text", "thought", "thoughtSignature", "functionCall", "inlineData", "fileData"))
CALL_FIELDS = frozenset(("id", "name", "args", "partialArgs", "willContinue"))
BLOB_FIELDS = frozenset(("data", "mimeType"))
FILE_FIELDS = frozenset(("fileUri", "mimeType"))
BESIDE_FIELDS = frozenset(("thought", "thoughtSignature", "partMetadata", "mediaResolution", "videoMetadata"))
MAX_CANDIDATES = 128


def decode(body: bytes, target: Target) -> pb.GenerateResponse:
    """The whole answer.

    Raises:
        ProviderProtocolError: the body is not an answer.
        GatewayError: the vendor reports an error in a 200 answer.
    """
    answer = loads_object(body)
    if error := reported_error(answer, target):
        raise error
    found = objects(answer.get("candidates"))
    blocked = blocked_prompt(answer)
    if not found and blocked is None:
        raise ProviderProtocolError("the provider answered without candidates")
    response = pb.GenerateResponse(
        candidates=[_candidate(candidate, number, target) for number, candidate in enumerate(found)],
        model=label(answer.get("modelVersion")),
        provider_response_id=label(answer.get("responseId")),
        create_time=create_time(answer.get("createTime")),
        provider_metadata=metadata(extras(answer, ANSWER_FIELDS), target.issuer),
    )
    response.candidates.sort(key=lambda candidate: candidate.index)
    if not found:
        response.candidates.add(message=pb.Message(role=pb.ROLE_ASSISTANT), finish=blocked)
    if reported := mapping(answer.get("usageMetadata")):
        response.usage.CopyFrom(usage(reported))
        response.service_tier = label(reported.get("serviceTier"))
    return response


def _candidate(candidate: JsonObject, position: int, target: Target) -> pb.Candidate:
    parts = _joined(objects(mapping(candidate.get("content")).get("parts")), target)
    said = [part for part in parts if part.HasField("text")]
    tokens = read_logprobs(candidate.get("logprobsResult"))
    if tokens and not said:
        parts.append(pb.Part(text=""))
        said = parts[-1:]
    if tokens:
        said[0].logprobs.CopyFrom(tokens)
    found = extras(candidate, CANDIDATE_FIELDS)
    for place, citation in citations([part.text for part in said], found):
        said[place].citations.append(citation)
    return pb.Candidate(
        index=candidate_index(candidate, position),
        message=pb.Message(role=pb.ROLE_ASSISTANT, parts=parts),
        finish=finish(
            label(candidate.get("finishReason")),
            label(candidate.get("finishMessage")),
            calls=any(part.HasField("tool_call") for part in parts),
        ),
        provider_metadata=metadata(found, target.issuer),
    )


def _joined(found: Sequence[JsonObject], target: Target) -> list[pb.Part]:
    """The parts, consecutive text of one kind as one."""
    parts: list[pb.Part] = []
    kind = ""
    for item in found:
        if not is_plain_text(item):
            kind = ""
            parts += read_part(item, target)
        elif piece := text(item["text"]):
            if kind != text_kind(item):
                kind = text_kind(item)
                parts.append(new_text(kind))
            if kind == "text":
                parts[-1].text += piece
            else:
                parts[-1].reasoning.text += piece
    return parts


def is_plain_text(part: JsonObject) -> bool:
    """It is text and nothing else, so that it may be joined with its neighbours."""
    return "text" in part and not extras(part, frozenset(("text", "thought")))


def text_kind(part: JsonObject) -> str:
    """What a text part becomes: `text` or `reasoning`."""
    return "reasoning" if part.get("thought") is True else "text"


def new_text(kind: str) -> pb.Part:
    """An empty part of that kind. Gemini shows summaries of its thoughts, never the thoughts."""
    if kind == "text":
        return pb.Part(text="")
    return pb.Part(reasoning=pb.Reasoning(kind=pb.REASONING_KIND_SUMMARY))


def read_part(part: JsonObject, target: Target) -> Iterator[pb.Part]:
    """A part that stands alone; none when it says nothing."""
    signature = text(part.get("thoughtSignature"))
    read = _content(part)
    if read is None and not signature:
        return
    if read is None:
        read = pb.Part(text="")
    read.signature = signature.encode()
    if signature or read.HasField("provider_item") or read.media.provider_json or read.tool_call.provider_json:
        read.issuer = target.issuer
    if not read.HasField("provider_item"):
        beside = extras(part, PART_FIELDS)
        if part.get("thought") is True and read.WhichOneof("content") in ("media", "tool_call"):
            beside["thought"] = True  # the draft of an image, say
        read.provider_metadata.update(metadata(beside, target.issuer))
    yield read


def _content(part: JsonObject) -> pb.Part | None:
    """What the part holds; a kind that the contract does not model is kept verbatim, without its signature."""
    match part:
        case {"functionCall": dict(call)}:
            return pb.Part(tool_call=_tool_call(call))
        case {"inlineData": dict(blob)}:
            media = _media(blob, BLOB_FIELDS)
            media.data = decode_base64(blob.get("data"))
            return pb.Part(media=media)
        case {"fileData": dict(file)}:
            media = _media(file, FILE_FIELDS)
            media.uri = text(file.get("fileUri"))
            return pb.Part(media=media)
        case {"text": words} if text_kind(part) == "text":
            return pb.Part(text=text(words))
        case {"text": words}:
            return pb.Part(reasoning=pb.Reasoning(text=text(words), kind=pb.REASONING_KIND_SUMMARY))
    if member := next((name for name in part if name not in BESIDE_FIELDS), ""):
        whole = {name: value for name, value in part.items() if name != "thoughtSignature"}
        return pb.Part(provider_item=pb.ProviderItem(type=member, json=text_of(whole)))
    if part.get("thought") is True:
        return pb.Part(reasoning=pb.Reasoning(kind=pb.REASONING_KIND_OPAQUE))
    return None


def _tool_call(call: JsonObject) -> pb.ToolCall:
    more = extras(call, CALL_FIELDS)
    return pb.ToolCall(
        id=label(call.get("id")) or new_call_id(),
        name=label(call.get("name")),
        arguments=text_of(mapping(call.get("args"))),
        kind=pb.TOOL_CALL_KIND_FUNCTION,
        provider_json=text_of(more) if more else "",
    )


def _media(found: JsonObject, modelled: frozenset[str]) -> pb.Media:
    more = extras(found, modelled)
    media = pb.Media(mime_type=label(found.get("mimeType")), provider_json=text_of(more) if more else "")
    media.kind = media_kind(media)
    return media


def finish(word: str, detail: str, *, calls: bool) -> pb.Finish:
    """How a candidate ended. The vendor says STOP also of function calls."""
    reason = FINISH.get(word, pb.FINISH_REASON_OTHER) if word else pb.FINISH_REASON_UNSPECIFIED
    if reason == pb.FINISH_REASON_STOP and calls:
        reason = pb.FINISH_REASON_TOOL_CALLS
    return pb.Finish(reason=reason, provider_reason=word, detail=detail)


def blocked_prompt(answer: JsonObject) -> pb.Finish | None:
    """The end of an answer that the vendor refused to begin, if it did."""
    feedback = mapping(answer.get("promptFeedback"))
    word = label(feedback.get("blockReason"))
    if not word:
        return None
    detail = label(feedback.get("blockReasonMessage"))
    return pb.Finish(reason=pb.FINISH_REASON_CONTENT_FILTER, provider_reason=word, detail=detail)


def read_logprobs(result: object) -> pb.LogProbs | None:
    """The log probabilities of the tokens; None where there are none."""
    chosen = objects(mapping(result).get("chosenCandidates"))
    rivals = objects(mapping(result).get("topCandidates"))
    tokens = [
        pb.TokenLogProb(
            token=label(token.get("token")),
            logprob=number(token.get("logProbability")),
            top=[
                pb.TopLogProb(token=label(rival.get("token")), logprob=number(rival.get("logProbability")))
                for rival in objects(rivals[place].get("candidates") if place < len(rivals) else None)
            ],
        )
        for place, token in enumerate(chosen)
    ]
    return pb.LogProbs(tokens=tokens) if tokens else None


def candidate_index(candidate: JsonObject, otherwise: int) -> int:
    """The candidate's index.

    Raises:
        ProviderProtocolError: it is none that a request can have asked for.
    """
    index = candidate.get("index")
    if index is None:
        return otherwise
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < MAX_CANDIDATES:
        raise ProviderProtocolError("the provider sent a candidate with an impossible index")
    return index


def create_time(stamp: object) -> Timestamp | None:
    """When the vendor created the answer, from RFC 3339; None for anything else."""
    created = Timestamp()
    try:
        created.FromJsonString(label(stamp))
    except ValueError:
        return None
    return created
