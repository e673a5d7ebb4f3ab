"""Answers of Gemini, streamed and whole: the vendor's peculiarities, in small wire files of our own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.genai import types as google_types
from headgate import v1 as pb
from hypothesis import given, settings, strategies as st

from headgate_server.errors import (
    GatewayError,
    ProviderCredentialsRejected,
    ProviderError,
    ProviderModelMissing,
    ProviderOverloaded,
    ProviderProtocolError,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejectedRequest,
    ProviderResourceNotFound,
    ProviderTimeout,
    Resource,
)
from headgate_server.providers import gemini, vertex
from headgate_server.providers.base import Target
from headgate_server.providers.hosts import HOSTS
from headgate_server.sse import Event
from tests.fold import canonical, check_invariants, fed, fold

WIRE = Path(__file__).parent / "wire" / "gemini"
STREAMS = sorted(WIRE.glob("*.sse"))
TARGET = Target(provider="gemini", model="gemini-9", host=HOSTS["gemini"], issuer="gemini")

Json = dict[str, Any]

MEMBERS = sorted(
    {"candidates", "content", "parts", "text", "thought", "thoughtSignature", "functionCall", "args", "partialArgs"}
    | {"jsonPath", "stringValue", "willContinue", "inlineData", "data", "mimeType", "index", "finishReason", "web"}
    | {"groundingMetadata", "groundingChunks", "groundingSupports", "groundingChunkIndices", "segment", "startIndex"}
    | {"endIndex", "citationMetadata", "citations", "uri", "usageMetadata", "promptTokenCount", "promptTokensDetails"}
    | {"modality", "tokenCount", "promptFeedback", "blockReason", "logprobsResult", "chosenCandidates", "error"}
    | {"topCandidates", "code", "status", "details", "reason", "@type", "embeddings", "embedding", "values"}
    | {"predictions", "statistics", "token_count"}
)


def streamed(body: bytes, cuts: Iterable[int]) -> list[pb.StreamGenerateResponse]:
    """The events of a body fed in chunks that end at `cuts`."""
    return fed(gemini.Stream(TARGET), body, cuts)


def event(data: object) -> Event:
    """One event of a stream."""
    return Event("message", data if isinstance(data, bytes) else json.dumps(data).encode())


def chunk(*parts: Json, finish: str = "", **more: Any) -> Event:
    """One chunk with one candidate."""
    candidate: Json = {"content": {"role": "model", "parts": list(parts)}, **more}
    return event({"candidates": [{**candidate, **({"finishReason": finish} if finish else {})}]})


def answer_in(name: str) -> pb.GenerateResponse:
    """The whole answer of a wire file."""
    return gemini.decode((WIRE / f"{name}.json").read_bytes(), TARGET)


@pytest.mark.parametrize("file", STREAMS, ids=lambda file: file.stem)
def test_a_stream_folds_to_the_unary_answer(file: Path) -> None:
    """The stream of a wire file amounts to the answer beside it, in one piece and byte by byte."""
    body = file.read_bytes()
    unary = gemini.decode(file.with_suffix(".json").read_bytes(), TARGET)
    for cuts in (range(0), range(1, len(body))):
        events = streamed(body, cuts)
        check_invariants(events)
        assert canonical(fold(events)) == canonical(unary)


@given(st.sampled_from(STREAMS), st.data())
def test_a_stream_folds_alike_however_it_is_cut(file: Path, data: st.DataObject) -> None:
    """Any cuts, within lines and characters, fold to the same."""
    body = file.read_bytes()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=30)))
    events = streamed(body, cuts)
    check_invariants(events)
    assert canonical(fold(events)) == canonical(fold(streamed(body, [])))


words = st.text(max_size=4)
signatures = st.fixed_dictionaries({}, optional={"thoughtSignature": st.sampled_from(["c2ln", "bmF0dXJl"])})
texts = st.fixed_dictionaries({"text": words}, optional={"thought": st.booleans()})
others = st.sampled_from(
    [
        {"functionCall": {"name": "f", "args": {"a": 1}}},
        {"functionCall": {"name": "g", "willContinue": True}},
        {"functionCall": {"partialArgs": [{"jsonPath": "$.a", "stringValue": "x"}], "willContinue": True}},
        {"functionCall": {}},
        {"inlineData": {"mimeType": "image/png", "data": "aW1hZ2U="}},
        {"executableCode": {"code": "1"}},
        {"text": "said", "speechMetadata": {"speaker": "a"}},
        {"thought": True},
        {"partMetadata": {"a": 1}},
        {},
    ]
)
parts = st.builds(lambda part, signature: {**part, **signature}, texts | others, signatures)


@given(st.lists(st.lists(parts, max_size=3), max_size=8), st.data())
def test_any_stream_of_chunks_folds_alike_however_it_is_read(chunks: list[list[Json]], data: st.DataObject) -> None:
    """Chunks that come together or one by one make the same answer."""
    events = [chunk(*found) for found in chunks] + [chunk(finish="STOP")]
    cut = data.draw(st.integers(0, len(events)))
    answers = []
    for reads in ([events], [[one] for one in events], [events[:cut], events[cut:]]):
        stream = gemini.Stream(TARGET)
        found = [answer for read in reads for answer in stream.feed(read)] + stream.end()
        check_invariants(found)
        answers.append(canonical(fold(found)))
    assert answers[0] == answers[1] == answers[2]


whole_parts = st.lists(
    st.builds(lambda part, signature: {**part, **signature}, texts, signatures)
    | st.just({"functionCall": {"name": "f", "args": {"a": 1}}}),
    max_size=8,
)


@given(whole_parts, st.data())
def test_the_cuts_of_the_vendor_s_chunks_say_nothing(found: list[Json], data: st.DataObject) -> None:
    """The same parts in one chunk, in several, or in a unary answer are the same answer."""
    cut = data.draw(st.integers(0, len(found)))
    unary = {"candidates": [{"content": {"parts": found}, "finishReason": "STOP"}]}
    whole = canonical(gemini.decode(json.dumps(unary).encode(), TARGET))
    for chunks in ([chunk(*found, finish="STOP")], [chunk(*found[:cut]), chunk(*found[cut:], finish="STOP")]):
        stream = gemini.Stream(TARGET)
        events = stream.feed(chunks) + stream.end()
        check_invariants(events)
        assert canonical(fold(events)) == whole


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(MEMBERS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
odd_candidates = st.fixed_dictionaries(
    {},
    optional={
        "index": json_values | st.integers(0, 2),
        "content": st.fixed_dictionaries({"parts": st.lists(parts | json_values, max_size=3)}) | json_values,
        "groundingMetadata": json_values,
        "citationMetadata": json_values,
        "logprobsResult": json_values,
        "finishReason": json_values,
    },
)
odd_answers = json_values | st.fixed_dictionaries(
    {"candidates": st.lists(odd_candidates, max_size=2)}, optional={"usageMetadata": json_values, "error": json_values}
)


def read_to_its_end(events: Sequence[Event]) -> None:
    """Reads a stream as the gateway does: what fails is interrupted."""
    stream = gemini.Stream(TARGET)
    try:
        stream.feed(events)
        stream.end()
    except GatewayError:
        stream.interrupt(pb.FINISH_REASON_ERROR)


@settings(max_examples=300)
@given(odd_answers)
def test_no_json_makes_the_adapter_raise_anything_but_a_gateway_error(value: object) -> None:
    """Whatever shape an answer, a chunk, an error or a matrix has, it is read or refused."""
    body = json.dumps(value).encode()
    for attempt in (
        lambda: gemini.decode(body, TARGET),
        lambda: gemini.decode_embed(body, 1, TARGET),
        lambda: read_to_its_end([event(body), event(body)]),
        lambda: gemini.error(429, {"retry-after": "soon"}, body, TARGET),
    ):
        with suppress(GatewayError):
            attempt()


@given(st.binary(max_size=200))
def test_no_bytes_make_the_adapter_raise_anything_but_a_gateway_error(body: bytes) -> None:
    """Broken UTF-8, broken JSON and broken frames are refused."""
    assert isinstance(gemini.error(400, {}, body, TARGET), GatewayError)
    for attempt in (
        lambda: gemini.decode(body, TARGET),
        lambda: gemini.decode_embed(body, 1, TARGET),
        lambda: streamed(b"data: " + body + b"\n\n" + body, []),
        lambda: streamed(b"[" + body, []),
    ):
        with suppress(GatewayError):
            attempt()


@pytest.mark.parametrize("file", STREAMS, ids=lambda file: file.stem)
def test_what_our_wire_files_answer_is_what_the_vendor_s_package_reads(file: Path) -> None:
    """google-genai, which forbids members that it does not know, accepts whole answers and chunks."""
    text = file.read_text()
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]
    chunks = [json.loads(line) for line in lines] or json.loads(text)
    for body in (*chunks, json.loads(file.with_suffix(".json").read_text())):
        body.get("usageMetadata", {}).pop("serviceTier", None)  # newer than the package
        google_types.GenerateContentResponse.model_validate(body)


def test_sources_stand_on_the_code_points_of_their_part() -> None:
    """Google counts bytes; a span that is nowhere has no offsets, and a source without span belongs to the answer."""
    (candidate,) = answer_in("sources").candidates
    text = candidate.message.parts[2]
    cited = [
        (text.text[c.start_offset : c.end_offset] if c.HasField("start_offset") else None, c.title or c.uri)
        for c in text.citations
    ]
    assert cited == [
        ("Grün blüht", "One"),
        ("木は緑。", "One"),
        ("木は緑。", "Two"),
        (None, "Two"),
        (None, "Three"),
        ("Grün", "https://poem.example"),
        (None, "https://poem.example"),
    ]
    assert text.citations[2].cited_text == "Es blüht."
    assert json.loads(text.citations[0].provider_json) == {"domain": "one.example"}
    extras = json.loads(candidate.provider_metadata["gemini"])
    assert extras.keys() == {"citationMetadata", "groundingMetadata", "safetyRatings", "urlContextMetadata"}


def test_signed_parts_stand_alone_and_keep_their_place() -> None:
    """Text before and after a signed part is another part, and an empty part that only signs is one too."""
    (candidate,) = answer_in("thoughts-and-signatures").candidates
    assert [(part.text or part.reasoning.text, part.signature) for part in candidate.message.parts] == [
        ("Weighing both.", b""),
        ("Zwölf ", b"c2lnbmVkIHRleHQ="),
        ("Bäume 🌳🌳", b""),
        ("", b"c2lnbmVkIGVuZA=="),
    ]


def test_what_stands_beside_a_part_goes_back_with_it() -> None:
    """Unknown members of a text, and the thought flag of a draft; the text itself stays text."""
    found = {"parts": [{"text": "said", "speechMetadata": {"speaker": "a"}}]}
    answer = gemini.decode(json.dumps({"candidates": [{"content": found}]}).encode(), TARGET)
    draft, *_ = answer_in("generated-media").candidates[0].message.parts
    for part, sent in (
        (answer.candidates[0].message.parts[0], found["parts"][0]),
        (draft, {"inlineData": {"mimeType": "image/png", "data": "ZHJhZnQ="}, "thought": True}),
    ):
        request = pb.GenerateRequest(messages=[pb.Message(role=pb.ROLE_ASSISTANT, parts=[part])])
        body = json.loads(gemini.encode(request, TARGET, stream=False).body)
        assert body["contents"][0]["parts"] == [sent]


def test_calls_without_ids_get_ids_and_the_vendor_s_are_kept() -> None:
    """So that every result can name its call."""
    (candidate,) = answer_in("parallel-calls").candidates
    calls = [part.tool_call for part in candidate.message.parts if part.HasField("tool_call")]
    assert len({call.id for call in calls}) == 3
    assert calls[2].id == "vendor-7"
    assert [call.arguments for call in calls] == ['{"port":"Brest","days":2}', '{"port":"Kiel"}', "{}"]
    assert candidate.finish.reason == pb.FINISH_REASON_TOOL_CALLS


def test_usage_counts_hosted_tools_as_input_and_thoughts_as_output() -> None:
    """By the one rule, which the vendor's own sums do not keep."""
    usage = answer_in("sources").usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (17, 39, 56)
    assert (usage.tool_input_tokens, usage.reasoning_tokens, usage.cache_read_tokens) == (5, 30, 4)
    assert usage.audio_input_tokens == 3
    assert not usage.HasField("image_input_tokens")


