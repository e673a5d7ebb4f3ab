"""Answers and streams of the Responses wire: its peculiarities, in small wire files of our own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from headgate import v1 as pb
from hypothesis import given, strategies as st

from headgate_server.errors import (
    ContentFiltered,
    GatewayError,
    OpaqueStateRejected,
    ProviderError,
    ProviderModelMissing,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejectedRequest,
    ProviderResourceNotFound,
)
from headgate_server.providers import openai_responses
from headgate_server.providers.base import Target
from headgate_server.providers.hosts import HOSTS
from headgate_server.sse import Event
from tests.fold import canonical, check_invariants, fed, fold

WIRE = Path(__file__).parent / "wire" / "openai-responses"
STREAMS = sorted(WIRE.glob("*.sse"))

Json = dict[str, Any]


def target(host: str = "openai") -> Target:
    """A model at a known host."""
    return Target(provider=host, model="inventio-2", host=HOSTS[host], issuer=host)


def target_of(file: Path) -> Target:
    """The host is the first word of the file's name."""
    return target(file.name.partition("-")[0])


def streamed(body: bytes, cuts: Iterable[int], to: Target) -> list[pb.StreamGenerateResponse]:
    """The events of a body fed in chunks that end at `cuts`."""
    return fed(openai_responses.Stream(to), body, cuts)


def decoded(name: str) -> pb.GenerateResponse:
    """The answer of a wire file."""
    file = WIRE / f"{name}.json"
    return openai_responses.decode(file.read_bytes(), target_of(file))


def event(kind: str, **members: Any) -> Event:
    """One event of a stream."""
    return Event(kind, json.dumps({"type": kind, **members}).encode())


def delta(piece: str, place: int = 0, kind: str = "output_text") -> Event:
    """A piece of text."""
    return event(f"response.{kind}.delta", item_id=f"i{place}", output_index=place, content_index=0, delta=piece)


def last(kind: str = "completed", **members: Any) -> Event:
    """The event that ends a stream."""
    return event(f"response.{kind}", response={"status": kind, **members})


@pytest.mark.parametrize("file", STREAMS, ids=lambda file: file.stem)
def test_a_stream_folds_to_the_unary_answer(file: Path) -> None:
    """The stream of a wire file amounts to the answer beside it, in one piece and byte by byte."""
    body = file.read_bytes()
    unary = openai_responses.decode(file.with_suffix(".json").read_bytes(), target_of(file))
    for cuts in (range(0), range(1, len(body))):
        events = streamed(body, cuts, target_of(file))
        check_invariants(events)
        assert canonical(fold(events)) == canonical(unary)


@given(st.sampled_from(STREAMS), st.data())
def test_a_stream_folds_alike_however_it_is_cut(file: Path, data: st.DataObject) -> None:
    """Any cuts, within lines and characters, fold to the same."""
    body = file.read_bytes()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=30)))
    events = streamed(body, cuts, target_of(file))
    check_invariants(events)
    assert canonical(fold(events)) == canonical(fold(streamed(body, [], target_of(file))))


def test_summaries_of_one_reasoning_item_share_its_id_and_the_last_bears_the_signature() -> None:
    """The signature is the item's last encrypted content, not the one with which it began."""
    first, second, call, command = decoded("openai-reasoning-and-calls").candidates[0].message.parts
    assert first.item_id == second.item_id == "rs_1"
    assert (first.signature, second.signature) == (b"", b"c2VhbGVk==")
    assert first.reasoning.kind == pb.REASONING_KIND_SUMMARY
    assert (call.tool_call.kind, command.tool_call.kind) == (pb.TOOL_CALL_KIND_FUNCTION, pb.TOOL_CALL_KIND_FREE_TEXT)
    assert {part.issuer for part in (first, second, call, command)} == {"openai"}


def test_annotations_are_citations_in_code_points() -> None:
    """An address with its span; a file with what the contract has no field for as JSON."""
    text, refusal = decoded("openai-refusal-and-citations").candidates[0].message.parts
    page, file = text.citations
    assert text.text[page.start_offset : page.end_offset] == "東京 [1]"
    assert (page.uri, page.title, page.provider_json) == ("https://wetter.example/tokyo", "Wetter", "")
    assert (file.title, json.loads(file.provider_json)["file_id"]) == ("klima.pdf", "file-1")
    assert refusal.item_id == text.item_id
    assert json.loads(refusal.provider_metadata["openai"]) == {"phase": "final_answer"}


