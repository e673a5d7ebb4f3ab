"""Recorded Chat Completions conversations through the front door: our own answers go back as history."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise
from typing import Any

from headgate_server.providers.hosts import HOSTS
from tests.conftest import Serve
from tests.recordings.chat_chunks import accumulated, chunks
from tests.recordings.chat_request import read_chat_request
from tests.recordings.recorded import Recording
from tests.recordings.replaying import answered, replaying
from tests.recordings.test_openai_requests import normalised, readable
from tests.vendor import Vendor

Json = dict[str, Any]

REDACTED = {"qwen-74c0f683b46d": "whoever published the recording took a path out of the arguments"}


@cache
def conversations() -> tuple[tuple[Recording, Recording], ...]:
    """Turns of one conversation at a known host, each with the next that holds its messages and an answer."""
    turns: dict[str, list[Recording]] = defaultdict(list)
    for recording in readable():
        if recording.status == 200 and recording.vendor in HOSTS and recording.fidelity.startswith("wire"):
            turns[recording.conversation].append(recording)
    pairs = (pair for recorded in turns.values() for pair in pairwise(recorded) if continues(*pair))
    return tuple((first, then) for first, then in pairs if then.id not in REDACTED)


def continues(first: Recording, then: Recording) -> bool:
    """The second request holds the first one's messages, and the recorded answer to them."""
    before, after = first.request["messages"], then.request["messages"]
    if len(after) <= len(before) or after[: len(before)] != before:
        return False
    answer, returned = recorded_message(first), after[len(before)]
    return returned["role"] == "assistant" and call_ids(answer) == call_ids(returned)


def recorded_message(recording: Recording) -> Json:
    """The message of the first choice, put together from its chunks where it was streamed."""
    body = accumulated(chunks(recording.body)) if recording.is_stream else json.loads(recording.body)
    message: Json = body["choices"][0]["message"]
    return message


def call_ids(message: Json) -> list[str]:
    return [call["id"] for call in message.get("tool_calls") or ()]


async def continued(serve: Serve, first: Recording, then: Recording) -> Json:
    """What the vendor receives as the second turn, when the first one's answer is ours."""
    async with Vendor(replaying([first, then])) as vendor:
        provider = {"host": first.vendor, "base_url": vendor.base_url, "api_key": "recorded"}
        async with serve(providers={first.vendor: provider}) as headgate:
            answer = await answered(headgate, read_chat_request(first.request, first.vendor), first.is_stream)
            request = read_chat_request(then.request, then.vendor)
            message = answer.candidates[0].message
            message.provider_metadata.update(answer.candidates[0].provider_metadata)
            request.messages[len(first.request["messages"])].CopyFrom(message)
            await answered(headgate, request, then.is_stream)
    received: Json = vendor.exchanges[1].json
    return received


def comparable(request: Json, vendor: str) -> Json:
    """The request without what clients change on an answer's way back: the spelling of arguments, members that say
    nothing, and OpenRouter's `reasoning`, which is also in reasoning_details."""
    body = normalised(request, HOSTS[vendor].quirks)
    body["messages"] = [_comparable_message(message) for message in body["messages"]]
    return body


def _comparable_message(message: Json) -> Json:
    kept = {name: value for name, value in message.items() if value not in (None, "", [])}
    if "reasoning_details" in kept:
        kept.pop("reasoning", None)
    if calls := kept.get("tool_calls"):
        functions = [call["function"] for call in calls]
        read = [{**function, "arguments": json.loads(function["arguments"])} for function in functions]
        kept["tool_calls"] = [{**call, "function": one} for call, one in zip(calls, read, strict=True)]
    return kept


async def test_recorded_conversations_are_continued_with_our_own_answers(serve: Serve) -> None:
    """The vendor receives what the recording has: calls and their ids, reasoning, signatures in reasoning_details."""
    counts: Counter[str] = Counter()
    for first, then in conversations():
        received = await continued(serve, first, then)
        assert comparable(received, then.vendor) == comparable(then.request, then.vendor), then.id
        counts[then.vendor] += 1
        returned = received["messages"][len(first.request["messages"])]
        assert returned.get("reasoning_details") == recorded_message(first).get("reasoning_details"), then.id
    print("\nconversations continued:", dict(sorted(counts.items())))
    assert counts.total() >= 40
    assert {"openai", "azure", "deepseek", "mistral", "openrouter", "qwen"} <= counts.keys()
