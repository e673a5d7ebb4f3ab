"""Every recorded answer of Cohere's chat is read: whole, in any chunking, with its usage and its errors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

import httpx
import pytest
from cohere import ClientV2
from headgate import v1 as pb

from headgate_server.errors import (
    ContextLengthExceeded,
    GatewayError,
    ProviderCredentialsRejected,
    ProviderModelMissing,
    ProviderProtocolError,
)
from headgate_server.providers import cohere
from headgate_server.sse import Decoder
from tests.fold import canonical, check_invariants, fold
from tests.recordings.cohere_events import accumulated, events as recorded_events
from tests.recordings.recorded import Recording, recordings
from tests.recordings.test_cohere_requests import readable

Json = dict[str, Any]

ERRORS_BY_STATUS: Mapping[int, type[GatewayError]] = {
    400: ContextLengthExceeded,
    401: ProviderCredentialsRejected,
    404: ProviderModelMissing,
}
FINISHES = {"COMPLETE": pb.FINISH_REASON_STOP, "TOOL_CALL": pb.FINISH_REASON_TOOL_CALLS}


def answered(*, stream: bool) -> list[Recording]:
    """The recordings of answers that are no errors."""
    return [r for r in readable() if r.status == 200 and r.is_stream == stream]


def streamed(recording: Recording, cuts: Iterable[int] = ()) -> list[pb.StreamGenerateResponse]:
    """The events of a recorded stream, fed in chunks that end at `cuts`."""
    decoder, stream = Decoder(), cohere.Stream(recording.target)
    events: list[pb.StreamGenerateResponse] = []
    start = 0
    for cut in (*cuts, len(recording.body)):
        events += stream.feed(decoder.feed(recording.body[start:cut]))
        start = cut
    events += stream.feed(decoder.end())
    assert stream.complete
    return events + stream.end()


def whole_body(recording: Recording) -> Json:
    """The recorded answer, accumulated where it was streamed."""
    body: Json = json.loads(recording.body) if not recording.is_stream else accumulated(recorded_events(recording.body))
    return body


def read(recording: Recording) -> pb.GenerateResponse:
    """The answer of a recording, whichever way it came."""
    if recording.is_stream:
        return fold(streamed(recording))
    return cohere.decode(recording.body, recording.target)


def test_every_answer_is_read() -> None:
    """Content, plan and calls are one part each, in this order, and say what they say; so do end and id."""
    for recording in (*answered(stream=False), *answered(stream=True)):
        answer, body = read(recording), whole_body(recording)
        assert answer.provider_response_id == body["id"]
        assert not answer.provider_metadata
        (candidate,) = answer.candidates
        assert candidate.finish == pb.Finish(
            reason=FINISHES[body["finish_reason"]], provider_reason=body["finish_reason"]
        )
        assert [said(part) for part in candidate.message.parts] == list(spoken(body["message"])), recording.id


def test_citations_point_at_what_they_cite() -> None:
    """Offsets are code points of the part that cites; each source is a citation of its own, with its title."""
    seen = 0
    for recording in (*answered(stream=False), *answered(stream=True)):
        recorded = whole_body(recording)["message"].get("citations", [])
        parts = read(recording).candidates[0].message.parts
        found = [(part, citation) for part in parts for citation in part.citations]
        expected = [(citation, source) for citation in recorded for source in citation["sources"]]
        for (part, citation), (theirs, source) in zip(found, expected, strict=True):
            seen += 1
            assert part.text[citation.start_offset : citation.end_offset] == theirs["text"]
            assert part.issuer == recording.vendor
            document = source.get("document") or source["tool_output"]
            assert citation.cited_text == (document.get("text") or document["content"])
            assert (citation.title, citation.uri) == (document.get("title", ""), document.get("url", ""))
            assert citation.HasField("document_index") == ("document" in source)
            kept = json.loads(citation.provider_json)
            assert (kept["source"], kept["type"]) == (source, theirs["type"])
    assert seen > 10


def test_a_stream_folds_to_the_answer_that_its_events_amount_to() -> None:
    """Fold(stream) equals the reading of the body that an independent accumulator builds from the events."""
    for recording in answered(stream=True):
        events = streamed(recording)
        check_invariants(events)
        whole = cohere.decode(json.dumps(whole_body(recording)).encode(), recording.target)
        assert canonical(fold(events)) == canonical(whole), recording.id


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
    """Without message-end the end is an error, and what was open is closed as incomplete."""
    for recording in answered(stream=True):
        stream = cohere.Stream(recording.target)
        half = recording.body[: recording.body.index(b"event: message-end") // 2]
        events = stream.feed(Decoder().feed(half))
        with pytest.raises(ProviderProtocolError):
            stream.end()
        if events:
            events += stream.interrupt(pb.FINISH_REASON_ERROR)
            check_invariants(events, partial=True)
            assert fold(events).candidates[0].finish.reason == pb.FINISH_REASON_ERROR


def test_usage_is_the_vendor_s_by_the_one_rule() -> None:
    """`tokens` count, images included; what is billed is only kept. No class is larger than its whole."""
    for recording in (*answered(stream=False), *answered(stream=True)):
        reported, usage = whole_body(recording)["usage"], read(recording).usage
        tokens = reported["tokens"]
        assert json.loads(usage.provider_json) == reported
        assert usage.input_tokens == tokens["input_tokens"] + tokens.get("image_tokens", 0)
        assert usage.output_tokens == tokens["output_tokens"]
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        for ours, theirs in (
            ("cache_read_tokens", reported.get("cached_tokens")),
            ("image_input_tokens", tokens.get("image_tokens")),
            ("reasoning_tokens", tokens.get("reasoning_tokens")),
        ):
            assert (getattr(usage, ours) if usage.HasField(ours) else None) == theirs  # type: ignore[arg-type]
        assert max(usage.cache_read_tokens, usage.image_input_tokens) <= usage.input_tokens
        assert usage.reasoning_tokens <= usage.output_tokens


def test_the_vendor_s_own_package_reads_the_same() -> None:
    """What the official client makes of the answer, whole or by its events, is what we make of it."""
    for recording in (*answered(stream=False), *answered(stream=True)):
        parts = [said(part) for part in read(recording).candidates[0].message.parts]
        assert parts == list(spoken(read_by_the_vendor(recording))), recording.id


def read_by_the_vendor(recording: Recording) -> Json:
    """The message that the official package makes of the recorded answer."""
    content_type = "text/event-stream" if recording.is_stream else "application/json"

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": content_type}, content=recording.body)

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        client = ClientV2(api_key="k", httpx_client=http)
        if not recording.is_stream:
            message: Json = client.chat(model="m", messages=[]).message.dict(exclude_none=True)
            return message
        streamed_message: Json = accumulated(
            [event.dict(exclude_none=True) for event in client.chat_stream(model="m", messages=[])]
        )["message"]
        return streamed_message


def test_errors_are_classified_as_the_table_says() -> None:
    """By status first, by error_type second; the vendor's words stay out of the public text."""
    failed = [r for api in ("cohere.chat", "cohere.embed") for r in recordings(api) if r.status != 200]
    assert len(failed) == 3
    for recording in failed:
        error = cohere.error(recording.status, recording.headers, recording.body, recording.target)
        body = json.loads(recording.body)
        assert type(error) is ERRORS_BY_STATUS[recording.status], recording.id
        assert error.facts["http_status"] == str(recording.status)
        assert error.facts["provider_request_id"] == body["id"]
        assert error.facts.get("provider_code") == body.get("error_type")
        assert error.vendor_detail == body["message"]
        assert error.vendor_detail not in error.message


