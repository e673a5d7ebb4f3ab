"""The main job on real input: a real llama.cpp server behind a real `headgate serve`, called by grpcurl and stubs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from headgate import v1 as pb

from tests.headgate_process import ask, failing, user
from tests.tools import grpcurl, headgate_serve, inference_server, messages

SERVICE = "headgate.v1.InferenceService"
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
async def address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A Headgate in front of a real inference server."""
    directory = tmp_path_factory.mktemp("real")
    async with inference_server(directory, "embed") as base_url:
        config = directory / "headgate.yaml"
        config.write_text(
            f"""
server: {{reflection: true}}
auth: {{anonymous: true}}
providers:
  local: {{host: llamacpp, base_url: "{base_url}"}}
models:
  tiny:
    targets: [{{provider: local, model: tiny-random}}]
"""
        )
        async with headgate_serve("--config", str(config)) as headgate:
            yield headgate.address


@pytest.fixture
async def stub(address: str) -> AsyncIterator[pb.InferenceServiceAsyncStub]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield pb.InferenceServiceStub(channel)


async def test_generate_answers_with_usage_and_a_finish_reason(stub: pb.InferenceServiceAsyncStub) -> None:
    """A plain answer of a real model: text, tokens counted, one attempt."""
    answer = await stub.Generate(ask("tiny", config=pb.GenerationConfig(max_output_tokens=40, seed=1)))
    (candidate,) = answer.candidates
    assert candidate.message.parts[0].text
    assert candidate.finish.reason in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_MAX_TOKENS)
    assert 0 < answer.usage.output_tokens <= 40
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.provider == "local"
    assert [attempt.outcome for attempt in answer.attempts] == [pb.ATTEMPT_OUTCOME_OK]


async def test_a_stream_folds_to_the_plain_answer(stub: pb.InferenceServiceAsyncStub) -> None:
    """With one seed, the deltas of the stream concatenate to the text of the plain answer."""
    request = ask("tiny", "Count", config=pb.GenerationConfig(max_output_tokens=48, seed=7, temperature=0))
    answer = await stub.Generate(request)
    events = [event async for event in stub.StreamGenerate(request)]
    assert events[0].HasField("generation_start")
    assert events[-1].HasField("generation_end")
    assert not events[-1].generation_end.partial
    text = "".join(event.text_delta for event in events)
    assert text == answer.candidates[0].message.parts[0].text
    assert events[-1].generation_end.usage.output_tokens == answer.usage.output_tokens
    assert events[-2].candidate_end.finish.reason == answer.candidates[0].finish.reason


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_whole_tool_loop_runs(stub: pb.InferenceServiceAsyncStub, streamed: bool) -> None:
    """The model calls a tool, the answer goes back as history with the result, and the model answers in text."""
    tool = pb.Tool(function=pb.FunctionTool(name="weather", parameters_schema=WEATHER_SCHEMA))
    request = ask(
        "tiny",
        "How is the weather?",
        tools=[tool],
        config=pb.GenerationConfig(max_output_tokens=200, temperature=0, seed=7),
    )
    if streamed:
        message = await _folded(stub, request)
    else:
        message = (await stub.Generate(request)).candidates[0].message
    calls = [part.tool_call for part in message.parts if part.HasField("tool_call")]
    assert calls
    for call in calls:
        assert call.name == "weather"
        assert set(json.loads(call.arguments)) == {"city", "unit"}
    results = [
        pb.Part(tool_result=pb.ToolResult(call_id=call.id, name=call.name, parts=[pb.Part(text="18 degrees")]))
        for call in calls
    ]
    request.messages.extend([message, pb.Message(role=pb.ROLE_TOOL, parts=results)])
    final = await stub.Generate(request)
    assert any(part.text for part in final.candidates[0].message.parts)


async def _folded(stub: pb.InferenceServiceAsyncStub, request: pb.GenerateRequest) -> pb.Message:
    parts: dict[int, pb.Part] = {}
    async for event in stub.StreamGenerate(request):
        match event.WhichOneof("event"):
            case "part_start":
                parts[event.part_index] = event.part_start.part
            case "text_delta":
                parts[event.part_index].text += event.text_delta
            case "arguments_delta":
                parts[event.part_index].tool_call.arguments += event.arguments_delta
    return pb.Message(role=pb.ROLE_ASSISTANT, parts=[parts[index] for index in sorted(parts)])


async def test_output_obeys_a_json_schema(stub: pb.InferenceServiceAsyncStub) -> None:
    """The schema reaches the vendor, which enforces it."""
    form = pb.ResponseFormat(
        type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, name="weather", schema=WEATHER_SCHEMA, strict=True
    )
    answer = await stub.Generate(ask("tiny", config=pb.GenerationConfig(response_format=form, max_output_tokens=99)))
    weather = json.loads(answer.candidates[0].message.parts[0].text)
    assert weather["city"] in ("Paris", "Rome")
    assert weather["unit"] in ("C", "F")


