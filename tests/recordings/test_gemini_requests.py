"""Every recorded generateContent request can be asked for through the contract, and goes out as it was recorded."""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest
from google.genai import types as google_types
from headgate import v1 as pb
from jsonschema import Draft202012Validator

from headgate_server.providers import gemini, vertex
from headgate_server.providers.base import Target
from tests.recordings.gemini_request import base64, camel, read_gemini_request
from tests.recordings.recorded import SPECS, Recording, recordings

Json = dict[str, Any]

ADAPTERS: dict[str, ModuleType] = {"gemini": gemini, "vertex": vertex}
NOT_READ = {"vertex-238006150a73": "an invalid request on purpose: no such role"}
# The description is older than these members, and than the id of executableCode.
NEWER = {"toolCall", "toolResponse", "includeServerSideToolInvocations", "thinkingLevel", "modelArmorConfig"}
NEWER |= {"executableCode"}


def readable() -> list[Recording]:
    """The recordings with a request that this test can read."""
    found = recordings("gemini.generate")
    return [r for r in found if r.request is not None and r.id not in NOT_READ]


def target(recording: Recording) -> Target:
    """The target that the request was sent to; its model is in the path."""
    path = recording.path.partition(":")[0]
    return replace(recording.target, model=unquote(path.rpartition("/models/")[2]))


def encoded(recording: Recording) -> tuple[Json, list[pb.Warning]]:
    """What our adapter sends for the recorded request, and its warnings."""
    to = target(recording)
    request = read_gemini_request(recording.request, recording.vendor, to.model)
    call = ADAPTERS[recording.vendor].encode(request, to, stream=recording.is_stream)
    assert call.path.endswith(
        recording.path.partition("models/")[2].partition("?")[0] + "?alt=sse" * recording.is_stream
    )
    sent: Json = json.loads(call.body)
    return sent, call.warnings


def test_recorded_requests_go_out_as_they_were_recorded() -> None:
    """Request -> contract -> request is the identity, but for the normalisations below; nothing is lost."""
    differing = []
    for recording in readable():
        sent, warnings = encoded(recording)
        if sent != normalised(recording.request) or warnings:
            differing.append(recording.id)
    assert not differing


def test_signatures_go_out_byte_for_byte() -> None:
    """Every recorded signature stands in what we send, on the part where it stood."""
    seen = 0
    for recording in readable():
        sent, _ = encoded(recording)
        expected = [signatures(content) for content in camel(recording.request)["contents"]]
        assert [signatures(content) for content in sent["contents"]] == expected
        seen += sum(len(signatures) for signatures in expected)
    assert seen > 60


def test_schemas_and_arguments_go_out_byte_for_byte() -> None:
    """A caller's JSON text is in the body as it was written, spaces and order included."""
    schema = '{ "type":"object",  "properties": {"b": {"type": "number", "maximum": 1.50}, "a": {}} }'
    arguments = '{"b":  1.0, "a": 12345678901234567890}'
    request = pb.GenerateRequest(
        messages=[
            pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Go")]),
            pb.Message(
                role=pb.ROLE_ASSISTANT,
                parts=[pb.Part(tool_call=pb.ToolCall(id="1", name="f", arguments=arguments))],
            ),
        ],
        tools=[pb.Tool(function=pb.FunctionTool(name="f", parameters_schema=schema))],
    )
    to = Target("gemini", "gemini-2.5-flash", recordings("gemini.generate")[0].target.host, "gemini")
    body = gemini.encode(request, to, stream=False).body
    assert f'"parametersJsonSchema":{schema}'.encode() in body
    assert f'"args":{arguments}'.encode() in body


def test_requests_are_valid_by_google_s_own_description() -> None:
    """Every request that the vendor accepted validates, unknown members included, but for those newer than it."""
    validator = request_schema()
    wrong = []
    for recording in readable():
        sent, _ = encoded(recording)
        if recording.status == 200 and not _mentions(sent, NEWER) and not validator.is_valid(sent):
            wrong.append((recording.id, next(validator.iter_errors(sent)).message))
    assert not wrong


def test_google_s_own_package_knows_every_member_that_we_send() -> None:
    """The types of google-genai, which forbid unknown members, accept contents, tools and configuration."""
    for recording in readable():
        sent, _ = encoded(recording)
        for content in (*sent["contents"], *filter(None, [sent.get("systemInstruction")])):
            google_types.Content.model_validate(content)
        for tool in sent.get("tools", []):
            for declaration in tool.get("functionDeclarations", []):
                if isinstance(declaration.get("parameters", {}).get("type"), int):
                    del declaration["parameters"]  # numbers of an older package, which this one has forgotten
            google_types.Tool.model_validate(tool)
        google_types.GenerationConfig.model_validate(sent.get("generationConfig", {}))
        google_types.ToolConfig.model_validate(sent.get("toolConfig", {}))


def test_report_what_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the counts by vendor."""
    counts = Counter(recording.vendor for recording in readable())
    bodies = Counter(r.vendor for r in recordings("gemini.generate") if r.request is None)
    with capsys.disabled():
        print(f"\n  requests {dict(counts)}, answers without request {dict(bodies)}, not read {NOT_READ}", end="")
    assert counts.total() + bodies.total() + len(NOT_READ) == len(recordings("gemini.generate"))


@cache
def request_schema() -> Draft202012Validator:
    """Google's description of the request, which forbids unknown members."""
    file = SPECS / "gemini-v1beta.schema.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    document = json.loads(file.read_text())
    root = document["roots"]["GenerateContentRequest"]
    return Draft202012Validator({"$defs": document["$defs"], **root})


def normalised(recorded: Json) -> Json:
    """The request without the differences that do not matter, each of which is written here."""
    # Both spellings are the vendor's; ours is camelCase.
    body: Json = camel(recorded)
    # The model stands in the path.
    body.pop("model", None)
    # Instructions have no role.
    body.get("systemInstruction", {}).pop("role", None)
    # One tool is a list of one; no tools are none.
    if isinstance(body.get("tools"), dict):
        body["tools"] = [body["tools"]]
    if not body.get("tools"):
        body.pop("tools", None)
    for tool in body.get("tools", []):
        for declaration in tool.get("functionDeclarations", []):
            # An empty description describes nothing.
            if not declaration.get("description"):
                declaration.pop("description", None)
            # A JSON Schema goes out as such, whichever member a client put it in.
            if declaration.get("parameters", {}).get("type") == "object":
                declaration["parametersJsonSchema"] = declaration.pop("parameters")
    for content in body["contents"]:
        for part in content["parts"]:
            # Base64 goes out in the usual alphabet.
            if blob := part.get("inlineData"):
                blob["data"] = b64encode(base64(blob["data"])).decode()
    calling = body.get("toolConfig", {}).get("functionCallingConfig", {})
    if "mode" in calling:
        calling["mode"] = calling["mode"].upper()
    config = body.get("generationConfig", {})
    thinking = config.get("thinkingConfig", {})
    if "thinkingLevel" in thinking:
        thinking["thinkingLevel"] = thinking["thinkingLevel"].upper()
    if not config:
        body.pop("generationConfig", None)
    return body


def signatures(content: Json) -> list[tuple[int, str]]:
    """The signatures of a content, each with the place of its part."""
    return [(n, part["thoughtSignature"]) for n, part in enumerate(content["parts"]) if "thoughtSignature" in part]


def _mentions(value: Any, names: set[str]) -> bool:
    if isinstance(value, list):
        return any(_mentions(item, names) for item in value)
    return isinstance(value, dict) and any(name in names or _mentions(inner, names) for name, inner in value.items())
