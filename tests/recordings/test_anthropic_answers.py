"""Every recorded Messages answer is read: whole, in any chunking, with its usage and its errors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

import httpx2
import pytest
from anthropic import Anthropic, types
from headgate import v1 as pb

from headgate_server.errors import (
    ContextLengthExceeded,
    GatewayError,
    ProviderCredentialsRejected,
    ProviderModelMissing,
    ProviderProtocolError,
    ProviderRejectedRequest,
)
from headgate_server.providers import anthropic
from headgate_server.sse import Decoder
from tests.fold import canonical, check_invariants, fold
from tests.recordings.messages_events import accumulated, answers, as_written, events as recorded_events
from tests.recordings.recorded import Recording, recordings

Json = dict[str, Any]

ERRORS_BY_STATUS: Mapping[int, type[GatewayError]] = {
    400: ProviderRejectedRequest,
    401: ProviderCredentialsRejected,
    404: ProviderModelMissing,
}
ERRORS_BY_TYPE = {"llamacpp-a06621b963fc": ContextLengthExceeded}
# llama.cpp says tool_use, but a stop sequence cut the arguments: whole it answers {}, streamed what there was.
CUT_ARGUMENTS = "llamacpp-a675646aa1ee"


def answered(*, stream: bool) -> list[Recording]:
    """The recordings of answers that are no errors, a conversation in one body as its several answers."""
    found = [r for r in recordings("anthropic.messages") if r.status == 200 and r.is_stream == stream]
    if not stream:
        return found
    streams = [
        replace(recording, id=f"{recording.id}#{number}" if number else recording.id, body=body)
        for recording in found
        for number, body in enumerate(answers(recording.body))
    ]
    assert {recording.id for recording in found} <= {recording.id for recording in streams}
    return streams


def streamed(recording: Recording, cuts: Iterable[int] = ()) -> list[pb.StreamGenerateResponse]:
    """The events of a recorded stream, fed in chunks that end at `cuts`."""
    decoder, stream = Decoder(), anthropic.Stream(recording.target)
    events: list[pb.StreamGenerateResponse] = []
    start = 0
    for cut in (*cuts, len(recording.body)):
        if found := decoder.feed(recording.body[start:cut]):
            events += stream.feed(found)
        start = cut
    events += stream.feed(decoder.end())
    assert stream.complete
    return events + stream.end()


def whole_body(recording: Recording) -> Json:
    """The recorded message, accumulated where it was streamed."""
    body: Json = json.loads(recording.body) if not recording.is_stream else accumulated(recorded_events(recording.body))
    return body


def read(recording: Recording) -> pb.GenerateResponse:
    """The answer of a recording, whichever way it came."""
    if recording.is_stream:
        return fold(streamed(recording))
    return anthropic.decode(recording.body, recording.target)


def test_every_answer_is_read() -> None:
    """Each block is one part that says what it says, none invented; so are the end and the ids."""
    for recording in (*answered(stream=False), *answered(stream=True)):
        answer, body = read(recording), whole_body(recording)
        assert (answer.model, answer.provider_response_id) == (body["model"], body["id"])
        (candidate,) = answer.candidates
        assert candidate.finish.provider_reason == body["stop_reason"]
        assert candidate.finish.reason not in (pb.FINISH_REASON_OTHER, pb.FINISH_REASON_UNSPECIFIED)
        assert candidate.finish.stop_sequence == (body["stop_sequence"] or "")
        for part, block in zip(candidate.message.parts, body["content"], strict=True):
            assert_says(part, block, recording)
        extras = json.loads(answer.provider_metadata.get(recording.vendor, "{}"))
        assert extras.get("container") == body.get("container"), recording.id


def test_a_stream_folds_to_the_answer_that_its_events_amount_to() -> None:
    """Fold(stream) equals the reading of the body that an independent accumulator builds from the events."""
    for recording in answered(stream=True):
        events = streamed(recording)
        check_invariants(events)
        if recording.id == CUT_ARGUMENTS:
            (part,) = fold(events).candidates[0].message.parts
            assert (part.incomplete, part.tool_call.arguments) == (True, "{")
            continue
        stream = recorded_events(recording.body)
        body = as_written(stream, accumulated(stream))
        assert canonical(fold(events)) == canonical(anthropic.decode(body, recording.target)), recording.id


def test_a_stream_folds_alike_however_it_is_cut() -> None:
    """Byte by byte and at random cuts, the events keep the invariants and fold to the same."""
    for recording in answered(stream=True):
        whole = canonical(fold(streamed(recording)))
        size = len(recording.body)
        random = Random(recording.id)
        for cuts in (range(1, size), sorted(random.sample(range(size), min(40, size // 2)))):
            events = streamed(recording, cuts)
            check_invariants(events)
            assert canonical(fold(events)) == whole, recording.id


def test_a_stream_cut_short_is_never_taken_for_whole() -> None:
    """Without a stop reason the end is an error, and what was open is closed as incomplete."""
    for recording in answered(stream=True):
        stream = anthropic.Stream(recording.target)
        half = recording.body[: recording.body.index(b"event: message_delta") // 2]
        events = stream.feed(Decoder().feed(half))
        with pytest.raises(ProviderProtocolError):
            stream.end()
        if events:
            events += stream.interrupt(pb.FINISH_REASON_ERROR)
            check_invariants(events, partial=True)
            assert fold(events).candidates[0].finish.reason == pb.FINISH_REASON_ERROR


def test_usage_is_the_vendor_s_by_the_one_rule() -> None:
    """Input is what was sent, cache included; totals add up, and no class is larger than its whole."""
    for recording in (*answered(stream=False), *answered(stream=True)):
        reported, answer = whole_body(recording)["usage"], read(recording)
        usage = answer.usage
        assert json.loads(usage.provider_json) == without_nulls(reported, recording)
        cached = (reported.get("cache_read_input_tokens") or 0, reported.get("cache_creation_input_tokens") or 0)
        assert usage.input_tokens == reported["input_tokens"] + sum(cached)
        assert (usage.cache_read_tokens, usage.cache_write_tokens) == cached
        assert usage.HasField("cache_write_tokens") == (reported.get("cache_creation_input_tokens") is not None)
        assert usage.cache_write_1h_tokens == reported.get("cache_creation", {}).get("ephemeral_1h_input_tokens", 0)
        assert usage.output_tokens == reported["output_tokens"]
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        assert usage.reasoning_tokens == reported.get("output_tokens_details", {}).get("thinking_tokens", 0)
        assert answer.service_tier == reported.get("service_tier", "")


def test_the_vendor_s_own_package_reads_the_same() -> None:
    """Text, thinking and calls of the official package's message are those of ours."""
    for recording in (*answered(stream=False), *answered(stream=True)):
        if recording.id == CUT_ARGUMENTS:
            continue
        ours, theirs = read(recording).candidates[0], read_by_the_vendor(recording)
        assert ours.finish.provider_reason == theirs.stop_reason
        for part, block in zip(ours.message.parts, theirs.content, strict=True):
            match block:
                case types.TextBlock(type="text"):
                    assert part.text == block.text
                    assert len(part.citations) == len(block.citations or [])
                case types.ThinkingBlock(type="thinking"):
                    assert part.reasoning.text == block.thinking
                    assert part.signature.decode() == (block.signature or "")
                case types.ToolUseBlock(type="tool_use"):
                    assert (part.tool_call.id, part.tool_call.name) == (block.id, block.name)
                    assert json.loads(part.tool_call.arguments) == block.input
                case _:
                    assert part.provider_item.type == block.type or part.reasoning.kind == pb.REASONING_KIND_OPAQUE


