"""One Chat Completions stream: chunks in, our events out."""

from __future__ import annotations

from collections.abc import Sequence

from headgate import v1 as pb

from headgate_server.errors import ProviderBrokeOff, ProviderProtocolError
from headgate_server.json_codec import JsonObject, loads_object
from headgate_server.providers.assembly import Assembly, Candidate, OpenPart
from headgate_server.providers.base import Target
from headgate_server.providers.call_ids import new_call_id
from headgate_server.providers.openai import answer as wire
from headgate_server.providers.openai.errors import reported_error
from headgate_server.providers.openai.usage import cost, find_usage, usage
from headgate_server.providers.reading import (
    create_time,
    decode_base64,
    extras,
    label,
    mapping,
    metadata,
    objects,
    text,
)
from headgate_server.providers.think_tags import ThinkTags
from headgate_server.sse import Event

DONE = b"[DONE]"
FRAGMENTS = ("text", "summary", "data")
THINKING_FIELDS = frozenset(("reasoning_content", "reasoning", "reasoning_details"))


class Stream:
    """The state of one stream.

    Text, reasoning and refusal are one part each, a tool call is one, and all stay open until the end, because hosts
    send reasoning after text, citations and usage after the finish reason, and the finish reason twice.
    """

    def __init__(self, target: Target) -> None:
        self.complete = False
        self.usage_reports = 0
        self._target = target
        self._assembly = Assembly()
        self._choices: dict[int, _Choice] = {}
        self._extras: JsonObject = {}
        self._usage: JsonObject = {}
        self._sources: tuple[object, object] = (None, None)
        self._identified = False

    def feed(self, events: Sequence[Event]) -> list[pb.StreamGenerateResponse]:
        """All events of one socket read.

        Raises:
            GatewayError: the vendor reports an error, or sends what cannot be read.
        """
        for event in events:
            data = event.data.strip()
            if data == DONE:
                self.complete = True
                break
            if data:
                self._read(loads_object(data), is_error=event.type == "error")
        return self._assembly.take()

    def end(self) -> list[pb.StreamGenerateResponse]:
        """The vendor closed.

        Raises:
            ProviderProtocolError: nothing came, or a candidate has no end and the stream no [DONE].
        """
        if not self._choices:
            raise ProviderProtocolError("the provider's stream ended without an answer")
        if not self.complete and not all(choice.finish_word for choice in self._choices.values()):
            raise ProviderBrokeOff("the provider's stream broke off")
        self._settle()
        return self._assembly.finish()

    def interrupt(self, finish: pb.FinishReason.ValueType) -> list[pb.StreamGenerateResponse]:
        """The stream broke."""
        self._settle()
        return self._assembly.interrupt(finish)

    def _read(self, chunk: JsonObject, *, is_error: bool) -> None:
        if (chunk.get("usage") or "x_groq" in chunk) and (reported := find_usage(chunk)):
            self._count(reported)
        if is_error and "error" not in chunk:
            chunk = {"error": chunk}
        if error := reported_error(chunk, self._target):
            raise error
        if not self._identified:
            self._identify(chunk)
        end = self._assembly.end
        if fingerprint := chunk.get("system_fingerprint"):
            end.system_fingerprint = label(fingerprint)
        if tier := chunk.get("service_tier"):
            end.service_tier = label(tier)
        if "citations" in chunk or "search_results" in chunk:
            self._sources = (chunk.get("citations"), chunk.get("search_results"))
        if not wire.ANSWER_FIELDS.issuperset(chunk):
            _merge(self._extras, extras(chunk, wire.ANSWER_FIELDS))
        for number, found in enumerate(objects(chunk.get("choices"))):
            index = wire.candidate_index(found, number)
            choice = self._choices.get(index)
            if choice is None:
                candidate = self._assembly.candidate(index)
                choice = self._choices[index] = _Choice(self._assembly, candidate, self._target)
            if "usage" in found and (reported := mapping(found["usage"])):
                self._count(reported)
            choice.read(found)

    def _count(self, reported: JsonObject) -> None:
        self._usage = reported
        self.usage_reports += 1

    def _identify(self, chunk: JsonObject) -> None:
        """Fills generation_start; the first chunks of some hosts are empty."""
        start = self._assembly.start
        start.model = start.model or label(chunk.get("model"))
        start.provider_response_id = start.provider_response_id or label(chunk.get("id"))
        if not start.HasField("create_time") and (created := create_time(chunk.get("created"))):
            start.create_time.CopyFrom(created)
        self._identified = bool(start.model and start.provider_response_id and start.HasField("create_time"))

    def _settle(self) -> None:
        """Everything that is only known at the end."""
        end = self._assembly.end
        for index in sorted(self._choices):
            choice = self._choices[index]
            choice.settle()
            if choice.extras:
                self._extras.setdefault("choices", []).append({"index": index, **choice.extras})
        if self._choices:
            self._choices[min(self._choices)].cite(list(wire.search_citations(*self._sources)))
        end.provider_metadata.update(metadata(self._extras, self._target.issuer))
        if self._usage:
            end.usage.CopyFrom(usage(self._usage))
            if price := cost(self._usage):
                end.cost.CopyFrom(price)


