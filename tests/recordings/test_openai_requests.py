"""Every recorded Chat Completions request can be asked for through the contract, and goes out as it was recorded."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from typing import Any

import pytest
from headgate import v1 as pb
from jsonschema import Draft202012Validator

from headgate_server.providers import openai
from headgate_server.providers.hosts import Quirks
from tests.recordings.chat_request import read_chat_request
from tests.recordings.recorded import SPECS, Recording, recordings

Json = dict[str, Any]

NOT_READ = {
    "llamacpp-3dc16e3b5fa0": "the body is broken JSON on purpose",
    "llamacpp-2866ab1b9b63": "an invalid request on purpose: no messages",
    "openrouter-a17acfaee4e7": "refused: it has the vendor choose among models",
    "openrouter-0775483a6317": "refused: it has the vendor choose among models",
    "openai-4b488d597763": "an invalid request on purpose: no messages",
}
# Settings that a client sent although its host has none: they become warnings.
NOT_SENT = {("ollama", "tool_choice.parallel_calls"): "parallel_tool_calls"}


def readable() -> list[Recording]:
    """The recordings with a request that this test can read."""
    found = recordings("openai.chat")
    return [r for r in found if r.request is not None and r.id not in NOT_READ]


def encoded(recording: Recording) -> tuple[Json, list[pb.Warning]]:
    """What our adapter sends for the recorded request, and its warnings."""
    request = read_chat_request(recording.request, recording.vendor)
    call = openai.encode(request, recording.target, stream=bool(recording.request.get("stream")))
    assert call.path == "/chat/completions"
    sent: Json = json.loads(call.body)
    return sent, call.warnings


def test_recorded_requests_go_out_as_they_were_recorded() -> None:
    """Request -> contract -> request is the identity, but for the normalisations below."""
    differing = []
    for recording in readable():
        quirks = recording.target.host.quirks
        sent, warnings = encoded(recording)
        lost = {NOT_SENT[recording.vendor, warning.field] for warning in warnings}
        recorded = {name: value for name, value in recording.request.items() if name not in lost}
        if normalised(sent, quirks) != normalised(recorded, quirks):
            differing.append(recording.id)
    assert not differing


def test_openai_requests_are_valid_by_openai_s_own_description() -> None:
    """Every request that OpenAI accepted validates, and has no member that the description does not know."""
    validator, known = chat_schema()
    wrong = []
    for recording in readable():
        if recording.vendor != "openai" or recording.status != 200:
            continue
        sent, _ = encoded(recording)
        unknown = sent.keys() - known
        if unknown or not validator.is_valid(sent):
            wrong.append((recording.id, unknown, next(validator.iter_errors(sent), None)))
    assert not wrong


def test_every_recorded_request_is_read_but_the_ones_named_here() -> None:
    """Counts them by vendor; pytest -s shows the table, and why the others are not read."""
    counts = Counter(recording.vendor for recording in readable())
    print("\nrequests read:", dict(sorted(counts.items())))
    unread = [r for r in recordings("openai.chat") if r.request is None or r.id in NOT_READ]
    for recording in unread:
        print("not read:", recording.id, NOT_READ.get(recording.id, "only the answer was recorded"))
    assert counts.total() + len(unread) == len(recordings("openai.chat"))
    assert NOT_READ.keys() <= {recording.id for recording in unread}


@cache
def chat_schema() -> tuple[Draft202012Validator, frozenset[str]]:
    """OpenAI's description of the request, and the names of its members."""
    file = SPECS / "openai-subset.schema.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    document = json.loads(file.read_text())
    root = document["roots"]["ChatCompletionRequest"]
    names: set[str] = set()

    def collect(schema: Json) -> None:
        if "$ref" in schema:
            collect(document["$defs"][schema["$ref"].rpartition("/")[2]])
        names.update(schema.get("properties", {}))
        for part in schema.get("allOf", []):
            collect(part)

    collect(root)
    return Draft202012Validator({"$defs": document["$defs"], **root}), frozenset(names)


def normalised(request: Json, quirks: Quirks) -> Json:
    """The request without the differences that do not matter, each of which is written here."""
    body = without_nulls(request)
    if not body.get("stream"):
        body.pop("stream", None)
    # Usage in streams is always asked for where the host has it.
    body.pop("stream_options", None)
    # Two names of one limit, and of one end user: the host's own is sent.
    rename(body, "max_completion_tokens", "max_tokens")
    rename(body, "safety_identifier", "user")
    # A single stop sequence is a list of one.
    if isinstance(body.get("stop"), str):
        body["stop"] = [body["stop"]]
    # Functions of 2023 are sent as tools.
    if "functions" in body:
        body["tools"] = [{"type": "function", "function": f} for f in body.pop("functions")]
    rename(body, "function_call", "tool_choice")
    # What its clients call enable_thinking, Ollama reads from reasoning_effort (ollama/ollama#14820).
    if not quirks.thinking_switch and body.pop("enable_thinking", None) is False:
        body["reasoning_effort"] = "none"
    if "json_schema" in body.get("response_format", {}):
        # OpenAI wants a name.
        body["response_format"]["json_schema"].setdefault("name", "response")
    body["tools"] = [normalised_tool(tool) for tool in body.get("tools", [])]
    body["messages"] = [normalised_message(message, quirks) for message in body["messages"]]
    return body


def normalised_tool(tool: Json) -> Json:
    """The tool without nulls."""
    tool = without_nulls(tool)
    for kind in ("function", "custom"):
        if kind in tool:
            tool[kind] = without_nulls(tool[kind])
            # An empty description describes nothing.
            if not tool[kind].get("description"):
                tool[kind].pop("description", None)
    return tool


def normalised_message(message: Json, quirks: Quirks) -> Json:
    """The message without nulls, with its text as a string where it is one, and its thinking under one name."""
    message = without_nulls(message)
    content = message.get("content")
    if isinstance(content, list):
        content = [normalised_item(item) for item in content]
        if len(content) == 1 and content[0].keys() == {"type", "text"}:
            content = content[0]["text"]
        message["content"] = content
    # No content is null, empty or absent.
    if not content:
        message.pop("content", None)
    # Thinking is sent under the host's own name, also where a client sent it under two.
    if "provider_specific_fields" in message:
        message["provider_specific_fields"] = without_nulls(message["provider_specific_fields"])
    thoughts = {message.pop(name, None) for name in ("reasoning_content", "reasoning")} - {None}
    if thoughts:
        (message[quirks.reasoning_echo],) = thoughts
    if "tool_calls" in message:
        message["tool_calls"] = [without(call, "index") for call in message["tool_calls"]]
    return message


def normalised_item(item: Json) -> Json:
    """The content item without nulls; an image's address stands in an object."""
    item = without_nulls(item)
    if isinstance(item.get("image_url"), str):
        item["image_url"] = {"url": item["image_url"]}
    return item


def without_nulls(found: Json) -> Json:
    """The object without its null members: they say nothing."""
    return {key: value for key, value in found.items() if value is not None}


def without(found: Json, name: str) -> Json:
    """The object without one member."""
    return {key: value for key, value in found.items() if key != name}


def rename(body: Json, old: str, new: str) -> None:
    """Gives a member its other name."""
    if old in body:
        body[new] = body.pop(old)
