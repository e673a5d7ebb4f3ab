"""Streams of Chat Completions chunks: the peculiarities of hosts, in small wire files of our own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from headgate import v1 as pb
from hypothesis import given, settings, strategies as st

from headgate_server.errors import (
    GatewayError,
    ProviderOverloaded,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejectedRequest,
)
from headgate_server.providers import openai
from headgate_server.providers.base import Target
from headgate_server.providers.hosts import HOSTS, Host
from headgate_server.sse import Decoder, Event
from tests.fold import canonical, check_invariants, fed, fold

WIRE = Path(__file__).parent / "wire" / "openai"
STREAMS = sorted(WIRE.glob("*.sse"))

Json = dict[str, Any]


def target(host: str = "openai") -> Target:
    """A model at a known host, or at a compatible server that nobody knows."""
    row = HOSTS.get(host) or Host(host, "openai", "http://compatible.invalid/v1")
    return Target(provider=host, model="inventio-1", host=row, issuer=host)


def target_of(file: Path) -> Target:
    """The host is the first word of the file's name."""
    return target(file.name.partition("-")[0])


def streamed(body: bytes, cuts: Iterable[int], to: Target) -> list[pb.StreamGenerateResponse]:
    """The events of a body fed in chunks that end at `cuts`."""
    return fed(openai.Stream(to), body, cuts)


def event(data: Json | bytes, kind: str = "message") -> Event:
    """One event of a stream."""
    return Event(kind, data if isinstance(data, bytes) else json.dumps(data).encode())


def chunk(delta: Json, finish: str | None = None, **more: Any) -> Event:
    """One chunk with one choice."""
    return event({"id": "gen-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})


DONE = event(b"[DONE]")


@pytest.mark.parametrize("file", STREAMS, ids=lambda file: file.stem)
def test_a_stream_folds_to_the_unary_answer(file: Path) -> None:
    """The stream of a wire file amounts to the answer beside it, in one piece and byte by byte."""
    body = file.read_bytes()
    unary = openai.decode(file.with_suffix(".json").read_bytes(), target_of(file))
    cuttings: tuple[Sequence[int], ...] = ((), range(1, len(body)))
    for cuts in cuttings:
        events = streamed(body, cuts, target_of(file))
        check_invariants(events)
        assert canonical(fold(events)) == canonical(unary)


@given(st.sampled_from(STREAMS), st.data())
def test_a_stream_folds_alike_however_it_is_cut(file: Path, data: st.DataObject) -> None:
    """Any cuts, within lines, characters and tags, fold to the same."""
    body = file.read_bytes()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=30)))
    events = streamed(body, cuts, target_of(file))
    check_invariants(events)
    assert canonical(fold(events)) == canonical(fold(streamed(body, [], target_of(file))))


words = st.text(max_size=5)
pieces = st.one_of(
    st.fixed_dictionaries({"content": st.none() | words}),
    st.fixed_dictionaries({"reasoning_content": st.none() | words}),
    st.fixed_dictionaries({"refusal": st.none() | words}),
    st.fixed_dictionaries(
        {
            "tool_calls": st.lists(
                st.fixed_dictionaries(
                    {
                        "index": st.integers(0, 2),
                        "id": st.sampled_from([None, "", "a", "b"]),
                        "function": st.fixed_dictionaries(
                            {"name": st.sampled_from([None, "", "f"]), "arguments": st.none() | words}
                        ),
                    }
                ),
                max_size=2,
            )
        }
    ),
)


@given(st.lists(st.tuples(st.integers(0, 2), pieces), min_size=1, max_size=20), st.data())
def test_any_stream_of_chunks_folds_alike_however_it_is_read(
    deltas: list[tuple[int, Json]], data: st.DataObject
) -> None:
    """Chunks that come together or one by one make the same answer."""
    events = [event({"choices": [{"index": index, "delta": delta, "finish_reason": None}]}) for index, delta in deltas]
    cut = data.draw(st.integers(0, len(events)))
    answers = []
    for reads in ([events], [[one] for one in events], [events[:cut], events[cut:]]):
        stream = openai.Stream(target("compatible"))
        found = [answer for read in reads for answer in stream.feed(read)]
        found += stream.feed([DONE]) + stream.end()
        check_invariants(found)
        answers.append(canonical(fold(found)))
    assert answers[0] == answers[1] == answers[2]


