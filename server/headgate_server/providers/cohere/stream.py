"""One chat stream: their events in, ours out. https://docs.cohere.com/docs/streaming"""

from __future__ import annotations

from collections.abc import Sequence

from headgate import v1 as pb

from headgate_server.errors import ProviderBrokeOff, ProviderProtocolError
from headgate_server.json_codec import JsonObject, loads_object
from headgate_server.providers.assembly import Assembly, OpenPart
from headgate_server.providers.base import Target
from headgate_server.providers.cohere import answer as wire, citations
from headgate_server.providers.cohere.errors import failure, reported_error
from headgate_server.providers.cohere.usage import usage
from headgate_server.providers.reading import count, extras, label, mapping, metadata, text
from headgate_server.sse import Event

DONE = b"[DONE]"
END_FIELDS = frozenset(("finish_reason", "usage", "error"))


class Stream:
    """The state of one stream. Content and plan stay open to its end: citations of them may follow what they cite."""

    def __init__(self, target: Target) -> None:
        self.complete = False
        self.usage_reports = 0
        self._issuer = target.issuer
        self._assembly = Assembly()
        self._blocks: dict[int, _Block] = {}
        self._plan: _Block | None = None
        self._calls: dict[int, OpenPart] = {}

    def feed(self, events: Sequence[Event]) -> list[pb.StreamGenerateResponse]:
        """All events of one socket read."""
        for event in events:
            data = event.data.strip()
            if data and data != DONE and not self.complete:
                self._read(loads_object(data), event.type)
        return self._assembly.take()

    def end(self) -> list[pb.StreamGenerateResponse]:
        """The vendor closed.

        Raises:
            ProviderProtocolError: nothing came, or no message-end.
        """
        if not self._assembly.candidates:
            raise ProviderProtocolError("the provider's stream ended without an answer")
        if not self.complete:
            raise ProviderBrokeOff("the provider's stream broke off")
        for block in self._blocks.values():
            block.stop()
        return self._assembly.finish()

    def interrupt(self, finish: pb.FinishReason.ValueType) -> list[pb.StreamGenerateResponse]:
        """The stream broke. What the vendor had ended before is whole."""
        for block in (*self._blocks.values(), *([self._plan] if self._plan else [])):
            block.close_if_whole()
        return self._assembly.interrupt(finish)

    def _read(self, event: JsonObject, kind: str) -> None:
        delta = mapping(event.get("delta"))
        message = mapping(delta.get("message"))
        match event.get("type", kind):
            case "message-start":
                self._start(event, message)
            case "content-start":
                self._begin(_index(event), mapping(message.get("content")))
            case "content-delta":
                self._grow(event, mapping(message.get("content")))
            case "content-end":
                if block := self._blocks.get(_index(event)):
                    block.stop()
            case "tool-plan-delta":
                self._grow_plan(text(message.get(wire.TOOL_PLAN)))
            case "tool-call-start":
                self._begin_call(event, mapping(message.get("tool_calls")))
            case "tool-call-delta":
                if call := self._calls.get(_index(event)):
                    self._grow_call(call, mapping(message.get("tool_calls")))
            case "tool-call-end":
                if call := self._calls.pop(_index(event), None):
                    self._assembly.close(call)
            case "citation-start":
                found = mapping(message.get("citations"))
                if block := citations.place(found, self._blocks, self._plan):
                    block.cite(found)
            case "message-end":
                self._end_message(delta)
            case _:
                if error := reported_error(event):
                    raise error

    def _start(self, event: JsonObject, message: JsonObject) -> None:
        candidate = self._assembly.candidate(0)
        candidate.provider_metadata.update(metadata(extras(message, wire.MESSAGE_FIELDS), self._issuer))
        self._assembly.start.provider_response_id = label(event.get("id"))

    def _begin(self, index: int, content: JsonObject) -> _Block:
        self._blocks[index] = block = _Block(content, self._assembly, self._issuer)
        block.grow(content, None)
        return block

    def _grow(self, event: JsonObject, content: JsonObject) -> None:
        block = self._blocks.get(_index(event))
        if block is None:
            kind = "thinking" if "thinking" in content else "text"
            block = self._begin(_index(event), {"type": kind})
        block.grow(content, _logprobs(event.get("logprobs")))

    def _grow_plan(self, piece: str) -> None:
        if piece and self._plan is None:
            self._plan = _Block({"type": wire.TOOL_PLAN}, self._assembly, self._issuer)
        if self._plan:
            self._plan.grow({wire.TOOL_PLAN: piece}, None)

    def _begin_call(self, event: JsonObject, found: JsonObject) -> None:
        if self._plan:
            self._plan.stop()
        part = wire.call_part(found, self._issuer)
        part.tool_call.arguments = ""
        self._calls[_index(event)] = call = self._assembly.open(self._assembly.candidate(0), part)
        self._grow_call(call, found)

    def _grow_call(self, call: OpenPart, found: JsonObject) -> None:
        if piece := text(mapping(found.get("function")).get("arguments")):
            self._assembly.grow(call, piece)

    def _end_message(self, delta: JsonObject) -> None:
        end = self._assembly.end
        if reported := mapping(delta.get("usage")):
            end.usage.CopyFrom(usage(reported))
            self.usage_reports += 1
        if error := failure(label(delta.get("finish_reason")), {}, label(delta.get("error"))):
            raise error
        end.provider_metadata.update(metadata(extras(delta, END_FIELDS), self._issuer))
        self._assembly.candidate(0).finish = wire.finish(delta)
        self.complete = True


class _Block:
    """One content block, or the plan. What grows opens with its first piece; an unknown block comes whole."""

    def __init__(self, found: JsonObject, assembly: Assembly, issuer: str) -> None:
        self._found = found
        self._kind = label(found.get("type"))
        self._assembly = assembly
        self._issuer = issuer
        self._part: OpenPart | None = None
        self._is_whole = False

    def grow(self, content: JsonObject, logprobs: pb.LogProbs | None) -> None:
        """Adds what one event brings."""
        if self._kind not in wire.GROWING:
            self._found |= content
        elif piece := text(content.get(self._kind)):
            self._assembly.grow(self._opened(), piece, logprobs if self._kind == "text" else None)

    def cite(self, found: JsonObject) -> None:
        """Adds a citation, once for each of its sources."""
        if self._kind not in wire.GROWING:
            return
        part = self._opened()
        part.closing.issuer = self._issuer
        for citation in citations.read(found):
            self._assembly.cite(part, citation)

    def stop(self) -> None:
        """The vendor has ended it."""
        if self._is_whole:
            return
        self._is_whole = True
        if self._kind in wire.GROWING:
            self._opened()
        else:
            self._assembly.add(self._assembly.candidate(0), wire.block_part(self._found, self._issuer))

    def close_if_whole(self) -> None:
        """Closes a part that the vendor has ended."""
        if self._is_whole and self._part:
            self._assembly.close(self._part)

    def _opened(self) -> OpenPart:
        if self._part is None:
            part = wire.block_part({**self._found, self._kind: ""}, self._issuer)
            self._part = self._assembly.open(self._assembly.candidate(0), part)
        return self._part


def _index(event: JsonObject) -> int:
    return count(event.get("index")) or 0


def _logprobs(found: object) -> pb.LogProbs | None:
    """The log probabilities beside a delta: an object, where a whole answer has an array of them."""
    return wire.log_probabilities([found]) if isinstance(found, dict) else None