def test_hosted_tools_are_verbatim_and_images_are_media() -> None:
    """Whatever the vendor's tools leave behind; a generated image is one that every client understands."""
    search, image, unknown, _ = decoded("openai-hosted-tools").candidates[0].message.parts
    assert json.loads(search.provider_item.json)["action"] == {"type": "search", "query": "Föhn"}
    assert unknown.provider_item.type == "novelty_call"
    assert (image.media.mime_type, image.media.data) == ("image/webp", b"\x89PNG\r\n\x1a\n")
    assert json.loads(image.provider_metadata["openai"])["revised_prompt"] == "A warm wind"


@pytest.mark.parametrize(
    ("answer", "reason", "word"),
    [
        ({"status": "completed"}, pb.FINISH_REASON_STOP, "completed"),
        ({"status": "cancelled"}, pb.FINISH_REASON_CANCELLED, "cancelled"),
        ({"status": "queued"}, pb.FINISH_REASON_OTHER, "queued"),
        ({}, pb.FINISH_REASON_UNSPECIFIED, ""),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
            pb.FINISH_REASON_CONTENT_FILTER,
            "content_filter",
        ),
        ({"status": "incomplete", "incomplete_details": None}, pb.FINISH_REASON_OTHER, "incomplete"),
        ({"status": "completed", "output": [{"type": "computer_call"}]}, pb.FINISH_REASON_TOOL_CALLS, "completed"),
        (
            {"status": "completed", "output": [{"type": "tool_search_call", "execution": "client"}]},
            pb.FINISH_REASON_TOOL_CALLS,
            "completed",
        ),
        (
            {"status": "completed", "output": [{"type": "tool_search_call", "execution": "server"}]},
            pb.FINISH_REASON_STOP,
            "completed",
        ),
    ],
)
def test_the_finish_reason_says_why_the_answer_ended(answer: Json, reason: int, word: str) -> None:
    """The status, why it is incomplete, and whether a call waits for the caller."""
    body = json.dumps({"output": [], **answer}).encode()
    finish = openai_responses.decode(body, target()).candidates[0].finish
    assert (finish.reason, finish.provider_reason) == (reason, word)


def test_a_broken_off_part_is_incomplete() -> None:
    """The last part of an incomplete item, and arguments that are no JSON."""
    (part,) = decoded("openai-incomplete").candidates[0].message.parts
    assert part.incomplete
    call = {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": '{"a'}
    answer = openai_responses.decode(json.dumps({"output": [call]}).encode(), target())
    assert answer.candidates[0].message.parts[0].incomplete


def test_the_settings_that_the_vendor_says_back_are_not_metadata() -> None:
    """The caller knows them; what the vendor adds is kept."""
    assert "openai" not in decoded("openai-reasoning-and-calls").provider_metadata
    metadata = decoded("openai-refusal-and-citations").provider_metadata["openai"]
    assert json.loads(metadata) == {"moderation": {"flagged": False}}


def test_an_item_of_the_same_place_as_an_earlier_one_is_another_item() -> None:
    """Some hosts number all items 0."""
    stream = openai_responses.Stream(target())
    items = [
        {"type": "message", "id": name, "content": [{"type": "output_text", "text": name}]} for name in ("one", "two")
    ]
    events = []
    for item in items:
        events += stream.feed(
            [
                event("response.output_item.added", output_index=0, item={**item, "content": []}),
                event("response.output_text.delta", item_id=item["id"], output_index=0, delta=item["id"]),
                event("response.output_item.done", output_index=0, item=item),
            ]
        )
    events += stream.feed([last(output=items)]) + stream.end()
    check_invariants(events)
    assert [part.text for part in fold(events).candidates[0].message.parts] == ["one", "two"]


def test_events_that_name_no_item_are_of_the_last_one() -> None:
    """A host that gives neither ids nor places."""
    stream = openai_responses.Stream(target())
    item = {"type": "message", "content": [{"type": "output_text", "text": "Hi there"}]}
    events = stream.feed(
        [
            event("response.output_item.added", item={"type": "message"}),
            event("response.output_text.delta", delta="Hi"),
            event("response.output_text.delta", delta=" there"),
            event("response.output_item.done", item=item),
            last(output=[item]),
        ]
    )
    assert [part.text for part in fold(events + stream.end()).candidates[0].message.parts] == ["Hi there"]


def test_text_after_its_item_was_done_is_a_protocol_error() -> None:
    """It has no place any more."""
    stream = openai_responses.Stream(target())
    item = {"type": "message", "id": "i0", "content": [{"type": "output_text", "text": "Hi"}]}
    stream.feed([delta("Hi"), event("response.output_item.done", output_index=0, item=item)])
    with pytest.raises(ProviderProtocolError):
        stream.feed([delta("more")])


def test_what_only_the_last_event_says_is_read_there() -> None:
    """A host that streams nothing but its whole answer."""
    stream = openai_responses.Stream(target())
    item = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "late"}]}
    events = stream.feed([last(output=[item])]) + stream.end()
    check_invariants(events)
    assert fold(events).candidates[0].message.parts[0].text == "late"


