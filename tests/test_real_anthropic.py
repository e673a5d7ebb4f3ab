"""Anthropic's wire on real input: a real llama.cpp server behind a real `headgate serve`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import grpc.aio
import pytest
from headgate import v1 as pb

from tests.fold import check_invariants, fold
from tests.headgate_process import ask, failing
from tests.tools import headgate_serve, inference_server

WEATHER_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    }
)

pytestmark = [pytest.mark.real_server, pytest.mark.xdist_group("real_server")]


@pytest.fixture(scope="module")
async def stub(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[pb.InferenceServiceAsyncStub]:
    """A Headgate in front of a real inference server, which it speaks to in Anthropic's wire."""
    directory = tmp_path_factory.mktemp("real-anthropic")
    async with inference_server(directory, "chat", "SECRET") as base_url:
        config = directory / "headgate.yaml"
        config.write_text(
            f"""
auth: {{anonymous: true}}
providers:
  local: {{host: llamacpp, adapter: anthropic, base_url: "{base_url}", api_key: SECRET}}
  locked: {{host: llamacpp, adapter: anthropic, base_url: "{base_url}", api_key: WRONG}}
"""
        )
        async with headgate_serve("--config", str(config)) as headgate:
            async with grpc.aio.insecure_channel(headgate.address) as channel:
                yield pb.InferenceServiceStub(channel)


def limited(tokens: int) -> pb.GenerationConfig:
    return pb.GenerationConfig(max_output_tokens=tokens, temperature=0)


async def streamed(stub: pb.InferenceServiceAsyncStub, request: pb.GenerateRequest) -> pb.GenerateResponse:
    """The fold of the stream."""
    events = [event async for event in stub.StreamGenerate(request)]
    check_invariants(events)
    return fold(events)


async def test_generate_answers_with_usage_and_a_finish_reason(stub: pb.InferenceServiceAsyncStub) -> None:
    """Text, tokens counted, and no setting lost."""
    answer = await stub.Generate(ask("local/tiny-random", config=limited(40)), timeout=60)
    (candidate,) = answer.candidates
    assert candidate.message.parts[0].text
    assert candidate.finish.provider_reason in ("end_turn", "max_tokens")
    assert 0 < answer.usage.output_tokens <= 40
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert {warning.code for warning in answer.warnings} <= {"price-unknown"}


async def test_a_stream_folds_to_the_plain_answer(stub: pb.InferenceServiceAsyncStub) -> None:
    """At temperature 0 both say the same, and count the same input whatever of it was cached."""
    request = ask("local/tiny-random", "Count", config=limited(48))
    plain = await stub.Generate(request)
    folded = await streamed(stub, request)
    assert folded.candidates == plain.candidates
    assert folded.usage.total_tokens == plain.usage.total_tokens


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_whole_tool_loop_runs(stub: pb.InferenceServiceAsyncStub, is_stream: bool) -> None:
    """The model calls a tool, the answer goes back as history with the result, and the model answers in text."""
    tool = pb.Tool(function=pb.FunctionTool(name="weather", parameters_schema=WEATHER_SCHEMA))
    request = ask("local/tiny-random", "How is the weather?", tools=[tool], config=limited(200))
    answer = await streamed(stub, request) if is_stream else await stub.Generate(request)
    assert answer.candidates[0].finish.reason == pb.FINISH_REASON_TOOL_CALLS
    message = answer.candidates[0].message
    calls = [part.tool_call for part in message.parts if part.HasField("tool_call")]
    assert calls
    results = [pb.Part(tool_result=pb.ToolResult(call_id=c.id, parts=[pb.Part(text="18 degrees")])) for c in calls]
    for call in calls:
        assert set(json.loads(call.arguments)) == {"city", "unit"}
    request.messages.extend([message, pb.Message(role=pb.ROLE_TOOL, parts=results)])
    final = await stub.Generate(request)
    assert any(part.text for part in final.candidates[0].message.parts)


async def test_errors_in_openai_s_shape_are_classified(stub: pb.InferenceServiceAsyncStub) -> None:
    """llama.cpp answers so also on this wire: a wrong key, and more input than its context holds."""
    failed = await failing(stub.Generate(ask("locked/tiny-random", config=limited(5))))
    assert (failed.reason, failed.facts["http_status"]) == ("PROVIDER_CREDENTIALS_REJECTED", "401")
    failed = await failing(stub.Generate(ask("local/tiny-random", "z" * 9000, config=limited(5))))
    assert (failed.reason, failed.facts["http_status"]) == ("CONTEXT_LENGTH_EXCEEDED", "400")
