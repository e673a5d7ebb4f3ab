"""Cohere's chat streams and whole answers, in small wire files of our own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from headgate import v1 as pb
from hypothesis import given, settings, strategies as st

from headgate_server.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    GatewayError,
    ProviderCredentialsRejected,
    ProviderError,
    ProviderModelMissing,
    ProviderOverloaded,
    ProviderProtocolError,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejectedRequest,
    ProviderTimeout,
)
from headgate_server.providers import cohere
from headgate_server.providers.base import Target
from headgate_server.providers.hosts import HOSTS
from headgate_server.sse import Event
from tests.fold import canonical, check_invariants, fed, fold

WIRE = Path(__file__).parent / "wire" / "cohere"
STREAMS = sorted(WIRE.glob("*.sse"))
TARGET = Target(provider="cohere", model="command-inventio", host=HOSTS["cohere"], issuer="cohere")

Json = dict[str, Any]


def streamed(body: bytes, cuts: Iterable[int] = ()) -> list[pb.StreamGenerateResponse]:
    """The events of a body fed in chunks that end at `cuts`."""
    return fed(cohere.Stream(TARGET), body, cuts)


def event(kind: str, *, index: int | None = None, **members: Any) -> Event:
    """One event of a stream; `members` are of the message in its delta."""
    return Event(kind, json.dumps({"type": kind, "index": index, "delta": {"message": members}}).encode())


def grown(index: int, **content: Any) -> Event:
    return event("content-delta", index=index, content=content)


def ended(finish_reason: str | None, **more: Any) -> Event:
    return Event(
        "message-end", json.dumps({"type": "message-end", "delta": {"finish_reason": finish_reason, **more}}).encode()
    )


START = Event("message-start", b'{"type": "message-start", "id": "msg", "delta": {"message": {"role": "assistant"}}}')
FINISH = ended("COMPLETE", usage={"tokens": {"input_tokens": 3, "output_tokens": 2}})


@pytest.mark.parametrize("file", STREAMS, ids=lambda file: file.stem)
def test_a_stream_folds_to_the_whole_answer(file: Path) -> None:
    """The stream of a wire file amounts to the answer beside it, in one piece and byte by byte."""
    body = file.read_bytes()
    unary = cohere.decode(file.with_suffix(".json").read_bytes(), TARGET)
    for cuts in ((), range(1, len(body))):
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
indices = st.integers(0, 3)
call_words = st.sampled_from(["", "{", "}", '{"a":1}'])
contents = st.builds(
    lambda kind, said: {"type": kind, kind: said}, st.sampled_from(["text", "thinking", "chart"]), words
)
citations = st.builds(
    lambda kind, more: {"type": kind, "start": 0, "end": 1, "sources": [{"type": "tool", "id": "x"}], **more},
    st.sampled_from(["PLAN", "TEXT_CONTENT"]),
    st.fixed_dictionaries({}, optional={"content_index": indices}),
)
stream_events = st.one_of(
    st.builds(lambda index, content: event("content-start", index=index, content=content), indices, contents),
    st.builds(lambda index, piece: grown(index, text=piece), indices, words),
    st.builds(lambda index, piece: grown(index, thinking=piece), indices, words),
    st.builds(lambda index: event("content-end", index=index), indices),
    st.builds(lambda piece: event("tool-plan-delta", tool_plan=piece), words),
    st.builds(
        lambda index, piece: event(
            "tool-call-start",
            index=index,
            tool_calls={"id": f"c{index}", "function": {"name": "f", "arguments": piece}},
        ),
        indices,
        call_words,
    ),
    st.builds(
        lambda index, piece: event("tool-call-delta", index=index, tool_calls={"function": {"arguments": piece}}),
        indices,
        call_words,
    ),
    st.builds(lambda index: event("tool-call-end", index=index), indices),
    st.builds(lambda citation: event("citation-start", index=0, citations=citation), citations),
    st.just(event("debug")),
)


@given(st.lists(stream_events, max_size=25), st.data())
def test_any_stream_of_events_folds_alike_however_it_is_read(found: list[Event], data: st.DataObject) -> None:
    """Events that come together or one by one make the same answer, however they interleave."""
    events = [START, *found, FINISH]
    cut = data.draw(st.integers(0, len(events)))
    answers = []
    for reads in ([events], [[one] for one in events], [events[:cut], events[cut:]]):
        stream = cohere.Stream(TARGET)
        answer = [made for read in reads for made in stream.feed(read)] + stream.end()
        check_invariants(answer)
        answers.append(canonical(fold(answer)))
    assert answers[0] == answers[1] == answers[2]


@given(st.lists(stream_events, max_size=15))
def test_any_stream_can_be_interrupted_anywhere(found: list[Event]) -> None:
    """What has been delivered is brought to an end that keeps the invariants."""
    stream = cohere.Stream(TARGET)
    events = stream.feed([START, *found])
    check_invariants(events + stream.interrupt(pb.FINISH_REASON_CANCELLED), partial=True)


names = st.sampled_from(
    [
        *("type", "id", "message", "content", "text", "thinking", "tool_plan", "tool_calls", "function", "name"),
        *("arguments", "citations", "start", "end", "sources", "content_index", "document", "tool_output", "title"),
        *("finish_reason", "usage", "tokens", "input_tokens", "output_tokens", "image_tokens", "cached_tokens"),
        *("logprobs", "token_ids", "delta", "index", "error", "error_type"),
    ]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5),
    max_leaves=15,
)
odd_content = json_values | st.builds(
    lambda kind, more: {**more, "type": kind},
    st.sampled_from(["text", "thinking", "tool_plan", "chart"]),
    st.dictionaries(names, json_values, max_size=3),
)
odd_messages = json_values | st.fixed_dictionaries(
    {},
    optional={
        "content": json_values | odd_content | st.lists(odd_content, max_size=3),
        "tool_plan": json_values,
        "tool_calls": json_values | st.lists(json_values, max_size=2),
        "citations": json_values | st.lists(st.dictionaries(names, json_values), max_size=2),
    },
)
odd_answers = json_values | st.fixed_dictionaries(
    {"message": odd_messages}, optional=dict.fromkeys(("finish_reason", "usage", "logprobs", "id"), json_values)
)
odd_events = st.builds(
    lambda kind, more: {**more, "type": kind},
    st.sampled_from(
        [
            *("message-start", "content-start", "content-delta", "content-end", "tool-plan-delta", "message-end"),
            *("tool-call-start", "tool-call-delta", "tool-call-end", "citation-start", "citation-end", "newest"),
        ]
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "index": json_values | st.integers(0, 1),
            "delta": json_values | st.fixed_dictionaries({"message": odd_messages}, optional={"usage": json_values}),
            "logprobs": json_values,
            "message": json_values,
        },
    ),
)


@settings(max_examples=300)
@given(odd_answers, st.lists(odd_events | json_values, max_size=6))
def test_no_json_makes_the_adapter_raise_anything_but_a_gateway_error(answer: object, found: list[object]) -> None:
    """Whatever shape an answer, an event, an error or an embedding has, it is read or refused."""
    body = json.dumps(answer).encode()
    assert isinstance(cohere.error(529, {"retry-after": "soon"}, body, TARGET), GatewayError)
    for decode in (lambda: cohere.decode(body, TARGET), lambda: cohere.decode_embed(body, 1, TARGET)):
        with suppress(GatewayError):
            decode()
    stream = cohere.Stream(TARGET)
    with suppress(GatewayError):
        for one in (*found, answer):
            stream.feed([Event("message", json.dumps(one).encode())])
    with suppress(GatewayError):
        stream.end()
        return
    stream.interrupt(pb.FINISH_REASON_ERROR)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_adapter_raise_anything_but_a_gateway_error(body: bytes) -> None:
    """Broken UTF-8, broken JSON and broken frames are refused."""
    assert isinstance(cohere.error(400, {}, body, TARGET), GatewayError)
    for attempt in (
        lambda: cohere.decode(body, TARGET),
        lambda: cohere.decode_embed(body, 1, TARGET),
        lambda: streamed(b"event: message-start\ndata: " + body + b"\n\n" + body),
    ):
        with suppress(GatewayError):
            attempt()


def test_nothing_is_delivered_before_the_first_content() -> None:
    """Neither message-start nor an empty block or plan opens anything; an error there can still move to another."""
    stream = cohere.Stream(TARGET)
    quiet = [
        START,
        event("content-start", index=0, content={"type": "text", "text": ""}),
        event("tool-plan-delta", tool_plan=""),
    ]
    assert stream.feed(quiet) == []
    events = stream.feed([grown(0, text="Hi")])
    assert [found.WhichOneof("event") for found in events] == ["generation_start", "part_start", "text_delta"]
    assert events[0].generation_start.provider_response_id == "msg"


def test_events_are_read_by_their_name_where_they_do_not_repeat_it() -> None:
    """The name of the event stands for a missing type; a delta may come without its beginning."""
    stream = cohere.Stream(TARGET)
    content = {"type": "text", "text": "Oh "}
    begun = Event("content-start", json.dumps({"index": 0, "delta": {"message": {"content": content}}}).encode())
    events = stream.feed([START, begun, grown(0, text="yes"), grown(1, thinking="no"), FINISH]) + stream.end()
    first, second = fold(events).candidates[0].message.parts
    assert (first.text, second.reasoning.text) == ("Oh yes", "no")


def test_the_events_of_one_read_travel_together() -> None:
    """All deltas of a part within one feed become one event."""
    events = cohere.Stream(TARGET).feed([START, *[grown(0, text="t")] * 50])
    assert [found.WhichOneof("event") for found in events] == ["generation_start", "part_start", "text_delta"]
    assert events[-1].text_delta == "t" * 50


def test_a_call_is_whole_as_soon_as_the_vendor_says_so() -> None:
    """Its end is passed on at once, and the next events do not wait for it."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    stream = cohere.Stream(TARGET)
    events = stream.feed([START, event("tool-call-start", index=0, tool_calls=call), event("tool-call-end", index=0)])
    kinds = [found.WhichOneof("event") for found in events]
    assert kinds == ["generation_start", "part_start", "arguments_delta", "part_end"]


