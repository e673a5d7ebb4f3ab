"""Recorded conversations through the front door, turn by turn: our own answers go back as history."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

from tests.conftest import Serve
from tests.recordings.messages_request import read_messages_request
from tests.recordings.recorded import Recording, recordings
from tests.recordings.replaying import answered, replaying
from tests.recordings.test_anthropic_requests import Json, normalised
from tests.vendor import Vendor

THINKING_AND_TOOLS = ("anthropic-9b86dd324215", "anthropic-ecd36fbda94e")
THINKING = ("anthropic-48fb7caf76f3", "anthropic-6afb0cb38808")
NOT_THE_SAME = {
    "anthropic-61fda915ae00": "the recording's encrypted contents were cut to short heads",
    "anthropic-86766b61f265": "the recording's signature was cut to a short head",
    "anthropic-aa1f2da75f08": "its client left the search and its results out of the history",
}


def conversations() -> list[tuple[Recording, Recording]]:
    """Turns of one conversation, each with the next."""
    turns: dict[str, list[Recording]] = defaultdict(list)
    for recording in recordings("anthropic.messages"):
        if recording.status == 200 and recording.request:
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
    """The vendor receives what the recording has: thinking, signatures, calls and vendor items byte for byte."""
    differing = set()
    found = conversations()
    assert {THINKING, THINKING_AND_TOOLS} <= {(first.id, then.id) for first, then in found}
    for first, then in found:
        received = await continued(serve, first, then)
        if comparable(received) != comparable(then.request):
            differing.add(then.id)
    assert differing == NOT_THE_SAME.keys()


def comparable(request: Json) -> Any:
    """The request without what most clients leave out of the history: nulls, and that the model itself called."""

    def without(found: Any) -> Any:
        match found:
            case dict():
                kept = {key: without(value) for key, value in found.items() if value is not None}
                if kept.get("caller") == {"type": "direct"}:
                    del kept["caller"]
                return kept
            case list():
                return [without(item) for item in found]
            case _:
                return found

    return without(normalised(request))


async def continued(serve: Serve, first: Recording, then: Recording) -> Json:
    """What the vendor receives as the second turn, when the first one's answer is ours."""
    async with Vendor(replaying([first, then])) as vendor:
        provider = {"host": "anthropic", "base_url": vendor.base_url, "api_key": "recorded"}
        async with serve(providers={"anthropic": provider}) as headgate:
            answer = await answered(headgate, read_messages_request(first.request, "anthropic"), first.is_stream)
            request = read_messages_request(then.request, "anthropic")
            ours = answer.candidates[0].message
            place = len(read_messages_request(first.request, "anthropic").messages)
            request.messages[place].CopyFrom(ours)
            await answered(headgate, request, then.is_stream)
    exchange = vendor.exchanges[1]
    assert exchange.path == "/v1/messages"
    assert exchange.headers["x-api-key"] == "recorded"
    received: Json = exchange.json
    return received