def test_a_blocked_prompt_is_an_answer_without_content() -> None:
    """An outcome of the model, not an error; streamed, it commits at its end."""
    (candidate,) = answer_in("blocked-prompt").candidates
    assert not candidate.message.parts
    assert candidate.finish == pb.Finish(
        reason=pb.FINISH_REASON_CONTENT_FILTER, provider_reason="PROHIBITED_CONTENT", detail="Not this."
    )


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("STOP", pb.FINISH_REASON_STOP),
        ("MAX_TOKENS", pb.FINISH_REASON_MAX_TOKENS),
        ("SAFETY", pb.FINISH_REASON_CONTENT_FILTER),
        ("RECITATION", pb.FINISH_REASON_CONTENT_FILTER),
        ("BLOCKLIST", pb.FINISH_REASON_CONTENT_FILTER),
        ("PROHIBITED_CONTENT", pb.FINISH_REASON_CONTENT_FILTER),
        ("SPII", pb.FINISH_REASON_CONTENT_FILTER),
        ("MODEL_ARMOR", pb.FINISH_REASON_CONTENT_FILTER),
        ("IMAGE_SAFETY", pb.FINISH_REASON_CONTENT_FILTER),
        ("MALFORMED_FUNCTION_CALL", pb.FINISH_REASON_ERROR),
        ("LANGUAGE", pb.FINISH_REASON_OTHER),
        ("SOMETHING_NEW", pb.FINISH_REASON_OTHER),
    ],
)
def test_finish_reasons_have_our_word_and_keep_the_vendor_s(word: str, reason: pb.FinishReason.ValueType) -> None:
    """Also where the candidate has no content at all."""
    stream = gemini.Stream(TARGET)
    stream.feed([event({"candidates": [{"finishReason": word}]})])
    (candidate,) = fold(stream.end()).candidates
    assert (candidate.finish.reason, candidate.finish.provider_reason) == (reason, word)