def test_nothing_is_delivered_before_the_first_content() -> None:
    """That an item began is no content; generation_start comes with the first text."""
    stream = openai_responses.Stream(target())
    created = event("response.created", response={"id": "resp_1", "model": "inventio-2-2026", "created_at": 5})
    assert stream.feed([created, event("response.output_item.added", item={"type": "message", "id": "m"})]) == []
    start, *_ = stream.feed([delta("Hi")])
    assert start.generation_start.model == "inventio-2-2026"
    assert start.generation_start.provider_response_id == "resp_1"


def test_the_events_of_one_read_travel_together() -> None:
    """All deltas of a part within one feed become one event."""
    stream = openai_responses.Stream(target())
    events = stream.feed([delta("a")] * 100)
    assert [found.WhichOneof("event") for found in events] == ["generation_start", "part_start", "text_delta"]
    assert events[-1].text_delta == "a" * 100


@pytest.mark.parametrize(
    "events", [[], [Event("message", b"[DONE]")], [delta("Hi"), Event("message", b"[DONE]")]], ids=str
)
def test_a_stream_without_its_last_event_ends_in_an_error(events: Sequence[Event]) -> None:
    """[DONE] alone is no end: it does not say how the answer ended."""
    stream = openai_responses.Stream(target())
    stream.feed(events)
    with pytest.raises(ProviderProtocolError):
        stream.end()


def test_an_interrupted_stream_closes_what_is_open() -> None:
    """Parts incomplete, the candidate ended with the reason given."""
    stream = openai_responses.Stream(target())
    events = stream.feed([delta("Hi"), delta("hm", 1, "reasoning_text")]) + stream.interrupt(pb.FINISH_REASON_CANCELLED)
    check_invariants(events, partial=True)
    (candidate,) = fold(events).candidates
    assert [part.incomplete for part in candidate.message.parts] == [True, True]
    assert candidate.finish.reason == pb.FINISH_REASON_CANCELLED


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (event("error", code="rate_limit_exceeded", message="m", param=None), ProviderRateLimited),
        (event("error", error={"code": "context_length_exceeded", "message": "m"}), ProviderRejectedRequest),
        (last("failed", error={"code": "server_error", "message": "m"}), ProviderError),
        (last("failed", error={"code": "invalid_prompt", "message": "m"}), ProviderRejectedRequest),
        (last("failed", error={"code": "image_content_policy_violation", "message": "m"}), ContentFiltered),
        (Event("message", b'{"error": {"code": 429, "message": "m"}}'), ProviderRateLimited),
    ],
)
def test_an_error_within_a_stream_is_classified(failure: Event, expected: type[GatewayError]) -> None:
    """Whether the vendor says it flat, within an object, or of the response."""
    stream = openai_responses.Stream(target())
    stream.feed([delta("Hi")])
    with pytest.raises(expected) as raised:
        stream.feed([failure])
    assert raised.value.vendor_detail == "m"


def test_usage_of_a_failed_answer_is_not_lost() -> None:
    """It was billed, so it is accounted."""
    stream = openai_responses.Stream(target())
    stream.feed([delta("Hi")])
    with pytest.raises(ProviderError):
        stream.feed([last("failed", error={"code": "server_error"}, usage={"input_tokens": 7})])
    assert stream.interrupt(pb.FINISH_REASON_ERROR)[-1].generation_end.usage.input_tokens == 7


