"""One Messages stream: their events in, ours out. https://platform.claude.com/docs/en/build-with-claude/streaming"""

from __future__ import annotations

from collections.abc import Sequence

from headgate import v1 as pb

from headgate_server.errors import ProviderBrokeOff, ProviderProtocolError
from headgate_server.json_codec import JsonObject, is_json, loads, loads_object, text_of
from headgate_server.providers.anthropic import answer as wire, citations
from headgate_server.providers.anthropic.errors import failure
from headgate_server.providers.anthropic.usage import usage
from headgate_server.providers.assembly import Assembly, OpenPart
from headgate_server.providers.base import Target
from headgate_server.providers.reading import extras, label, mapping, metadata, text
from headgate_server.sse import Event

GROWING = ("text", "thinking", "tool_use")
EVENT_FIELDS = frozenset(("type", "delta", "usage"))
DELTA_FIELDS = frozenset(("type",))


class Stream:
    """The state of one stream. Parts open in the order in which their blocks began, however the deltas interleave."""

    def __init__(self, target: Target) -> None:
        self.complete = False
        self.usage_reports = 0
        self._issuer = target.issuer
        self._assembly = Assembly()
        self._blocks: dict[int | None, _Block] = {}
        self._waiting: list[_Block] = []
        self._usage: JsonObject = {}
        self._stopped: JsonObject = {}
        self._extras: JsonObject = {}

    def feed(self, events: Sequence[Event]) -> list[pb.StreamGenerateResponse]:
        """All events of one socket read."""
        for event in events:
            data = event.data.strip()
            if data and not self.complete:
                self._read(loads_object(data), event.type)
        return self._assembly.take()

    def end(self) -> list[pb.StreamGenerateResponse]:
        """The vendor closed.

        Raises:
            ProviderProtocolError: nothing came, or neither a stop reason nor message_stop.
        """
        if not self._assembly.candidates:
            raise ProviderProtocolError("the provider's stream ended without an answer")
        if not self.complete and not self._stopped.get("stop_reason"):
            raise ProviderBrokeOff("the provider's stream broke off")
        for block in self._blocks.values():
            block.stop()
        self._open_ready()
        self._settle()
        return self._assembly.finish()

    def interrupt(self, finish: pb.FinishReason.ValueType) -> list[pb.StreamGenerateResponse]:
        """The stream broke. A block that says nothing before its end is lost with it."""
        self._waiting = [block for block in self._waiting if block.is_ready]
        self._open_ready()
        self._settle()
        return self._assembly.interrupt(finish)

    def _read(self, event: JsonObject, kind: str) -> None:
        match event.get("type", kind):
            case "message_start":
                self._start(mapping(event.get("message")))
            case "content_block_start":
                self._begin(event)
            case "content_block_delta":
                if block := self._blocks.get(_index(event)):
                    block.grow(mapping(event.get("delta")))
                    self._open_ready()
            case "content_block_stop":
                if block := self._blocks.pop(_index(event), None):
                    block.stop()
                    self._open_ready()
            case "message_delta":
                self._end_message(event)
            case "message_stop":
                self.complete = True
            case "error":
                raise failure(event)
            case _ if event.get("error"):
                raise failure(event)

    def _start(self, message: JsonObject) -> None:
        self._assembly.candidate(0)
        self._assembly.start.model = label(message.get("model"))
        self._assembly.start.provider_response_id = label(message.get("id"))
        self._usage |= _known(message.get("usage"))
        self._extras |= extras(message, wire.ANSWER_FIELDS)

    def _begin(self, event: JsonObject) -> None:
        block = _Block(mapping(event.get("content_block")), self._assembly, self._issuer)
        if unfinished := self._blocks.get(_index(event)):
            unfinished.stop()
        self._blocks[_index(event)] = block
        self._waiting.append(block)
        self._open_ready()

    def _open_ready(self) -> None:
        while self._waiting and self._waiting[0].is_ready:
            self._waiting.pop(0).open()

    def _end_message(self, event: JsonObject) -> None:
        delta = mapping(event.get("delta"))
        self._stopped |= _known(delta)
        if reported := _known(event.get("usage")):
            self._usage |= reported
            self.usage_reports += 1  # message_start counts the input alone
        self._extras |= extras(delta, wire.STOP_FIELDS) | extras(event, EVENT_FIELDS)

    def _settle(self) -> None:
        """Everything that is only known at the end."""
        if self._stopped.get("stop_reason"):
            self._assembly.candidate(0).finish = wire.finish(self._stopped)
        end = self._assembly.end
        end.provider_metadata.update(metadata(self._extras, self._issuer))
        end.service_tier = label(self._usage.get("service_tier"))
        if self._usage:
            end.usage.CopyFrom(usage(self._usage))