def test_a_plan_is_thinking_that_knows_its_place() -> None:
    """The tool plan of an answer is a reasoning part before the calls, marked for its way back."""
    plan, *calls = fold(streamed((WIRE / "plan-and-calls.sse").read_bytes())).candidates[0].message.parts
    assert plan.reasoning == pb.Reasoning(text="A tide table 🌊.", kind=pb.REASONING_KIND_FULL)
    assert plan.provider_metadata == {"cohere": '{"type":"tool_plan"}'}
    assert [part.tool_call.arguments for part in calls] == ['{"port": "Trieste"}', "{}"]


def test_each_source_of_a_span_is_a_citation() -> None:
    """With what the source is called and where it is; numbered documents of the request by their number."""
    thinking, text = fold(streamed((WIRE / "thinking-and-citations.sse").read_bytes())).candidates[0].message.parts
    found = [
        (c.start_offset, c.end_offset, c.title, c.uri, c.cited_text, c.HasField("document_index"))
        for c in text.citations
    ]
    assert found == [
        (2, 5, "Tides", "", "High water at six.", True),
        (2, 5, "", "https://example.org/tides", "Six, or a little later.", False),
        (10, 16, "", "", "", False),
    ]
    assert [citation.document_index for citation in thinking.citations] == [0]


def test_usage_counts_images_as_input() -> None:
    """Cohere's input_tokens leave images out; reasoning is part of its output, and what is billed is another count."""
    usage = fold(streamed((WIRE / "thinking-and-citations.sse").read_bytes())).usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (300, 30, 330)
    assert (usage.image_input_tokens, usage.cache_read_tokens, usage.reasoning_tokens) == (260, 16, 9)