def test_a_failed_answer_is_an_error() -> None:
    """A 200 with status `failed`, with or without the vendor's reason."""
    for failed in ({"error": {"code": "rate_limit_exceeded"}}, {"error": None}):
        with pytest.raises(ProviderError):
            openai_responses.decode(json.dumps({"status": "failed", "output": [], **failed}).encode(), target())


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (404, {"type": "invalid_request_error", "code": None}, ProviderResourceNotFound),
        (404, {"type": "invalid_request_error", "code": "model_not_found"}, ProviderModelMissing),
        (400, {"type": "invalid_request_error", "code": "previous_response_not_found"}, ProviderResourceNotFound),
        (400, {"type": "invalid_request_error", "code": "invalid_encrypted_content"}, OpaqueStateRejected),
    ],
)
def test_an_error_says_whether_the_model_or_something_stored_is_missing(
    status: int, error: Json, expected: type[GatewayError]
) -> None:
    """An unknown item or response, a model, encrypted reasoning of another account."""
    body = json.dumps({"error": {"message": "m", **error}}).encode()
    assert type(openai_responses.error(status, {}, body, target())) is expected


words = st.text(max_size=5)
places = st.integers(0, 2)
deltas = st.builds(
    lambda kind, place, content, piece: Event(
        "",
        json.dumps(
            {
                "type": f"response.{kind}.delta",
                "output_index": place,
                "item_id": f"item-{place}",
                "content_index": content,
                "summary_index": content,
                "delta": piece,
            }
        ).encode(),
    ),
    st.sampled_from(["output_text", "reasoning_summary_text"]),
    places,
    places,
    words,
)
calls = st.builds(
    lambda place, piece: [
        event("response.output_item.added", output_index=place, item={"type": "function_call", "name": "f"}),
        event("response.function_call_arguments.delta", output_index=place, delta=piece),
    ],
    st.integers(3, 5),
    words,
)


@given(st.lists(st.one_of(deltas.map(lambda found: [found]), calls), max_size=12), st.data())
def test_any_stream_of_valid_events_folds_the_same_however_it_is_fed(groups: list[list[Event]], data: Any) -> None:
    """The invariants hold, and reads of any size amount to the same answer."""
    events = [found for group in groups for found in group] + [last(output=[])]

    def fed(sizes: Iterable[int]) -> list[pb.StreamGenerateResponse]:
        stream, start = openai_responses.Stream(target()), 0
        found: list[pb.StreamGenerateResponse] = []
        for end in (*sizes, len(events)):
            found += stream.feed(events[start:end])
            start = end
        return found + stream.end()

    cuts = sorted(data.draw(st.sets(st.integers(0, len(events)), max_size=5)))
    at_once, in_pieces = fed(()), fed(cuts)
    check_invariants(at_once)
    check_invariants(in_pieces)
    assert canonical(fold(in_pieces)) == canonical(fold(at_once))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
KINDS = [
    "response.created",
    "response.output_item.added",
    "response.output_item.done",
    "response.output_text.delta",
    "response.output_text.annotation.added",
    "response.function_call_arguments.delta",
    "response.completed",
    "response.failed",
    "error",
]
items = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "reasoning", "function_call", "image_generation_call", None])},
    optional=dict.fromkeys(
        ("id", "content", "summary", "result", "name", "arguments", "encrypted_content", "status"), json_values
    ),
)
odd_events = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)},
    optional={
        "item": items | json_values,
        "response": st.fixed_dictionaries({}, optional={"output": st.lists(items), "usage": json_values}) | json_values,
        "delta": json_values,
        "output_index": json_values,
        "annotation": json_values,
        "error": json_values,
        "logprobs": json_values,
    },
)


@given(st.lists(odd_events, max_size=5))
def test_odd_events_raise_nothing_but_a_gateway_error(found: list[Json]) -> None:
    """Members of a wrong type, in any order."""
    stream = openai_responses.Stream(target())
    try:
        stream.feed([Event("message", json.dumps(one).encode()) for one in found])
        stream.end()
    except GatewayError:
        stream.interrupt(pb.FINISH_REASON_ERROR)


@given(st.lists(items, max_size=3), json_values, json_values)
def test_odd_answers_raise_nothing_but_a_gateway_error(output: list[Json], usage: Any, odd: Any) -> None:
    """Nor do the members of a whole answer."""
    body = {"output": output, "usage": usage, "model": odd, "created_at": odd, "incomplete_details": odd}
    with suppress(GatewayError):
        openai_responses.decode(json.dumps(body).encode(), target())


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_gateway_error(body: bytes) -> None:
    """Broken UTF-8, broken JSON and broken frames are refused."""
    assert isinstance(openai_responses.error(400, {}, body, target()), GatewayError)
    for attempt in (
        lambda: openai_responses.decode(body, target()),
        lambda: streamed(b"data: " + body + b"\n\n" + body, [], target()),
    ):
        with suppress(GatewayError):
            attempt()
