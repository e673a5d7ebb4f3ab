"""Every recorded generateContent answer is read: whole, in any chunking, with its sources, its usage and its errors."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import pytest
from google.genai import types as google_types
from headgate import v1 as pb

from headgate_server.errors import (
    GatewayError,
    ProviderCredentialsRejected,
    ProviderModelMissing,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejectedRequest,
)
from headgate_server.providers import gemini
from headgate_server.sse import Decoder
from tests.fold import canonical, check_invariants, fold
from tests.recordings.gemini_chunks import accumulated, chunks
from tests.recordings.recorded import Recording, recordings

Json = dict[str, Any]

ERRORS_BY_STATUS: Mapping[int, type[GatewayError]] = {
    400: ProviderRejectedRequest,
    403: ProviderCredentialsRejected,
    404: ProviderModelMissing,
    429: ProviderRateLimited,
}
ERRORS_BY_REASON = {
    "gemini-37e4319e71c1": ProviderCredentialsRejected,
    "gemini-c365f901ee5f": ProviderCredentialsRejected,
}
FILTERED = {"SAFETY", "RECITATION", "MODEL_ARMOR"}
FINISH = re.compile(rb'"finishReason"|"blockReason"')
# The vendor's own package sends no such thing, and we never ask for it.
ENUMS_AS_NUMBERS = "enum-encoding%3Dint"


def body_of(recording: Recording) -> bytes:
    """The answer with its finish reason as a word, also where the client had asked for numbers."""
    if ENUMS_AS_NUMBERS not in recording.path:
        return recording.body
    return recording.body.replace(b'"finishReason": 1', b'"finishReason": "STOP"')


def answered(*, stream: bool) -> list[Recording]:
    """The recordings of answers that are no errors."""
    return [r for r in recordings("gemini.generate") if r.status == 200 and r.is_stream == stream]


def streamed(recording: Recording, cuts: Iterator[int]) -> list[pb.StreamGenerateResponse]:
    """The events of a recorded stream, fed in chunks that end at `cuts`."""
    decoder, stream = Decoder(), gemini.Stream(recording.target)
    body = body_of(recording)
    events: list[pb.StreamGenerateResponse] = []
    start = 0
    for cut in (*cuts, len(body)):
        if found := decoder.feed(body[start:cut]):
            events += stream.feed(found)
        start = cut
    return events + ended(stream, decoder)


def ended(stream: gemini.Stream, decoder: Decoder) -> list[pb.StreamGenerateResponse]:
    """The last events of a stream whose body has ended."""
    return stream.feed(decoder.end()) + stream.end()


def read(recording: Recording) -> tuple[pb.GenerateResponse, Json]:
    """The answer of a recording, whichever way it came, and the body that it amounts to."""
    if recording.is_stream:
        return fold(streamed(recording, iter(()))), accumulated(chunks(body_of(recording)))
    body = body_of(recording)
    return gemini.decode(body, recording.target), json.loads(body)


def test_every_whole_answer_is_read() -> None:
    """All of the text, thoughts, calls, signatures and vendor's items of an answer are in its parts, none invented."""
    for recording in answered(stream=False):
        answer, body = read(recording)
        assert answer.model == body.get("modelVersion", "")
        assert answer.provider_response_id == body.get("responseId", "")
        for candidate, found in zip(answer.candidates, body["candidates"], strict=True):
            assert_said(recording, candidate, found)


def test_a_stream_folds_to_the_answer_that_its_chunks_amount_to() -> None:
    """Fold(stream) equals the reading of the body that an independent accumulator builds from the chunks."""
    for recording in answered(stream=True):
        body = accumulated(chunks(body_of(recording)))
        events = streamed(recording, iter(()))
        check_invariants(events)
        whole = gemini.decode(json.dumps(body).encode(), recording.target)
        assert canonical(fold(events)) == canonical(whole), recording.id
        for candidate, found in zip(whole.candidates, body.get("candidates", ()), strict=False):
            assert_said(recording, candidate, found)