def test_nothing_is_delivered_before_the_first_content() -> None:
    """An empty text is no content; generation_start comes with the first, and with what is known by then."""
    stream = gemini.Stream(TARGET)
    assert stream.feed([chunk({"text": ""})]) == []
    first = {"candidates": [{"content": {"parts": [{"text": "Hi"}]}}], "modelVersion": "gemini-9", "responseId": "r"}
    events = stream.feed([event(first)])
    assert [found.WhichOneof("event") for found in events] == ["generation_start", "part_start", "text_delta"]
    assert events[0].generation_start.model == "gemini-9"
    assert events[0].generation_start.provider_response_id == "r"


@pytest.mark.parametrize(
    "events",
    [[], [event({"usageMetadata": {}})], [chunk({"text": "Hi"})], [event(b"7")], [event(b"{")]],
    ids=["nothing", "no-candidate", "no-end", "a-number", "no-json"],
)
def test_a_stream_that_is_not_whole_ends_in_an_error(events: Sequence[Event]) -> None:
    """The vendor sends no terminator: only the finish reason of every candidate tells."""
    stream = gemini.Stream(TARGET)
    with pytest.raises(ProviderProtocolError):
        [stream.feed(events), stream.end()]


def test_an_interrupted_stream_tells_whole_parts_from_the_one_that_was_cut() -> None:
    """A signed part may go back as it is; what grew is incomplete, and so is a call whose arguments were coming."""
    stream = gemini.Stream(TARGET)
    events = stream.feed(
        [
            chunk({"text": "Done.", "thoughtSignature": "c2ln"}),
            chunk({"text": "More"}),
            chunk({"functionCall": {"name": "f", "willContinue": True}}),
        ]
    )
    events += stream.interrupt(pb.FINISH_REASON_CANCELLED)
    check_invariants(events, partial=True)
    (candidate,) = fold(events).candidates
    assert [part.incomplete for part in candidate.message.parts] == [False, False, True]
    assert candidate.finish.reason == pb.FINISH_REASON_CANCELLED
    cut = gemini.Stream(TARGET)
    events = cut.feed([chunk({"text": "Ha"})]) + cut.interrupt(pb.FINISH_REASON_ERROR)
    assert fold(events).candidates[0].message.parts[0] == pb.Part(text="Ha", incomplete=True)


