"""Both clients against a real Headgate: its mock, its limits and keys, and llama.cpp behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headgate import AsyncClient, RateLimited, Unauthenticated, v1 as pb
from headgate.errors import InvalidRequest, ModelNotFound, ServerUnreachable, error_for
from headgate.fold import fold

from headgate_server import errors as server_errors
from headgate_server.errors import GatewayError
from tests.certificates import Authority
from tests.clients.both import connected
from tests.fold import check_invariants, fold as oracle
from tests.headgate_process import running
from tests.identity.callers import MOCK, PEPPER, static_key
from tests.tools import inference_server

WEATHER_SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}


def weather(city: str) -> str:
    """Tells the weather."""
    return f"cold in {city}"


async def test_the_mock_answers_in_every_way(kind: str) -> None:
    """Plain, streamed, tools, embeddings, models and health."""
    async with running(providers=MOCK) as headgate, connected(kind, headgate.address) as client:
        assert (await client.generate("demo/echo", "Grüße, 世界")).text == "Grüße, 世界"
        stream = client.stream("demo/lorem", "Hi", max_output_tokens=9)
        text = "".join([piece async for piece in stream.text])
        answer = await stream.final()
        assert answer.text == text
        assert answer.finish_reason == pb.FINISH_REASON_MAX_TOKENS
        assert answer.usage.output_tokens == 9
        assert (await client.run_tools("demo/tools", "Weather?", [weather])).text.startswith("The tool answered: cold")
        matrix = await client.embed("demo/embed", ["a", "b", "a"])
        assert matrix.shape[0] == 3
        assert np.array_equal(matrix[0], matrix[2])
        assert (await client.health()).state == pb.SERVING_STATE_SERVING
        assert isinstance(await client.models(), list)


async def test_failures_of_a_real_server_are_classes(kind: str) -> None:
    """Its limits, validation and names come as errors with what they say."""
    limits = {"rules": [{"unit": "requests", "limit": 1, "window": 60}]}
    async with running(providers=MOCK, limits=limits) as headgate, connected(kind, headgate.address) as client:
        with pytest.raises(InvalidRequest) as invalid:
            await client.generate("demo/echo", [])
        assert invalid.value.violations[0].field == "messages"
        with pytest.raises(ModelNotFound):
            await client.generate("nothing", "Hi")
        await client.generate("demo/echo", "Hi")
        with pytest.raises(RateLimited) as limited:
            await client.generate("demo/echo", "Hi", request_id="mine")
        assert limited.value.retryable
        assert 0 < (limited.value.retry_after or 0) <= 61
        assert limited.value.limits
        assert limited.value.request_id == "mine"


def test_every_reason_of_the_server_is_known() -> None:
    """The client's tree has each reason that the server may send, under the same status."""
    errors = [each for each in vars(server_errors).values() if isinstance(each, type)]
    sent = {(each.reason, each.code) for each in errors if issubclass(each, GatewayError)}
    assert sent <= {(error_for(reason).reason, error_for(reason).code) for reason, _ in sent}


async def test_streams_fold_to_what_the_servers_own_oracle_says() -> None:
    """The client's fold and that of the server's tests agree on real streams."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER_SCHEMA}}
    async with running(providers=MOCK) as headgate, AsyncClient(headgate.address) as client:
        for model in ("demo/echo", "demo/lorem", "demo/tools"):
            events = [event async for event in client.stream(model, "Hi", tools=[tool], candidate_count=2)]
            check_invariants(events)
            assert fold(events) == oracle(events)


async def test_mutual_tls_by_files_and_bytes(kind: str, tmp_path: Path) -> None:
    """A server that asks for certificates is reached with one, and only with one."""
    authority = Authority()
    server, own = authority.server(), authority.client()
    for name, pem in {"ca": authority.certificate, "cert": server.certificate, "key": server.key}.items():
        (tmp_path / name).write_bytes(pem)
    files = {"certificate_file": "cert", "key_file": "key", "client_ca_file": "ca"}
    tls = {setting: str(tmp_path / name) for setting, name in files.items()}
    async with running(server={"tls": tls}, providers=MOCK) as headgate:
        credentials = {"certificate": own.certificate, "private_key": own.key}
        async with connected(kind, headgate.address, ca=tmp_path / "ca", **credentials) as client:
            assert (await client.generate("demo/echo", "Hi", timeout=10)).text == "Hi"
        async with connected(kind, headgate.address, ca=authority.certificate) as client:
            with pytest.raises(ServerUnreachable):
                await client.generate("demo/echo", "Hi", timeout=5)


async def test_a_key_lets_in_and_a_wrong_one_does_not(kind: str) -> None:
    """By `api_key` and by `token` alike."""
    key, keys = static_key()
    async with running(auth={"pepper": PEPPER, "keys": keys}, providers=MOCK) as headgate:
        for credentials in ({"api_key": key.text}, {"token": lambda: key.text}):
            async with connected(kind, headgate.address, **credentials) as client:
                assert (await client.generate("demo/echo", "Hi")).text == "Hi"
        async with connected(kind, headgate.address, api_key="wrong") as client:
            with pytest.raises(Unauthenticated):
                await client.generate("demo/echo", "Hi")


@pytest.mark.real_server
async def test_llama_cpp_behind_it(kind: str, tmp_path: Path) -> None:
    """A real model: plain and streamed, a whole tool loop, JSON by a schema."""
    async with inference_server(tmp_path, "chat") as base_url:
        local = {"local": {"adapter": "openai", "base_url": base_url}}
        async with running(providers=local) as headgate, connected(kind, headgate.address) as client:
            options: dict[str, Any] = {"max_output_tokens": 40, "seed": 1, "temperature": 0}
            whole = await client.generate("local/tiny", "Hi", **options)
            stream = client.stream("local/tiny", "Hi", **options)
            assert "".join([text async for text in stream.text]) == whole.text
            assert (await stream.final()).usage.output_tokens == whole.usage.output_tokens
            form = {"title": "weather", **WEATHER_SCHEMA}
            answer = await client.generate("local/tiny", "Hi", response_format=form, max_output_tokens=200)
            assert json.loads(answer.text)["city"] in ("Oslo", "Rome")
            declared = {"type": "function", "function": {"name": "weather", "parameters": WEATHER_SCHEMA}}
            called = await client.generate("local/tiny", "Hi", tools=[declared], tool_choice="required", seed=1)
            assert called.tool_calls[0].name == "weather"
