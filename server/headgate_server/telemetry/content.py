"""What was said, as spans bear it for operators who ask for that: JSON in OpenTelemetry's shape, cut to a size.

https://github.com/open-telemetry/semantic-conventions-genai
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from headgate import v1 as pb

from headgate_server.json_codec import dumps

CUT = "…"
REDACTED = "[redacted]"
PART_CHARACTERS = 32
"""What a part counts for beside its text, so that a million empty ones are cut too."""


class Transcript:
    """Messages of one prompt or answer, of which `limit` characters are kept. Bytes of media never are.

    Of what `redacted` names, roles and kinds of part, only its place is shown.
    """

    def __init__(self, limit: int, redacted: frozenset[str] = frozenset()) -> None:
        self._left = limit
        self._redacted = redacted
        self._messages: list[dict[str, Any]] = []
        self._growing: dict[tuple[int, int], dict[str, Any]] = {}
        self._candidates: dict[int, dict[str, Any]] = {}

    def add(self, messages: Iterable[pb.Message]) -> None:
        """Whole messages, in order, until the limit is reached."""
        for message in messages:
            if self._left <= 0:
                return
            said = self._message(pb.Role.Name(message.role).removeprefix("ROLE_").lower())
            for part in message.parts:
                self._open(said, part)

    def add_answer(self, answer: pb.GenerateResponse) -> None:
        """Every candidate of an answer."""
        for candidate in answer.candidates:
            said = self._message("assistant")
            for part in candidate.message.parts:
                self._open(said, part)
            said["finish_reason"] = finish_reason(candidate.finish)

    def feed(self, event: pb.StreamGenerateResponse) -> None:
        """One event of a streamed answer."""
        place = (event.candidate_index, event.part_index)
        match event.WhichOneof("event"):
            case "part_start":
                part = self._open(self._candidate(event.candidate_index), event.part_start.part)
                if part is not None:
                    self._growing[place] = part
            case "text_delta" | "reasoning_delta" | "refusal_delta" as kind:
                self._grow(place, "content", getattr(event, kind))
            case "arguments_delta":
                self._grow(place, "arguments", event.arguments_delta)
            case "candidate_end":
                said = self._candidate(event.candidate_index)
                said["finish_reason"] = finish_reason(event.candidate_end.finish)

    def json(self) -> str:
        """All of it; an empty list when nothing was said."""
        return dumps(self._messages).decode()

    def _candidate(self, index: int) -> dict[str, Any]:
        if index not in self._candidates:
            self._candidates[index] = self._message("assistant")
        return self._candidates[index]

    def _message(self, role: str) -> dict[str, Any]:
        said: dict[str, Any] = {"role": role, "parts": []}
        self._messages.append(said)
        return said

    def _open(self, said: dict[str, Any], part: pb.Part) -> dict[str, Any] | None:
        if self._left <= 0:
            return None
        self._left -= PART_CHARACTERS
        kind = part.WhichOneof("content")
        if self._redacted and not self._redacted.isdisjoint((said["role"], kind)):
            said["parts"].append({"type": kind or "unknown", "content": REDACTED})
            return None
        shown = self._part(part)
        said["parts"].append(shown)
        return shown

    def _grow(self, place: tuple[int, int], field: str, text: str) -> None:
        if (part := self._growing.get(place)) is not None and self._left > 0:
            part[field] = part.get(field, "") + self._cut(text)

    def _part(self, part: pb.Part) -> dict[str, Any]:
        match part.WhichOneof("content"):
            case "text":
                return {"type": "text", "content": self._cut(part.text)}
            case "reasoning":
                return {"type": "reasoning", "content": self._cut(part.reasoning.text)}
            case "refusal":
                return {"type": "refusal", "content": self._cut(part.refusal)}
            case "tool_call":
                call = part.tool_call
                arguments = self._cut(call.arguments)
                return {"type": "tool_call", "id": call.id, "name": call.name, "arguments": arguments}
            case "tool_result":
                text = "".join(inner.text for inner in part.tool_result.parts) or part.tool_result.structured_json
                return {"type": "tool_call_response", "id": part.tool_result.call_id, "response": self._cut(text)}
            case "media":
                return self._media(part.media)
            case other:
                return {"type": other or "unknown"}

    def _media(self, media: pb.Media) -> dict[str, Any]:
        shown = {"modality": pb.MediaKind.Name(media.kind).removeprefix("MEDIA_KIND_").lower()}
        if media.mime_type:
            shown["mime_type"] = media.mime_type
        match media.WhichOneof("source"):
            case "uri":
                return {"type": "uri", **shown, "uri": self._cut(media.uri)}
            case "file":
                return {"type": "file", **shown, "file_id": media.file.id}
            case _:
                return {"type": "blob", **shown}

    def _cut(self, text: str) -> str:
        kept = text[: max(self._left, 0)]
        self._left -= len(text)
        return kept if len(kept) == len(text) else kept + CUT


def finish_reason(finish: pb.Finish) -> str:
    """As OpenTelemetry writes it: stop, max_tokens, tool_calls, ..."""
    return pb.FinishReason.Name(finish.reason).removeprefix("FINISH_REASON_").lower()
