"""Recorded conversations of several turns through the front door, our own answers going back as history."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from headgate import v1 as pb

from tests.conftest import Serve
from tests.recordings.gemini_request import read_gemini_request
from tests.recordings.recorded import recordings
from tests.recordings.replaying import answered, replaying
from tests.recordings.test_gemini_requests import normalised, signatures, target
from tests.vendor import Vendor

Json = dict[str, Any]

CONVERSATIONS = {
    "gemini-streamed": ("gemini-d312b08e3378", "gemini-c3cf6bdd53fd", "gemini-b30717ef7952", "gemini-3a7d4d9f786c"),
    "gemini-call-by-call": ("gemini-af4176483d62", "gemini-c9f04bf3a620", "gemini-1f26523ff01c"),
    "gemini-parallel-calls": ("gemini-481ff94d59c6", "gemini-90a64b7cec7c"),
    "gemini-hosted-code": ("gemini-2efb28ca20f3", "gemini-afa14346b53b"),
    "gemini-3": ("gemini-80cdc335e6e9", "gemini-51b7346e6f7a"),
    "gemini-plain": ("gemini-18740f56b407", "gemini-aa16076eb1d8"),
    "vertex-streamed": ("vertex-d2d1d6de4840", "vertex-c6a4710e69e3", "vertex-54984e1ef6d4", "vertex-5903f66f8c43"),
    "vertex-no-parameters": (
        "vertex-9940f4ac93fb",
        "vertex-3803544e57b6",
        "vertex-7095d601b90a",
        "vertex-32915a5ef6b5",
    ),
    "vertex-parallel-calls": ("vertex-d906673fe311", "vertex-3c023761fc73"),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_a_conversation_reaches_the_vendor_as_recorded(serve: Serve, name: str) -> None:
    """Turn by turn, with signatures byte for byte, though calls had no ids and got ours on their way."""
    by_id = {recording.id: recording for recording in recordings("gemini.generate")}
    turns = [by_id[turn] for turn in CONVERSATIONS[name]]

    issuer = turns[0].vendor
    async with Vendor(replaying(turns)) as vendor:
        provider = {"base_url": vendor.base_url, "api_key": "key"}
        async with serve(providers={issuer: provider}) as headgate:
            history: list[pb.Message] = []
            for turn in turns:
                request = read_gemini_request(turn.request, issuer, target(turn).model)
                added = list(request.messages)[len(history) :]
                answer_own_calls(added, history)
                history += added
                del request.messages[:]
                request.messages.extend(history)
                answer = await answered(headgate, request, turn.is_stream)
                history.append(answer.candidates[0].message)
    seen = 0
    for exchange, turn in zip(vendor.exchanges, turns, strict=True):
        expected = without_repeated_signatures(normalised(turn.request))
        assert as_the_client_says_it(exchange.json, expected) == expected
        seen += sum(len(signatures(content)) for content in exchange.json["contents"])
    assert seen


def answer_own_calls(added: list[pb.Message], history: list[pb.Message]) -> None:
    """Gives the results of the last calls the ids that these have in our own answer."""
    calls = [part.tool_call for message in history[-1:] for part in message.parts if part.HasField("tool_call")]
    for message in added:
        for part in message.parts:
            if part.HasField("tool_result"):
                place = next(n for n, call in enumerate(calls) if call.name == part.tool_result.name)
                part.tool_result.call_id = calls.pop(place).id


def without_repeated_signatures(body: Json) -> Json:
    """The recorded request without the signatures that a client gave to later calls of the same turn as well."""
    for content in body["contents"]:
        for before, part in reversed(list(pairwise(content["parts"]))):
            if part.get("thoughtSignature") == before.get("thoughtSignature"):
                part.pop("thoughtSignature", None)
    return body


def as_the_client_says_it(sent: Json, recorded: Json) -> Json:
    """Our request without what the recorded client had dropped of the vendor's answer: thoughts, and ids of calls."""
    for content, known in zip(sent["contents"], recorded["contents"], strict=True):
        if not any(part.get("thought") for part in known["parts"]):
            content["parts"] = [part for part in content["parts"] if not part.get("thought")]
        for part, other in zip(content["parts"], known["parts"], strict=True):
            for member in ("functionCall", "functionResponse"):
                if member in part and "id" not in other[member]:
                    part[member].pop("id", None)
    return sent
