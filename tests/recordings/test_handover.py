"""Recorded conversations of every wire, with the answers that we decoded, handed to every other wire."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from headgate import v1 as pb

from headgate_server.errors import UnsupportedParameter
from headgate_server.validation import check_generate
from tests.conftest import Serve
from tests.recordings import (
    test_anthropic_answers,
    test_anthropic_requests,
    test_cohere_answers,
    test_cohere_requests,
    test_gemini_answers,
    test_gemini_requests,
    test_openai_answers,
    test_openai_requests,
    test_openai_responses_answers,
    test_openai_responses_requests,
)
from tests.recordings.chat_request import read_chat_request
from tests.recordings.cohere_request import read_cohere_request
from tests.recordings.gemini_request import read_gemini_request
from tests.recordings.messages_request import read_messages_request
from tests.recordings.recorded import Recording
from tests.recordings.responses_request import read_responses_request
from tests.recordings.test_anthropic_conversations import THINKING_AND_TOOLS
from tests.recordings.test_gemini_conversations import answer_own_calls
from tests.recordings.test_openai_responses_answers import whole
from tests.vendor import Exchange, Vendor, answers_text
from tests.wires import WIRES, Json, Wire, strings

# Names of members under which vendors keep what only they can read; ids with these prefixes name their items.
OPAQUE = {"signature", "thoughtSignature", "thought_signature", "encrypted_content", "encrypted_index"}
OPAQUE |= {"encrypted_stdout", "reasoning_details"}
ITEM_IDS = ("rs_", "msg_", "fc_", "ws_", "ctc_", "ci_", "mcp_", "ig_", "fs_", "srvtoolu_")
# Members of Responses items, which its issuer's other wire does not have.
MEMBERS = {"phase", "namespace"}
# What a wire has no way to say: these histories hold media that it does not read, or not there.
REFUSED = {
    ("ollama-af6e57c7a8e5", "azure-openai"): "an image in a tool result",
    ("ollama-af6e57c7a8e5", "cohere"): "an image in a tool result",
    ("openrouter-83fb3a9109eb", "cohere"): "a PDF",
    ("openai-5d8d8c39eb9e", "cohere"): "two PDFs",
    ("vertex-c48fb93b479c", "cohere"): "two PDFs",
    ("vertex-42cc4cfb827a", "cohere"): "a PDF",
    ("cohere-b9c2b43b86f9", "openai"): "a document in a tool result",
    ("cohere-b9c2b43b86f9", "azure-openai"): "a document in a tool result",
}
# Conversations of each wire that are handed over.
LEAST = {"openai": 60, "openai-responses": 40, "anthropic": 25, "gemini": 30, "cohere": 8}


class Call(NamedTuple):
    """One tool call, or its result, as a wire has it."""

    id: str
    name: str
    arguments: Any


@dataclass(frozen=True)
class Recorded:
    """How the recorded exchanges of a wire are read. `turns` is the member that holds the conversation."""

    wire: str
    turns: str
    readable: Callable[[], list[Recording]]
    request: Callable[[Json, Recording], pb.GenerateRequest]
    answer: Callable[[Recording], pb.GenerateResponse]


RECORDED = {
    each.wire: each
    for each in (
        Recorded(
            "openai",
            "messages",
            lambda: [r for r in test_openai_requests.readable() if r in readable_answers(test_openai_answers)],
            lambda body, recording: read_chat_request(body, recording.vendor),
            test_openai_answers.read,
        ),
        Recorded(
            "openai-responses",
            "input",
            lambda: [
                r
                for r in test_openai_responses_requests.readable()
                if r in readable_answers(test_openai_responses_answers)
            ],
            lambda body, recording: read_responses_request(body, recording.vendor),
            test_openai_responses_answers.read,
        ),
        Recorded(
            "anthropic",
            "messages",
            test_anthropic_requests.readable,
            lambda body, recording: read_messages_request(body, recording.vendor),
            test_anthropic_answers.read,
        ),
        Recorded(
            "gemini",
            "contents",
            test_gemini_requests.readable,
            lambda body, recording: read_gemini_request(body, recording.vendor, "gemini-3-pro-preview"),
            lambda recording: test_gemini_answers.read(recording)[0],
        ),
        Recorded(
            "cohere",
            "messages",
            test_cohere_requests.readable,
            lambda body, recording: read_cohere_request(body, recording.vendor),
            test_cohere_answers.read,
        ),
    )
}


def readable_answers(answers: Any) -> list[Recording]:
    """The recordings whose answers that test reads."""
    return [*answers.answered(stream=False), *answers.answered(stream=True)]


@cache
def conversations(recorded: Recorded) -> list[tuple[Recording, pb.GenerateRequest]]:
    """Conversations of two recorded turns or more, of which we answered the last two."""
    handed_over = []
    turns: dict[tuple[str, str], list[Recording]] = defaultdict(list)
    for recording in recorded.readable():
        if recording.status == 200 and isinstance(recording.request.get(recorded.turns), list):
            turns[recording.vendor, recording.conversation].append(recording)
    for found in turns.values():
        found.sort(key=lambda recording: len(recording.request[recorded.turns]))
        for first, then in pairwise(found):
            if request := continued(recorded, first, then):
                handed_over.append((then, request))
    return handed_over


def continued(recorded: Recorded, first: Recording, then: Recording) -> pb.GenerateRequest | None:
    """The first request with our answer, what the second one adds, our answer to it, and a last word of the user."""
    before, after = first.request[recorded.turns], then.request[recorded.turns]
    if after[: len(before)] != before or len(after) < len(before) + 2:
        return None
    request = recorded.request(first.request, first)
    if recorded.wire == "openai-responses":
        items = after[len(before) + len(whole(first)["output"]) :]
        added = list(recorded.request({"input": items}, then).messages)
    else:
        added = list(recorded.request(then.request, then).messages[len(request.messages) + 1 :])
    request.messages.append(recorded.answer(first).candidates[0].message)
    if recorded.wire == "gemini":
        answer_own_calls(added, list(request.messages))
    request.messages.extend(added)
    if not answers_all_calls(request):
        return None
    request.messages.append(recorded.answer(then).candidates[0].message)
    if open_calls := [call for call in calls_of(request.messages[-1:]) if call.id]:
        results = [
            pb.ToolResult(call_id=call.id, name=call.name, parts=[pb.Part(text="Sunny.")]) for call in open_calls
        ]
        request.messages.append(pb.Message(role=pb.ROLE_TOOL, parts=[pb.Part(tool_result=r) for r in results]))
    request.messages.append(pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Go on, please.")]))
    for field in ("config", "reasoning", "tool_choice", "provider_options", "prompt_cache_key", "end_user_id"):
        request.ClearField(field)
    functions = [tool for tool in request.tools if tool.HasField("function")]
    del request.tools[:]
    request.tools.extend(functions)
    return request


def answers_all_calls(request: pb.GenerateRequest) -> bool:
    """Whether the recorded client went on from this very answer: some went on from another one to the same request."""
    given = [part.tool_result.call_id for _, part in parts_of(request.messages) if part.HasField("tool_result")]
    return sorted(given) == sorted(call.id for call in calls_of(request.messages))


def parts_of(messages: Any) -> Iterator[tuple[str, pb.Part]]:
    """All parts with their paths, those of tool results too."""
    for number, message in enumerate(messages):
        for index, part in enumerate(message.parts):
            path = f"messages[{number}].parts[{index}]"
            yield path, part
            for inner, piece in enumerate(part.tool_result.parts):
                yield f"{path}.tool_result.parts[{inner}]", piece


def calls_of(messages: Any) -> list[pb.ToolCall]:
    """The calls whose results the caller gives."""
    found = [part.tool_call for _, part in parts_of(messages) if part.HasField("tool_call")]
    return [call for call in found if call.kind != pb.TOOL_CALL_KIND_PROVIDER_EXECUTED]


def sent_calls(wire: str, body: Json) -> tuple[list[Call], list[Call]]:
    """Calls and results of a vendor's request, in order."""
    match wire:
        case "openai-responses" | "azure-openai-responses":
            items = [item for item in body["input"] if item.get("type", "").endswith(("_call", "_call_output"))]
            calls = [
                Call(i["call_id"], i["name"], i.get("arguments", i.get("input")))
                for i in items
                if i["type"].endswith("_call")
            ]
            return calls, [Call(i["call_id"], "", "") for i in items if i["type"].endswith("_output")]
        case "anthropic":
            blocks = [b for m in body["messages"] if isinstance(m["content"], list) for b in m["content"]]
            calls = [Call(b["id"], b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"]
            return calls, [Call(b["tool_use_id"], "", "") for b in blocks if b["type"] == "tool_result"]
        case "gemini" | "vertex":
            parts = [part for content in body["contents"] for part in content["parts"]]
            called = [part["functionCall"] for part in parts if "functionCall" in part]
            calls = [Call(c.get("id", ""), c["name"], c["args"]) for c in called]
            given = [part["functionResponse"] for part in parts if "functionResponse" in part]
            return calls, [Call(g.get("id", ""), g["name"], "") for g in given]
        case _:
            called = [call for m in body["messages"] for call in m.get("tool_calls", [])]
            calls = [
                Call(c["id"], f["name"], f.get("arguments", f.get("input"))) for c in called for f in [c[c["type"]]]
            ]
            return calls, [Call(m["tool_call_id"], "", "") for m in body["messages"] if m["role"] == "tool"]


def assert_calls_are_paired(wire: Wire, body: Json, request: pb.GenerateRequest) -> None:
    """Every call of the history goes out with name and arguments, and every result names its call."""
    calls, results = sent_calls(wire.name, body)
    expected = calls_of(request.messages)
    assert [call.name for call in calls] == [call.name for call in expected]
    for call, known in zip(calls, expected, strict=True):
        arguments = json.loads(call.arguments) if isinstance(call.arguments, str) else call.arguments
        assert arguments == json.loads(known.arguments or "{}")
    # Gemini tells results without ids apart by name and order.
    by_name = wire.name in ("gemini", "vertex")
    key = [(call.id, call.name) if by_name else call.id for call in calls]
    assert Counter(key) == Counter((result.id, result.name) if by_name else result.id for result in results)


def readable_texts(part: pb.Part) -> Iterator[str]:
    """What people can read of a part."""
    yield from (part.text, part.refusal, part.media.transcript)
    if not part.tool_result.parts and part.tool_result.structured_json:
        yield json.dumps(json.loads(part.tool_result.structured_json))


def assert_nothing_readable_is_lost(body: Json, warned: str, request: pb.GenerateRequest) -> None:
    """Each text stands in the body; thinking may be left out where a warning says so."""
    said = "\0".join((*strings(body), json.dumps(body)))
    for path, part in parts_of(request.messages):
        for text in filter(None, readable_texts(part)):
            assert text in said, (path, text)
        if part.reasoning.text and part.reasoning.text not in said:
            assert f"{path}.reasoning" in warned, path


def state(recording: Recording, request: pb.GenerateRequest) -> set[str]:
    """What only the issuer can read: in our history, and in what the vendor had answered."""
    found: set[str] = set()
    for _, part in parts_of(request.messages):
        found |= {part.signature.decode(), part.item_id}
        found |= {citation.opaque.decode() for citation in part.citations}
        if part.HasField("provider_item"):
            item = json.loads(part.provider_item.json)
            found |= {str(item.get("id", "")), part.provider_item.json}
            found |= {text for text in strings(item) if len(text) > 200}
    body = recording.body.decode()
    lines = [line[5:] for line in body.splitlines() if line.startswith("data: {")] if recording.is_stream else [body]
    for line in lines:
        found |= opaque_values(json.loads(line))
    return {text for text in found if len(text) > 3}


def opaque_values(value: Any) -> set[str]:
    """Signatures and ids of items in a vendor's JSON."""
    match value:
        case dict():
            own = {item for name, item in value.items() if name in OPAQUE and isinstance(item, str)}
            if isinstance(value.get("id"), str) and value["id"].startswith(ITEM_IDS):
                own.add(value["id"])
            return own.union(*(opaque_values(item) for item in value.values()))
        case list():
            return set[str]().union(*(opaque_values(item) for item in value))
        case _:
            return set()


def assert_no_state_leaks(body: Json, recording: Recording, request: pb.GenerateRequest) -> None:
    """Nothing that only the issuer can read is sent to another vendor."""
    said = set(strings(body))
    leaked = {text for text in state(recording, request) if any(text in sent for sent in said)}
    assert not leaked
    assert not said & MEMBERS


def assert_warned_of_what_was_dropped(warned: str, request: pb.GenerateRequest) -> None:
    """A warning names each part whose state or vendor item was left behind."""
    for path, part in parts_of(request.messages):
        has_state = part.signature or part.item_id or part.HasField("provider_item")
        if has_state or any(citation.opaque for citation in part.citations):
            assert path in warned, path


@pytest.mark.parametrize(("origin", "to"), [(origin, to) for origin in RECORDED for to in WIRES if origin != to])
def test_a_conversation_goes_on_at_another_vendor(origin: str, to: str) -> None:
    """Text and calls survive, state stays behind with a warning, the schema holds; or it is refused for its media."""
    handed_over = 0
    wire = WIRES[to]
    for recording, request in conversations(RECORDED[origin]):
        if (recording.vendor, origin) == (wire.target.issuer, wire.family):
            continue
        check_generate(recorded_model(request))
        try:
            call = wire.encode(request)
        except UnsupportedParameter as refused:
            (violation,) = refused.violations
            assert refusal_is_of_media(violation.field, request), (recording.id, violation)
            assert (recording.id, to) in REFUSED, violation
            continue
        assert (recording.id, to) not in REFUSED
        body = json.loads(call.body)
        warned = "\n".join(warning.field for warning in call.warnings)
        try:
            assert_nothing_readable_is_lost(body, warned, request)
            assert_calls_are_paired(wire, body, request)
            assert_no_state_leaks(body, recording, request)
            assert_warned_of_what_was_dropped(warned, request)
            assert list(wire.wrong(body)) == []
        except AssertionError as error:
            raise AssertionError(f"{recording.id}: {error}") from error
        handed_over += 1
    print(f"{origin} -> {to}: {handed_over} conversations")
    assert handed_over >= LEAST[origin]


def recorded_model(request: pb.GenerateRequest) -> pb.GenerateRequest:
    """The request as a caller of this gateway would address it."""
    request.model = "anyone/model"
    return request


def refusal_is_of_media(field: str, request: pb.GenerateRequest) -> bool:
    """Whether the field named holds media."""
    return any(part.HasField("media") and field.startswith(path) for path, part in parts_of(request.messages))


async def test_a_signed_conversation_goes_on_at_the_next_target_of_an_alias(serve: Serve) -> None:
    """Anthropic is overloaded, OpenAI answers the same history: readable texts and calls, no signature, warnings."""
    handed_over = conversations(RECORDED["anthropic"])
    recording, recorded = next(found for found in handed_over if found[0].id == THINKING_AND_TOOLS[1])
    request = pb.GenerateRequest()
    request.CopyFrom(recorded)
    request.model = "any"

    async def is_overloaded(exchange: Exchange) -> None:
        await exchange.answer(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})

    async with Vendor(is_overloaded) as first, Vendor(answers_text) as second:
        providers = {
            "anthropic": {"base_url": first.base_url, "api_key": "a"},
            "openai": {"base_url": second.base_url, "api_key": "o"},
        }
        targets = [{"provider": "anthropic", "model": "claude-opus-4-6"}, {"provider": "openai", "model": "gpt-5-mini"}]
        async with serve(providers=providers, models={"any": {"targets": targets}}) as headgate:
            answer = await headgate.stub.Generate(request)
            events = [event async for event in headgate.stub.StreamGenerate(request)]
    assert any(part.HasField("provider_item") for _, part in parts_of(request.messages))
    signatures = {part.signature.decode() for _, part in parts_of(request.messages) if part.signature}
    assert signatures
    assert all(signatures <= set(strings(exchange.json)) for exchange in first.exchanges)
    for exchange, warnings in zip(
        second.exchanges, (answer.warnings, events[0].generation_start.warnings), strict=True
    ):
        warned = "\n".join(warning.field for warning in warnings)
        assert_no_state_leaks(exchange.json, recording, request)
        assert_nothing_readable_is_lost(exchange.json, warned, request)
        assert_calls_are_paired(WIRES["openai"], exchange.json, request)
        assert_warned_of_what_was_dropped(warned, request)
    assert [attempt.http_status for attempt in answer.attempts] == [529, 200]
    assert answer.candidates[0].message.parts[0].text == "Hello there"
