"""One streamGenerateContent stream: chunks in, our events out. answer.py says which texts are one part."""

from __future__ import annotations

from collections.abc import Sequence

from headgate import v1 as pb

from headgate_server.errors import ProviderBrokeOff, ProviderProtocolError
from headgate_server.json_codec import JsonObject, clip, loads, text_of
from headgate_server.providers.assembly import Assembly, Candidate, OpenPart
from headgate_server.providers.base import Target
from headgate_server.providers.gemini import answer as wire
from headgate_server.providers.gemini.arguments import Arguments, is_streamed
from headgate_server.providers.gemini.errors import reported_error
from headgate_server.providers.gemini.grounding import citations
from headgate_server.providers.gemini.usage import usage
from headgate_server.providers.reading import extras, label, mapping, metadata, objects, text
from headgate_server.sse import Event

OUTPUT_COUNTS = frozenset(("candidatesTokenCount", "thoughtsTokenCount"))


class Stream:
    """The state of one stream. Its end is the end of the body: the vendor sends no terminator."""

    def __init__(self, target: Target) -> None:
        self.complete = False
        self.usage_reports = 0
        self._target = target
        self._assembly = Assembly()
        self._candidates: dict[int, _Candidate] = {}
        self._usage: JsonObject = {}
        self._extras: JsonObject = {}
        self._blocked: pb.Finish | None = None

    def feed(self, events: Sequence[Event]) -> list[pb.StreamGenerateResponse]:
        """All events of one socket read."""
        for event in events:
            if data := event.data.strip():
                for chunk in _chunks(data):
                    self._read(chunk)
        return self._assembly.take()

    def end(self) -> list[pb.StreamGenerateResponse]:
        """The vendor closed.

        Raises:
            ProviderProtocolError: nothing came, or a candidate has no end.
        """
        if not self._candidates and self._blocked is None:
            raise ProviderProtocolError("the provider's stream ended without an answer")
        if not all(candidate.finish_word for candidate in self._candidates.values()):
            raise ProviderBrokeOff("the provider's stream broke off")
        self._settle()
        return self._assembly.finish()

    def interrupt(self, finish: pb.FinishReason.ValueType) -> list[pb.StreamGenerateResponse]:
        """The stream broke."""
        self._settle()
        return self._assembly.interrupt(finish)

    def _read(self, chunk: JsonObject) -> None:
        if error := reported_error(chunk, self._target):
            raise error
        start = self._assembly.start
        start.model = start.model or label(chunk.get("modelVersion"))
        start.provider_response_id = start.provider_response_id or label(chunk.get("responseId"))
        if not start.HasField("create_time") and (created := wire.create_time(chunk.get("createTime"))):
            start.create_time.CopyFrom(created)
        if reported := mapping(chunk.get("usageMetadata")):
            self._usage = reported
            if not OUTPUT_COUNTS.isdisjoint(reported):  # until it has ended, many count the prompt alone
                self.usage_reports += 1
        self._extras |= extras(chunk, wire.ANSWER_FIELDS)
        self._blocked = wire.blocked_prompt(chunk) or self._blocked
        for position, found in enumerate(objects(chunk.get("candidates"))):
            index = wire.candidate_index(found, position)
            candidate = self._candidates.get(index)
            if candidate is None:
                opened = self._assembly.candidate(index)
                candidate = self._candidates[index] = _Candidate(self._assembly, opened, self._target)
            candidate.read(found)

    def _settle(self) -> None:
        """Everything that is only known at the end."""
        for candidate in self._candidates.values():
            candidate.settle()
        if self._blocked and not self._candidates:
            self._assembly.candidate(0).finish = self._blocked
        end = self._assembly.end
        end.provider_metadata.update(metadata(self._extras, self._target.issuer))
        if self._usage:
            end.usage.CopyFrom(usage(self._usage))
            end.service_tier = label(self._usage.get("serviceTier"))


class _Text:
    """A text part and what it says, which the spans of its sources are counted in."""

    __slots__ = ("part", "pieces")

    def __init__(self, part: OpenPart, piece: str = "") -> None:
        self.part = part
        self.pieces = [piece]