class _Call:
    """A tool call whose name may still be missing; what comes before the name is held back."""

    __slots__ = ("extras", "held", "id", "index", "kind", "name", "part")

    def __init__(self, index: object, call_id: str, kind: pb.ToolCallKind.ValueType) -> None:
        self.index = index
        self.id = call_id
        self.kind = kind
        self.name = ""
        self.held: list[str] = []
        self.extras: JsonObject = {}
        self.part: OpenPart | None = None


class _Choice:
    """The state of one candidate."""

    def __init__(self, assembly: Assembly, candidate: Candidate, target: Target) -> None:
        self.finish_word = ""
        self.extras: JsonObject = {}
        self._assembly = assembly
        self._candidate = candidate
        self._target = target
        self._tags = ThinkTags() if target.host.quirks.think_tags else None
        self._text: OpenPart | None = None
        self._reasoning: OpenPart | None = None
        self._refusal: OpenPart | None = None
        self._audio: OpenPart | None = None
        self._calls: list[_Call] = []
        self._stop_reason: object = None
        self._reasoning_extras: JsonObject = {}
        self._audio_extras: JsonObject = {}
        self._message_extras: JsonObject = {}

    def read(self, choice: JsonObject) -> None:
        """Reads one choice of one chunk."""
        delta = mapping(choice["delta"] if "delta" in choice else choice.get("message"))
        logprobs = mapping(choice.get("logprobs"))
        self._read_content(delta, wire.read_logprobs(logprobs.get("content")) if logprobs else None)
        if delta.get("refusal") or logprobs.get("refusal"):
            self._refuse(text(delta.get("refusal")), wire.read_logprobs(logprobs.get("refusal")))
        if annotations := delta.get("annotations"):
            self.cite(wire.citations(annotations))
            if others := wire.other_annotations(delta):
                self._message_extras.setdefault("annotations", []).extend(others)
        if audio := mapping(delta.get("audio")):
            self._hear(audio)
        for image in objects(delta.get("images")):
            self._assembly.add(self._candidate, wire.image_part(image))
        if delta.get("tool_calls") or delta.get("function_call"):
            for call in wire.tool_calls(delta):
                self._call(call)
        if not wire.MESSAGE_FIELDS.issuperset(delta):
            more = extras(delta, wire.MESSAGE_FIELDS)
            for fragment in objects(more.pop("reasoning_details", None)):
                _add_fragment(self._message_extras.setdefault("reasoning_details", []), fragment)
            _merge(self._message_extras, more)
        if not wire.CHOICE_FIELDS.issuperset(choice):
            _merge(self.extras, extras(choice, wire.CHOICE_FIELDS))
            self._stop_reason = choice.get("stop_reason") or self._stop_reason
        self.finish_word = label(choice.get("finish_reason")) or self.finish_word

    def settle(self) -> None:
        """What is only known at the end: late state of the parts, and how it finished."""
        if self._tags is not None:
            self._split(self._tags.end())
        for call in self._calls:
            call.part = call.part or self._open_call(call)
            call.part.closing.provider_metadata.update(metadata(call.extras, self._target.issuer))
        if self._reasoning is not None:
            found = metadata(self._reasoning_extras, self._target.issuer)
            self._reasoning.closing.provider_metadata.update(found)
        if self._audio is not None:
            found = metadata(self._audio_extras, self._target.issuer)
            self._audio.closing.provider_metadata.update(found)
        self._candidate.provider_metadata = metadata(self._message_extras, self._target.issuer)
        if self.finish_word:
            self._candidate.finish = wire.finish(
                self.finish_word,
                self._stop_reason,
                refused=self._refusal is not None,
                calls=bool(self._calls),
            )

    def cite(self, citations: list[pb.Citation]) -> None:
        """Adds sources to the text."""
        for citation in citations:
            self._assembly.cite(self._text_part(), citation)

    def _read_content(self, delta: JsonObject, logprobs: pb.LogProbs | None) -> None:
        content = delta.get("content")
        if isinstance(content, str) and THINKING_FIELDS.isdisjoint(delta):
            self._say(content, logprobs)
            return
        said = wire.Content(delta, self._target)
        self._reasoning_extras |= said.reasoning_extras
        self._think(said.reasoning, said.reasoning_kind)
        self._say(said.text, logprobs)
        for item in said.items:
            self._assembly.add(self._candidate, item)

    def _say(self, piece: str, logprobs: pb.LogProbs | None) -> None:
        if self._tags is not None:
            self._split(self._tags.feed(piece))
            piece = ""
        if piece or logprobs is not None:
            self._assembly.grow(self._text_part(), piece, logprobs)

    def _split(self, pieces: list[tuple[bool, str]]) -> None:
        for is_thought, piece in pieces:
            if is_thought:
                self._think(piece, pb.REASONING_KIND_FULL)
            else:
                self._assembly.grow(self._text_part(), piece)

    def _think(self, piece: str, kind: pb.ReasoningKind.ValueType) -> None:
        if not piece:
            return
        if self._reasoning is None:
            part = pb.Part(reasoning=pb.Reasoning(kind=kind))
            self._reasoning = self._assembly.open(self._candidate, part)
        self._assembly.grow(self._reasoning, piece)

    def _refuse(self, piece: str, logprobs: pb.LogProbs | None) -> None:
        if self._refusal is None:
            self._refusal = self._assembly.open(self._candidate, pb.Part(refusal=""))
        self._assembly.grow(self._refusal, piece, logprobs)

    def _hear(self, audio: JsonObject) -> None:
        data = decode_base64(audio.get("data"))
        transcript = text(audio.get("transcript"))
        if self._audio is None:
            if not (data or transcript or audio.get("id")):
                return
            part = pb.Part(media=pb.Media(kind=pb.MEDIA_KIND_AUDIO))
            self._audio = self._assembly.open(self._candidate, part)
            self._audio.closing.issuer = self._target.issuer
        self._audio.closing.item_id = self._audio.closing.item_id or label(audio.get("id"))
        self._audio_extras |= wire.audio_extras(audio)
        if data or transcript:
            self._assembly.grow_media(self._audio, data, transcript)

    def _call(self, found: JsonObject) -> None:
        call = self._call_of(found)
        name, arguments = wire.called(found)
        call.name = call.name or name
        call.extras |= extras(found, wire.CALL_FIELDS)
        if arguments:
            call.held.append(arguments)
        if call.name:
            call.part = call.part or self._open_call(call)
            for piece in call.held:
                self._assembly.grow(call.part, piece)
            call.held.clear()

    def _call_of(self, found: JsonObject) -> _Call:
        """The call that a piece belongs to: by index, by id, else the last one; a new id is a new call."""
        index, call_id = found.get("index"), label(found.get("id"))
        name, _ = wire.called(found)
        for call in reversed(self._calls):
            if index is None or call.index is None:
                continues = bool(call_id) and call.id == call_id
            elif call.index == index:
                if call_id and name and call.id not in ("", call_id):
                    break
                continues = True
            else:
                continues = False
            if continues:
                call.id = call.id or call_id
                return call
        if self._calls and index is None and not call_id and not name:
            return self._calls[-1]
        self._calls.append(_Call(index, call_id, wire.call_kind(found)))
        return self._calls[-1]

    def _open_call(self, call: _Call) -> OpenPart:
        tool_call = pb.ToolCall(id=call.id or new_call_id(), name=call.name, kind=call.kind)
        part = self._assembly.open(self._candidate, pb.Part(tool_call=tool_call))
        for piece in call.held:
            self._assembly.grow(part, piece)
        call.held.clear()
        return part

    def _text_part(self) -> OpenPart:
        if self._text is None:
            self._text = self._assembly.open(self._candidate, pb.Part(text=""))
        return self._text


def _merge(known: JsonObject, found: JsonObject) -> None:
    """Adds the extras of one more chunk: objects are merged, of other values the last one stands."""
    for key, value in found.items():
        before = known.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            before.update(value)
        else:
            known[key] = value


def _add_fragment(known: list[JsonObject], fragment: JsonObject) -> None:
    """Adds a piece of reasoning_details to the detail it continues: the last of its index and type."""
    for detail in reversed(known):
        if detail.get("index") == fragment.get("index") and detail.get("type") == fragment.get("type"):
            for key, value in fragment.items():
                if key in FRAGMENTS and isinstance(value, str) and isinstance(detail.get(key), str):
                    detail[key] += value
                elif value not in (None, ""):
                    detail[key] = value
            return
    known.append(dict(fragment))
