"""The fold of a stream into its unary answer, and the invariants of CONTRACT.md: an oracle apart from the server."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from headgate import v1 as pb

from headgate_server.providers.base import Stream
from headgate_server.sse import Decoder

MADE_ID = re.compile(r"call_[0-9a-f]{24}")
MADE = "made by the gateway"
CONTENT_EVENTS = {
    "text_delta",
    "reasoning_delta",
    "arguments_delta",
    "refusal_delta",
    "media_delta",
    "citation",
    "part_start",
    "part_end",
}
DELTA_OF = {
    "text_delta": "text",
    "reasoning_delta": "reasoning",
    "arguments_delta": "tool_call",
    "refusal_delta": "refusal",
    "media_delta": "media",
}


def fold(events: Sequence[pb.StreamGenerateResponse]) -> pb.GenerateResponse:
    """The unary answer that a stream amounts to."""
    answer = pb.GenerateResponse()
    candidates: dict[int, pb.Candidate] = {}

    def candidate(index: int) -> pb.Candidate:
        if index not in candidates:
            candidates[index] = pb.Candidate(index=index, message=pb.Message(role=pb.ROLE_ASSISTANT))
        return candidates[index]

    for event in events:
        kind = event.WhichOneof("event")
        if kind in CONTENT_EVENTS:
            _fold_content(event, candidate(event.candidate_index).message)
        elif kind == "generation_start":
            _fold_start(event.generation_start, answer)
        elif kind == "candidate_end":
            ended = candidate(event.candidate_index)
            ended.finish.CopyFrom(event.candidate_end.finish)
            ended.provider_metadata.update(event.candidate_end.provider_metadata)
        elif kind == "generation_end":
            _fold_end(event.generation_end, answer)
    answer.candidates.extend(candidates[index] for index in sorted(candidates))
    return answer


def fed(stream: Stream, body: bytes, cuts: Iterable[int] = ()) -> list[pb.StreamGenerateResponse]:
    """All events of a body that is fed in chunks which end at `cuts`."""
    decoder = Decoder()
    events: list[pb.StreamGenerateResponse] = []
    start = 0
    for cut in (*cuts, len(body)):
        events += stream.feed(decoder.feed(body[start:cut]))
        start = cut
    events += stream.feed(decoder.end())
    return events + stream.end()


def check_invariants(events: Sequence[pb.StreamGenerateResponse], *, partial: bool = False) -> None:
    """Asserts what CONTRACT.md promises of every stream."""
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "generation_start"
    assert kinds[-1] == "generation_end"
    assert kinds.count("generation_start") == kinds.count("generation_end") == 1
    assert events[-1].generation_end.partial == partial
    opened: dict[int, int] = defaultdict(int)
    open_parts: dict[tuple[int, int], pb.Part] = {}
    arguments: dict[tuple[int, int], str] = defaultdict(str)
    ended: set[int] = set()
    for event, kind in zip(events, kinds, strict=True):
        key = (event.candidate_index, event.part_index)
        if kind in CONTENT_EVENTS:
            assert event.candidate_index not in ended, "content after candidate_end"
        if kind == "part_start":
            assert event.part_index == opened[event.candidate_index], "part indices are not dense"
            opened[event.candidate_index] += 1
            arguments[key] = event.part_start.part.tool_call.arguments
            if not event.part_start.complete:
                open_parts[key] = event.part_start.part
            elif event.part_start.part.HasField("tool_call"):
                json.loads(arguments[key])
        elif kind == "part_end":
            part = open_parts.pop(key)
            if part.tool_call.kind == pb.TOOL_CALL_KIND_FUNCTION and not event.part_end.incomplete:
                json.loads(arguments[key])
        elif kind in DELTA_OF:
            assert open_parts[key].WhichOneof("content") == DELTA_OF[kind], "a delta of another kind of part"
            arguments[key] += event.arguments_delta
        elif kind == "citation":
            assert key in open_parts, "a citation of no open part"
        elif kind == "candidate_end":
            assert event.candidate_index not in ended, "a candidate ended twice"
            assert not [k for k in open_parts if k[0] == event.candidate_index], "parts left open"
            ended.add(event.candidate_index)
    assert set(opened) <= ended, "a candidate without end"
    assert not open_parts


def canonical(answer: pb.GenerateResponse) -> pb.GenerateResponse:
    """The answer with its JSON texts in one order and its made ids alike, to be compared."""
    canon = pb.GenerateResponse()
    canon.CopyFrom(answer)
    if canon.HasField("usage"):
        canon.usage.provider_json = ordered(canon.usage.provider_json)
    holders: list[Any] = [canon, *canon.candidates]
    for candidate in canon.candidates:
        for part in candidate.message.parts:
            holders.append(part)
            if part.HasField("tool_call") and MADE_ID.fullmatch(part.tool_call.id):
                part.tool_call.id = MADE
    for holder in holders:
        for issuer, text in holder.provider_metadata.items():
            holder.provider_metadata[issuer] = ordered(text)
    return canon


def ordered(text: str) -> str:
    """A JSON text with its keys in order."""
    return json.dumps(json.loads(text), sort_keys=True) if text else ""


def _fold_content(event: pb.StreamGenerateResponse, message: pb.Message) -> None:
    if event.HasField("part_start"):
        assert event.part_index == len(message.parts)
        message.parts.append(event.part_start.part)
        return
    part = message.parts[event.part_index]
    part.logprobs.tokens.extend(event.logprobs.tokens)
    if not part.logprobs.tokens:
        part.ClearField("logprobs")
    match event.WhichOneof("event"):
        case "text_delta":
            part.text += event.text_delta
        case "reasoning_delta":
            part.reasoning.text += event.reasoning_delta
        case "arguments_delta":
            part.tool_call.arguments += event.arguments_delta
        case "refusal_delta":
            part.refusal += event.refusal_delta
        case "media_delta":
            if event.media_delta.data:
                part.media.data += event.media_delta.data
            part.media.transcript += event.media_delta.transcript
        case "citation":
            part.citations.append(event.citation)
        case "part_end":
            end = event.part_end
            part.signature = end.signature or part.signature
            part.issuer = end.issuer or part.issuer
            part.item_id = end.item_id or part.item_id
            part.provider_metadata.update(end.provider_metadata)
            part.incomplete = end.incomplete


def _fold_start(start: pb.GenerationStart, answer: pb.GenerateResponse) -> None:
    answer.id = start.id
    answer.model = start.model
    answer.provider = start.provider
    answer.provider_response_id = start.provider_response_id
    answer.warnings.extend(start.warnings)
    if start.HasField("create_time"):
        answer.create_time.CopyFrom(start.create_time)


def _fold_end(end: pb.GenerationEnd, answer: pb.GenerateResponse) -> None:
    if end.HasField("usage"):
        answer.usage.CopyFrom(end.usage)
    if end.HasField("cost"):
        answer.cost.CopyFrom(end.cost)
    answer.attempts.extend(end.attempts)
    answer.warnings.extend(end.warnings)
    answer.service_tier = end.service_tier
    answer.system_fingerprint = end.system_fingerprint
    answer.provider_metadata.update(end.provider_metadata)