@pytest.mark.parametrize("path", ["", "$", "a", "$.", "$.a[7]", "$.a[0]b", "$[0]", "$.s.t"])
def test_arguments_at_an_impossible_path_are_refused(path: str) -> None:
    """Nothing is guessed, and no index makes an array of any length."""
    stream = gemini.Stream(TARGET)
    call: Json = {"name": "f", "args": {"a": [], "s": "text"}, "willContinue": True}
    piece: Json = {"partialArgs": [{"jsonPath": path, "stringValue": "x"}], "willContinue": True}
    with pytest.raises(ProviderProtocolError):
        stream.feed([chunk({"functionCall": call}), chunk({"functionCall": piece})])


def detail(kind: str, **members: Any) -> Json:
    """One of Google's error details."""
    return {"@type": f"type.googleapis.com/google.rpc.{kind}", **members}


@pytest.mark.parametrize(
    ("status", "word", "details", "expected"),
    [
        (400, "INVALID_ARGUMENT", [], ProviderRejectedRequest),
        (400, "INVALID_ARGUMENT", [detail("ErrorInfo", reason="API_KEY_INVALID")], ProviderCredentialsRejected),
        (400, "FAILED_PRECONDITION", [], ProviderQuotaExhausted),
        (401, "UNAUTHENTICATED", [detail("ErrorInfo", reason="ACCESS_TOKEN_EXPIRED")], ProviderCredentialsRejected),
        (403, "PERMISSION_DENIED", [], ProviderCredentialsRejected),
        (403, "PERMISSION_DENIED", [detail("ErrorInfo", reason="BILLING_DISABLED")], ProviderQuotaExhausted),
        (404, "NOT_FOUND", [], ProviderModelMissing),
        (404, "NOT_FOUND", [detail("ResourceInfo", resourceType="File", resourceName="f")], ProviderResourceNotFound),
        (429, "RESOURCE_EXHAUSTED", [], ProviderRateLimited),
        (
            429,
            "RESOURCE_EXHAUSTED",
            [detail("QuotaFailure", violations=[{"quotaId": "XPerMinute"}])],
            ProviderRateLimited,
        ),
        (
            429,
            "RESOURCE_EXHAUSTED",
            [detail("QuotaFailure", violations=[{"quotaId": "XPerDay"}])],
            ProviderQuotaExhausted,
        ),
        (499, "CANCELLED", [], ProviderError),
        (500, "INTERNAL", [], ProviderError),
        (503, "UNAVAILABLE", [], ProviderOverloaded),
        (504, "DEADLINE_EXCEEDED", [], ProviderTimeout),
    ],
)
@pytest.mark.parametrize("as_array", [False, True])
def test_errors_are_classified_by_status_and_google_s_details(
    status: int, word: str, details: list[Json], expected: type[GatewayError], *, as_array: bool
) -> None:
    """Also when they come in an array, as from a stream that was asked for without events, or within a 200."""
    report = {"error": {"code": status, "message": "secret words", "status": word, "details": details}}
    error = gemini.error(status, {}, json.dumps([report] if as_array else report).encode(), TARGET)
    assert type(error) is expected
    assert error.vendor_detail == "secret words"
    assert "secret" not in error.message
    assert (error.resource == Resource("File", "f")) == (expected is ProviderResourceNotFound)
    with pytest.raises(expected) as raised:
        gemini.Stream(TARGET).feed([event([report] if as_array else report)])
    assert type(raised.value) is expected


@pytest.mark.parametrize(
    ("delay", "headers", "expected"),
    [
        ("48s", {}, 48.0),
        ("0.5s", {}, 0.5),
        ("soon", {}, None),
        ("9" * 400 + "s", {}, None),
        (None, {"retry-after": "7"}, 7.0),
        (9, {}, None),
    ],
)
def test_the_delay_that_google_asks_for_is_told(delay: object, headers: dict[str, str], expected: float | None) -> None:
    """RetryInfo first, the header where there is none."""
    report = {"error": {"code": 429, "details": [detail("RetryInfo", retryDelay=delay)]}}
    assert gemini.error(429, headers, json.dumps(report).encode(), TARGET).retry_after == expected


def test_vertex_reads_what_gemini_reads() -> None:
    """One wire, one reader."""
    assert (vertex.decode, vertex.Stream, vertex.error) == (gemini.decode, gemini.Stream, gemini.error)