def test_a_stream_folds_alike_however_it_is_cut() -> None:
    """Byte by byte and at random cuts, the events keep the invariants and fold to the same."""
    for recording in answered(stream=True):
        whole = canonical(fold(streamed(recording, iter(()))))
        size = len(body_of(recording))
        random = Random(recording.id)
        for cuts in (range(1, size), sorted(random.sample(range(size), min(40, size // 2)))):
            events = streamed(recording, iter(cuts))
            check_invariants(events)
            assert canonical(fold(events)) == whole, recording.id


def test_a_stream_cut_short_is_never_taken_for_whole() -> None:
    """Without a finish reason the end is an error, and what was growing is closed as incomplete."""
    for recording in answered(stream=True):
        body = body_of(recording)
        finish = FINISH.search(body)
        assert finish
        stream, decoder = gemini.Stream(recording.target), Decoder()
        events = stream.feed(decoder.feed(body[: finish.start()]))
        with pytest.raises(ProviderProtocolError):
            ended(stream, decoder)
        if events:
            events += stream.interrupt(pb.FINISH_REASON_ERROR)
            check_invariants(events, partial=True)
            assert all(candidate.finish.reason == pb.FINISH_REASON_ERROR for candidate in fold(events).candidates)


def test_spans_of_sources_are_of_the_text_that_the_vendor_quotes() -> None:
    """The bytes that Google counts are code points of the part, whatever the script."""
    spans = 0
    for recording in (*answered(stream=False), *answered(stream=True)):
        answer, body = read(recording)
        for candidate, found in zip(answer.candidates, body.get("candidates", ()), strict=False):
            grounding = found.get("groundingMetadata", {})
            quoted = [
                support["segment"]["text"]
                for support in grounding.get("groundingSupports", [])
                for _ in support["groundingChunkIndices"]
            ]
            cited = [
                part.text[citation.start_offset : citation.end_offset]
                for part in candidate.message.parts
                for citation in part.citations
                if citation.HasField("start_offset")
            ]
            if grounding:
                assert cited == quoted, recording.id
                assert json.loads(candidate.provider_metadata[recording.vendor])["groundingMetadata"] == grounding
            spans += len(cited)
    assert spans > 30


def test_usage_is_the_vendor_s_by_the_one_rule() -> None:
    """Hosted tools' prompts are input, thoughts are output, and no class is larger than its whole."""
    for recording in (*answered(stream=False), *answered(stream=True)):
        answer, body = read(recording)
        reported = body.get("usageMetadata", {})
        assert answer.HasField("usage") == bool(reported)
        if not reported:
            continue
        usage = answer.usage
        assert json.loads(usage.provider_json) == reported
        assert usage.output_tokens == reported.get("candidatesTokenCount", 0) + reported.get("thoughtsTokenCount", 0)
        if "totalTokenCount" in reported:
            assert usage.total_tokens == reported["totalTokenCount"] == usage.input_tokens + usage.output_tokens
        assert usage.reasoning_tokens == reported.get("thoughtsTokenCount", 0)
        assert usage.HasField("reasoning_tokens") == ("thoughtsTokenCount" in reported)
        assert usage.cache_read_tokens == reported.get("cachedContentTokenCount", 0) <= usage.input_tokens
        assert usage.tool_input_tokens == reported.get("toolUsePromptTokenCount", 0)
        assert answer.service_tier == reported.get("serviceTier", "")


def test_every_finish_reason_has_its_word() -> None:
    """What a filter stopped or blocked is an answer all the same, and calls are told from plain ends."""
    for recording in (*answered(stream=False), *answered(stream=True)):
        answer, body = read(recording)
        (candidate,) = answer.candidates
        (found,) = body.get("candidates") or [{"finishReason": body["promptFeedback"]["blockReason"]}]
        calls = [part for part in candidate.message.parts if part.HasField("tool_call")]
        assert candidate.finish.provider_reason == found["finishReason"]
        assert candidate.finish.detail == found.get("finishMessage", "")
        if found["finishReason"] in FILTERED:
            assert candidate.finish.reason == pb.FINISH_REASON_CONTENT_FILTER
        elif found["finishReason"] == "STOP":
            assert candidate.finish.reason == (pb.FINISH_REASON_TOOL_CALLS if calls else pb.FINISH_REASON_STOP)
        else:
            expected = {"MAX_TOKENS": pb.FINISH_REASON_MAX_TOKENS, "OTHER": pb.FINISH_REASON_OTHER}
            assert candidate.finish.reason == expected[found["finishReason"]]


def test_google_s_own_package_reads_the_same_answer() -> None:
    """Text and calls are what google-genai makes of the recorded body."""
    for recording in answered(stream=False):
        if ENUMS_AS_NUMBERS in recording.path:
            continue
        answer, body = read(recording)
        body.get("usageMetadata", {}).pop("serviceTier", None)  # newer than the package
        theirs = google_types.GenerateContentResponse.model_validate(body)
        parts = answer.candidates[0].message.parts
        assert "".join(part.text for part in parts) == (_text(theirs) or "")
        calls = [
            (part.tool_call.name, json.loads(part.tool_call.arguments)) for part in parts if part.HasField("tool_call")
        ]
        assert calls == [(call.name, call.args or {}) for call in theirs.function_calls or []]


def test_errors_are_classified_as_the_table_says() -> None:
    """By status first, by Google's reason second; the vendor's words stay out of the public text."""
    for recording in recordings("gemini.generate"):
        if recording.status == 200:
            continue
        error = gemini.error(recording.status, recording.headers, recording.body, recording.target)
        expected = ERRORS_BY_REASON.get(recording.id) or ERRORS_BY_STATUS[recording.status]
        assert type(error) is expected, recording.id
        assert error.facts["http_status"] == str(recording.status)
        assert error.vendor_detail
        assert error.vendor_detail not in error.message
        assert error.retry_after == (48.0 if recording.status == 429 else None)


def test_report_what_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the counts by vendor."""
    counts: Counter[tuple[str, str]] = Counter()
    for recording in recordings("gemini.generate"):
        kind = "errors" if recording.status != 200 else "streams" if recording.is_stream else "answers"
        counts[recording.vendor, kind] += 1
    with capsys.disabled():
        for vendor in sorted({vendor for vendor, _ in counts}):
            kinds = {kind: count for (name, kind), count in sorted(counts.items()) if name == vendor}
            print(f"\n  {vendor:12} {kinds}", end="")
    assert counts.total() == len(recordings("gemini.generate"))


def assert_said(recording: Recording, candidate: pb.Candidate, found: Json) -> None:
    """Asserts that a candidate says what the recorded one says, part by part."""
    recorded = [part for part in found.get("content", {}).get("parts", []) if part != {"text": ""}]
    assert len(candidate.message.parts) == len(recorded), recording.id
    for part, theirs in zip(candidate.message.parts, recorded, strict=True):
        assert part.signature.decode() == theirs.get("thoughtSignature", "")
        assert part.issuer in ("", recording.vendor)
        if "functionCall" in theirs:
            call = theirs["functionCall"]
            assert (part.tool_call.name, json.loads(part.tool_call.arguments)) == (call["name"], call.get("args", {}))
            assert part.tool_call.id == call.get("id", part.tool_call.id) != ""
        elif theirs.get("thought"):
            assert part.reasoning.text == theirs["text"]
            assert part.reasoning.kind == pb.REASONING_KIND_SUMMARY
        elif "text" in theirs:
            assert part.text == theirs["text"]
        else:
            expected = {key: value for key, value in theirs.items() if key != "thoughtSignature"}
            assert json.loads(part.provider_item.json) == expected
            assert part.issuer == recording.vendor
    tokens = found.get("logprobsResult", {}).get("chosenCandidates", [])
    assert [t.token for p in candidate.message.parts for t in p.logprobs.tokens] == [t["token"] for t in tokens]


def _text(response: google_types.GenerateContentResponse) -> str:
    """The answer's text without thoughts; the package's own `text` warns of whatever is beside it."""
    content = (response.candidates or [google_types.Candidate()])[0].content
    parts = (content.parts if content else None) or []
    return "".join(part.text or "" for part in parts if not part.thought)