def read_by_the_vendor(recording: Recording) -> types.Message:
    """The message that the official package makes of the recorded answer."""
    content_type = "text/event-stream" if recording.is_stream else "application/json"

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": content_type}, content=recording.body)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    messages: list[types.MessageParam] = [{"role": "user", "content": "Hi"}]
    with Anthropic(api_key="k", max_retries=0, http_client=http) as client:
        if not recording.is_stream:
            return client.messages.create(model="m", max_tokens=1, messages=messages)
        with client.messages.stream(model="m", max_tokens=1, messages=messages) as stream:
            return stream.get_final_message()


def test_errors_are_classified_as_the_table_says() -> None:
    """By status first, by type second; the vendor's words stay out of the public text."""
    for recording in recordings("anthropic.messages"):
        if recording.status == 200:
            continue
        error = anthropic.error(recording.status, recording.headers, recording.body, recording.target)
        expected = ERRORS_BY_TYPE.get(recording.id) or ERRORS_BY_STATUS[recording.status]
        assert type(error) is expected, recording.id
        assert error.facts["http_status"] == str(recording.status)
        body = json.loads(recording.body)
        assert error.facts["provider_code"] == body["error"]["type"]
        assert error.facts.get("provider_request_id") == (recording.headers.get("request-id") or body.get("request_id"))
        assert error.vendor_detail == body["error"]["message"]
        assert error.vendor_detail not in error.message


def test_report_what_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the counts by vendor; every exchange is read as one of three kinds."""
    counts: Counter[tuple[str, str]] = Counter()
    for recording in recordings("anthropic.messages"):
        kind = "errors" if recording.status != 200 else "streams" if recording.is_stream else "answers"
        counts[recording.vendor, kind] += 1
    with capsys.disabled():
        for vendor in sorted({vendor for vendor, _ in counts}):
            kinds = {kind: count for (name, kind), count in sorted(counts.items()) if name == vendor}
            print(f"\n  {vendor:12} {kinds}", end="")
    assert counts.total() == len(recordings("anthropic.messages"))


def assert_says(part: pb.Part, block: Json, recording: Recording) -> None:
    """Asserts that a part says what the recorded block says, and keeps what only its issuer can read."""
    opaque = block.get("signature") or block.get("data") or ""
    match block["type"]:
        case "text":
            assert part.text == block["text"]
            cited = block.get("citations") or []
            assert [found.cited_text for found in part.citations] == [found["cited_text"] for found in cited]
            assert [found.opaque.decode() for found in part.citations] == [
                found.get("encrypted_index", "") for found in cited
            ]
            assert part.issuer == (recording.vendor if cited else "")
        case "thinking" | "redacted_thinking":
            assert part.reasoning.text == block.get("thinking", "")
            is_opaque = block["type"] == "redacted_thinking"
            assert part.reasoning.kind == (pb.REASONING_KIND_OPAQUE if is_opaque else pb.REASONING_KIND_FULL)
            assert (part.signature.decode(), part.issuer) == (opaque, recording.vendor if opaque else "")
        case "tool_use":
            assert (part.tool_call.id, part.tool_call.name) == (block["id"], block["name"])
            assert part.incomplete or json.loads(part.tool_call.arguments) == block["input"]
            extras = json.loads(part.provider_metadata.get(recording.vendor, "{}"))
            assert extras == ({"caller": block["caller"]} if "caller" in block else {})
        case kind:
            assert (part.provider_item.type, part.issuer) == (kind, recording.vendor)
            assert json.loads(part.provider_item.json) == block


def without_nulls(reported: Json, recording: Recording) -> Json:
    """The usage as a stream gives it, whose nulls replace nothing."""
    return {k: v for k, v in reported.items() if v is not None} if recording.is_stream else reported
