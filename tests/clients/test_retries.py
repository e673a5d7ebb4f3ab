"""What the shipped service config makes of failures and of several servers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from grpc import StatusCode
from headgate import service_config
from headgate.errors import CallFailed, GatewayDraining, ProviderError, RateLimited, StreamInterrupted, Unavailable
from headgate.testing import Reply, ScriptedServer

from tests.clients.both import connected

AGAIN = Reply(error=GatewayDraining("not me"))


@pytest.mark.parametrize("method", ["generate", "stream", "embed"])
async def test_unavailable_is_tried_again_before_headers(client: Any, server: ScriptedServer, method: str) -> None:
    """A call that nobody has begun to answer is sent again, without the caller's help."""
    server.script("busy", AGAIN, AGAIN, Reply(text="at last"))
    called = getattr(client, method)("busy", "Hi")
    await (called.final() if method == "stream" else called)
    assert len(server.calls) == 3


async def test_nothing_is_tried_again_after_content(client: Any, server: ScriptedServer) -> None:
    """A stream that fails once it has begun is never said twice, even by UNAVAILABLE."""
    server.script("busy", Reply(text=["a"], error=GatewayDraining("in the middle")), Reply(text="b"))
    with pytest.raises(Unavailable) as caught:
        await client.stream("busy", "Hi").final()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"
    assert not caught.value.retryable
    assert len(server.calls) == 1


async def test_a_connection_that_breaks_after_content_interrupts(client: Any, server: ScriptedServer) -> None:
    """A server that dies in the middle of an answer leaves what came, and nobody is told to send the call again."""
    server.script("slow", Reply(text=["a"], hang=True))
    stream = client.stream("slow", "Hi")
    texts = stream.text
    assert await anext(texts) == "a"
    await asyncio.to_thread(server.stop)
    with pytest.raises(StreamInterrupted) as caught:
        await anext(texts)
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"
    assert (caught.value.code, caught.value.retryable) == (StatusCode.ABORTED, False)


@pytest.mark.parametrize("code", [StatusCode.UNAVAILABLE, StatusCode.INTERNAL, StatusCode.UNKNOWN])
async def test_what_a_proxy_says_of_a_broken_stream_interrupts(
    client: Any, server: ScriptedServer, code: StatusCode
) -> None:
    """A status that is not Headgate's own, after content, whatever the proxy calls it."""
    reset = CallFailed("reset")
    reset.code = code
    server.script("cut", Reply(text=["a"], error=reset))
    with pytest.raises(StreamInterrupted, match="reset") as caught:
        await client.stream("cut", "Hi").final()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"


async def test_large_requests_are_tried_again_too(client: Any, server: ScriptedServer) -> None:
    """One with images is longer than gRPC's own buffer for retries."""
    server.script("busy", AGAIN, Reply(text="at last"))
    assert (await client.generate("busy", "x" * 3_000_000)).text == "at last"


@pytest.mark.parametrize(
    "reply", [Reply(error=RateLimited("full", retry_after=0.01)), Reply(error=ProviderError("tried"), pushback_ms=-1)]
)
async def test_what_retries_cannot_mend_is_sent_once(client: Any, server: ScriptedServer, reply: Reply) -> None:
    """Other codes, and failures of vendors that the gateway has asked already, come back at once."""
    server.script("bad", reply)
    with pytest.raises(CallFailed):
        await client.generate("bad", "Hi")
    assert len(server.calls) == 1


async def test_calls_are_spread_over_servers_and_outlive_one(kind: str) -> None:
    """Two addresses share the calls; when one dies, no call is lost."""
    with ScriptedServer({"fast": [Reply(text="a")]}) as first, ScriptedServer({"fast": [Reply(text="b")]}) as second:
        async with connected(kind, f"ipv4:{first.address},{second.address}") as client:
            while not (first.calls and second.calls):
                await client.generate("fast", "Hi")
            texts = [(await client.generate("fast", "Hi")).text for _ in range(10)]
            assert (texts.count("a"), texts.count("b")) == (5, 5)
            await asyncio.to_thread(first.stop)
            assert [(await client.generate("fast", "Hi")).text for _ in range(10)] == ["b"] * 10


def test_the_service_config_retries_unavailable_alone() -> None:
    """The published file is what clients of all languages share."""
    config = json.loads(service_config())
    (methods,) = config["methodConfig"]
    assert methods["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    assert config["healthCheckConfig"] == {"serviceName": "headgate.v1.InferenceService"}