def test_log_probabilities_stand_beside_their_text() -> None:
    """One entry a token; text of several tokens together stands with the first of them."""
    (part,) = fold(streamed((WIRE / "log-probabilities.sse").read_bytes())).candidates[0].message.parts
    assert [(token.token, token.logprob) for token in part.logprobs.tokens] == [
        ("High", -0.25),
        (" water", -0.5),
        ("", -1.5),
    ]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("COMPLETE", pb.FINISH_REASON_STOP),
        ("STOP_SEQUENCE", pb.FINISH_REASON_STOP),
        ("MAX_TOKENS", pb.FINISH_REASON_MAX_TOKENS),
        ("TOOL_CALL", pb.FINISH_REASON_TOOL_CALLS),
        ("BOREDOM", pb.FINISH_REASON_OTHER),
        (None, pb.FINISH_REASON_UNSPECIFIED),
    ],
)
def test_finish_reasons_have_our_words_beside_theirs(word: str | None, reason: pb.FinishReason.ValueType) -> None:
    """A new word is OTHER, none at all is unknown; the vendor's own word is always kept."""
    finish = pb.Finish(reason=reason, provider_reason=word or "")
    body = json.dumps({"message": {"content": []}, "finish_reason": word}).encode()
    assert cohere.decode(body, TARGET).candidates[0].finish == finish
    stream = cohere.Stream(TARGET)
    events = stream.feed([START, grown(0, text="Hi"), ended(word)]) + stream.end()
    assert fold(events).candidates[0].finish == finish


