"""Messages streams and whole messages, in small wire files of our own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from headgate import v1 as pb
from hypothesis import given, settings, strategies as st

from headgate_server.errors import (
    ContextLengthExceeded,
    GatewayError,
    OpaqueStateRejected,
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
)
from headgate_server.providers import anthropic
from headgate_server.providers.base import Target
from headgate_server.providers.hosts import HOSTS
from headgate_server.sse import Event
from tests.fold import canonical, check_invariants, fed, fold

WIRE = Path(__file__).parent / "wire" / "anthropic"
STREAMS = sorted(WIRE.glob("*.sse"))
TARGET = Target(provider="anthropic", model="claude-inventio-1", host=HOSTS["anthropic"], issuer="anthropic")

Json = dict[str, Any]


def streamed(body: bytes, cuts: Iterable[int] = ()) -> list[pb.StreamGenerateResponse]:
    """The events of a body fed in chunks that end at `cuts`."""
    return fed(anthropic.Stream(TARGET), body, cuts)


def event(kind: str, **members: Any) -> Event:
    """One event of a stream."""
    return Event(kind, json.dumps({"type": kind, **members}).encode())


def begun(index: int, kind: str, **members: Any) -> Event:
    return event("content_block_start", index=index, content_block={"type": kind, **members})


def grown(index: int, kind: str, **members: Any) -> Event:
    return event("content_block_delta", index=index, delta={"type": kind, **members})


def ended(index: int) -> Event:
    return event("content_block_stop", index=index)


START = event("message_start", message={"id": "msg_1", "model": "claude-inventio-2", "usage": {"input_tokens": 3}})
FINISH = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2})
STOP = event("message_stop")


@pytest.mark.parametrize("file", STREAMS, ids=lambda file: file.stem)
def test_a_stream_folds_to_the_whole_message(file: Path) -> None:
    """The stream of a wire file amounts to the message beside it, in one piece and byte by byte."""
    body = file.read_bytes()
    unary = anthropic.decode(file.with_suffix(".json").read_bytes(), TARGET)
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
    assert canonical(fold(events)) == canonical(fold(streamed(body)))


words = st.text(max_size=5)
block_events = st.one_of(
    st.builds(
        begun,
        st.integers(0, 3),
        st.sampled_from(["text", "thinking", "tool_use", "server_tool_use", "redacted_thinking"]),
        id=words,
        name=words,
        input=st.sampled_from([{}, {"a": 1}]),
        data=words,
    ),
    st.builds(grown, st.integers(0, 3), st.just("text_delta"), text=words),
    st.builds(grown, st.integers(0, 3), st.just("thinking_delta"), thinking=words),
    st.builds(grown, st.integers(0, 3), st.just("signature_delta"), signature=words),
    st.builds(
        grown, st.integers(0, 3), st.just("input_json_delta"), partial_json=st.sampled_from(["", "{", "}", '"a":1'])
    ),
    st.builds(grown, st.integers(0, 3), st.just("citations_delta"), citation=st.just({"cited_text": "t"})),
    st.builds(ended, st.integers(0, 3)),
    st.just(event("ping")),
)


@given(st.lists(block_events, max_size=25), st.data())
def test_any_stream_of_events_folds_alike_however_it_is_read(found: list[Event], data: st.DataObject) -> None:
    """Events that come together or one by one make the same answer, however their blocks interleave."""
    events = [START, *found, FINISH, STOP]
    cut = data.draw(st.integers(0, len(events)))
    answers = []
    for reads in ([events], [[one] for one in events], [events[:cut], events[cut:]]):
        stream = anthropic.Stream(TARGET)
        answer = [made for read in reads for made in stream.feed(read)] + stream.end()
        check_invariants(answer)
        answers.append(canonical(fold(answer)))
    assert answers[0] == answers[1] == answers[2]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "text",
                    "thinking",
                    "signature",
                    "data",
                    "input",
                    "id",
                    "name",
                    "citations",
                    "cited_text",
                    "title",
                    "url",
                    "encrypted_index",
                    "document_index",
                    "stop_reason",
                    "stop_details",
                    "container",
                    "message",
                    "input_tokens",
                    "cache_creation",
                    "cache_read_input_tokens",
                    "output_tokens_details",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)
kinds = st.sampled_from(["text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "error"])
odd_blocks = json_values | st.builds(
    lambda kind, more: {**more, "type": kind},
    kinds,
    st.dictionaries(
        st.sampled_from(["text", "thinking", "signature", "data", "input", "id", "name", "citations"]), json_values
    ),
)
odd_messages = json_values | st.fixed_dictionaries(
    {"content": json_values | st.lists(odd_blocks, max_size=3)},
    optional={"usage": json_values, "stop_reason": json_values, "error": json_values, "stop_details": json_values},
)
event_kinds = st.sampled_from(
    ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "error"]
)
delta_kinds = st.sampled_from(["text_delta", "input_json_delta", "signature_delta", "citations_delta", "odd_delta"])
odd_events = st.builds(
    lambda kind, more: {**more, "type": kind},
    event_kinds,
    st.fixed_dictionaries(
        {},
        optional={
            "index": json_values | st.integers(0, 1),
            "message": odd_messages,
            "content_block": odd_blocks,
            "delta": json_values
            | st.builds(
                lambda kind, more: {**more, "type": kind},
                delta_kinds,
                st.dictionaries(
                    st.sampled_from(["text", "partial_json", "signature", "citation", "input"]), json_values
                ),
            ),
            "usage": json_values,
            "error": json_values,
        },
    ),
)


@settings(max_examples=300)
@given(odd_messages, st.lists(odd_events | json_values, max_size=6))
def test_no_json_makes_the_adapter_raise_anything_but_a_gateway_error(message: object, found: list[object]) -> None:
    """Whatever shape a message, an event or an error has, it is read or refused."""
    body = json.dumps(message).encode()
    assert isinstance(anthropic.error(529, {"retry-after": "soon"}, body, TARGET), GatewayError)
    with suppress(GatewayError):
        anthropic.decode(body, TARGET)
    stream = anthropic.Stream(TARGET)
    events: list[pb.StreamGenerateResponse] = []
    with suppress(GatewayError):
        for one in (*found, message):
            events += stream.feed([Event("message", json.dumps(one).encode())])
    check_invariants([*events, *stream.interrupt(pb.FINISH_REASON_ERROR)], partial=True)
    with suppress(GatewayError):
        streamed(b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in found))


@given(st.binary(max_size=200))
def test_no_bytes_make_the_adapter_raise_anything_but_a_gateway_error(body: bytes) -> None:
    """Broken UTF-8, broken JSON and broken frames are refused."""
    assert isinstance(anthropic.error(400, {}, body, TARGET), GatewayError)
    for attempt in (
        lambda: anthropic.decode(body, TARGET),
        lambda: streamed(b"event: message_start\ndata: " + body + b"\n\n" + body),
    ):
        with suppress(GatewayError):
            attempt()


def test_nothing_is_delivered_before_the_first_content() -> None:
    """Neither message_start, a ping nor an empty block opens anything; an error there can still move to another."""
    stream = anthropic.Stream(TARGET)
    assert stream.feed([START, event("ping"), begun(0, "text", text="")]) == []
    events = stream.feed([grown(0, "text_delta", text="Hi")])
    assert [found.WhichOneof("event") for found in events] == ["generation_start", "part_start", "text_delta"]
    assert events[0].generation_start.model == "claude-inventio-2"
    assert events[0].generation_start.provider_response_id == "msg_1"


def test_the_events_of_one_read_travel_together() -> None:
    """All deltas of a part within one feed become one event."""
    stream = anthropic.Stream(TARGET)
    events = stream.feed([START, begun(0, "text", text=""), *[grown(0, "text_delta", text="t")] * 50])
    assert [found.WhichOneof("event") for found in events] == ["generation_start", "part_start", "text_delta"]
    assert events[-1].text_delta == "t" * 50


def test_usage_counts_what_was_cached_as_input() -> None:
    """Anthropic's input_tokens leave out cache reads and writes; the hour's writes are a class of the writes."""
    usage = fold(streamed((WIRE / "thinking-and-calls.sse").read_bytes())).usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (137, 61, 198)
    assert (usage.cache_read_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens) == (100, 30, 20)
    assert usage.reasoning_tokens == 12


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("end_turn", pb.FINISH_REASON_STOP),
        ("stop_sequence", pb.FINISH_REASON_STOP),
        ("max_tokens", pb.FINISH_REASON_MAX_TOKENS),
        ("tool_use", pb.FINISH_REASON_TOOL_CALLS),
        ("pause_turn", pb.FINISH_REASON_PAUSE),
        ("refusal", pb.FINISH_REASON_REFUSAL),
        ("model_context_window_exceeded", pb.FINISH_REASON_CONTEXT_LENGTH),
        ("boredom", pb.FINISH_REASON_OTHER),
        (None, pb.FINISH_REASON_UNSPECIFIED),
    ],
)
def test_stop_reasons_have_our_words_beside_theirs(word: str | None, reason: pb.FinishReason.ValueType) -> None:
    """A new word is OTHER, none at all is unknown; the vendor's own word is always kept."""
    body = json.dumps({"content": [], "stop_reason": word, "stop_sequence": "END"}).encode()
    finish = anthropic.decode(body, TARGET).candidates[0].finish
    assert finish == pb.Finish(reason=reason, provider_reason=word or "", stop_sequence="END")


