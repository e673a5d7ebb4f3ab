"""One Responses stream: the vendor's events in, ours out.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from collections.abc import Sequence

from headgate import v1 as pb

from headgate_server.errors import ProviderBrokeOff, ProviderError, ProviderProtocolError
from headgate_server.json_codec import JsonObject, loads_object
from headgate_server.providers.assembly import Assembly, OpenPart
from headgate_server.providers.base import Target
from headgate_server.providers.failures import provider_error
from headgate_server.providers.openai.answer import read_logprobs
from headgate_server.providers.openai.errors import reported_error
from headgate_server.providers.openai.usage import cost
from headgate_server.providers.openai_responses import answer as wire
from headgate_server.providers.reading import count, create_time, extras, mapping, metadata, objects, text
from headgate_server.sse import Event

DONE = b"[DONE]"
ENDS = frozenset(("response.completed", "response.incomplete", "response.cancelled"))
CALLS = frozenset(("function_call", "custom_tool_call"))


class Stream:
    """The state of one stream.

    A part opens at its first sign of life and closes when its item is done. What the done item holds beyond the deltas
    (a signature, late citations, hosted calls, whatever the host did not stream) is added then, so that the stream
    amounts to what the same items read as a whole.
    """

    def __init__(self, target: Target) -> None:
        self.complete = False
        self.usage_reports = 0
        self._target = target
        self._assembly = Assembly()
        self._candidate = self._assembly.candidate(0)
        self._items: list[_Item] = []
        self._settled: list[pb.Part] = []

    def feed(self, events: Sequence[Event]) -> list[pb.StreamGenerateResponse]:
        """All events of one socket read."""
        for event in events:
            data = event.data.strip()
            if data and data != DONE:
                self._read(loads_object(data))
            if self.complete:
                break
        return self._assembly.take()

    def end(self) -> list[pb.StreamGenerateResponse]:
        """The vendor closed.

        Raises:
            ProviderProtocolError: no event said how the answer ended.
        """
        if not self.complete:
            raise ProviderBrokeOff("the provider's stream broke off")
        return self._assembly.finish()

    def interrupt(self, finish: pb.FinishReason.ValueType) -> list[pb.StreamGenerateResponse]:
        """The stream broke."""
        return self._assembly.interrupt(finish)

    def _read(self, event: JsonObject) -> None:
        match event.get("type"):
            case "response.output_text.delta":
                logprobs = read_logprobs(event["logprobs"]) if event.get("logprobs") else None
                self._grow(event, pb.Part(text=""), logprobs)
            case "response.refusal.delta":
                self._grow(event, pb.Part(refusal=""))
            case "response.reasoning_text.delta":
                self._grow(event, _thought(pb.REASONING_KIND_FULL))
            case "response.reasoning_summary_text.delta":
                self._grow(event, _thought(pb.REASONING_KIND_SUMMARY))
            case "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta":
                self._call(event)
            case "response.output_text.annotation.added":
                self._cite(event)
            case "response.output_item.added":
                self._begin(event)
            case "response.output_item.done":
                self._settle(self._item(event), mapping(event.get("item")))
            case "response.created" | "response.queued" | "response.in_progress":
                self._identify(mapping(event.get("response")))
            case str(kind) if kind in ENDS:
                self._finish(mapping(event.get("response")))
            case "response.failed":
                self._fail(mapping(event.get("response")))
            case "error" if not event.get("error"):
                self._fail({"error": {"code": event.get("code"), "message": event.get("message")}})
            case _ if event.get("error"):
                self._fail(event)
            case _:
                pass  # progress of hosted tools, partial images, snapshots of what the deltas said

    def _identify(self, response: JsonObject) -> None:
        """Fills generation_start, with what is known of it when content comes."""
        start = self._assembly.start
        start.model = text(response.get("model")) or start.model
        start.provider_response_id = text(response.get("id")) or start.provider_response_id
        if created := create_time(response.get("created_at")):
            start.create_time.CopyFrom(created)

    def _begin(self, event: JsonObject) -> None:
        """An item began, also where the host gives it the place of an earlier one."""
        found = mapping(event.get("item"))
        item = _Item(count(event.get("output_index")), text(found.get("id")))
        self._items.append(item)
        if found.get("type") == "message":
            item.provider_metadata = wire.item_metadata(found, self._target.issuer)
        elif found.get("type") in CALLS and found.get("name"):
            part = pb.Part(tool_call=wire.started_call(found))
            item.said[("whole", 0)] = self._open(item, part)

    def _grow(self, event: JsonObject, part: pb.Part, logprobs: pb.LogProbs | None = None) -> None:
        piece = text(event.get("delta"))
        if not piece and logprobs is None:
            return
        said = self._said(event, part)
        said.pieces.append(piece)
        said.has_logprobs = said.has_logprobs or logprobs is not None
        self._assembly.grow(said.part, piece, logprobs)

    def _said(self, event: JsonObject, part: pb.Part) -> _Said:
        """The part that an event is about, opened where this is the first one."""
        item = self._item(event)
        is_summary = part.reasoning.kind == pb.REASONING_KIND_SUMMARY
        place: wire.Place = (
            ("summary", count(event.get("summary_index")) or 0)
            if is_summary
            else ("content", count(event.get("content_index")) or 0)
        )
        said = item.said.get(place)
        if said is not None and said.content != part.WhichOneof("content"):
            raise ProviderProtocolError("the provider's stream contradicts itself")
        if said is None:
            if item.is_done:
                raise ProviderProtocolError("the provider's stream goes on with an item that was done")
            if not part.HasField("reasoning"):
                part.provider_metadata.update(item.provider_metadata)
            said = item.said[place] = self._open(item, part)
        return said

    def _call(self, event: JsonObject) -> None:
        """Adds to a call's arguments; those of a call without a name yet come with its done item."""
        said = self._item(event).said.get(("whole", 0))
        if said is not None:
            piece = text(event.get("delta"))
            said.pieces.append(piece)
            self._assembly.grow(said.part, piece)

    def _cite(self, event: JsonObject) -> None:
        said = self._said(event, pb.Part(text=""))
        said.citations += 1
        self._assembly.cite(said.part, wire.citation(mapping(event.get("annotation"))))

    def _open(self, item: _Item, part: pb.Part) -> _Said:
        part.item_id = item.id
        part.issuer = self._target.issuer
        return _Said(self._assembly.open(self._candidate, part), part)

    def _item(self, event: JsonObject) -> _Item:
        """The item that an event is about: by its place in the output, or by id where the host gives no place."""
        item_id = text(event.get("item_id")) or text(mapping(event.get("item")).get("id"))
        index = count(event.get("output_index"))
        item = self._known(index, item_id)
        if item is None and index is None and not item_id and self._items:
            item = self._items[-1]
        if item is None:
            item = _Item(index, item_id)
            self._items.append(item)
        return item

    def _known(self, index: int | None, item_id: str) -> _Item | None:
        for item in reversed(self._items):
            if index is not None and item.index == index:
                return item
            if item_id and item.id == item_id and (index is None or item.index is None):
                return item
        return None

    def _nameless(self, position: int) -> _Item | None:
        """The item of that position where the host gave it neither place nor id."""
        found = self._items[position : position + 1]
        return found[0] if found and found[0].index is None and not found[0].id else None

    def _settle(self, item: _Item, found: JsonObject) -> None:
        """The item is done: what has not been said of it is said, and its parts are closed."""
        if item.is_done:
            return
        item.is_done = True
        for place, part in wire.item_parts(found, self._target.issuer):
            self._settled.append(part)
            said = item.said.pop(place, None)
            if said is None:
                self._assembly.add(self._candidate, part)
            else:
                self._complete(said, part)
        for said in item.said.values():
            self._assembly.close(said.part)
        item.said.clear()

    def _complete(self, said: _Said, whole: pb.Part) -> None:
        if said.content != whole.WhichOneof("content"):
            raise ProviderProtocolError("the provider's stream contradicts itself")
        before = "".join(said.pieces)
        content = wire.content_text(whole)
        rest = content.removeprefix(before) if content.startswith(before) else ""
        logprobs = whole.logprobs if whole.HasField("logprobs") and not said.has_logprobs else None
        if rest or logprobs is not None:
            self._assembly.grow(said.part, rest, logprobs)
        for citation in whole.citations[said.citations :]:
            self._assembly.cite(said.part, citation)
        closing = said.part.closing
        closing.signature = whole.signature
        closing.issuer = whole.issuer
        closing.item_id = whole.item_id
        closing.provider_metadata.update(whole.provider_metadata)
        self._assembly.close(said.part, incomplete=whole.incomplete)

    def _finish(self, response: JsonObject) -> None:
        """The last event: items that were never done are read from the whole answer."""
        self.complete = True
        self._identify(response)
        for index, found in enumerate(objects(response.get("output"))):
            item_id = text(found.get("id"))
            item = self._known(None, item_id) or self._known(index, item_id) or self._nameless(index)
            if item is None:
                item = _Item(index, item_id)
                self._items.append(item)
            self._settle(item, found)
        for part in tuple(self._candidate.open):
            self._assembly.close(part, incomplete=response.get("status") == "incomplete")
        self._candidate.finish = wire.finish(response, self._settled)
        end = self._assembly.end
        end.service_tier = text(response.get("service_tier"))
        end.provider_metadata.update(metadata(extras(response, wire.ANSWER_FIELDS), self._target.issuer))
        self._account(response)

    def _account(self, response: JsonObject) -> None:
        if reported := mapping(response.get("usage")):
            self._assembly.end.usage.CopyFrom(wire.usage(reported))
            self.usage_reports += 1
            if price := cost(reported):
                self._assembly.end.cost.CopyFrom(price)

    def _fail(self, response: JsonObject) -> None:
        """Raises what the vendor reports; usage that came with it counts."""
        self._account(response)
        raise reported_error(response, self._target) or provider_error(ProviderError)


class _Item:
    """One output item: its parts by place, and whether its last word was said."""

    __slots__ = ("id", "index", "is_done", "provider_metadata", "said")

    def __init__(self, index: int | None, item_id: str) -> None:
        self.index = index
        self.id = item_id
        self.is_done = False
        self.provider_metadata: dict[str, str] = {}
        self.said: dict[wire.Place, _Said] = {}


class _Said:
    """What was said of one part so far."""

    __slots__ = ("citations", "content", "has_logprobs", "part", "pieces")

    def __init__(self, opened: OpenPart, part: pb.Part) -> None:
        self.part = opened
        self.content = part.WhichOneof("content")
        self.pieces: list[str] = []
        self.citations = 0
        self.has_logprobs = False


def _thought(kind: pb.ReasoningKind.ValueType) -> pb.Part:
    return pb.Part(reasoning=pb.Reasoning(kind=kind))