async def test_embeddings_come_as_one_matrix_in_order(stub: pb.InferenceServiceAsyncStub) -> None:
    """Rows of unit length, equal inputs in equal rows, whatever the layout."""
    texts = ["one", "two", "one"]
    request = pb.EmbedRequest(model="tiny", inputs=[pb.EmbedInput(text=text) for text in texts])
    packed = await stub.Embed(request)
    matrix = np.frombuffer(packed.data, "<f4").reshape(packed.rows, packed.dimensions)
    assert matrix.shape[0] == 3
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(matrix[0], matrix[2], atol=1e-4)
    assert not np.allclose(matrix[0], matrix[1])
    assert packed.usage.input_tokens > 0
    request.layout = pb.EMBED_LAYOUT_FLOAT_LIST
    listed = await stub.Embed(request)
    assert not listed.data
    np.testing.assert_allclose([row.values for row in listed.vectors], matrix, atol=1e-4)


async def test_a_vendors_refusal_is_classified(stub: pb.InferenceServiceAsyncStub) -> None:
    """An image to a text model is refused by the vendor and told in our words."""
    picture = pb.Part(media=pb.Media(kind=pb.MEDIA_KIND_IMAGE, mime_type="image/png", data=b"\x89PNG"))
    request = pb.GenerateRequest(model="tiny", messages=[pb.Message(role=pb.ROLE_USER, parts=[picture])])
    failed = await failing(stub.Generate(request))
    assert (failed.reason, failed.facts["http_status"]) == ("PROVIDER_ERROR", "500")


async def test_grpcurl_lists_describes_generates_streams_and_embeds(address: str) -> None:
    """What an operator does first, with nothing but the address."""
    listed = await grpcurl(address)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(listed.stdout.split())
    described = await grpcurl(address, f"describe {SERVICE}")
    assert "returns ( stream .headgate.v1.StreamGenerateResponse )" in described.stdout
    request: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "ROLE_USER", "parts": [{"text": "Hello"}]}],
        "config": {"maxOutputTokens": 32, "seed": 3, "temperature": 0},
    }
    (answer,) = messages((await grpcurl(address, f"{SERVICE}/Generate", request)).stdout)
    events = messages((await grpcurl(address, f"{SERVICE}/StreamGenerate", request)).stdout)
    (part,) = answer["candidates"][0]["message"]["parts"]
    assert "".join(event.get("text_delta", "") for event in events) == part["text"]
    assert "generation_start" in events[0]
    assert "generation_end" in events[-1]
    embed = {"model": "tiny", "inputs": [{"text": "a"}], "layout": "EMBED_LAYOUT_FLOAT_LIST"}
    (embedded,) = messages((await grpcurl(address, f"{SERVICE}/Embed", embed)).stdout)
    assert len(embedded["vectors"][0]["values"]) == embedded["dimensions"]


async def test_grpcurl_runs_a_whole_tool_loop_and_asks_for_a_json_schema(address: str) -> None:
    """What grpcurl prints of an answer goes back as it is, with the results of its calls."""
    request: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "ROLE_USER", "parts": [{"text": "How is the weather?"}]}],
        "tools": [{"function": {"name": "weather", "parameters_schema": WEATHER_SCHEMA}}],
        "config": {"max_output_tokens": 200, "temperature": 0, "seed": 7},
    }
    (answer,) = messages((await grpcurl(address, f"{SERVICE}/Generate", request)).stdout)
    turn = answer["candidates"][0]["message"]
    calls = [part["tool_call"] for part in turn["parts"] if "tool_call" in part]
    assert [call["name"] for call in calls] == ["weather"] * len(calls)
    results = [{"tool_result": {"call_id": call["id"], "parts": [{"text": "18 degrees"}]}} for call in calls]
    request["messages"] += [turn, {"role": "ROLE_TOOL", "parts": results}]
    (final,) = messages((await grpcurl(address, f"{SERVICE}/Generate", request)).stdout)
    assert final["candidates"][0]["message"]["parts"][0]["text"]
    del request["tools"], request["messages"][1:]
    form = {"type": "RESPONSE_FORMAT_TYPE_JSON_SCHEMA", "name": "weather", "schema": WEATHER_SCHEMA}
    request["config"]["response_format"] = form
    (structured,) = messages((await grpcurl(address, f"{SERVICE}/Generate", request)).stdout)
    weather = json.loads(structured["candidates"][0]["message"]["parts"][0]["text"])
    assert weather["city"] in ("Paris", "Rome")


async def test_a_conversation_in_several_turns(stub: pb.InferenceServiceAsyncStub) -> None:
    """Answers go back as history without conversion."""
    request = ask("tiny", "Hello", config=pb.GenerationConfig(max_output_tokens=16, temperature=0, seed=7))
    for turn in range(3):
        answer = await stub.Generate(request)
        request.messages.extend([answer.candidates[0].message, user(f"and {turn}?")])
    assert [message.role for message in request.messages] == [pb.ROLE_USER, pb.ROLE_ASSISTANT] * 3 + [pb.ROLE_USER]
