"""Recorded conversations of several turns through the front door, our own answers going back as history."""

from __future__ import annotations

import json
from typing import Any

import pytest
from headgate import v1 as pb

from tests.conftest import Serve
from tests.recordings.chat_chunks import chunks
from tests.recordings.recorded import Recording, recordings
from tests.recordings.replaying import answered, replaying
from tests.recordings.responses_events import accumulated
from tests.recordings.responses_request import read_responses_request
from tests.recordings.test_openai_responses_requests import normalised
from tests.vendor import Vendor

Json = dict[str, Any]

# Reasoning and tools in plain and streamed turns; one whose client sent item ids and phases back.
CONVERSATIONS = {
    "openai": ("openai-a99ae1fe24da", "openai-eb96e4f8575e", "openai-c6b3dea2a8ba", "openai-8b19d9a45c92"),
    "openai-streamed": ("openai-11820fb3fdbd", "openai-7a37e79a1193", "openai-c6a4c21289f3", "openai-4964d4a8f8de"),
    "openai-parallel-calls": ("openai-de70138b3b72", "openai-57326432a1d2"),
    "openai-phases": ("openai-98c8fe293112", "openai-85b2dbc22498"),
    "openai-web-search": ("openai-eaeb86b1d127", "openai-00fb27b4a9eb"),
    "xai-streamed": ("xai-828686d43737", "xai-81d5cb5b396e", "xai-b7a61fc93df8", "xai-a95a0f9e19c3"),
}
STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_a_conversation_reaches_the_vendor_as_recorded(serve: Serve, name: str) -> None:
    """Turn by turn, with signatures byte for byte, whatever the history went through on its way."""
    by_id = {recording.id: recording for recording in recordings("openai.responses")}
    turns = [by_id[turn] for turn in CONVERSATIONS[name]]

    vendor_name = turns[0].vendor
    async with Vendor(replaying(turns)) as vendor:
        provider = {"host": vendor_name, "adapter": "openai-responses", "base_url": vendor.base_url, "api_key": "key"}
        async with serve(providers={vendor_name: provider}) as headgate:
            history: list[pb.Message] = []
            for number, turn in enumerate(turns):
                said = {**turn.request, "input": new_input(turns, number)}
                if number:
                    said.pop("instructions", None)
                request = read_responses_request(said, vendor_name)
                history += request.messages
                del request.messages[:]
                request.messages.extend(history)
                answer = await answered(headgate, request, turn.is_stream)
                history.append(answer.candidates[0].message)
    assert len(vendor.exchanges) == len(turns)
    issued: list[str] = []
    for exchange, turn in zip(vendor.exchanges, turns, strict=True):
        assert signatures(exchange.json["input"]) == issued
        assert as_the_client_says_it(exchange.json, turn) == as_recorded(turn)
        issued += signatures(recorded_answer(turn)["output"])
    assert issued


def new_input(turns: list[Recording], number: int) -> list[Json]:
    """What a turn's input adds to the turn before and its answer."""
    items: list[Json] = turns[number].request["input"]
    if number == 0:
        return items
    before = turns[number - 1]
    return items[len(before.request["input"]) + len(recorded_answer(before)["output"]) :]


def recorded_answer(turn: Recording) -> Json:
    """The vendor's answer of a turn."""
    answer: Json = accumulated(chunks(turn.body)) if turn.is_stream else json.loads(turn.body)
    return answer


def signatures(items: list[Json]) -> list[str]:
    """The encrypted reasoning of items, in order."""
    return [item["encrypted_content"] for item in items if item.get("encrypted_content")]


def as_recorded(turn: Recording) -> Json:
    """The recorded request, without its signatures: the recording has only their beginnings."""
    return without_signatures(normalised(turn.request, turn.target.host.quirks))


def as_the_client_says_it(sent: Json, turn: Recording) -> Json:
    """Our request without what the recorded client had dropped of the vendor's items: ids, states, sources."""
    recorded_items = as_recorded(turn)["input"]
    items = [without_what_is_dropped(*pair) for pair in zip(sent["input"], recorded_items, strict=True)]
    return without_signatures(normalised({**sent, "input": items}, turn.target.host.quirks))


def without_signatures(body: Json) -> Json:
    """The request without encrypted reasoning."""
    items = [{key: value for key, value in item.items() if key != "encrypted_content"} for item in body["input"]]
    return {**body, "input": items}


def without_what_is_dropped(item: Json, recorded: Json) -> Json:
    """The item with the members that the recorded one has, and its quotation marks straight, as the recorder has them.

    Citations and log probabilities are not compared.
    """
    if "id" not in recorded:
        item = {key: value for key, value in item.items() if key not in ("id", "status", "phase")}
    if item.get("type") == "web_search_call":
        item["action"].pop("sources", None)
    if item.get("role") == "assistant" and isinstance(item["content"], list):
        for piece in item["content"]:
            piece["text"] = piece["text"].translate(STRAIGHT)
            if "id" in item:
                piece["annotations"] = []
            else:
                del piece["annotations"], piece["logprobs"]
    return item
