"""The mock transport: OpenAI's wire from inside the process, and the ways in which it fails on request."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

import jsonschema
import pytest

from headgate_server.config import MockOptions
from headgate_server.errors import ProviderProtocolError, ProviderUnreachable
from headgate_server.sse import Decoder
from headgate_server.transports.base import HttpRequest, HttpResponse
from headgate_server.transports.mock import MockTransport
from headgate_server.transports.mock.schemas import example
from headgate_server.transports.mock.transport import arrival

CHAT = "/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 3}, "note": {}},
            "required": ["city", "days"],
        },
    },
}


def mock(**options: Any) -> MockTransport:
    """A mock that is configured like this."""
    return MockTransport(MockOptions.model_validate(options))


def said(text: str) -> dict[str, Any]:
    """A chat request to `echo`."""
    return {"model": "echo", "messages": [{"role": "user", "content": text}]}


async def send(transport: MockTransport, body: Any, path: str = CHAT) -> HttpResponse:
    """The mock's answer to a JSON body, unread."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await transport.send(HttpRequest("POST", f"http://mock.invalid/v1{path}", {}, content, 5.0))


async def whole(transport: MockTransport, body: Any, path: str = CHAT) -> tuple[int, Any]:
    """Status and JSON of the mock's answer."""
    response = await send(transport, body, path)
    content = b""
    while chunk := await response.read():
        content += chunk
    response.close()
    return response.status, json.loads(content)


async def events(transport: MockTransport, body: dict[str, Any]) -> list[Any]:
    """The chunks of a streamed answer, and `[DONE]` where it came."""
    response = await send(transport, {**body, "stream": True})
    assert response.headers["content-type"] == "text/event-stream"
    decoder, found = Decoder(), []
    while chunk := await response.read():
        found += decoder.feed(chunk)
    response.close()
    return [event.data.decode() if event.data == b"[DONE]" else json.loads(event.data) for event in found]


def joined(chunks: list[Any], *path: Any) -> str:
    """The text that the deltas of the first choice add up to at `path`."""
    text = ""
    for chunk in chunks:
        value: Any = chunk["choices"][0]["delta"] if isinstance(chunk, dict) and chunk["choices"] else {}
        for step in path:
            value = value[step] if isinstance(value, list) else (value or {}).get(step)
        text += value or ""
    return text


async def test_echo_answers_the_users_last_text() -> None:
    """Parts of one message are joined; media are passed over."""
    parts = [{"type": "text", "text": "se"}, {"type": "image_url"}, {"type": "text", "text": "cond"}]
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "more"},
    ]
    status, answer = await whole(mock(), {"model": "echo", "messages": messages})
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "second"
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("text", ["", "Hi", "  two  words \n", "日本語 🎉", "a\nb\tc\u2028d\x00"])
async def test_a_stream_adds_up_to_the_whole_answer(text: str) -> None:
    """Every character arrives, in the same order, both ways."""
    chunks = await events(mock(), said(text))
    _, answer = await whole(mock(), said(text))
    assert joined(chunks, "content") == answer["choices"][0]["message"]["content"] == text
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


async def test_lorem_writes_as_many_words_as_asked_for() -> None:
    """The request's limit, by either of its names, wins over the configured number, and is met."""
    request = {**said("Go"), "model": "lorem"}
    for limit, words, finish_reason in (
        ({}, 7, "stop"),
        ({"max_tokens": 3}, 3, "length"),
        ({"max_completion_tokens": 90}, 90, "length"),
        ({"max_tokens": 2**32 - 1}, 10_000, "stop"),
    ):
        _, answer = await whole(mock(words=7), {**request, **limit})
        assert len(answer["choices"][0]["message"]["content"].split()) == words
        assert answer["choices"][0]["finish_reason"] == finish_reason
        assert answer["usage"]["completion_tokens"] == words


async def test_a_token_limit_cuts_the_answer_and_says_so() -> None:
    """Thinking counts as output."""
    _, answer = await whole(mock(reasoning="let me see"), {**said("one two three"), "max_tokens": 5})
    (choice,) = answer["choices"]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("let me see", "one two")
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3


