"""Every recorded Embeddings exchange can be asked for, and its matrix is read to the last bit."""

from __future__ import annotations

import json
import struct
from base64 import b64decode
from typing import Any

import pytest
from headgate import v1 as pb
from jsonschema import Draft202012Validator

from headgate_server.errors import ProviderModelMissing, ProviderRejectedRequest
from headgate_server.providers import openai
from tests.recordings.recorded import SPECS, Recording, recordings

Json = dict[str, Any]

INVALID_ON_PURPOSE = {
    "openai-24811d5984a3": "dimensions -42",
    "openai-f3e5c19ef3e4": "dimensions -42",
    "llamacpp-5d0da6e75020": "an empty input",
    "llamacpp-9c2bcfdae0a8": "an empty input",
}
ERRORS = {400: ProviderRejectedRequest, 404: ProviderModelMissing}


def read_request(recorded: Json, issuer: str) -> pb.EmbedRequest:
    """The recorded request in the contract's words: the test's own reader."""
    body = {key: value for key, value in recorded.items() if value is not None}
    request = pb.EmbedRequest(model=f"{issuer}/{body.pop('model')}")
    given = body.pop("input")
    if isinstance(given, str) or isinstance(given[0], int):
        given = [given]
    for item in given:
        if isinstance(item, str):
            request.inputs.add(text=item)
        else:
            request.inputs.add(token_ids=pb.TokenIds(values=item))
    if "dimensions" in body:
        request.dimensions = body.pop("dimensions")
    request.end_user_id = body.pop("user", "")
    body.pop("encoding_format", None)
    assert not body, f"not read: {body.keys()}"
    return request


def normalised(request: Json) -> Json:
    """The request without the differences that do not matter, each of which is written here."""
    body = {key: value for key, value in request.items() if value is not None}
    # We ask for base64 where the host has it, whatever the client asked for.
    body.pop("encoding_format", None)
    # A single input is a list of one.
    if isinstance(body["input"], str) or isinstance(body["input"][0], int):
        body["input"] = [body["input"]]
    return body


def readable() -> list[Recording]:
    """The recordings with a request that this test can read."""
    found = recordings("openai.embeddings")
    return [r for r in found if r.request is not None and r.id not in INVALID_ON_PURPOSE]


def test_recorded_requests_go_out_as_they_were_recorded() -> None:
    """Request -> contract -> request is the identity, but for the normalisations."""
    for recording in readable():
        request = read_request(recording.request, recording.vendor)
        call = openai.encode_embed(request, request.inputs, recording.target)
        assert normalised(json.loads(call.body)) == normalised(recording.request), recording.id
        assert not call.warnings


def test_openai_requests_are_valid_by_openai_s_own_description() -> None:
    """Every request for OpenAI validates, and has no member that the description does not know."""
    file = SPECS / "openai-subset.schema.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    document = json.loads(file.read_text())
    schema = {"$defs": document["$defs"], **document["roots"]["EmbeddingRequest"]}
    known = document["$defs"]["CreateEmbeddingRequest"]["properties"]
    for recording in readable():
        if recording.vendor == "openai":
            request = read_request(recording.request, recording.vendor)
            sent = json.loads(openai.encode_embed(request, request.inputs, recording.target).body)
            Draft202012Validator(schema).validate(sent)
            assert sent.keys() <= known.keys()


def test_matrices_are_read_to_the_last_bit() -> None:
    """Rows in the order of the inputs, as float32, whether they came as base64 or as floats; usage as reported."""
    for recording in recordings("openai.embeddings"):
        if recording.status != 200:
            continue
        body = json.loads(recording.body)
        rows = sorted(body["data"], key=lambda item: item["index"])
        answer = openai.decode_embed(recording.body, len(rows), recording.target)
        assert answer.rows == len(rows)
        dimensions = recording.request.get("dimensions") if recording.request else None
        assert answer.dimensions == dimensions or dimensions is None
        assert len(answer.data) == 4 * answer.rows * answer.dimensions
        assert answer.data == b"".join(packed(row["embedding"], recording.vendor) for row in rows)
        assert answer.usage.input_tokens == body["usage"]["prompt_tokens"]
        assert answer.usage.total_tokens == body["usage"]["total_tokens"]


def test_errors_are_classified_as_the_table_says() -> None:
    """By status, as for chat."""
    for recording in recordings("openai.embeddings"):
        if recording.status in ERRORS:
            error = openai.error(recording.status, recording.headers, recording.body, recording.target)
            assert type(error) is ERRORS[recording.status], recording.id


def packed(embedding: str | list[float], vendor: str) -> bytes:
    """One row as packed float32. Perplexity's base64 is of signed bytes."""
    if isinstance(embedding, str) and vendor == "perplexity":
        return b"".join(struct.pack("<f", number) for (number,) in struct.iter_unpack("b", b64decode(embedding)))
    if isinstance(embedding, str):
        return b64decode(embedding)
    return b"".join(struct.pack("<f", number) for number in embedding)