class _Block:
    """One content block. Text, thinking and tool input grow; every other block becomes a part once it is whole."""

    def __init__(self, found: JsonObject, assembly: Assembly, issuer: str) -> None:
        self._found = found
        self._assembly = assembly
        self._issuer = issuer
        self._grows = found.get("type") in GROWING
        self._stopped = False
        self._opening = wire.block_part(found, issuer, "")
        self._part: OpenPart | None = None
        self._pieces: list[str] = []
        self._citations: list[pb.Citation] = []
        self._late: JsonObject = {}
        self._input = text_of(found["input"]) if found.get("input") else ""

    @property
    def is_ready(self) -> bool:
        """Its part can open: a call has its name, text and thinking their first piece, any other block its end."""
        if self._stopped or self._found.get("type") == "tool_use":
            return True
        return self._grows and (any(self._pieces) or bool(self._citations))

    def grow(self, delta: JsonObject) -> None:
        """Reads one delta. Of an unknown one the members are taken over, as the vendor's own package does."""
        match delta.get("type"):
            case "text_delta" if self._grows:
                self._pieces.append(text(delta.get("text")))
            case "thinking_delta" if self._grows:
                self._pieces.append(text(delta.get("thinking")))
            case "input_json_delta":
                self._pieces.append(text(delta.get("partial_json")))
                self._input = ""
            case "citations_delta" if self._grows:
                self._citations.append(citations.read(mapping(delta.get("citation"))))
            case _:
                self._late |= extras(delta, DELTA_FIELDS)
        self._pass_on()

    def stop(self) -> None:
        """The block has ended. Some hosts do not stream a call's input, but begin the block with all of it."""
        self._stopped = True
        if not self._grows:
            self._opening = wire.block_part(self._whole(), self._issuer, "")
        elif self._input and self._opening.HasField("tool_call"):
            self._pieces.append(self._input)
        self._pass_on()

    def open(self) -> None:
        """Opens the part, with everything that came while others were before it."""
        candidate = self._assembly.candidate(0)
        if self._grows:
            self._part = self._assembly.open(candidate, self._opening)
            self._pass_on()
        else:
            self._assembly.add(candidate, self._opening)

    def _pass_on(self) -> None:
        """Passes on what came, if the part is open; closes it after the block's end."""
        part = self._part
        if part is None:
            return
        for piece in filter(None, self._pieces):
            self._assembly.grow(part, piece)
        for citation in self._citations:
            self._assembly.cite(part, citation)
            part.closing.issuer = self._issuer
        self._pieces, self._citations = [], []
        if self._late:
            self._amend(part)
        if self._stopped:
            self._part = None
            self._assembly.close(part)

    def _amend(self, part: OpenPart) -> None:
        """What came after the block's beginning: the signature, and members that are unknown here."""
        if signature := label(self._late.get("signature")):
            part.closing.signature = signature.encode()
            part.closing.issuer = self._issuer
        known = wire.BLOCK_FIELDS[self._found["type"]]
        part.closing.provider_metadata.update(metadata(extras(self._found | self._late, known), self._issuer))

    def _whole(self) -> JsonObject:
        """The block with its streamed input and everything else that came after its beginning."""
        whole = self._found | self._late
        if streamed := "".join(self._pieces):
            whole["input"] = loads(streamed) if is_json(streamed) else {}
        return whole


def _index(event: JsonObject) -> int | None:
    index = event.get("index")
    return index if isinstance(index, int) else None


def _known(found: object) -> JsonObject:
    """The members that are not null."""
    return {name: value for name, value in mapping(found).items() if value is not None}
