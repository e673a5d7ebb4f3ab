"""What Chat Completions answers and its chunks have in common, and the reading of a whole answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headgate import v1 as pb

from headgate_server.errors import ProviderProtocolError
from headgate_server.json_codec import JsonObject, is_json, loads_object, text_of
from headgate_server.providers.base import Target
from headgate_server.providers.call_ids import new_call_id
from headgate_server.providers.openai.errors import reported_error
from headgate_server.providers.openai.usage import cost, find_usage, usage
from headgate_server.providers.reading import (
    count,
    create_time,
    decode_base64,
    extras,
    label,
    mapping,
    metadata,
    number,
    objects,
    text,
)
from headgate_server.providers.think_tags import ThinkTags

FINISH = {
    "stop": pb.FINISH_REASON_STOP,
    "eos": pb.FINISH_REASON_STOP,
    "eos_token": pb.FINISH_REASON_STOP,
    "stop_sequence": pb.FINISH_REASON_STOP,
    "end_turn": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_MAX_TOKENS,
    "max_tokens": pb.FINISH_REASON_MAX_TOKENS,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
    "function_call": pb.FINISH_REASON_TOOL_CALLS,
    "content_filter": pb.FINISH_REASON_CONTENT_FILTER,
    "sensitive": pb.FINISH_REASON_CONTENT_FILTER,
    "refusal": pb.FINISH_REASON_REFUSAL,
    "model_length": pb.FINISH_REASON_CONTEXT_LENGTH,
    "model_context_window_exceeded": pb.FINISH_REASON_CONTEXT_LENGTH,
    "error": pb.FINISH_REASON_ERROR,
    "network_error": pb.FINISH_REASON_ERROR,
    "insufficient_system_resource": pb.FINISH_REASON_ERROR,
}
PADDING_FIELDS = frozenset(("obfuscation", "p"))
SOURCE_FIELDS = frozenset(("citations", "search_results"))
GROQ_FIELDS = frozenset(("channel",))  # which of content and reasoning a delta belongs to
ANSWER_FIELDS = (
    PADDING_FIELDS
    | SOURCE_FIELDS
    | frozenset(("id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier"))
)
CHOICE_FIELDS = frozenset(("index", "message", "delta", "finish_reason", "logprobs", "usage"))
REASONING_FIELDS = frozenset(("reasoning_content", "reasoning"))
MESSAGE_FIELDS = (
    REASONING_FIELDS
    | GROQ_FIELDS
    | frozenset(("role", "content", "refusal", "annotations", "audio", "images", "tool_calls", "function_call"))
)
CALL_FIELDS = frozenset(("index", "id", "type", "function", "custom"))
CITATION_FIELDS = frozenset(("url", "title", "start_index", "end_index", "content"))
SEARCH_FIELDS = frozenset(("url", "title", "snippet"))
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
    choices = objects(answer.get("choices"))
    if not choices:
        raise ProviderProtocolError("the provider answered without choices")
    response = pb.GenerateResponse(
        candidates=[_candidate(choice, number, target) for number, choice in enumerate(choices)],
        model=label(answer.get("model")),
        provider_response_id=label(answer.get("id")),
        system_fingerprint=label(answer.get("system_fingerprint")),
        service_tier=label(answer.get("service_tier")),
        create_time=create_time(answer.get("created")),
        provider_metadata=metadata(_answer_extras(answer, choices), target.issuer),
    )
    response.candidates.sort(key=lambda candidate: candidate.index)
    sources = list(search_citations(answer.get("citations"), answer.get("search_results")))
    if sources:
        _text_part(response.candidates[0].message).citations.extend(sources)
    reported = find_usage(answer)
    if reported:
        response.usage.CopyFrom(usage(reported))
        if price := cost(reported):
            response.cost.CopyFrom(price)
    return response


def _candidate(choice: JsonObject, number: int, target: Target) -> pb.Candidate:
    message = mapping(choice.get("message"))
    parts = [
        *_spoken(message, choice, target),
        *(image_part(image) for image in objects(message.get("images"))),
        *(_tool_call(call, target) for call in tool_calls(message)),
    ]
    return pb.Candidate(
        index=candidate_index(choice, number),
        message=pb.Message(role=pb.ROLE_ASSISTANT, parts=parts),
        finish=finish(
            label(choice.get("finish_reason")),
            choice.get("stop_reason"),
            refused=any(part.HasField("refusal") for part in parts),
            calls=any(part.HasField("tool_call") for part in parts),
        ),
        provider_metadata=metadata(_message_extras(message), target.issuer),
    )


def _spoken(message: JsonObject, choice: JsonObject, target: Target) -> Iterator[pb.Part]:
    """The parts in the order in which models produce them: reasoning, text, refusal, vendor items, audio."""
    said = Content(message, target)
    words = said.text
    thoughts = said.reasoning
    if target.host.quirks.think_tags and words:
        tags = ThinkTags()
        pieces = [*tags.feed(words), *tags.end()]
        thoughts += "".join(piece for is_thought, piece in pieces if is_thought)
        words = "".join(piece for is_thought, piece in pieces if not is_thought)
    if thoughts:
        yield pb.Part(
            reasoning=pb.Reasoning(text=thoughts, kind=said.reasoning_kind),
            provider_metadata=metadata(said.reasoning_extras, target.issuer),
        )
    logprobs = mapping(choice.get("logprobs"))
    tokens = read_logprobs(logprobs.get("content"))
    sources = citations(message.get("annotations"))
    if words or tokens or sources:
        yield pb.Part(text=words, citations=sources, logprobs=tokens)
    refusal = text(message.get("refusal"))
    tokens = read_logprobs(logprobs.get("refusal"))
    if refusal or tokens:
        yield pb.Part(refusal=refusal, logprobs=tokens)
    yield from said.items
    audio = mapping(message.get("audio"))
    if audio.get("id") or audio.get("data") or audio.get("transcript"):
        media = pb.Media(kind=pb.MEDIA_KIND_AUDIO, transcript=text(audio.get("transcript")))
        if data := decode_base64(audio.get("data")):
            media.data = data
        yield pb.Part(
            media=media,
            item_id=label(audio.get("id")),
            issuer=target.issuer,
            provider_metadata=metadata(audio_extras(audio), target.issuer),
        )


def _tool_call(call: JsonObject, target: Target) -> pb.Part:
    name, arguments = called(call)
    kind = call_kind(call)
    incomplete = False
    if kind == pb.TOOL_CALL_KIND_FUNCTION:
        arguments = arguments or "{}"
        incomplete = not is_json(arguments)
    return pb.Part(
        tool_call=pb.ToolCall(id=label(call.get("id")) or new_call_id(), name=name, arguments=arguments, kind=kind),
        provider_metadata=metadata(extras(call, CALL_FIELDS), target.issuer),
        incomplete=incomplete,
    )


class Content:
    """What a message or delta says: `content`, which is text or Mistral's array of items, and the reasoning."""

    __slots__ = ("items", "reasoning", "reasoning_extras", "reasoning_kind", "text")

    def __init__(self, message: JsonObject, target: Target) -> None:
        self.text = ""
        self.items: list[pb.Part] = []
        self.reasoning_extras: JsonObject = {}
        self.reasoning, self.reasoning_kind = reasoning(message)
        content = message.get("content")
        if isinstance(content, list):
            for item in content:
                self._read(item, target)
        else:
            self.text = text(content)

    def _read(self, item: Any, target: Target) -> None:
        match item:
            case str():
                self.text += item
            case {"type": "text"}:
                self.text += text(item.get("text"))
            case {"type": "thinking"}:
                thinking = item.get("thinking")
                if isinstance(thinking, str):
                    self.reasoning += thinking
                else:
                    self.reasoning += "".join(text(piece.get("text")) for piece in objects(thinking))
                self.reasoning_extras |= extras(item, frozenset(("type", "thinking")))
            case {"type": str(kind)}:
                provider_item = pb.ProviderItem(type=kind, json=text_of(item))
                self.items.append(pb.Part(provider_item=provider_item, issuer=target.issuer))
            case _:
                raise ProviderProtocolError("the provider sent content of an unknown form")