def test_a_refusal_says_why() -> None:
    """What the vendor adds for people is the finish's detail."""
    finish = fold(streamed((WIRE / "refusal.sse").read_bytes())).candidates[0].finish
    assert finish.reason == pb.FINISH_REASON_REFUSAL
    assert finish.detail == "The request asks for an exploit."


def test_arguments_are_those_the_model_wrote() -> None:
    """Byte for byte, also of a whole message: spacing, number forms and the order of keys."""
    written = '{"b": 1.50, "a" :[1e3, 12345678901234567890123]}'
    body = '{"content":[{"type":"text","text":"x"},{"type":"tool_use","id":"t","name":"f","input": ' + written + "}]}"
    call = anthropic.decode(body.encode(), TARGET).candidates[0].message.parts[1].tool_call
    assert call.arguments == written


@pytest.mark.parametrize(
    "events",
    [[], [event("ping")], [START], [START, begun(0, "text", text=""), grown(0, "text_delta", text="Hi"), ended(0)]],
    ids=["nothing", "ping", "start", "no end"],
)
def test_a_stream_that_is_not_whole_ends_in_an_error(events: Sequence[Event]) -> None:
    """Nothing at all, or neither a stop reason nor message_stop."""
    stream = anthropic.Stream(TARGET)
    stream.feed(events)
    with pytest.raises(ProviderProtocolError):
        stream.end()


