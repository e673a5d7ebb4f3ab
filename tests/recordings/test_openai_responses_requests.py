"""Every recorded Responses request can be asked for through the contract, and goes out as it was recorded."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from headgate import v1 as pb
from jsonschema import Draft202012Validator
from openai.types.responses import ToolParam
from openai.types.responses.response_input_param import ResponseInputParam
from pydantic import TypeAdapter, ValidationError

from headgate_server.providers import openai_responses
from headgate_server.providers.hosts import Quirks
from tests.recordings.recorded import SPECS, Recording, recordings
from tests.recordings.responses_request import ENCRYPTED, read_responses_request

Json = dict[str, Any]

# Of body-only recordings, and of two that look a stored response up.
WITHOUT_REQUEST = 19


def readable() -> list[Recording]:
    """The recordings with a request."""
    return [recording for recording in recordings("openai.responses") if recording.request is not None]


def encoded(recording: Recording) -> tuple[Json, list[pb.Warning]]:
    """What our adapter sends for the recorded request, and its warnings."""
    request = read_responses_request(recording.request, recording.vendor)
    call = openai_responses.encode(request, recording.target, stream=bool(recording.request.get("stream")))
    assert call.path == "/responses"
    sent: Json = json.loads(call.body)
    return sent, call.warnings


def test_recorded_requests_go_out_as_they_were_recorded() -> None:
    """Request -> contract -> request is the identity, but for the normalisations below."""
    differing = []
    for recording in readable():
        quirks = recording.target.host.quirks
        sent, warnings = encoded(recording)
        assert not warnings, (recording.id, warnings)
        if normalised(sent, quirks) != normalised(recording.request, quirks):
            differing.append(recording.id)
    assert not differing
    assert len(readable()) == len(recordings("openai.responses")) - WITHOUT_REQUEST


def test_requests_are_as_valid_as_the_recorded_ones() -> None:
    """What OpenAI accepted and its description allows stays allowed, and no request has a member unknown to it."""
    validator, known = responses_schema()
    wrong, checked = [], 0
    for recording in readable():
        if recording.vendor != "openai" or recording.status != 200:
            continue
        sent, _ = encoded(recording)
        assert sent.keys() <= known, (recording.id, sent.keys() - known)
        if validator.is_valid(recording.request):
            checked += 1
            for tool in sent.get("tools", []):
                # The description demands what the vendor does not, as the recordings without it show.
                tool.setdefault("strict", None)
            if not validator.is_valid(sent):
                wrong.append((recording.id, next(validator.iter_errors(sent))))
    assert not wrong
    assert checked > 150


def test_the_vendor_s_own_types_accept_what_they_accept_as_recorded() -> None:
    """OpenAI's Python package, where its types describe the recorded request at all."""
    items, tools = TypeAdapter(ResponseInputParam), TypeAdapter(list[ToolParam])

    def accepts(body: Json) -> bool:
        try:
            items.validate_python(body["input"] if isinstance(body.get("input"), list) else [])
            tools.validate_python([{"strict": None, **tool} for tool in body.get("tools", [])])
        except ValidationError:
            return False
        return True

    accepted = [recording for recording in readable() if accepts(recording.request)]
    assert len(accepted) > 200
    assert [recording.id for recording in accepted if not accepts(encoded(recording)[0])] == []


def test_reasoning_is_asked_for_in_encrypted_form_where_models_reason() -> None:
    """Whatever the recorded client asked for; models of before reasoning would refuse the whole call."""
    for recording in readable():
        sent, _ = encoded(recording)
        assert sent.get("store", False) is False
        old = str(recording.request.get("model", "")).startswith("gpt-4")
        assert (ENCRYPTED in sent.get("include", [])) != old, recording.id


@cache
def responses_schema() -> tuple[Draft202012Validator, frozenset[str]]:
    """OpenAI's description of the request, and the names of its members."""
    file = SPECS / "openai-subset.schema.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    document = json.loads(file.read_text())
    root = document["roots"]["ResponseRequest"]
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
    # Reasoning goes round encrypted instead of being stored, whatever the client chose.
    if not body.get("store"):
        body.pop("store", None)
    body["include"] = [word for word in body.get("include", []) if word != ENCRYPTED]
    # Two names of the end user: the host's own is sent.
    if "user" in body:
        body["safety_identifier"] = body.pop("user")
    # An input of text is one user message, instructions are a system message before all others.
    items = body.get("input") or []
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if "instructions" in body:
        items = [{"role": "system", "content": body.pop("instructions")}, *items]
    body["input"] = [normalised_item(item, quirks) for item in items]
    body["tools"] = [normalised_tool(tool) for tool in body.get("tools", [])]
    if "reasoning" in body:
        body["reasoning"] = without_nulls(body["reasoning"])
    if "format" in body.get("text", {}):
        body["text"] = {**body["text"], "format": without_nulls(body["text"]["format"])}
    return body


def normalised_tool(tool: Json) -> Json:
    """The tool without nulls, and without an empty description, which describes nothing."""
    tool = without_nulls(tool)
    if not tool.get("description"):
        tool.pop("description", None)
    return tool


def normalised_item(item: Json, quirks: Quirks) -> Json:
    """The item without nulls; its type, where a role says it; one text as a string; what goes back, as completed."""
    item = without_nulls(item)
    if "role" in item and "id" not in item and item.get("type") == "message":
        del item["type"]
    if item.get("role") == "developer" and not quirks.developer_role:
        item["role"] = "system"
    for member in ("content", "output"):
        if isinstance(item.get(member), list):
            item[member] = [normalised_content(piece, issued="id" in item) for piece in item[member]]
            if "id" not in item and len(item[member]) == 1 and item[member][0].keys() == {"type", "text"}:
                item[member] = item[member][0]["text"]
    if item.get("type") == "function_call" and "id" in item:
        item.setdefault("status", "completed")
    return item


def normalised_content(piece: Json, *, issued: bool) -> Json:
    """The content with the members that the vendor's description demands."""
    piece = without_nulls(piece)
    if piece["type"] == "input_image":
        piece.setdefault("detail", "auto")
    if piece["type"] == "output_text" and issued:
        piece.setdefault("annotations", [])
        piece.setdefault("logprobs", [])
    return piece


def without_nulls(found: Json) -> Json:
    """The object without its null members: they say nothing."""
    return {key: value for key, value in found.items() if value is not None}
