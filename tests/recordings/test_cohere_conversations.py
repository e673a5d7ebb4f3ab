"""Recorded conversations with Cohere through the front door, turn by turn: our own answers go back as history."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

from tests.conftest import Serve
from tests.recordings.cohere_request import read_cohere_request
from tests.recordings.recorded import Recording
from tests.recordings.replaying import answered, replaying
from tests.recordings.test_cohere_answers import whole_body
from tests.recordings.test_cohere_requests import Json, normalised, readable
from tests.vendor import Vendor

THINKING_AND_TOOLS = ("cohere-1df16929c8cd", "cohere-b9c2b43b86f9")
PLANNING_AND_TOOLS = ("cohere-7828c10ab59c", "cohere-7defb4f8690c")
# What the recorded clients left out of the history, though the vendor takes it.
LEFT_OUT = ("tool_plan", "citations")


def conversations() -> list[tuple[Recording, Recording]]:
    """Turns of one conversation, each with the next."""
    turns: dict[str, list[Recording]] = defaultdict(list)
    for recording in readable():
        if recording.status == 200:
            turns[recording.conversation].append(recording)
    found = []
    for recorded in turns.values():
        recorded.sort(key=lambda recording: len(recording.request["messages"]))
        found += [(first, then) for first, then in pairwise(recorded) if continues(first, then)]
    return found


def continues(first: Recording, then: Recording) -> bool:
    """The second request holds the first one's messages, and an answer to them."""
    before, after = first.request["messages"], then.request["messages"]
    return after[: len(before)] == before and [m["role"] for m in after[len(before) :]][:1] == ["assistant"]


async def test_recorded_conversations_are_continued_with_our_own_answers(serve: Serve) -> None:
    """The vendor receives what the recording has, calls byte for byte, and its own thinking, plan and citations."""
    found = conversations()
    assert {THINKING_AND_TOOLS, PLANNING_AND_TOOLS} <= {(first.id, then.id) for first, then in found}
    for first, then in found:
        received = await continued(serve, first, then)
        assert comparable(received) == comparable(then.request), then.id
        answer = whole_body(first)["message"]
        returned = received["messages"][len(first.request["messages"])]
        assert returned["role"] == "assistant"
        for name in LEFT_OUT:
            assert returned.get(name) == (answer.get(name) or None), then.id
        assert thinking(returned) == thinking(answer)


def thinking(message: Json) -> list[Json]:
    """The thinking of a message, which the recorded clients left out of the history too."""
    content = message.get("content")
    return [block for block in content if block["type"] == "thinking"] if isinstance(content, list) else []


def comparable(request: Json) -> Any:
    """The request without what the recorded clients left out, and the empty text that some put in its place."""
    body = normalised(request)
    for message in body["messages"]:
        for name in LEFT_OUT:
            message.pop(name, None)
        empty = [{"type": "text", "text": ""}, *thinking(message)]
        message["content"] = [block for block in message["content"] if block not in empty]
    return body


async def continued(serve: Serve, first: Recording, then: Recording) -> Json:
    """What the vendor receives as the second turn, when the first one's answer is ours."""
    async with Vendor(replaying([first, then])) as vendor:
        provider = {"host": "cohere", "base_url": vendor.base_url, "api_key": "recorded"}
        async with serve(providers={"cohere": provider}) as headgate:
            answer = await answered(headgate, read_cohere_request(first.request, "cohere"), first.is_stream)
            request = read_cohere_request(then.request, "cohere")
            place = len(first.request["messages"])
            request.messages[place].CopyFrom(answer.candidates[0].message)
            await answered(headgate, request, then.is_stream)
    exchange = vendor.exchanges[1]
    assert exchange.path == "/v1/chat"
    assert exchange.headers["authorization"] == "Bearer recorded"
    received: Json = exchange.json
    return received