def reasoning(message: JsonObject) -> tuple[str, pb.ReasoningKind.ValueType]:
    """The thinking in a message or delta. Some hosts send it under two names: one is read."""
    details = objects(message.get("reasoning_details")) if "reasoning_details" in message else []
    is_summary = bool(details) and details[0].get("type") == "reasoning.summary"
    kind = pb.REASONING_KIND_SUMMARY if is_summary else pb.REASONING_KIND_FULL
    thinking = text(message.get("reasoning_content")) or text(message.get("reasoning"))
    if not thinking and details and "reasoning" not in message:
        thinking = "".join(text(item.get("text")) or text(item.get("summary")) for item in details)
    return thinking, kind


def finish(word: str, stop_reason: object = None, *, refused: bool = False, calls: bool = False) -> pb.Finish:
    """How a candidate ended. Vendors say `stop` also of refusals and of forced tool calls."""
    reason = FINISH.get(word, pb.FINISH_REASON_OTHER) if word else pb.FINISH_REASON_UNSPECIFIED
    if reason == pb.FINISH_REASON_STOP and refused:
        reason = pb.FINISH_REASON_REFUSAL
    elif reason == pb.FINISH_REASON_STOP and calls:
        reason = pb.FINISH_REASON_TOOL_CALLS
    stop_sequence = stop_reason if isinstance(stop_reason, str) else ""
    return pb.Finish(reason=reason, provider_reason=word, stop_sequence=stop_sequence)


def read_logprobs(tokens: object) -> pb.LogProbs | None:
    """The log probabilities of the tokens; None where there are none."""
    found = [
        pb.TokenLogProb(
            token=text(entry.get("token")),
            logprob=number(entry.get("logprob")),
            bytes=token_bytes(entry.get("bytes")),
            top=[
                pb.TopLogProb(
                    token=text(rival.get("token")),
                    logprob=number(rival.get("logprob")),
                    bytes=token_bytes(rival.get("bytes")),
                )
                for rival in objects(entry.get("top_logprobs"))
            ],
        )
        for entry in objects(tokens)
    ]
    return pb.LogProbs(tokens=found) if found else None


