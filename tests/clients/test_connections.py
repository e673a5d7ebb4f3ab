"""How clients reach a server, and what every call carries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from headgate import AsyncClient, Client
from headgate.connection import Connection, is_loopback
from headgate.embeddings import MAX_ROWS
from headgate.testing import Reply, ScriptedServer

from tests.clients.both import connected

FAST = Reply(text="a")


async def metadata(kind: str, server: ScriptedServer, **options: Any) -> dict[str, str]:
    """The metadata of one call by a client with these options."""
    server.script("fast", FAST)
    async with connected(kind, server.address, **options) as client:
        await client.generate("fast", "Hi", metadata={"X-Provider-Key-OpenAI": "sk"}, request_id="mine")
    return dict(server.calls[-1].metadata)


async def test_calls_carry_key_ids_and_metadata(kind: str, server: ScriptedServer) -> None:
    """The key as a bearer token, the request id, and metadata of client and call."""
    sent = await metadata(kind, server, api_key="hg_1", metadata={"x-team": "search"})
    assert sent["authorization"] == "Bearer hg_1"
    assert sent["x-request-id"] == "mine"
    assert sent["x-team"] == "search"
    assert sent["x-provider-key-openai"] == "sk"


async def test_metadata_of_a_call_goes_before_the_clients(kind: str, server: ScriptedServer) -> None:
    """Each name is sent once, and an id among them is the call's."""
    server.script("fast", FAST)
    own = {"authorization": "Bearer other", "x-team": "ads", "X-Request-Id": "mine"}
    async with connected(kind, server.address, api_key="hg_1", metadata={"x-team": "search"}) as client:
        answer = await client.generate("fast", "Hi", metadata=own)
    sent = server.calls[-1].metadata
    assert [sent["authorization"], sent["x-team"], sent["x-request-id"]] == ["Bearer other", "ads", "mine"]
    assert answer.request_id == "mine"
    call = Connection.to("", {"api_key": "hg_1", "metadata": {"x-team": "search"}}).call({"metadata": own})
    assert sorted(name for name, _ in call.metadata) == ["authorization", "x-request-id", "x-team"]


@pytest.mark.parametrize(
    ("client_options", "options"),
    [
        ({}, {"request_id": "two\nlines"}),
        ({}, {"metadata": {"X Y": "a"}}),
        ({}, {"metadata": {"x-trace-bin": "a"}}),
        ({"token": lambda: "two\nlines"}, {}),
    ],
)
async def test_what_is_no_text_for_a_header_is_refused(
    kind: str, server: ScriptedServer, client_options: Any, options: Any
) -> None:
    """By ValueError, for calls and streams; gRPC would call it a bug of the server's."""
    async with connected(kind, server.address, **client_options) as client:
        with pytest.raises(ValueError, match="metadata") as caught:
            await client.generate("fast", "Hi", **options)
        with pytest.raises(ValueError, match="metadata"):
            await client.stream("fast", "Hi", **options).final()
    assert "lines" not in str(caught.value)


async def test_a_deadline_may_be_infinite(client: Any, server: ScriptedServer) -> None:
    """It is as good as none, and not one that has passed."""
    server.script("fast", FAST)
    assert (await client.generate("fast", "Hi", timeout=float("inf"))).text == "a"
    assert (await client.stream("fast", "Hi", timeout=1e12).final()).text == "a"


async def test_each_call_has_an_id_of_its_own(client: Any, server: ScriptedServer) -> None:
    """And its answer, or stream, says which."""
    server.script("fast", FAST)
    answers = [await client.generate("fast", "Hi"), await client.stream("fast", "Hi").final()]
    sent = [call.metadata["x-request-id"] for call in server.calls]
    assert [answer.request_id for answer in answers] == sent
    assert len(set(sent)) == 2


async def test_a_token_is_asked_for_at_each_call(kind: str, server: ScriptedServer) -> None:
    """Tokens that expire are a function's to give, once for all batches, and when a stream begins to be read."""
    numbers = iter(range(9))
    server.script("fast", FAST)
    async with connected(kind, server.address, token=lambda: f"t{next(numbers)}") as client:
        await client.generate("fast", "Hi")
        stream = client.stream("fast", "Hi")
        await client.embed("fast", ["Hi"] * (MAX_ROWS + 1))
        await stream.final()
    sent = [call.metadata["authorization"] for call in server.calls]
    assert sent == ["Bearer t0", "Bearer t1", "Bearer t1", "Bearer t2"]