def test_report_what_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the counts; every exchange is read as one of three kinds, but for those of API v1."""
    counts: Counter[str] = Counter()
    for recording in recordings("cohere.chat"):
        if recording not in readable():
            counts["of API v1, not read"] += 1
        else:
            counts["errors" if recording.status != 200 else "streams" if recording.is_stream else "answers"] += 1
    with capsys.disabled():
        print(f"\n  cohere {dict(counts)}", end="")
    assert counts["of API v1, not read"] == 3
    assert counts["answers"] == len(answered(stream=False))
    assert counts["streams"] == len(answered(stream=True))


def said(part: pb.Part) -> tuple[str, ...]:
    """What a part says, in a few words to compare."""
    match part.WhichOneof("content"):
        case "text":
            return "text", part.text
        case "reasoning":
            extras = json.loads(part.provider_metadata.get("cohere", "{}"))
            return extras.get("type", "thinking"), part.reasoning.text
        case _:
            assert not part.incomplete
            return "call", part.tool_call.id, part.tool_call.name, part.tool_call.arguments


def spoken(message: Json) -> Iterable[tuple[str, ...]]:
    """The same words of a recorded message."""
    for block in message.get("content") or []:
        yield block["type"], block[block["type"]]
    if message.get("tool_plan"):
        yield "tool_plan", message["tool_plan"]
    for call in message.get("tool_calls") or []:
        yield "call", call["id"], call["function"]["name"], call["function"]["arguments"] or "{}"