def citations(annotations: object) -> list[pb.Citation]:
    """The url_citation annotations; other annotations are extras."""
    found = []
    for annotation in objects(annotations):
        if annotation.get("type") == "url_citation":
            source = mapping(annotation.get("url_citation")) or annotation
            start, end = count(source.get("start_index")), count(source.get("end_index"))
            has_span = start is not None and end is not None and end > start
            more = extras(source, CITATION_FIELDS | {"type"})
            found.append(
                pb.Citation(
                    start_offset=start if has_span else None,
                    end_offset=end if has_span else None,
                    cited_text=text(source.get("content")),
                    uri=label(source.get("url")),
                    title=label(source.get("title")),
                    provider_json=text_of(more) if more else "",
                )
            )
    return found


def search_citations(urls: object, results: object) -> Iterator[pb.Citation]:
    """The sources of a search model's whole answer: Perplexity's search_results, and addresses beside them."""
    known = set()
    for result in objects(results):
        more = extras(result, SEARCH_FIELDS)
        known.add(label(result.get("url")))
        yield pb.Citation(
            cited_text=text(result.get("snippet")),
            uri=label(result.get("url")),
            title=label(result.get("title")),
            provider_json=text_of(more) if more else "",
        )
    for url in urls if isinstance(urls, list) else ():
        if isinstance(url, str) and url not in known:
            yield pb.Citation(uri=url)


def image_part(image: JsonObject) -> pb.Part:
    """A generated image, as OpenRouter gives it."""
    url = text(mapping(image.get("image_url")).get("url"))
    media = pb.Media(kind=pb.MEDIA_KIND_IMAGE)
    head, comma, data = url.partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        media.mime_type = head.removeprefix("data:").removesuffix(";base64")
        media.data = decode_base64(data)
    else:
        media.uri = url
    return pb.Part(media=media)


def tool_calls(message: JsonObject) -> list[JsonObject]:
    """The calls of a message or delta, the legacy function_call as one of them."""
    calls = objects(message.get("tool_calls"))
    legacy = mapping(message.get("function_call"))
    if legacy.get("name") or legacy.get("arguments"):
        return [*calls, {"index": LEGACY_INDEX, "function": legacy}]
    return calls


LEGACY_INDEX = -1


def called(call: JsonObject) -> tuple[str, str]:
    """Name and arguments of a call. Some hosts send the arguments as an object."""
    if call_kind(call) == pb.TOOL_CALL_KIND_FREE_TEXT:
        custom = mapping(call.get("custom"))
        return text(custom.get("name")), text(custom.get("input"))
    function = mapping(call.get("function"))
    arguments = function.get("arguments")
    return text(function.get("name")), text_of(arguments) if isinstance(arguments, dict) else text(arguments)


def call_kind(call: JsonObject) -> pb.ToolCallKind.ValueType:
    """FREE_TEXT for custom tools."""
    if call.get("type") == "custom" or ("custom" in call and "function" not in call):
        return pb.TOOL_CALL_KIND_FREE_TEXT
    return pb.TOOL_CALL_KIND_FUNCTION


def audio_extras(audio: JsonObject) -> JsonObject:
    """What the audio object holds beside its content: when it expires."""
    return extras(audio, frozenset(("id", "data", "transcript")))


def _answer_extras(answer: JsonObject, choices: list[JsonObject]) -> JsonObject:
    found = extras(answer, ANSWER_FIELDS)
    if of_choices := [more for choice in choices if (more := choice_extras(choice))]:
        found["choices"] = of_choices
    return found


def choice_extras(choice: JsonObject) -> JsonObject:
    """A choice's extras under its index. They are the answer's, not the message's: they must not go back in it."""
    more = extras(choice, CHOICE_FIELDS)
    return {"index": choice.get("index", 0), **more} if more else {}


def _message_extras(message: JsonObject) -> JsonObject:
    found = extras(message, MESSAGE_FIELDS)
    if others := other_annotations(message):
        found["annotations"] = others
    return found


def other_annotations(message: JsonObject) -> list[JsonObject]:
    """Annotations that are no citations, such as OpenRouter's parsed files."""
    if not message.get("annotations"):
        return []
    return [item for item in objects(message.get("annotations")) if item.get("type") != "url_citation"]


def _text_part(message: pb.Message) -> pb.Part:
    for part in message.parts:
        if part.HasField("text"):
            return part
    return message.parts.add(text="")


def candidate_index(choice: JsonObject, otherwise: int) -> int:
    """The choice's index.

    Raises:
        ProviderProtocolError: it is none that a request can have asked for.
    """
    index = choice.get("index")
    if index is None:
        return otherwise
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < MAX_CANDIDATES:
        raise ProviderProtocolError("the provider sent a choice with an impossible index")
    return index


def token_bytes(value: object) -> bytes:
    """A token's bytes from their array."""
    try:
        return bytes(value) if isinstance(value, list) else b""
    except (TypeError, ValueError):
        return b""
