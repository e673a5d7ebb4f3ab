"""A stream's events become the answer that `Generate` would have given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from headgate import v1 as pb


def fold(events: Iterable[pb.StreamGenerateResponse]) -> pb.GenerateResponse:
    """The answer that a stream amounts to, whole or as far as it came. Unknown events are ignored."""
    answer = _Fold()
    for event in events:
        kind = event.WhichOneof("event")
        if kind is not None:
            answer.add(event, kind)
    return answer.response()


def text_of(event: pb.StreamGenerateResponse) -> str:
    """The text of the first candidate that an event adds; empty for every other event."""
    if event.candidate_index:
        return ""
    return event.text_delta or (event.part_start.part.text if event.HasField("part_start") else "")


def is_complete(events: Sequence[pb.StreamGenerateResponse]) -> bool:
    """Whether these are all events of a whole answer. Unknown events after its end are ignored."""
    last = next((event for event in reversed(events) if event.WhichOneof("event")), None)
    return last is not None and last.HasField("generation_end") and not last.generation_end.partial


class _OpenPart:
    """A part and the pieces that are appended to it; joined once, because appending to a proto copies it each time."""

    def __init__(self, part: pb.Part) -> None:
        self.part = pb.Part()
        self.part.CopyFrom(part)
        self.pieces: dict[str, list[Any]] = defaultdict(list)

    def end(self, end: pb.PartEnd) -> None:
        part = self.part
        part.signature = end.signature or part.signature
        part.issuer = end.issuer or part.issuer
        part.item_id = end.item_id or part.item_id
        part.provider_metadata.update(end.provider_metadata)
        part.incomplete = end.incomplete

    def joined(self) -> pb.Part:
        part = self.part
        for kind, pieces in self.pieces.items():
            match kind:
                case "text_delta":
                    part.text += "".join(pieces)
                case "reasoning_delta":
                    part.reasoning.text += "".join(pieces)
                case "arguments_delta":
                    part.tool_call.arguments += "".join(pieces)
                case "refusal_delta":
                    part.refusal += "".join(pieces)
                case "media_delta":
                    if data := b"".join(piece.data for piece in pieces):
                        part.media.data += data
                    part.media.transcript += "".join(piece.transcript for piece in pieces)
        self.pieces.clear()
        return part


class _Fold:
    def __init__(self) -> None:
        self._response = pb.GenerateResponse()
        self._candidates: dict[int, pb.Candidate] = {}
        self._parts: dict[tuple[int, int], _OpenPart] = {}

    def add(self, event: pb.StreamGenerateResponse, kind: str) -> None:
        match kind:
            case "generation_start":
                self._start(event.generation_start)
            case "generation_end":
                self._end(event.generation_end)
            case "candidate_end":
                candidate = self._candidate(event.candidate_index)
                if event.candidate_end.HasField("finish"):
                    candidate.finish.CopyFrom(event.candidate_end.finish)
                candidate.provider_metadata.update(event.candidate_end.provider_metadata)
            case _:
                self._content(event, kind)

    def response(self) -> pb.GenerateResponse:
        for (candidate, _), opened in sorted(self._parts.items()):
            self._candidate(candidate).message.parts.append(opened.joined())
        self._response.candidates.extend(self._candidates[index] for index in sorted(self._candidates))
        return self._response

    def _candidate(self, index: int) -> pb.Candidate:
        if index not in self._candidates:
            self._candidates[index] = pb.Candidate(index=index, message=pb.Message(role=pb.ROLE_ASSISTANT))
        return self._candidates[index]

    def _content(self, event: pb.StreamGenerateResponse, kind: str) -> None:
        key = (event.candidate_index, event.part_index)
        self._candidate(event.candidate_index)
        if kind == "part_start":
            self._parts[key] = _OpenPart(event.part_start.part)
            return
        opened = self._parts.get(key)
        if opened is None:
            opened = self._parts[key] = _OpenPart(pb.Part())
        if kind == "part_end":
            opened.end(event.part_end)
        elif kind == "citation":
            opened.part.citations.append(event.citation)
        else:
            opened.pieces[kind].append(getattr(event, kind))
        if event.HasField("logprobs"):
            opened.part.logprobs.tokens.extend(event.logprobs.tokens)

    def _start(self, start: pb.GenerationStart) -> None:
        response = self._response
        response.id = start.id
        response.model = start.model
        response.provider = start.provider
        response.provider_response_id = start.provider_response_id
        response.warnings.extend(start.warnings)
        if start.HasField("create_time"):
            response.create_time.CopyFrom(start.create_time)

    def _end(self, end: pb.GenerationEnd) -> None:
        response = self._response
        if end.HasField("usage"):
            response.usage.CopyFrom(end.usage)
        if end.HasField("cost"):
            response.cost.CopyFrom(end.cost)
        response.attempts.extend(end.attempts)
        response.warnings.extend(end.warnings)
        response.service_tier = end.service_tier
        response.system_fingerprint = end.system_fingerprint
        response.provider_metadata.update(end.provider_metadata)
