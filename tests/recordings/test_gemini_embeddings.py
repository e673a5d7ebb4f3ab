"""Every recorded embedding exchange with Google can be asked for, and its matrix is read to the last bit."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from google.genai import types as google_types
from headgate import v1 as pb
from jsonschema import Draft202012Validator

from headgate_server.providers import gemini, vertex
from headgate_server.providers.base import Target
from tests.recordings.recorded import SPECS, Recording, recordings

Json = dict[str, Any]

ADAPTERS: dict[str, ModuleType] = {"gemini": gemini, "vertex": vertex}


def embeddings() -> list[Recording]:
    """Both calls of Google's that embed text."""
    return [*recordings("gemini.embed"), *recordings("vertex.predict")]


def target(recording: Recording) -> Target:
    """The target that the request was sent to; its model is in the path."""
    model = recording.path.partition("/models/")[2].partition(":")[0]
    return replace(recording.target, model=model)


def read_request(recorded: Json, issuer: str) -> pb.EmbedRequest:
    """The recorded request in the contract's words: the test's own reader."""
    request = pb.EmbedRequest(model=f"{issuer}/any")
    for item in recorded.get("requests") or [recorded]:
        for instance in item.get("instances", []):
            request.inputs.add(text=instance["content"])
        if "content" in item:
            (part,) = item["content"]["parts"]
            request.inputs.add(text=part["text"])
        if "outputDimensionality" in item:
            request.dimensions = item["outputDimensionality"]
        assert item.keys() <= {"model", "content", "outputDimensionality", "instances"}
    return request


def encoded(recording: Recording) -> tuple[str, Json]:
    """Path and body of what our adapter sends."""
    request = read_request(recording.request, recording.vendor)
    call = ADAPTERS[recording.vendor].encode_embed(request, request.inputs, target(recording))
    assert not call.warnings
    sent: Json = json.loads(call.body)
    return call.path, sent


def test_recorded_requests_go_out_as_they_were_recorded() -> None:
    """Request -> contract -> request is the identity, path included."""
    for recording in embeddings():
        path, sent = encoded(recording)
        assert recording.path.endswith(path), recording.id
        assert sent == recording.request


def test_requests_are_valid_by_google_s_own_description() -> None:
    """Every batch validates, and has no member that the description does not know."""
    file = SPECS / "gemini-v1beta.schema.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    document = json.loads(file.read_text())
    schema = {"$defs": document["$defs"], **document["roots"]["BatchEmbedContentsRequest"]}
    for recording in recordings("gemini.embed"):
        _, sent = encoded(recording)
        model = "models/any"
        batch = sent if "requests" in sent else {"requests": [{"model": model, **sent}]}
        Draft202012Validator(schema).validate(batch)


def test_matrices_are_read_to_the_last_bit() -> None:
    """Rows in the order of the inputs, as float32; usage as reported, absent where it was not."""
    for recording in embeddings():
        body = json.loads(recording.body)
        rows = rows_of(body)
        answer = gemini.decode_embed(recording.body, len(rows), target(recording))
        assert (answer.rows, answer.dimensions) == (len(rows), len(rows[0]))
        assert answer.data == b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)
        reported = body.get("usageMetadata", {}).get("promptTokenCount")
        if "predictions" in body:
            reported = sum(row["embeddings"]["statistics"]["token_count"] for row in body["predictions"])
        assert answer.usage.HasField("input_tokens") == (reported is not None)
        assert answer.usage.input_tokens == (reported or 0)


def test_google_s_own_package_knows_what_we_send() -> None:
    """Contents, as google-genai has them."""
    for recording in recordings("gemini.embed"):
        _, sent = encoded(recording)
        for item in sent.get("requests") or [sent]:
            google_types.Content.model_validate(item["content"])


def rows_of(body: Json) -> list[list[float]]:
    """The vectors of an answer to any of the three calls."""
    if "predictions" in body:
        return [prediction["embeddings"]["values"] for prediction in body["predictions"]]
    return [item["values"] for item in body.get("embeddings") or [body["embedding"]]]
