"""Requests that no honest client sends: each is the caller's own error, and the server serves on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from headgate import v1 as pb

from tests.conftest import LogLines
from tests.headgate_process import Headgate, ask, failing, user

MIB = 1024 * 1024
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


@pytest.fixture
async def healthy(demo: Headgate, logged: LogLines) -> AsyncIterator[Headgate]:
    """The demo server, which answers as before when the test is over, and has logged no error of its own."""
    yield demo
    async with asyncio.timeout(10):
        assert (await demo.stub.Generate(ask("demo/echo"))).candidates[0].message.parts[0].text == "Hi"
        stream = [event async for event in demo.stub.StreamGenerate(ask("demo/echo"))]
        assert stream[-1].HasField("generation_end")
        assert await demo.idle()
    assert logged.errors == []


def turn(role: pb.Role.ValueType, *parts: pb.Part) -> pb.Message:
    return pb.Message(role=role, parts=parts)


def saying(*messages: pb.Message, **fields: Any) -> pb.GenerateRequest:
    """A request of these turns."""
    return pb.GenerateRequest(model="demo/echo", messages=messages, **fields)


def schema(text: str) -> pb.GenerationConfig:
    form = pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, schema=text)
    return pb.GenerationConfig(response_format=form)


def function(parameters: str) -> pb.Tool:
    return pb.Tool(function=pb.FunctionTool(name="f", parameters_schema=parameters))


DEEP_SCHEMA = '{"items":' * 100_000 + "{}" + "}" * 100_000
BAD = {
    "no model": (pb.GenerateRequest(messages=[user("Hi")]), "model"),
    "a long model": (ask("m" * 257), "model"),
    "a long fallback": (
        ask("demo/echo", routing=pb.RoutingPolicy(fallbacks=["demo/echo", "é" * 129])),
        "routing.fallbacks[1]",
    ),
    "no messages": (saying(), "messages"),
    "no parts": (saying(turn(pb.ROLE_USER)), "messages[0].parts"),
    "an empty part": (saying(turn(pb.ROLE_USER, pb.Part())), "messages[0].parts[0]"),
    "no role": (saying(turn(pb.ROLE_UNSPECIFIED, pb.Part(text="Hi"))), "messages[0].role"),
    "an unknown role": (saying(turn(99, pb.Part(text="Hi"))), "messages[0].role"),  # type: ignore[arg-type]  # open enum
    "a schema that is no JSON": (ask("demo/echo", config=schema("{")), "config.response_format.schema"),
    "a schema that is no object": (ask("demo/echo", config=schema("[]")), "config.response_format.schema"),
    "a schema of great depth": (ask("demo/echo", config=schema(DEEP_SCHEMA)), "config.response_format.schema"),
    "tool parameters that are no JSON": (
        ask("demo/echo", tools=[function("{'a': 1}")]),
        "tools[0].function.parameters_schema",
    ),
    "arguments that are no JSON": (
        saying(
            user("Hi"), turn(pb.ROLE_ASSISTANT, pb.Part(tool_call=pb.ToolCall(id="c", name="f", arguments="{oops")))
        ),
        "messages[1].parts[0].tool_call.arguments",
    ),
    "a result without a call": (
        saying(turn(pb.ROLE_TOOL, pb.Part(tool_result=pb.ToolResult(call_id="c")))),
        "messages[0].parts[0].tool_result.call_id",
    ),
    "NaN": (ask("demo/echo", config=pb.GenerationConfig(temperature=float("nan"))), "config.temperature"),
    "infinity": (ask("demo/echo", config=pb.GenerationConfig(top_p=float("inf"))), "config.top_p"),
    "a negative temperature": (ask("demo/echo", config=pb.GenerationConfig(temperature=-1)), "config.temperature"),
    "a negative time": (
        ask("demo/echo", execution=pb.ExecutionPolicy(idle_timeout=Duration(seconds=-1))),
        "execution.idle_timeout",
    ),
    "17 labels": (ask("demo/echo", labels={f"k{n}": "v" for n in range(17)}), "labels"),
    "a long label": (ask("demo/echo", labels={"k": "v" * 257}), "labels"),
    "options that are no JSON": (ask("demo/echo", provider_options={"x": "nope"}), 'provider_options["x"]'),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("method", ["Generate", "StreamGenerate"])
async def test_a_bad_request_is_refused_with_its_field(healthy: Headgate, method: str, case: str) -> None:
    """INVALID_ARGUMENT names the path of what is wrong, and nothing else."""
    request, field = BAD[case]
    failed = await failing(getattr(healthy.stub, method)(request))
    assert (failed.code, failed.reason) == INVALID
    assert set(failed.fields) == {field}


@pytest.mark.parametrize("count", ["max_output_tokens", "candidate_count", "top_k"])
def test_a_negative_count_cannot_be_written(count: str) -> None:
    """Counts are unsigned in the contract, so a generated client refuses them by itself."""
    build: Any = pb.GenerationConfig
    with pytest.raises(ValueError, match="out of range"):
        build(**{count: -1})


@pytest.mark.parametrize("body", [b"\xff\xff\xff\xff garbage", b"\x0a\x7fshort", b"\x0a\x02\xff\xfe", b"\x0b" * 5000])
async def test_bytes_that_are_no_request_are_refused(healthy: Headgate, body: bytes) -> None:
    """Garbage, a cut message, text that is not UTF-8, and groups nested beyond all measure."""
    for shape, method in (("unary_unary", "Generate"), ("unary_stream", "StreamGenerate"), ("unary_unary", "Embed")):
        call: Any = getattr(healthy.channel, shape)(f"/headgate.v1.InferenceService/{method}")
        failed = await failing(call(body))
        assert (failed.code, failed.reason) == INVALID


async def test_a_message_of_40_mib_is_refused_by_the_core(healthy: Headgate) -> None:
    """A message above max_request_bytes is RESOURCE_EXHAUSTED before any code of ours sees it."""
    for call in (healthy.stub.Generate, healthy.stub.StreamGenerate):
        failed = await failing(call(ask("demo/echo", "x" * 40 * MIB)))
        assert failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metadata_of_20_kib_is_refused(healthy: Headgate) -> None:
    """Metadata above max_metadata_bytes fails the call, and neither hangs it nor harms the connection."""
    metadata = (("x-big", "a" * 20 * 1024),)
    for call in (healthy.stub.Generate, healthy.stub.StreamGenerate):
        failed = await failing(call(ask("demo/echo"), metadata=metadata, timeout=5))
        assert failed.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)


@pytest.mark.parametrize("model", ["nope", "nobody/m", "demo/", "/m", "a" * 256, "../../etc/passwd"])
async def test_a_model_that_nobody_serves_is_not_found(healthy: Headgate, model: str) -> None:
    """Whatever it looks like, it is looked up and not found."""
    for call in (healthy.stub.Generate, healthy.stub.StreamGenerate):
        failed = await failing(call(ask(model)))
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_two_messages_for_one_call_are_answered(healthy: Headgate) -> None:
    """A client that sends a second request message where one belongs is not left waiting."""

    async def twice() -> AsyncIterator[bytes]:
        for _ in range(2):
            yield ask("demo/echo").SerializeToString()

    method: Any = healthy.channel.stream_unary("/headgate.v1.InferenceService/Generate")
    assert pb.GenerateResponse.FromString(await method(twice(), timeout=5)).candidates
