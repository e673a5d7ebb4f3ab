"""The Responses wire on real input: a real llama.cpp server behind a real Headgate."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from headgate import v1 as pb

from tests.fold import check_invariants, fold
from tests.headgate_process import Headgate, ask, failing, running, user
from tests.tools import inference_server

CITY = json.dumps(
    {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
)
WEATHER = pb.Tool(function=pb.FunctionTool(name="weather", parameters_schema=CITY))

pytestmark = [pytest.mark.real_server, pytest.mark.xdist_group("real_server")]


@pytest.fixture(scope="module")
async def headgate(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Headgate]:
    """A Headgate whose provider is a real server, by its Responses wire."""
    async with inference_server(tmp_path_factory.mktemp("real"), "embed") as base_url:
        provider = {"host": "llamacpp", "adapter": "openai-responses", "base_url": base_url}
        async with running(providers={"local": provider}) as headgate:
            yield headgate


async def streamed(headgate: Headgate, request: pb.GenerateRequest) -> pb.GenerateResponse:
    """The fold of a stream that keeps the invariants."""
    events = [event async for event in headgate.stub.StreamGenerate(request)]
    check_invariants(events)
    return fold(events)


def lost(answer: pb.GenerateResponse) -> list[str]:
    """The fields of which a warning says that they did not reach the vendor."""
    return [warning.field for warning in answer.warnings if warning.code not in ("price-unknown", "default-deadline")]


async def test_a_stream_folds_to_the_plain_answer(headgate: Headgate) -> None:
    """With one seed, plain and streamed answers say the same and count the same."""
    config = pb.GenerationConfig(max_output_tokens=40, seed=7, temperature=0, top_k=5)
    request = ask("local/tiny", "Count", config=config)
    answer, folded = await headgate.stub.Generate(request), await streamed(headgate, request)
    (part,) = answer.candidates[0].message.parts
    assert part.text
    assert part.text == folded.candidates[0].message.parts[0].text
    assert (part.issuer, bool(part.item_id)) == ("llamacpp", True)
    assert 0 < answer.usage.output_tokens == folded.usage.output_tokens <= 40
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert lost(answer) == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_whole_tool_loop_runs(headgate: Headgate, stream: bool) -> None:
    """The model calls a tool, the answer goes back with the result, and the model answers in text."""
    config = pb.GenerationConfig(max_output_tokens=200, temperature=0)
    request = ask("local/tiny", "How is the weather?", tools=[WEATHER], config=config)
    answer = await streamed(headgate, request) if stream else await headgate.stub.Generate(request)
    (candidate,) = answer.candidates
    calls = [part.tool_call for part in candidate.message.parts if part.HasField("tool_call")]
    assert calls
    assert candidate.finish.reason == pb.FINISH_REASON_TOOL_CALLS
    for call in calls:
        assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    results = [
        pb.Part(tool_result=pb.ToolResult(call_id=call.id, name=call.name, parts=[pb.Part(text="18 degrees")]))
        for call in calls
    ]
    request.messages.extend([candidate.message, pb.Message(role=pb.ROLE_TOOL, parts=results)])
    final = await headgate.stub.Generate(request)
    assert any(part.text for part in final.candidates[0].message.parts)


async def test_output_obeys_a_json_schema(headgate: Headgate) -> None:
    """llama.cpp reads the schema of Chat Completions, and enforces it."""
    form = pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, name="weather", schema=CITY, strict=True)
    config = pb.GenerationConfig(response_format=form, max_output_tokens=99)
    answer = await headgate.stub.Generate(ask("local/tiny", config=config))
    assert json.loads(answer.candidates[0].message.parts[0].text)["city"] in ("Paris", "Rome")


async def test_a_conversation_in_several_turns(headgate: Headgate) -> None:
    """Answers go back as history, also those of another vendor, without their ids."""
    request = ask("local/tiny", "Hello", config=pb.GenerationConfig(max_output_tokens=16))
    foreign = pb.Part(text="Hi", item_id="msg_1", issuer="openai")
    request.messages.extend([pb.Message(role=pb.ROLE_ASSISTANT, parts=[foreign]), user("and?")])
    for turn in range(2):
        answer = await headgate.stub.Generate(request)
        assert lost(answer) == ["messages[1].parts[0].item_id"]
        request.messages.extend([answer.candidates[0].message, user(f"and {turn}?")])


async def test_a_vendors_refusal_is_classified(headgate: Headgate) -> None:
    """An image to a text model is refused by the vendor and told in our words."""
    picture = pb.Part(media=pb.Media(kind=pb.MEDIA_KIND_IMAGE, mime_type="image/png", data=b"\x89PNG"))
    request = pb.GenerateRequest(model="local/tiny", messages=[pb.Message(role=pb.ROLE_USER, parts=[picture])])
    failed = await failing(headgate.stub.Generate(request))
    assert failed.facts["http_status"] == "500"
    assert failed.reason == "PROVIDER_ERROR"


async def test_embeddings_are_those_of_the_other_wire(headgate: Headgate) -> None:
    """The host has them at the same address."""
    answer = await headgate.stub.Embed(pb.EmbedRequest(model="local/tiny", inputs=[pb.EmbedInput(text="one")]))
    assert (answer.rows, len(answer.data)) == (1, answer.dimensions * 4)
