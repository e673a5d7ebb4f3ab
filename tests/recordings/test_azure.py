"""Every recorded exchange with Azure: the address it went to, and the way of some of them through the front door."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import grpc
import pytest
from headgate import v1 as pb

from headgate_server.providers import azure_openai
from headgate_server.providers.azure_openai import responses as azure_openai_responses
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.hosts import HOSTS
from tests.conftest import Serve
from tests.fold import check_invariants, fold
from tests.headgate_process import failing
from tests.recordings import test_openai_embeddings, test_openai_requests, test_openai_responses_requests
from tests.recordings.chat_request import read_chat_request
from tests.recordings.recorded import Recording, recordings
from tests.recordings.responses_request import read_responses_request
from tests.vendor import Exchange, Vendor

Json = dict[str, Any]

ROW = HOSTS["azure"]
ISSUER = "azure-openai"
APIS = ("openai.chat", "openai.embeddings", "openai.responses")
FILTERED = "azure-0399f2a20766"
RATE_LIMITED = "azure-c8755283070f"
# Its client was told a deployment and a model of other names; the deployment counts, and is what we send as the model.
TWO_NAMES = "azure-efaede1a238f"
VERSION = "2024-10-21"
ANSWER_HEADERS = ("content-type", "retry-after", "retry-after-ms", "apim-request-id")
NO_QUERY = "azure-1fb0ac8f675a"


class Address(NamedTuple):
    """What a configuration says of the address that a recorded client called."""

    base_path: str
    api_version: str
    model: str


def recorded(api: str) -> list[Recording]:
    """The exchanges of Azure whose path is a client's; the converter made those of sdk-dumps up."""
    found = [recording for recording in recordings(api) if recording.vendor == "azure"]
    return [recording for recording in found if recording.request is not None and recording.fidelity != "sdk-dump"]


def path_of(recording: Recording) -> str:
    """The recorded path with its query; one was recorded without it, and one client wrote a slash too many."""
    query = f"?api-version={VERSION}" if recording.id == NO_QUERY else ""
    return re.sub("^//", "/", recording.path) + query


def address(recording: Recording) -> Address:
    """Read from the recorded path."""
    path, _, query = path_of(recording).partition("?")
    model = recording.request["model"]
    if deployment := re.fullmatch(r"/openai/deployments/([^/]+)/.+", path):
        model = deployment[1]
    base_path = "/models" if path.startswith("/models/") else ""
    return Address(base_path, query.removeprefix("api-version="), model)


def target_of(recording: Recording) -> Target:
    """The target that a configuration for the recorded address makes."""
    base_path, version, model = address(recording)
    host = replace(ROW, base_url=f"https://example.invalid{base_path}", api_version=version)
    return Target(provider="azure", model=model, host=host, issuer=ISSUER)


def encoded(recording: Recording) -> HttpCall:
    """What our adapter sends for the recorded request."""
    stream = bool(recording.request.get("stream"))
    target = target_of(recording)
    if recording.api == "openai.chat":
        return azure_openai.encode(read_chat_request(recording.request, ISSUER), target, stream=stream)
    if recording.api == "openai.responses":
        return azure_openai_responses.encode(read_responses_request(recording.request, ISSUER), target, stream=stream)
    request = test_openai_embeddings.read_request(recording.request, ISSUER)
    return azure_openai.encode_embed(request, request.inputs, target)


def normalised(recording: Recording, body: Json) -> Json:
    """The body without the differences that do not matter on its wire."""
    if recording.id == TWO_NAMES:
        body = {**body, "model": address(recording).model}
    by_api: dict[str, Callable[[Json], Json]] = {
        "openai.chat": lambda found: test_openai_requests.normalised(found, ROW.quirks),
        "openai.embeddings": test_openai_embeddings.normalised,
        "openai.responses": lambda found: test_openai_responses_requests.normalised(found, ROW.quirks),
    }
    return by_api[recording.api](body)


@pytest.mark.parametrize("api", APIS)
def test_recorded_requests_go_where_they_were_recorded(api: str) -> None:
    """Path, query and body are the client's, whichever of Azure's addresses it had."""
    for recording in recorded(api):
        call = encoded(recording)
        base_path = address(recording).base_path
        assert base_path + call.path == path_of(recording), recording.id
        assert normalised(recording, json.loads(call.body)) == normalised(recording, recording.request), recording.id
        assert not call.warnings


def test_every_kind_of_address_is_among_the_recorded() -> None:
    """Deployments, the v1 API and the models endpoint; counted, so that none of it is proven by nothing."""
    kinds: Counter[str] = Counter()
    for api in APIS:
        for recording in recorded(api):
            base_path, version, _ = address(recording)
            kinds[base_path or ("deployments" if version else "v1")] += 1
    print("\nrecorded addresses:", dict(kinds))
    assert kinds == {"/models": 20, "deployments": 5, "v1": 6}


def test_keys_go_out_under_the_recorded_name() -> None:
    """Wherever a recording kept its credential, it is an api-key."""
    kept = [
        name.lower()
        for api in APIS
        for recording in recorded(api)
        for name, value in recording.request_headers.items()
        if value == "REDACTED"
    ]
    assert len(kept) > 20
    assert set(kept) == azure_openai.headers("secret").keys()


