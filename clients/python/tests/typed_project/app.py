"""A consumer of the package, for type checkers: every type is what it should be, to the last field."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_type

from headgate import (
    Answer,
    AsyncClient,
    AsyncStream,
    Client,
    RateLimited,
    Stream,
    StreamInterrupted,
    ToolRun,
    image,
    user,
    v1 as pb,
)
from headgate.errors import Limit
from headgate.testing import Reply, ScriptedServer


@dataclass
class Weather:
    city: str
    celsius: float


def weather(city: str) -> Weather:
    """Tells the weather."""
    return Weather(city, 3)


def sync(client: Client) -> None:
    answer = client.generate("fast", "Hello", temperature=0.2, stop_sequences=["END"], labels={"team": "search"})
    assert_type(answer, Answer)
    assert_type(answer.text, str)
    assert_type(answer.usage.input_tokens, int)
    assert_type(answer.proto.candidates[0].message.parts[0].tool_call.arguments, str)
    assert_type(answer.cost, pb.Cost | None)
    assert_type(answer.parse(Weather), Weather)
    assert_type(answer.parse(Weather).celsius, float)
    with client.stream("fast", [{"role": "user", "content": "Hi"}, answer, user("And?", image("cat.png"))]) as stream:
        assert_type(stream, Stream)
        assert_type(stream.text, Generator[str, None, None])
        for event in stream:
            assert_type(event, pb.StreamGenerateResponse)
        assert_type(stream.final(), Answer)
    run = client.run_tools("fast", "Weather?", [weather], max_rounds=3, reasoning="low")
    assert_type(run, ToolRun)
    assert_type(run.messages, Sequence[pb.Message])
    rows, columns = client.embed("minilm", ["a", "b"]).shape
    print(rows, columns)
    assert_type(client.embed_response("minilm", "a"), pb.EmbedResponse)
    assert_type(client.models(timeout=3), list[pb.Model])
    assert_type(client.health().providers[0].success_rate, float)


async def asynchronous(client: AsyncClient) -> None:
    assert_type(await client.generate("fast", "Hello"), Answer)
    async with client.stream("fast", "Hello") as stream:
        assert_type(stream, AsyncStream)
        assert_type(stream.text, AsyncGenerator[str, None])
        async for event in stream:
            assert_type(event.text_delta, str)
        assert_type(await stream.final(), Answer)
    assert_type(await client.run_tools("fast", "Weather?", [weather]), ToolRun)


def failing(client: Client) -> None:
    try:
        client.generate("fast", "Hello")
    except RateLimited as error:
        assert_type(error.retry_after, float | None)
        assert_type(error.limits, tuple[Limit, ...])
    except StreamInterrupted as error:
        assert_type(error.partial, Answer | None)


def main() -> None:
    with ScriptedServer({"fast": [Reply(text="Hello")]}) as server:
        with Client(server.address, api_key="k", ca=Path("ca.pem"), tls=True) as client:
            sync(client)
            failing(client)
        asyncio.run(asynchronous(AsyncClient(server.address, token=lambda: "t")))