VENDOR_WORDS = [
    "choices",
    "delta",
    "message",
    "content",
    "index",
    "tool_calls",
    "function",
    "arguments",
    "usage",
    "type",
    "text",
    "error",
    "logprobs",
    "token",
    "id",
    "name",
    "finish_reason",
    "created",
    "model",
    "prompt_tokens",
    "cost",
    "audio",
    "data",
    "images",
    "annotations",
    "reasoning_details",
    "x_groq",
    "embedding",
    "image_url",
    "url",
    "url_citation",
    "start_index",
    "thinking",
    "citations",
    "code",
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(VENDOR_WORDS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
odd_choice = st.fixed_dictionaries(
    {}, optional={"index": json_values, "delta": json_values, "message": json_values, "logprobs": json_values}
)
odd_answers = json_values | st.fixed_dictionaries(
    {"choices": st.lists(odd_choice, max_size=2)},
    optional={"usage": json_values, "data": json_values, "error": json_values, "created": json_values},
)


@settings(max_examples=200)
@given(odd_answers)
def test_no_json_makes_the_adapter_raise_anything_but_a_gateway_error(value: object) -> None:
    """Whatever shape an answer, a chunk, an error or a matrix has, it is read or refused."""
    body = json.dumps(value).encode()
    for host in ("openai", "perplexity", "mistral"):
        to = target(host)
        stream = openai.Stream(to)
        for attempt in (
            lambda to=to: openai.decode(body, to),
            lambda to=to: openai.decode_embed(body, 1, to),
            lambda stream=stream: stream.feed([event(body), event(body, "error")]),
            lambda stream=stream: stream.end(),
            lambda: openai.Stream(target()).interrupt(pb.FINISH_REASON_ERROR),
            lambda to=to: openai.error(500, {"retry-after": "soon", "date": "today"}, body, to),
        ):
            with suppress(GatewayError):
                attempt()


ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    "x",
    "",
    [],
    [None],
    [[]],
    [7],
    {},
    {"a": 1},
)


def paths(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every member and element within a JSON value."""
    inner: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, item in inner:
        yield (*path, key)
        yield from paths(item, (*path, key))


def with_value(found: Any, path: tuple[str | int, ...], value: object) -> Any:
    """The JSON value with another value at the path."""
    copied = json.loads(json.dumps(found))
    holder = copied
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return copied


@pytest.mark.parametrize("file", STREAMS, ids=lambda file: file.stem)
def test_any_member_may_be_anything(file: Path) -> None:
    """Each member of each answer and chunk, replaced by odd values, is read or refused by a GatewayError."""
    to = target_of(file)
    answer = json.loads(file.with_suffix(".json").read_bytes())
    chunks = [json.loads(found.data) for found in Decoder().feed(file.read_bytes()) if found.data != b"[DONE]"]
    for whole, one in ((True, answer), *((False, found) for found in chunks)):
        for path in paths(one):
            for value in ODD_VALUES:
                body = json.dumps(with_value(one, path, value)).encode()
                with suppress(GatewayError):
                    if whole:
                        openai.decode(body, to)
                    else:
                        check_invariants(with_ordinary_chunk(body, to))


def with_ordinary_chunk(body: bytes, to: Target) -> list[pb.StreamGenerateResponse]:
    """The events of a stream of one odd chunk and an ordinary one."""
    stream = openai.Stream(to)
    return stream.feed([event(body), chunk({"content": "x"}), DONE]) + stream.end()


@given(st.binary(max_size=200))
def test_no_bytes_make_the_adapter_raise_anything_but_a_gateway_error(body: bytes) -> None:
    """Broken UTF-8, broken JSON and broken frames are refused."""
    assert isinstance(openai.error(400, {}, body, target()), GatewayError)
    for attempt in (
        lambda: openai.decode(body, target()),
        lambda: openai.decode_embed(body, 1, target()),
        lambda: streamed(b"data: " + body + b"\n\n" + body, [], target()),
    ):
        with suppress(GatewayError):
            attempt()


def test_nothing_is_delivered_before_the_first_content() -> None:
    """A role chunk opens nothing; generation_start comes with the first text, and with what is known by then."""
    stream = openai.Stream(target())
    assert stream.feed([event({"id": "", "model": "", "choices": []})]) == []
    assert stream.feed([chunk({"role": "assistant", "content": ""})]) == []
    events = stream.feed([chunk({"content": "Hi"}, model="inventio-2")])
    assert [found.WhichOneof("event") for found in events] == ["generation_start", "part_start", "text_delta"]
    assert events[0].generation_start.model == "inventio-2"
    assert events[0].generation_start.provider_response_id == "gen-1"


def test_the_events_of_one_read_travel_together() -> None:
    """All deltas of a part within one feed become one event, also when parts interleave."""
    stream = openai.Stream(target())
    deltas = [{"reasoning_content": "r"}, {"content": "t"}] * 50
    events = stream.feed([chunk(delta) for delta in deltas])
    assert [found.WhichOneof("event") for found in events] == [
        "generation_start",
        "part_start",
        "reasoning_delta",
        "part_start",
        "text_delta",
    ]
    assert events[-1].text_delta == "t" * 50


def test_a_stream_without_done_is_whole_when_every_candidate_has_its_finish_reason() -> None:
    """Perplexity and others close without [DONE]."""
    stream = openai.Stream(target())
    events = stream.feed([chunk({"content": "Hi"}, "stop")]) + stream.end()
    assert not stream.complete
    assert fold(events).candidates[0].finish.reason == pb.FINISH_REASON_STOP


def test_done_without_a_finish_reason_is_whole_and_says_that_none_was_given() -> None:
    """OpenAI's audio streams end so."""
    stream = openai.Stream(target())
    events = stream.feed([chunk({"content": "Hi"}), DONE]) + stream.end()
    assert stream.complete
    assert fold(events).candidates[0].finish.reason == pb.FINISH_REASON_UNSPECIFIED


@pytest.mark.parametrize("events", [[], [DONE], [event({"choices": []}), DONE], [chunk({"content": "Hi"})]], ids=str)
def test_a_stream_that_is_not_whole_ends_in_an_error(events: Sequence[Event]) -> None:
    """Nothing at all, or a candidate without end and no [DONE]."""
    stream = openai.Stream(target())
    stream.feed(events)
    with pytest.raises(ProviderProtocolError):
        stream.end()


def test_an_interrupted_stream_closes_what_is_open() -> None:
    """Parts incomplete, candidates ended with the reason given, usage as far as known; pending text is not lost."""
    stream = openai.Stream(target())
    events = stream.feed([chunk({"content": "Hi"}, usage={"prompt_tokens": 3})])
    with pytest.raises(ProviderProtocolError):
        stream.feed([chunk({"content": " there"}), event(b"{")])
    events += stream.interrupt(pb.FINISH_REASON_CANCELLED)
    check_invariants(events, partial=True)
    answer = fold(events)
    assert answer.candidates[0].message.parts[0] == pb.Part(text="Hi there", incomplete=True)
    assert answer.candidates[0].finish.reason == pb.FINISH_REASON_CANCELLED
    assert answer.usage.input_tokens == 3


def test_usage_may_come_in_any_chunk_and_stays() -> None:
    """The last usage counts, also when a chunk without one follows, or an error."""
    stream = openai.Stream(target())
    reads = [
        chunk({"content": "Hi"}, usage={"prompt_tokens": 3, "completion_tokens": 1}),
        chunk({}, "stop", usage={"prompt_tokens": 3, "completion_tokens": 2}),
        chunk({}, x_groq={"id": "req_1"}, usage=None),
    ]
    events = [found for read in reads for found in stream.feed([read])] + stream.end()
    assert fold(events).usage.output_tokens == 2
    stream = openai.Stream(target())
    stream.feed(reads[:1])
    with pytest.raises(ProviderOverloaded):
        stream.feed([event({"error": {"code": 503}, "usage": {"prompt_tokens": 3, "completion_tokens": 9}})])
    assert stream.interrupt(pb.FINISH_REASON_ERROR)[-1].generation_end.usage.output_tokens == 9


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (event({"error": {"message": "m", "code": 503}}), ProviderOverloaded),
        (event({"error": {"message": "m", "code": "429"}}), ProviderRateLimited),
        (event({"message": "m", "type": "invalid_request_error"}, "error"), ProviderRejectedRequest),
        (event({"object": "error", "message": "m", "code": 400}), ProviderRejectedRequest),
        (event({"error": {"message": "m", "type": "overloaded_error"}}), ProviderOverloaded),
    ],
)
def test_an_error_within_a_stream_is_classified(failure: Event, expected: type[GatewayError]) -> None:
    """OpenRouter, Groq, vLLM and others report failures as events of a 200 stream."""
    stream = openai.Stream(target())
    stream.feed([chunk({"content": "Hi"})])
    with pytest.raises(expected) as raised:
        stream.feed([failure])
    assert type(raised.value) is expected
    assert raised.value.vendor_detail == "m"
