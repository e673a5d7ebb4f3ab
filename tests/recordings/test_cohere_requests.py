"""Every recorded request to Cohere's chat can be asked for through the contract, and goes out as it was recorded."""

from __future__ import annotations

import json
from typing import Any

import httpx
from cohere import ClientV2
from headgate import v1 as pb

from headgate_server.providers import cohere
from headgate_server.validation import check_generate
from tests.recordings.cohere_request import read_cohere_request
from tests.recordings.recorded import Recording, recordings

Json = dict[str, Any]

ANOTHER_WIRE = "/v1/chat"


def readable() -> list[Recording]:
    """The recordings of API v2: the rest is of v1, which is another wire, and which Cohere has deprecated."""
    return [recording for recording in recordings("cohere.chat") if recording.path != ANOTHER_WIRE]


def read(recording: Recording) -> pb.GenerateRequest:
    """The recorded request in the contract's words."""
    return read_cohere_request(recording.request, recording.vendor)


def encoded(recording: Recording) -> Json:
    """What our adapter sends for the recorded request, which must lose nothing."""
    call = cohere.encode(read(recording), recording.target, stream=recording.is_stream)
    assert recording.path == f"/v2{call.path}"
    assert not call.warnings, recording.id
    sent: Json = json.loads(call.body)
    return sent


def test_recorded_requests_go_out_as_they_were_recorded() -> None:
    """Request -> contract -> request is the identity, but for the normalisations below; nothing is warned of."""
    differing = [r.id for r in readable() if normalised(encoded(r)) != normalised(r.request)]
    assert not differing


def test_recorded_requests_are_valid_by_the_contract() -> None:
    """What the test reads passes the gateway's own validation."""
    for recording in readable():
        check_generate(read(recording))


def test_the_vendor_s_own_package_sends_the_same() -> None:
    """The official client takes every member that we send as its argument, and puts the same on the wire."""
    received: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        received.append(request)
        if json.loads(request.content)["stream"]:
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=b"data: [DONE]\n\n")
        return httpx.Response(200, json={"id": "x", "finish_reason": "COMPLETE", "message": {"role": "assistant"}})

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        client = ClientV2(api_key="k", httpx_client=http)
        for recording in readable():
            sent = encoded(recording)
            arguments = {name: value for name, value in sent.items() if name != "stream"}
            if recording.is_stream:
                list(client.chat_stream(**arguments))
            else:
                client.chat(**arguments)
            request = received.pop()
            assert json.loads(request.content) == sent
            assert request.url == f"https://api.cohere.com{recording.path}"
            assert request.headers["authorization"] == cohere.headers("k")["authorization"]


def normalised(request: Json) -> Json:
    """The request without the differences that do not matter: `stream` may be left out, a string is one text."""
    body = {"stream": False, **request}
    body["messages"] = [normalised_message(message) for message in body["messages"]]
    return body


def normalised_message(message: Json) -> Json:
    """The message without a null content."""
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return {**message, "content": content or []}