async def test_an_answer_ends_before_a_stop_sequence() -> None:
    """The first of them that occurs."""
    _, answer = await whole(mock(), {**said("one two three"), "stop": ["three", " two", ""]})
    assert answer["choices"][0]["message"]["content"] == "one"
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_every_choice_is_answered_and_counted() -> None:
    """`n` answers cost n times the output."""
    request = {**said("Hi there"), "n": 3, "stream_options": {"include_usage": True}}
    _, answer = await whole(mock(), request)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    chunks = await events(mock(), request)
    finished = [chunk["choices"][0]["index"] for chunk in chunks[:-2] if chunk["choices"][0]["finish_reason"]]
    assert finished == [0, 1, 2]
    assert chunks[-2]["usage"] == answer["usage"]
    assert answer["usage"]["completion_tokens"] == 6


async def test_usage_is_streamed_only_when_asked_for() -> None:
    """As OpenAI does, in a last chunk without choices."""
    assert not any("usage" in chunk for chunk in await events(mock(), said("Hi")) if chunk != "[DONE]")
    chunks = await events(mock(), {**said("Hi"), "stream_options": {"include_usage": True}})
    assert (chunks[-2]["choices"], chunks[-2]["usage"]["total_tokens"]) == ([], 2)


async def test_usage_and_finish_reason_can_be_claimed() -> None:
    """So that accounting can be tested with any numbers."""
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "cached_tokens": 80, "reasoning_tokens": 20}
    _, answer = await whole(mock(usage=usage, finish_reason="content_filter"), said("Hi"))
    assert answer["usage"] == {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "total_tokens": 150,
        "prompt_tokens_details": {"cached_tokens": 80},
        "completion_tokens_details": {"reasoning_tokens": 20},
    }
    assert answer["choices"][0]["finish_reason"] == "content_filter"


async def test_tools_calls_the_first_tool_with_arguments_that_its_schema_admits() -> None:
    """Whole and streamed alike; only required properties are given."""
    request = {**said("Weather?"), "model": "tools", "tools": [WEATHER]}
    _, answer = await whole(mock(), request)
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city":"city","days":3}'}
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    chunks = await events(mock(), request)
    assert joined(chunks, "tool_calls", 0, "function", "arguments") == call["function"]["arguments"]
    assert joined(chunks, "tool_calls", 0, "id") == call["id"]


async def test_tools_quotes_the_result_of_a_tool() -> None:
    """The second turn of a tool conversation is text."""
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": []},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    _, answer = await whole(mock(), {"model": "tools", "messages": messages, "tools": [WEATHER]})
    assert answer["choices"][0]["message"]["content"] == "The tool answered: sunny"


async def test_tools_obeys_the_tool_choice() -> None:
    """None, a forced tool, a list of allowed ones, and a tool with free text."""
    custom = {"type": "custom", "custom": {"name": "shell"}}
    named = {"type": "function", "function": {"name": "weather"}}
    request = {**said("ls"), "model": "tools", "tools": [custom, WEATHER]}

    async def call(**choice: Any) -> Any:
        _, answer = await whole(mock(), {**request, **choice})
        return answer["choices"][0]["message"].get("tool_calls", [{}])[0]

    assert (await call())["custom"] == {"name": "shell", "input": "ls"}
    assert await call(tool_choice="none") == {}
    assert (await call(tool_choice=named))["function"]["name"] == "weather"
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    assert (await call(tool_choice=allowed))["function"]["name"] == "weather"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "string", "minLength": 9, "maxLength": 12},
        {"type": "string", "enum": ["b", "a"]},
        {"const": {"a": 1}},
        {"type": ["null", "number"], "exclusiveMinimum": 2.5},
        {"type": "integer", "maximum": -4},
        {"type": "integer", "minimum": 1.5},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 3},
        {"type": "null"},
        {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"type": "integer"}}}]},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "boolean"}}},
        {"properties": {"day": {"type": "string", "format": "date"}}, "required": ["day"]},
    ],
)
def test_examples_are_valid(schema: dict[str, Any]) -> None:
    """An independent validator admits what the mock makes up."""
    jsonschema.validate(example(schema), schema, format_checker=jsonschema.FormatChecker())


def test_a_schema_that_contains_itself_has_an_example() -> None:
    """It ends somewhere."""
    tree = {"type": "object", "properties": {"child": {"$ref": "#"}}, "required": ["child"]}
    assert set(example(tree)) == {"child"}