async def test_an_async_token_is_awaited(server: ScriptedServer) -> None:
    """By AsyncClient for calls and streams; Client says that it cannot."""

    async def token() -> str:
        await asyncio.sleep(0)
        return "later"

    assert (await metadata("async", server, token=token))["authorization"] == "Bearer later"
    async with AsyncClient(server.address, token=token) as client:
        await client.stream("fast", "Hi").final()
    assert {call.metadata["authorization"] for call in server.calls} == {"Bearer later"}
    with Client(server.address, token=lambda: token()) as sync, pytest.raises(TypeError, match="AsyncClient"):
        sync.generate("fast", "Hi")


async def test_address_and_key_come_from_the_environment(
    kind: str, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HEADGATE_ADDRESS and HEADGATE_API_KEY serve where nothing is given."""
    monkeypatch.setenv("HEADGATE_ADDRESS", server.address)
    monkeypatch.setenv("HEADGATE_API_KEY", "hg_env")
    server.script("fast", FAST)
    async with connected(kind, "") as client:
        await client.generate("fast", "Hi")
    assert server.calls[-1].metadata["authorization"] == "Bearer hg_env"
    async with connected(kind, "", token=lambda: "given") as client:
        await client.generate("fast", "Hi")
    assert server.calls[-1].metadata["authorization"] == "Bearer given"


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("localhost:50051", True),
        ("127.0.0.1:1", True),
        ("[::1]:1", True),
        ("dns:///localhost:1", True),
        ("unix:/run/headgate.sock", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("headgate.prod:50051", False),
        ("localhost.evil.example:50051", False),
        ("dns://8.8.8.8/headgate.prod", False),
        ("dns://8.8.8.8/localhost:1", False),
        ("10.0.0.1:50051", False),
        ("xds:///headgate", False),
    ],
)
def test_plain_text_is_for_loopback_alone(address: str, local: bool) -> None:
    """Everything else goes by TLS unless that is turned off."""
    assert is_loopback(address) is local
    assert (Connection.to(address, {}).credentials is None) is local
    assert Connection.to(address, {"tls": False}).credentials is None
    assert Connection.to(address, {"tls": True}).credentials is not None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"api_key": "a", "token": lambda: "b"}, TypeError),
        ({"certificate": b"x"}, TypeError),
        ({"ca": b"x", "tls": False}, TypeError),
        ({"api_key": "line\nbreak"}, ValueError),
        ({"metadata": {"x-team": "ü"}}, ValueError),
        ({"ca": "/no/such/file.pem"}, OSError),
        ({"adress": "typo"}, TypeError),
        ({"address": "http://localhost:50051"}, ValueError),
    ],
)
def test_connections_that_contradict_themselves_are_refused(options: Any, error: type[Exception]) -> None:
    """When the client is made, and without naming secrets."""
    with pytest.raises(error) as caught:
        Client(**{"address": "localhost:1", **options})
    assert "line" not in str(caught.value)


def test_a_server_that_was_long_down_is_tried_again_within_seconds() -> None:
    """By default gRPC waits up to two minutes; `channel_options` may say otherwise."""

    def backoff(options: Any) -> Any:
        return dict(Connection.to("a:1", options).channel_options)["grpc.max_reconnect_backoff_ms"]

    assert backoff({}) == 10_000
    assert backoff({"channel_options": {"grpc.max_reconnect_backoff_ms": 500}}) == 500


def test_secrets_do_not_print() -> None:
    """A connection in a log line shows no key."""
    assert "hg_secret" not in repr(Connection.to("", {"api_key": "hg_secret"}))


async def test_calls_have_spans_and_propagate_them(kind: str, server: ScriptedServer) -> None:
    """With tracing each call is a span of OpenTelemetry's, and the server learns of it."""
    pytest.importorskip("opentelemetry.instrumentation.grpc", reason="the extra headgate[otel] is not installed")
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    server.script("fast", FAST)
    server.script("slow", Reply(text=["a", "b"], hang=True))
    async with connected(kind, server.address, tracing=provider) as client:
        await client.generate("fast", "Hi")
        await client.stream("fast", "Hi").final()
        await client.embed("fast", "Hi")
        async with client.stream("slow", "Hi") as stream:
            await anext(stream.text)
        assert await asyncio.to_thread(server.calls[-1].wait) == "CANCELLED"
    parents = [call.metadata["traceparent"].split("-")[2] for call in server.calls[:3]]
    spans = {f"{span.context.span_id:016x}": span for span in exporter.get_finished_spans()}
    assert [spans[parent].name.rpartition("/")[2] for parent in parents] == ["Generate", "StreamGenerate", "Embed"]


def test_tracing_without_its_extra_says_so() -> None:
    """At the start, in one line."""
    import subprocess
    import sys

    program = """
import sys
sys.modules["opentelemetry"] = None
from headgate import Client
try:
    Client("localhost:1", tracing=True)
except ImportError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "tracing needs the extra headgate[otel]"
