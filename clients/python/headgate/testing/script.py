"""What a scripted server answers, as Python objects or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf import json_format
from grpc import StatusCode
from headgate import v1 as pb
from headgate.errors import CallFailed, Limit, Resource, Violation, error_for
from headgate.fold import fold

ANY_MODEL = "*"
UNKNOWN_EVENT = pb.StreamGenerateResponse.FromString(b"\xa2\x06\x05later")
"""An event of a later release: no member that this one knows."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one call, given as `text` and `tool_calls`, as a whole `response`, or as a stream's `events`.

    Each serves Generate and StreamGenerate alike. `text` in several pieces is a delta for each. An `error` ends the
    call, a stream after its content, which is then marked as partial. Seconds: `delay` before anything is sent, `pause`
    before each further event. `hang` sends no end: the call stays open until the caller leaves. For Embed `dimensions`
    is the length of the rows; each row repeats the input's own number, or else the number of its characters.
    `pushback_ms` is the trailer grpc-retry-pushback-ms of an error.
    """

    text: str | Sequence[str] = ()
    tool_calls: Sequence[pb.ToolCall] = ()
    response: pb.GenerateResponse | None = None
    events: Sequence[pb.StreamGenerateResponse] | None = None
    dimensions: int = 8
    error: CallFailed | None = None
    delay: float = 0.0
    pause: float = 0.0
    hang: bool = False
    pushback_ms: int | None = None

    def stream(self) -> list[pb.StreamGenerateResponse]:
        """The events of StreamGenerate."""
        if self.events is not None:
            return list(self.events)
        pieces = [self.text] if isinstance(self.text, str) else list(self.text)
        response = self.response or _response("".join(pieces), self.tool_calls)
        has_content = any(candidate.message.parts for candidate in response.candidates)
        if self.error and not has_content:
            return []
        return events_of(response, pieces if self.response is None else (), partial=self.error is not None)

    def unary(self) -> pb.GenerateResponse:
        """The answer of Generate."""
        return fold(self.stream())


Model: TypeAlias = Callable[[Any], Reply]
"""Answers a GenerateRequest or EmbedRequest by what is asked."""

Script: TypeAlias = Mapping[str, Sequence[Reply] | Model]
"""Replies by model, `*` for any other. Calls of a model take them in order; the last one is repeated."""


def events_of(
    response: pb.GenerateResponse, pieces: Sequence[str] = (), *, partial: bool = False
) -> list[pb.StreamGenerateResponse]:
    """A stream that folds to this response; its first text is cut into `pieces`, and `partial` breaks it off there."""
    start = pb.GenerationStart(
        id=response.id,
        model=response.model,
        provider=response.provider,
        warnings=response.warnings,
        attempt=max(1, len(response.attempts)),
        provider_response_id=response.provider_response_id,
    )
    if response.HasField("create_time"):
        start.create_time.CopyFrom(response.create_time)
    events = [pb.StreamGenerateResponse(generation_start=start)]
    for candidate in response.candidates:
        for index, part in enumerate(candidate.message.parts):
            for event in _events_of_part(part, pieces or [part.text], partial):
                event.candidate_index, event.part_index = candidate.index, index
                events.append(event)
            pieces = () if part.text else pieces
        ended = pb.CandidateEnd(provider_metadata=candidate.provider_metadata)
        if partial:
            ended.finish.reason = pb.FINISH_REASON_ERROR
        elif candidate.HasField("finish"):
            ended.finish.CopyFrom(candidate.finish)
        events.append(pb.StreamGenerateResponse(candidate_end=ended, candidate_index=candidate.index))
    end = pb.GenerationEnd(
        attempts=response.attempts,
        partial=partial,
        service_tier=response.service_tier,
        system_fingerprint=response.system_fingerprint,
        provider_metadata=response.provider_metadata,
    )
    if response.HasField("usage"):
        end.usage.CopyFrom(response.usage)
    if response.HasField("cost"):
        end.cost.CopyFrom(response.cost)
    return [*events, pb.StreamGenerateResponse(generation_end=end)]


def read_script(file: Path) -> Script:
    """A script in JSON: an object of models, each with a list of replies, whose keys are the fields of Reply.

    `response` and each of `events` are in protobuf's JSON form, an event `{"unknown": true}` is UNKNOWN_EVENT;
    `tool_calls` are `{id, name, arguments}`; `error` has `reason` or `code`, and `message`, `retry_after`,
    `violations`, `limits`, `resource`, `details` as errors in headgate.errors have them.

    Raises:
        ValueError: the file is no such script; the text says where.
    """
    script = json.loads(file.read_text("utf-8"))
    if not isinstance(script, dict):
        raise ValueError(f"{file}: must be an object of models")
    return {model: [_reply(f"{model}[{i}]", one) for i, one in enumerate(replies)] for model, replies in script.items()}


def _response(text: str, tool_calls: Sequence[pb.ToolCall]) -> pb.GenerateResponse:
    parts = [pb.Part(text=text)] if text else []
    parts += [pb.Part(tool_call=call) for call in tool_calls]
    reason = pb.FINISH_REASON_TOOL_CALLS if tool_calls else pb.FINISH_REASON_STOP
    words = len(text.split())
    return pb.GenerateResponse(
        id="scripted",
        model="scripted",
        provider="scripted",
        candidates=[
            pb.Candidate(message=pb.Message(role=pb.ROLE_ASSISTANT, parts=parts), finish=pb.Finish(reason=reason))
        ],
        usage=pb.Usage(input_tokens=1, output_tokens=words, total_tokens=1 + words),
    )


def _events_of_part(part: pb.Part, pieces: Iterable[str], partial: bool) -> list[pb.StreamGenerateResponse]:
    if not part.text:
        return [pb.StreamGenerateResponse(part_start=pb.PartStart(part=part, complete=True))]
    opened = pb.Part()
    opened.CopyFrom(part)
    opened.text = ""
    return [
        pb.StreamGenerateResponse(part_start=pb.PartStart(part=opened)),
        *(pb.StreamGenerateResponse(text_delta=piece) for piece in pieces),
        pb.StreamGenerateResponse(part_end=pb.PartEnd(incomplete=partial or part.incomplete)),
    ]


def _reply(place: str, values: Mapping[str, Any]) -> Reply:
    known = {field.name for field in fields(Reply)}
    if unknown := set(values) - known:
        raise ValueError(f"{place}: no such key: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    given = dict(values)
    try:
        if "response" in given:
            given["response"] = json_format.ParseDict(given["response"], pb.GenerateResponse())
        if "events" in given:
            given["events"] = [_event(event) for event in given["events"]]
        if "tool_calls" in given:
            given["tool_calls"] = [pb.ToolCall(**call) for call in given["tool_calls"]]
        if "error" in given:
            given["error"] = _error(**given["error"])
    except (json_format.ParseError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{place}: {error}") from error
    return Reply(**given)


def _event(values: dict[str, Any]) -> pb.StreamGenerateResponse:
    return UNKNOWN_EVENT if values.get("unknown") else json_format.ParseDict(values, pb.StreamGenerateResponse())


def _error(
    reason: str = "",
    code: str = "",
    message: str = "",
    violations: Sequence[Mapping[str, str]] = (),
    limits: Sequence[Mapping[str, str]] = (),
    resource: Mapping[str, str] | None = None,
    **others: Any,
) -> CallFailed:
    error = error_for(reason)(
        message,
        violations=[Violation(**one) for one in violations],
        limits=[Limit(**one) for one in limits],
        resource=Resource(**resource) if resource else None,
        **others,
    )
    error.reason = reason
    error.code = StatusCode[code] if code else error.code
    return error