async def test_embeddings_are_unit_vectors_of_their_input() -> None:
    """The same text has the same vector, another text another, in both encodings, in the order of the inputs."""
    request = {"model": "embed", "input": ["a", "b", "a"], "dimensions": 64}
    _, answer = await whole(mock(), request, "/embeddings")
    rows = [row["embedding"] for row in answer["data"]]
    assert rows[0] == rows[2] != rows[1]
    assert [row["index"] for row in answer["data"]] == [0, 1, 2]
    assert sum(number**2 for number in rows[0]) == pytest.approx(1)
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    _, packed = await whole(mock(), {**request, "encoding_format": "base64"}, "/embeddings")
    unpacked = struct.unpack("<64f", base64.b64decode(packed["data"][1]["embedding"]))
    assert unpacked == pytest.approx(rows[1])


async def test_embeddings_have_the_configured_dimensions_unless_asked_otherwise() -> None:
    """Text, tokens, and lists of either are taken."""
    for given, rows in (("a", 1), (["a", "b"], 2), ([1, 2], 1), ([[1], [2, 3]], 2)):
        _, answer = await whole(mock(dimensions=5), {"model": "embed", "input": given}, "/embeddings")
        assert [len(row["embedding"]) for row in answer["data"]] == [5] * rows


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        (CHAT, b"{", 400, None, None),
        (CHAT, {"messages": []}, 400, "invalid_value", "model"),
        (CHAT, {"model": "echo", "messages": []}, 400, "empty_array", "messages"),
        (CHAT, {"model": "echo", "messages": [{"role": 5}]}, 400, "invalid_value", "messages[0].role"),
        (CHAT, {"model": "echo", "messages": [{"role": "boss"}]}, 400, None, "messages[0].role"),
        (CHAT, {**said("Hi"), "max_tokens": 0}, 400, "integer_below_min_value", "max_tokens"),
        (CHAT, {**said("Hi"), "n": 17}, 400, "integer_above_max_value", "n"),
        (CHAT, {**said("Hi"), "model": "gpt"}, 404, "model_not_found", "model"),
        (CHAT, {**said("Hi"), "model": "embed"}, 404, "model_not_found", "model"),
        ("/embeddings", {"model": "echo", "input": "a"}, 404, "model_not_found", "model"),
        ("/embeddings", {"model": "embed", "input": []}, 400, None, "input"),
        ("/embeddings", {"model": "embed", "input": ["a", ""]}, 400, None, "input"),
        ("/embeddings", {"model": "embed", "input": "a", "dimensions": 0}, 400, None, "dimensions"),
        ("/responses", {}, 404, "unknown_url", None),
    ],
)
async def test_a_wrong_request_is_refused_as_openai_would(
    path: str, body: Any, status: int, code: str | None, param: str | None
) -> None:
    """Status and error object; a stream is refused the same way."""
    answered, answer = await whole(mock(), body, path)
    assert answered == status
    assert (answer["error"]["type"], answer["error"]["code"]) == ("invalid_request_error", code)
    assert answer["error"]["param"] == param


async def test_at_no_pace_a_stream_comes_in_one_read() -> None:
    """So that joining the events of a read can be tested."""
    response = await send(mock(), {**said("one two three"), "stream": True})
    assert (await response.read()).endswith(b"data: [DONE]\n\n")
    assert await response.read() == b""


@pytest.mark.parametrize(
    ("read", "elapsed", "wait", "arrived"),
    [(0, 0.0, 0.0, 1), (1, 0.02, 0.08, 2), (1, 0.1, 0.0, 2), (1, 0.35, 0.0, 4), (4, 0.35, 0.05, 5), (2, 99.0, 0.0, 6)],
)
def test_a_pace_gives_each_chunk_its_time(read: int, elapsed: float, wait: float, arrived: int) -> None:
    """Ten chunks a second, six in all: whoever reads late gets all that has come by then."""
    seconds, count = arrival(read, 6, elapsed, 10.0)
    assert seconds == pytest.approx(wait)
    assert count == arrived


async def test_a_paced_stream_comes_in_several_reads() -> None:
    """And is whole in the end."""
    response = await send(mock(tokens_per_second=100), {**said("one two three four"), "stream": True})
    reads = []
    while chunk := await response.read():
        reads.append(chunk)
    assert len(reads) > 1
    assert b"".join(reads).endswith(b"data: [DONE]\n\n")