def test_an_interrupted_stream_closes_what_is_open() -> None:
    """Parts incomplete, usage as far as known; what waited for an unfinished block is not lost."""
    stream = anthropic.Stream(TARGET)
    events = stream.feed(
        [
            START,
            begun(0, "server_tool_use", id="s", name="n", input={}),
            begun(1, "text", text=""),
            grown(1, "text_delta", text="Hi"),
            begun(2, "text", text=""),
        ]
    )
    assert events == []
    events = stream.interrupt(pb.FINISH_REASON_CANCELLED)
    check_invariants(events, partial=True)
    answer = fold(events)
    assert list(answer.candidates[0].message.parts) == [pb.Part(text="Hi", incomplete=True)]
    assert answer.candidates[0].finish.reason == pb.FINISH_REASON_CANCELLED
    assert answer.usage.input_tokens == 3


def test_what_waits_for_an_earlier_block_comes_with_its_end() -> None:
    """At once, all of it, in the order in which the blocks began."""
    stream = anthropic.Stream(TARGET)
    waiting = [begun(1, "text", text=""), grown(1, "text_delta", text="Hi"), begun(2, "tool_use", id="t", name="f")]
    assert stream.feed([START, begun(0, "server_tool_use", id="s", name="n", input={}), *waiting]) == []
    events = stream.feed([ended(0)])
    opened = [found.part_start.part.WhichOneof("content") for found in events if found.HasField("part_start")]
    assert opened == ["provider_item", "text", "tool_call"]


def test_input_that_streams_replaces_the_input_that_the_block_began_with() -> None:
    """It is the same, said again."""
    began = begun(0, "tool_use", id="t", name="f", input={"a": 1})
    stream = anthropic.Stream(TARGET)
    events = stream.feed([START, began, grown(0, "input_json_delta", partial_json='{"a": 1}'), ended(0), FINISH, STOP])
    assert fold(events + stream.end()).candidates[0].message.parts[0].tool_call.arguments == '{"a": 1}'


def test_a_call_whose_input_is_no_object_has_no_arguments() -> None:
    """Null and other values are read as an empty object, as in a stream."""
    inputs: list[object] = [None, "x", []]
    body = {"content": [{"type": "tool_use", "id": "t", "name": "f", "input": value} for value in inputs]}
    parts = anthropic.decode(json.dumps(body).encode(), TARGET).candidates[0].message.parts
    assert [part.tool_call.arguments for part in parts] == ["{}"] * 3


def test_a_subset_is_never_larger_than_its_whole() -> None:
    """The vendor estimates thinking tokens."""
    usage = {"input_tokens": 1, "output_tokens": 5, "output_tokens_details": {"thinking_tokens": 7}}
    body = json.dumps({"content": [], "usage": usage}).encode()
    assert anthropic.decode(body, TARGET).usage.reasoning_tokens == 5