@pytest.mark.parametrize(("word", "expected"), [("ERROR", ProviderError), ("TIMEOUT", ProviderTimeout)])
def test_a_generation_that_failed_is_an_error(word: str, expected: type[GatewayError]) -> None:
    """It is no outcome of the model: whole and streamed it is the vendor's failure, its usage counted."""
    with pytest.raises(expected) as raised:
        cohere.decode(json.dumps({"id": "msg", "message": {}, "finish_reason": word}).encode(), TARGET)
    assert raised.value.facts == {"provider_code": word, "provider_request_id": "msg"}
    stream = cohere.Stream(TARGET)
    events = stream.feed([START, grown(0, text="Hi")])
    with pytest.raises(expected) as raised:
        stream.feed([ended(word, error="their words", usage={"tokens": {"output_tokens": 1}})])
    assert type(raised.value) is expected
    assert raised.value.vendor_detail == "their words"
    answer = fold(events + stream.interrupt(pb.FINISH_REASON_ERROR))
    assert answer.candidates[0].message.parts[0].incomplete
    assert answer.usage.output_tokens == 1


@pytest.mark.parametrize(
    "events",
    [[], [START], [START, grown(0, text="Hi"), event("content-end", index=0)]],
    ids=["none", "start", "no end"],
)
def test_a_stream_that_is_not_whole_ends_in_an_error(events: list[Event]) -> None:
    """Nothing at all, or no message-end."""
    stream = cohere.Stream(TARGET)
    stream.feed(events)
    with pytest.raises(ProviderProtocolError):
        stream.end()


def test_an_interrupted_stream_says_what_is_whole() -> None:
    """A block or plan that the vendor had ended is complete, whatever may still have cited from it."""
    stream = cohere.Stream(TARGET)
    events = stream.feed([START, grown(0, thinking="So"), event("content-end", index=0), grown(1, text="H")])
    events += stream.interrupt(pb.FINISH_REASON_ERROR)
    check_invariants(events, partial=True)
    assert [part.incomplete for part in fold(events).candidates[0].message.parts] == [False, True]


@pytest.mark.parametrize(
    ("status", "error_type", "expected"),
    [
        (400, None, ProviderRejectedRequest),
        (400, "TOO_MANY_TOKENS", ContextLengthExceeded),
        (401, None, ProviderCredentialsRejected),
        (402, None, ProviderQuotaExhausted),
        (403, None, ProviderCredentialsRejected),
        (404, None, ProviderModelMissing),
        (404, "TOO_MANY_TOKENS", ProviderModelMissing),
        (422, None, ProviderRejectedRequest),
        (429, None, ProviderRateLimited),
        (498, None, ContentFiltered),
        (499, None, ProviderError),
        (500, None, ProviderError),
        (501, None, ProviderRejectedRequest),
        (503, None, ProviderOverloaded),
        (504, None, ProviderTimeout),
    ],
)
def test_errors_are_classified_by_status_then_by_type(
    status: int, error_type: str | None, expected: type[GatewayError]
) -> None:
    """A type refines what the status says, and never contradicts it."""
    body = json.dumps({"id": "req_1", "message": "their words", "error_type": error_type}).encode()
    found = cohere.error(status, {"retry-after": "17"}, body, TARGET)
    assert type(found) is expected
    assert found.retry_after == 17
    assert found.facts["provider_request_id"] == "req_1"
    assert (found.vendor_detail, "their words" in found.message) == ("their words", False)


def test_an_error_in_a_200_answer_is_an_error() -> None:
    """Whole, in a stream, or instead of embeddings: its message is a text."""
    body = b'{"id": "req_1", "message": "their words"}'
    for attempt in (
        lambda: cohere.decode(body, TARGET),
        lambda: cohere.decode_embed(body, 1, TARGET),
        lambda: cohere.Stream(TARGET).feed([START, Event("message", body)]),
    ):
        with pytest.raises(ProviderError) as raised:
            attempt()
        assert raised.value.vendor_detail == "their words"