async def replayed(serve: Serve, recording: Recording, status: int = 200) -> tuple[Exchange, Any]:
    """What Azure was sent and what the caller was told, with the recorded answer behind a real gateway."""

    async def replays(exchange: Exchange) -> None:
        headers = {name: value for name, value in recording.headers.items() if name in ANSWER_HEADERS}
        await exchange.answer(status, recording.body, headers)

    _, version, model = address(recording)
    async with Vendor(replays) as vendor:
        provider = {
            "adapter": "azure-openai-responses" if recording.api == "openai.responses" else "azure-openai",
            "base_url": f"http://127.0.0.1:{vendor.port}",
            "api_key": "secret",
            "api_version": version,
        }
        async with serve(providers={"azure": provider}) as headgate:
            answer = await answer_to(recording, f"azure/{model}", headgate.stub)
    (exchange,) = vendor.exchanges
    return exchange, answer


async def answer_to(recording: Recording, model: str, stub: pb.InferenceServiceAsyncStub) -> Any:
    """The answer to the recorded request, a stream folded."""
    if recording.api == "openai.embeddings":
        embed = test_openai_embeddings.read_request(recording.request, ISSUER)
        embed.model = model
        return await stub.Embed(embed)
    read = read_responses_request if recording.api == "openai.responses" else read_chat_request
    request = read(recording.request, ISSUER)
    request.model = model
    if not recording.request.get("stream"):
        return await stub.Generate(request)
    events = [event async for event in stub.StreamGenerate(request)]
    check_invariants(events)
    return fold(events)


def found(identifier: str) -> Recording:
    """The recording of that id."""
    return next(r for api in APIS for r in recordings(api) if r.id == identifier)


@pytest.mark.parametrize(
    "identifier",
    ["azure-755742e486d5", "azure-efaede1a238f", "azure-d218f312cfad", "azure-db4fbf1e4855"],
    ids=["deployment", "embeddings", "responses", "streamed-responses"],
)
async def test_a_recorded_exchange_goes_through_the_front_door(serve: Serve, identifier: str) -> None:
    """Address, key and body are what Azure was really sent, and its answer reaches the caller."""
    recording = found(identifier)
    exchange, answer = await replayed(serve, recording)
    assert exchange.path == path_of(recording)
    assert exchange.headers["api-key"] == "secret"
    assert "authorization" not in exchange.headers
    assert normalised(recording, exchange.json) == normalised(recording, recording.request)
    assert answer.rows == 1 if recording.api == "openai.embeddings" else answer.candidates[0].message.parts
    assert answer.provider == "azure"
    assert answer.usage.total_tokens > 0


async def test_what_the_filter_says_of_a_prompt_is_kept_from_the_first_chunk(serve: Serve) -> None:
    """It comes before any choice, in a chunk without an object; the plain answer has it in the same place."""
    streamed = found("azure-64e4ce9c0cef")
    first = json.loads(streamed.body.partition(b"data: ")[2].partition(b"\n")[0])
    assert first["choices"] == []
    assert first["prompt_filter_results"]
    _, answer = await replayed(serve, streamed)
    assert metadata(answer)["prompt_filter_results"] == first["prompt_filter_results"]
    assert answer.candidates[0].finish.reason == pb.FINISH_REASON_TOOL_CALLS

    plain = found("azure-755742e486d5")
    body = json.loads(plain.body)
    _, answer = await replayed(serve, plain)
    assert metadata(answer)["prompt_filter_results"] == body["prompt_filter_results"]
    of_choice = body["choices"][0]["content_filter_results"]
    assert metadata(answer)["choices"] == [{"index": 0, "content_filter_results": of_choice}]


def metadata(message: Any) -> Json:
    """What Azure said beyond the contract."""
    given: Json = json.loads(message.provider_metadata[ISSUER])
    return given


@pytest.mark.parametrize("status", [400, 200])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_the_filter_blocks_is_answered(serve: Serve, stream: bool, status: int) -> None:
    """With OK, CONTENT_FILTER and the categories as Azure gave them, also in a 200, which it was recorded with."""
    recording = found(FILTERED)
    recording = replace(recording, request={**recording.request, "stream": stream})
    _, answer = await replayed(serve, recording, status)
    (candidate,) = answer.candidates
    assert candidate.finish.reason == pb.FINISH_REASON_CONTENT_FILTER
    assert candidate.finish.provider_reason == "content_filter"
    error = json.loads(recording.body)["error"]
    assert metadata(candidate) == {"content_filter_result": error["innererror"]["content_filter_result"]}
    assert error["message"] not in str(answer)
    assert [attempt.outcome for attempt in answer.attempts] == [pb.ATTEMPT_OUTCOME_OK]


async def test_a_rate_limit_says_when_to_come_back(serve: Serve) -> None:
    """By Retry-After; the milliseconds beside it were 0."""
    recording = found(RATE_LIMITED)
    assert (recording.headers["retry-after"], recording.headers["retry-after-ms"]) == ("1", "0")
    refused = await failing(replayed(serve, recording, 429))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PROVIDER_RATE_LIMITED")
    assert refused.details["RetryInfo"].retry_delay.ToSeconds() == 1
