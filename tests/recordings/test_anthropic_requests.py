"""Every recorded Messages request can be asked for through the contract, and goes out as it was recorded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import pytest
from anthropic.types.beta import message_create_params
from headgate import v1 as pb
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, ValidationError
from typing_extensions import get_type_hints

from headgate_server.errors import InvalidRequest
from headgate_server.providers import anthropic
from headgate_server.validation import check_generate
from tests.recordings.messages_request import read_messages_request
from tests.recordings.recorded import SPECS, Recording, recordings

Json = dict[str, Any]

NOT_READ = {"anthropic-d40297e57bd2": "an invalid request on purpose: a message is a string"}
REFUSED_BY_THE_GATEWAY = {"anthropic-3bac6c693ff7": "a tool result answers another conversation's call"}
# What the description of 0.121.0 does not know yet, by recording.
BEYOND_THE_DESCRIPTION = {
    "anthropic-2a563a4c0682": "mcp_tool_use and mcp_tool_result, which are beta",
    "anthropic-4621c3468cbf": "advisor_20260301, which is beta",
    "anthropic-7bcf3ac93567": "tool_addition, which is newer",
    "anthropic-ecd36fbda94e": "mcp_tool_use and mcp_tool_result, which are beta",
}
BETA_MEMBERS = {"mcp_servers"}
# The newest models refuse them, and the newest package has no fields for them; the others still take them.
NO_LONGER_TYPED = {"temperature", "top_p", "top_k"}


def readable() -> list[Recording]:
    """The recordings with a request that this test can read."""
    found = recordings("anthropic.messages")
    return [r for r in found if r.request is not None and r.id not in NOT_READ]


def read(recording: Recording) -> pb.GenerateRequest:
    """The recorded request in the contract's words."""
    return read_messages_request(
        recording.request, recording.vendor, recording.request_headers.get("anthropic-beta", "")
    )


def encoded(recording: Recording) -> tuple[Json, Json, list[pb.Warning]]:
    """What our adapter sends for the recorded request: body and headers, with its warnings."""
    call = anthropic.encode(read(recording), recording.target, stream=bool(recording.request.get("stream")))
    assert call.path == "/messages"
    sent: Json = json.loads(call.body)
    return sent, call.headers, call.warnings


def test_recorded_requests_go_out_as_they_were_recorded() -> None:
    """Request -> contract -> request is the identity, but for the normalisations below; nothing is warned of."""
    differing = []
    for recording in readable():
        sent, headers, warnings = encoded(recording)
        assert not warnings, (recording.id, warnings)
        assert headers.get("anthropic-beta") == recording.request_headers.get("anthropic-beta")
        if normalised(sent) != normalised(recording.request):
            differing.append(recording.id)
    assert not differing


def test_recorded_requests_are_valid_by_the_contract() -> None:
    """What the test reads passes the gateway's own validation, but for what it refuses rightly."""
    for recording in readable():
        if recording.id in REFUSED_BY_THE_GATEWAY:
            with pytest.raises(InvalidRequest, match="no earlier tool call"):
                check_generate(read(recording))
        else:
            check_generate(read(recording))


def test_requests_are_valid_by_anthropic_s_own_description() -> None:
    """Every request validates, and has no member that the description does not know."""
    wrong = []
    for recording in readable():
        sent, _, _ = encoded(recording)
        validator, known = schema("MessageStreamRequest" if sent.get("stream") else "MessageRequest")
        unknown = sent.keys() - known - BETA_MEMBERS
        if unknown or not validator.is_valid(sent):
            wrong.append(recording.id)
    assert sorted(wrong) == sorted(BEYOND_THE_DESCRIPTION)


def test_the_vendor_s_own_package_takes_what_we_send() -> None:
    """Every request is of the newest package's types, beta blocks included, with no member that it does not know."""
    request_type: TypeAdapter[Any] = TypeAdapter(message_create_params.MessageCreateParamsNonStreaming)
    known = get_type_hints(message_create_params.MessageCreateParamsNonStreaming).keys() | NO_LONGER_TYPED
    for recording in readable():
        sent, _, _ = encoded(recording)
        sent.pop("stream", None)
        assert sent.keys() <= known, recording.id
        read_to_the_end(request_type.validate_python(sent))
    wrong = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "moon"}]}]}
    lazily_validated = request_type.validate_python(wrong)
    with pytest.raises(ValidationError):
        read_to_the_end(lazily_validated)


def read_to_the_end(validated: object) -> None:
    """Reads everything in it: pydantic validates an Iterable only as it is read."""
    if isinstance(validated, Mapping):
        validated = validated.values()
    if isinstance(validated, Iterable) and not isinstance(validated, str):
        for item in validated:
            read_to_the_end(item)


@cache
def schema(root_name: str) -> tuple[Draft202012Validator, frozenset[str]]:
    """Anthropic's description of a request, and the names of its members."""
    file = SPECS / "anthropic-messages.schema.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    document = json.loads(file.read_text())
    root = document["roots"][root_name]
    return Draft202012Validator({"$defs": document["$defs"], **root}), frozenset(root["properties"])


def normalised(request: Json) -> Json:
    """The request without the differences that do not matter, each of which is written here."""
    body = without_nulls(request)
    if not body.get("stream"):
        body.pop("stream", None)
    # The beta's name of what is output_config.format since.
    if "output_format" in body:
        body.setdefault("output_config", {})["format"] = body.pop("output_format")
    if "system" in body:
        body["system"] = normalised_content(body["system"])
    body["tools"] = [normalised_tool(tool) for tool in body.get("tools", [])]
    body["messages"] = [{**m, "content": normalised_content(m["content"])} for m in body["messages"]]
    return body


def normalised_tool(tool: Json) -> Json:
    """The tool without an empty description, which describes nothing."""
    return {key: value for key, value in tool.items() if value or key != "description"}


def normalised_content(content: str | list[Json]) -> list[Json]:
    """A string is one block of text."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [normalised_block(block) for block in content]


def normalised_block(block: Json) -> Json:
    """The block without nulls; a result that is no error need not say so."""
    block = without_nulls(block)
    if block["type"] == "tool_result":
        if not block.get("is_error"):
            block.pop("is_error", None)
        if not block.get("content"):
            block.pop("content", None)
        if "content" in block:
            block["content"] = normalised_content(block["content"])
    return block


def without_nulls(found: Json) -> Json:
    """The object without its null members: they say nothing."""
    return {key: value for key, value in found.items() if value is not None}