def test_a_block_that_begins_where_another_never_ended_loses_nothing() -> None:
    """The other one has ended then; what waited behind it comes."""
    stream = anthropic.Stream(TARGET)
    events = stream.feed(
        [
            START,
            begun(0, "server_tool_use", id="s", name="n", input={}),
            begun(0, "text", text=""),
            grown(0, "text_delta", text="Hi"),
        ]
    )
    events += stream.feed([FINISH, STOP]) + stream.end()
    parts = fold(events).candidates[0].message.parts
    assert [part.WhichOneof("content") for part in parts] == ["provider_item", "text"]


def test_a_broken_block_is_refused_when_it_begins() -> None:
    """So that an interrupted stream can always be closed, whatever waits."""
    stream = anthropic.Stream(TARGET)
    stream.feed([START, begun(0, "server_tool_use", id="s", name="n", input={})])
    with pytest.raises(ProviderProtocolError):
        stream.feed([begun(1, "text", text=7)])
    events = [
        begun(1, "thinking"),
        grown(1, "thinking_delta", thinking="Hm"),
        grown(1, "signature_delta", signature=[]),
    ]
    assert stream.feed(events) == []
    check_invariants(stream.interrupt(pb.FINISH_REASON_ERROR), partial=True)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", ProviderOverloaded),
        ("rate_limit_error", ProviderRateLimited),
        ("api_error", ProviderError),
        ("timeout_error", ProviderTimeout),
        ("billing_error", ProviderQuotaExhausted),
        ("authentication_error", ProviderCredentialsRejected),
        ("permission_error", ProviderCredentialsRejected),
        ("not_found_error", ProviderModelMissing),
        ("request_too_large", ProviderRejectedRequest),
        ("invalid_request_error", ProviderRejectedRequest),
        ("brand_new_error", ProviderError),
    ],
)
def test_an_error_within_a_stream_is_classified_like_an_http_error(kind: str, expected: type[GatewayError]) -> None:
    """By its type, which is all there is; the vendor's words are for the log."""
    stream = anthropic.Stream(TARGET)
    stream.feed([START])
    with pytest.raises(expected) as raised:
        stream.feed([event("error", error={"type": kind, "message": "their words"}, request_id="req_1")])
    assert type(raised.value) is expected
    assert raised.value.vendor_detail == "their words"
    assert raised.value.facts == {"provider_code": kind, "provider_request_id": "req_1"}


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, {"type": "invalid_request_error"}, ProviderRejectedRequest),
        (400, {"type": "exceed_context_size_error", "code": 400}, ContextLengthExceeded),
        (400, {"type": "x", "details": {"error_code": "compaction_signature_invalid"}}, OpaqueStateRejected),
        (401, {"type": "authentication_error"}, ProviderCredentialsRejected),
        (402, {"type": "billing_error"}, ProviderQuotaExhausted),
        (403, {"type": "permission_error"}, ProviderCredentialsRejected),
        (404, {"type": "not_found_error"}, ProviderModelMissing),
        (404, {"type": "not_found_error", "details": {"error_code": "file_expired"}}, ProviderResourceNotFound),
        (413, {"type": "request_too_large"}, ProviderRejectedRequest),
        (429, {"type": "rate_limit_error"}, ProviderRateLimited),
        (429, {"type": "x", "details": {"error_code": "enforced_spend_limit_reached"}}, ProviderQuotaExhausted),
        (500, {"type": "api_error"}, ProviderError),
        (500, {"type": "overloaded_error"}, ProviderOverloaded),
        (504, {"type": "timeout_error"}, ProviderTimeout),
        (529, {"type": "overloaded_error"}, ProviderOverloaded),
        (529, {"type": "invalid_request_error"}, ProviderOverloaded),
    ],
)
def test_errors_are_classified_by_status_then_by_type(status: int, error: Json, expected: type[GatewayError]) -> None:
    """A type or code refines what the status says, and never contradicts it."""
    body = json.dumps({"type": "error", "error": {"message": "their words", **error}}).encode()
    found = anthropic.error(status, {"request-id": "req_2", "retry-after": "17"}, body, TARGET)
    assert type(found) is expected
    assert found.retry_after == 17
    assert found.facts["provider_request_id"] == "req_2"
    assert "their words" not in found.message


def test_an_error_in_a_200_answer_is_an_error() -> None:
    """Proxies answer so."""
    body = json.dumps({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}).encode()
    with pytest.raises(ProviderOverloaded):
        anthropic.decode(body, TARGET)
