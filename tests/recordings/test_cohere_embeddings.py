"""Every recorded embedding exchange with Cohere can be asked for, and its matrix is read to the last bit."""

from __future__ import annotations

import json
import struct
from typing import Any

import httpx
from cohere import ClientV2
from headgate import v1 as pb

from headgate_server.providers import cohere
from tests.recordings.recorded import Recording, recordings

Json = dict[str, Any]

TASKS = {"search_query": "retrieval-query", "search_document": "retrieval-document"}


def read_request(recorded: Json, issuer: str) -> pb.EmbedRequest:
    """The recorded request in the contract's words: the test's own reader."""
    body = {key: value for key, value in recorded.items() if value is not None}
    request = pb.EmbedRequest(model=f"{issuer}/{body.pop('model')}", task_type=TASKS[body.pop("input_type")])
    for text in body.pop("texts"):
        request.inputs.add(text=text)
    assert body.pop("embedding_types", ["float"]) == ["float"]
    assert body.keys() <= {"truncate"}
    if body:
        request.provider_options[issuer] = json.dumps(body)
    return request


def encoded(recording: Recording) -> Json:
    """What our adapter sends."""
    request = read_request(recording.request, recording.vendor)
    call = cohere.encode_embed(request, request.inputs, recording.target)
    assert recording.path == f"/v2{call.path}"
    assert not call.warnings
    sent: Json = json.loads(call.body)
    return sent


def test_recorded_requests_go_out_as_they_were_recorded() -> None:
    """Request -> contract -> request is the identity: nulls say nothing, and floats are what comes unasked."""
    for recording in recordings("cohere.embed"):
        recorded = {key: value for key, value in recording.request.items() if value is not None}
        assert encoded(recording) == {"embedding_types": ["float"], **recorded}


def test_the_vendor_s_own_package_sends_and_reads_the_same() -> None:
    """The official client takes what we send as its arguments, and reads the same numbers."""
    (recording,) = (r for r in recordings("cohere.embed") if r.status == 200)
    received: list[Json] = []

    def answer(request: httpx.Request) -> httpx.Response:
        received.append(json.loads(request.content))
        return httpx.Response(200, content=recording.body)

    sent = encoded(recording)
    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        found = ClientV2(api_key="k", httpx_client=http).embed(**sent)
    assert received == [sent]
    rows = found.embeddings.float_
    assert rows is not None
    ours = cohere.decode_embed(recording.body, len(rows), recording.target)
    assert ours.data == b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)


def test_matrices_are_read_to_the_last_bit() -> None:
    """Rows in the order of the inputs, as float32; what is billed is all that is said of usage."""
    for recording in recordings("cohere.embed"):
        if recording.status != 200:
            continue
        body = json.loads(recording.body)
        rows = body["embeddings"]["float"]
        answer = cohere.decode_embed(recording.body, len(recording.request["texts"]), recording.target)
        assert (answer.rows, answer.dimensions) == (len(rows), len(rows[0]))
        assert answer.data == b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)
        assert answer.usage.input_tokens == body["meta"]["billed_units"]["input_tokens"]
        assert json.loads(answer.usage.provider_json) == body["meta"]