async def test_failures_follow_each_other_and_then_it_answers() -> None:
    """Each as many times as it says."""
    transport = mock(failures=[{"status": 429, "retry_after": 2, "times": 2}, {"connect": True}])
    for _ in range(2):
        limited = await send(transport, said("Hi"))
        assert (limited.status, limited.headers["retry-after"]) == (429, "2")
        assert json.loads(await limited.read())["error"]["type"] == "rate_limit_error"
        limited.close()
    with pytest.raises(ProviderUnreachable):
        await send(transport, said("Hi"))
    assert [(await whole(transport, said("Hi")))[0] for _ in range(2)] == [200, 200]


async def test_a_recurring_failure_takes_each_so_many_th_call() -> None:
    """The failures of the list go on between its calls."""
    transport = mock(failures=[{"status": 503, "every": 3}, {"status": 500, "times": 3}])
    statuses = [(await whole(transport, said("Hi")))[0] for _ in range(9)]
    assert statuses == [500, 500, 503, 500, 200, 503, 200, 200, 503]


@pytest.mark.parametrize("failure", [{"stall": "headers"}, {"stall": "body"}, {"stall_after": 2}])
async def test_a_stalled_call_waits_until_it_is_cancelled(failure: dict[str, Any]) -> None:
    """Before the headers, before the body, or within it."""
    transport = mock(failures=[failure])

    async def read_all() -> None:
        response = await send(transport, {**said("one two three"), "stream": True})
        try:
            while await response.read():
                pass
        finally:
            response.close()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read_all(), 0.02)
    assert (transport.opened, transport.closed, transport.aborted, transport.active) == (1, 1, 1, 0)


@pytest.mark.parametrize(("after", "chunks"), [(0, 0), (2, 2), (99, 5)])
async def test_a_reset_breaks_the_body_before_its_end(after: int, chunks: int) -> None:
    """What came before it is delivered."""
    response = await send(mock(failures=[{"reset_after": after}]), {**said("one two three"), "stream": True})
    if chunks:
        assert (await response.read()).count(b"data: ") == chunks
    with pytest.raises(ProviderProtocolError):
        await response.read()
    response.close()


async def test_an_error_event_ends_a_stream_within_a_200() -> None:
    """And a whole answer is an error object in its place."""
    chunks = await events(mock(failures=[{"error_event": 2}]), said("one two three"))
    assert [chunk.get("error", {}).get("type") for chunk in chunks] == [None, None, "server_error"]
    status, answer = await whole(mock(failures=[{"error_event": 0}]), said("Hi"))
    assert (status, answer["error"]["type"]) == (200, "server_error")


async def test_a_stream_without_terminator_just_ends() -> None:
    """No finish reason, no usage, no [DONE]; a whole answer is cut in two."""
    chunks = await events(mock(failures=[{"no_terminator": True}]), said("one two"))
    assert joined(chunks, "content") == "one two"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
    with pytest.raises(json.JSONDecodeError):
        await whole(mock(failures=[{"no_terminator": True}]), said("Hi"))


@pytest.mark.parametrize("stream", [False, True])
async def test_garbage_is_no_json(stream: bool) -> None:
    """With a status of 200."""
    response = await send(mock(failures=[{"garbage": True}]), {**said("Hi"), "stream": stream})
    assert response.status == 200
    body = await response.read()
    assert b"<html>" in body
    assert body.startswith(b"data: ") is stream


async def test_closing_early_is_counted_and_closing_at_the_end_is_not() -> None:
    """A test can see that a cancel reached the vendor."""
    transport = mock(tokens_per_second=1)
    response = await send(transport, {**said("Hi"), "stream": True})
    await response.read()
    assert transport.active == 1
    response.close()
    response.close()
    assert (transport.opened, transport.closed, transport.aborted) == (1, 1, 1)
    await whole(transport, said("Hi"))
    assert (transport.opened, transport.closed, transport.aborted, transport.active) == (2, 2, 1, 0)


async def test_a_cancel_before_the_headers_is_counted() -> None:
    """The delay is one in which a caller may leave."""
    transport = mock(delay=60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(send(transport, said("Hi")), 0.01)
    assert (transport.opened, transport.aborted, transport.active) == (1, 1, 0)