class _Candidate:
    """The state of one candidate.

    At most one part grows. Text parts stay open until the end all the same, because the sources come with the last
    chunk.
    """

    def __init__(self, assembly: Assembly, candidate: Candidate, target: Target) -> None:
        self.finish_word = ""
        self._assembly = assembly
        self._candidate = candidate
        self._target = target
        self._texts: list[_Text] = []
        self._growing: OpenPart | None = None
        self._kind = ""
        self._arguments: Arguments | None = None
        self._logprobs: pb.LogProbs | None = None
        self._calls = False
        self._detail = ""
        self._extras: JsonObject = {}

    def read(self, found: JsonObject) -> None:
        """Reads one candidate of one chunk."""
        for part in objects(mapping(found.get("content")).get("parts")):
            self._read_part(part)
        if tokens := wire.read_logprobs(found.get("logprobsResult")):
            self._add_logprobs(tokens)
        _merge(self._extras, extras(found, wire.CANDIDATE_FIELDS))
        self.finish_word = label(found.get("finishReason")) or self.finish_word
        self._detail = label(found.get("finishMessage")) or self._detail

    def settle(self) -> None:
        """What is only known at the end: arguments, sources, and how it finished. Whole parts are closed."""
        broke_off = not self.finish_word
        if self._arguments is not None and not broke_off:
            self._end_arguments()
        if self._logprobs is not None and not broke_off:
            self._open_text(pb.Part(text=""))
        texts = ["".join(text.pieces) for text in self._texts]
        for place, citation in citations(texts, self._extras):
            self._assembly.cite(self._texts[place].part, citation)
        for said in self._texts:
            if said.part is not self._growing:
                self._assembly.close(said.part)
        self._candidate.provider_metadata = metadata(self._extras, self._target.issuer)
        if self.finish_word:
            self._candidate.finish = wire.finish(self.finish_word, self._detail, calls=self._calls)

    def _read_part(self, part: JsonObject) -> None:
        call = part.get("functionCall")
        if wire.is_plain_text(part):
            if piece := text(part["text"]):
                self._grow(wire.text_kind(part), piece)
        elif isinstance(call, dict) and (is_streamed(call) or (self._arguments is not None and not call.get("name"))):
            self._read_streamed_call(part, call)
        else:
            self._end_growth()
            for read in wire.read_part(part, self._target):
                self._calls |= read.HasField("tool_call")
                if read.HasField("text"):
                    self._open_text(read)
                else:
                    self._assembly.add(self._candidate, read)

    def _grow(self, kind: str, piece: str) -> None:
        if self._growing is None or self._kind != kind:
            self._end_growth()
            if kind == "text":
                self._growing = self._open_text(wire.new_text(kind))
            else:
                self._growing = self._assembly.open(self._candidate, wire.new_text(kind))
            self._kind = kind
        self._assembly.grow(self._growing, piece)
        if kind == "text":
            self._texts[-1].pieces.append(piece)

    def _end_growth(self) -> None:
        """What grew is whole. Text only stops growing."""
        if self._arguments is not None:
            self._end_arguments()
        elif self._growing is not None and self._kind != "text":
            self._assembly.close(self._growing)
        self._growing = None

    def _open_text(self, part: pb.Part) -> OpenPart:
        opened = self._assembly.open(self._candidate, part)
        self._texts.append(_Text(opened, part.text))
        if self._logprobs is not None:
            self._assembly.grow(opened, "", self._logprobs)
            self._logprobs = None
        return opened

    def _add_logprobs(self, tokens: pb.LogProbs) -> None:
        """The first text part bears them all; until there is one they wait."""
        if self._texts:
            self._assembly.grow(self._texts[0].part, "", tokens)
        elif self._logprobs is None:
            self._logprobs = tokens
        else:
            self._logprobs.MergeFrom(tokens)

    def _read_streamed_call(self, part: JsonObject, call: JsonObject) -> None:
        if self._arguments is None or call.get("name"):
            self._end_growth()
            for read in wire.read_part(part, self._target):
                read.tool_call.arguments = ""
                self._growing = self._assembly.open(self._candidate, read)
            self._kind = "tool_call"
            self._calls = True
            self._arguments = Arguments(call)
        elif self._growing is not None and (signature := text(part.get("thoughtSignature"))):
            self._growing.closing.MergeFrom(pb.PartEnd(signature=signature.encode(), issuer=self._target.issuer))
        self._arguments.add(call)
        if not call.get("willContinue"):
            self._end_arguments()

    def _end_arguments(self) -> None:
        if self._growing is not None and self._arguments is not None:
            self._assembly.grow(self._growing, text_of(self._arguments.value))
            self._assembly.close(self._growing)
        self._growing = self._arguments = None


def _chunks(data: bytes) -> list[JsonObject]:
    """The chunks in one event: one, or an array of them where the vendor does not stream events.

    Raises:
        ProviderProtocolError: this is something else.
    """
    try:
        found = loads(data)
    except ValueError as error:
        raise ProviderProtocolError("the provider sent something that is not JSON", vendor_detail=clip(data)) from error
    if isinstance(found, dict):
        return [found]
    if isinstance(found, list):
        return objects(found)
    raise ProviderProtocolError("the provider sent JSON that is not an object", vendor_detail=clip(data))


def _merge(known: JsonObject, found: JsonObject) -> None:
    """Adds the extras of one more chunk. Recitations come piece by piece; of all else the last word stands."""
    for name, value in found.items():
        before = known.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            known[name] = before | value
            if name == "citationMetadata":
                known[name] |= {key: objects(before.get(key)) + objects(value.get(key)) for key in before | value}
        else:
            known[name] = value
