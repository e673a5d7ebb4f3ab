"""Tools from typed functions, and the loop that answers a model's calls."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from headgate import Tool, TooManyRounds, result_of, tool, user, v1 as pb
from headgate.testing import Reply, ScriptedServer
from headgate.tool_loop import ToolLoop


@dataclass
class Place:
    """Where something is."""

    city: str
    country: str = "NO"


def weather(place: Place, unit: Literal["C", "F"] = "C", days: Annotated[int, "How many."] = 1) -> dict[str, Any]:
    """Tells the weather.

    In words.

    Args:
        place: Where it is
            wanted.
        unit: Of temperature.
    """
    return {"city": place.city, "unit": unit, "days": days}


def call(identifier: str, name: str, **arguments: Any) -> pb.ToolCall:
    return pb.ToolCall(id=identifier, name=name, arguments=json.dumps(arguments), kind=pb.TOOL_CALL_KIND_FUNCTION)


def results(server: ScriptedServer) -> dict[str, pb.ToolResult]:
    """What the model was told last, by the id of the call."""
    return {part.tool_result.call_id: part.tool_result for part in server.calls[-1].request.messages[-1].parts}


def test_a_function_is_described_by_its_types_and_docstring() -> None:
    """Name, words, parameters with their words, and what is required."""
    declared = tool(weather).proto.function
    assert (declared.name, declared.description) == ("weather", "Tells the weather.\n\nIn words.")
    schema = json.loads(declared.parameters_schema)
    assert schema["required"] == ["place"]
    assert schema["properties"]["place"]["description"] == "Where it is wanted."
    assert schema["properties"]["unit"] == {"type": "string", "enum": ["C", "F"], "description": "Of temperature."}
    assert schema["properties"]["days"] == {"type": "integer", "description": "How many."}
    strict = json.loads(tool(weather, strict=True).proto.function.parameters_schema)
    assert strict["required"] == ["place", "unit", "days"]
    assert strict["properties"]["place"]["required"] == ["city", "country"]


def test_a_function_without_types_is_refused() -> None:
    """The parameter that lacks one is named."""

    def untyped(city) -> str:  # type: ignore[no-untyped-def]
        return str(city)

    with pytest.raises(TypeError, match="city"):
        tool(untyped)


def test_an_object_that_can_be_called_is_a_tool_by_the_name_it_is_given() -> None:
    """Its types are those of its call; without a name no model could call it."""

    class Scaled:
        def __call__(self, number: int) -> int:
            return number * 2

    declared = tool(Scaled(), name="scale")
    assert json.loads(declared.proto.function.parameters_schema)["properties"] == {"number": {"type": "integer"}}
    assert declared.call(call("1", "scale", number=2)) == 4
    for nameless in (Scaled(), lambda: 1):
        with pytest.raises(TypeError, match="name"):
            tool(nameless)


async def test_calls_are_answered_until_there_are_no_more(client: Any, server: ScriptedServer) -> None:
    """Two rounds: typed arguments arrive as their types, results go back as JSON, the last text is the answer."""
    server.script(
        "tools",
        Reply(tool_calls=[call("1", "weather", place={"city": "Oslo"}), call("2", "weather", place={"city": "Rome"})]),
        Reply(text="Cold and warm."),
    )
    run = await client.run_tools("tools", "Weather?", [weather], temperature=0)
    assert run.text == "Cold and warm."
    assert [message.role for message in run.messages] == [
        pb.ROLE_USER,
        pb.ROLE_ASSISTANT,
        pb.ROLE_TOOL,
        pb.ROLE_ASSISTANT,
    ]
    assert len(run.answers) == 2
    told = results(server)
    assert json.loads(told["1"].structured_json) == {"city": "Oslo", "unit": "C", "days": 1}
    assert json.loads(told["2"].parts[0].text)["city"] == "Rome"
    assert server.calls[-1].request.config.temperature == 0
    assert server.calls[-1].request.config.HasField("temperature")


async def test_failures_are_told_to_the_model(client: Any, server: ScriptedServer) -> None:
    """Exceptions, wrong arguments, broken JSON and unknown tools are results, and the loop goes on."""

    def fail(code: int) -> str:
        raise KeyError(code)

    broken = pb.ToolCall(id="3", name="fail", arguments="{")
    calls = [call("1", "fail", code=7), call("2", "fail", code="seven"), broken, call("4", "nothing")]
    server.script("tools", Reply(tool_calls=calls), Reply(text="Sorry."))
    run = await client.run_tools("tools", "Hi", [fail])
    assert run.text == "Sorry."
    told = results(server)
    assert all(result.failed for result in told.values())
    assert told["1"].parts[0].text == "KeyError: 7"
    assert "code" in told["2"].parts[0].text
    assert "JSON" in told["3"].parts[0].text
    assert "nothing" in told["4"].parts[0].text


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (None, "null"),
        (
            {"when": date(2026, 1, 2), "colour": Colour.RED, "who": {"ü"}},
            '{"when": "2026-01-02", "colour": "red", "who": ["ü"]}',
        ),
        (Place("Oslo"), '{"city": "Oslo", "country": "NO"}'),
        (pb.Usage(input_tokens=1), '{"inputTokens": 1}'),
    ],
)
def test_results_are_text_or_json(value: object, text: str) -> None:
    """What Python has and JSON has not is said in JSON's words."""
    assert result_of(call("1", "f"), value).tool_result.parts[0].text == text


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_results_that_json_cannot_say_are_refused(value: object) -> None:
    """In the loop the model is told so."""
    with pytest.raises((TypeError, ValueError)):
        result_of(call("1", "f"), value)


async def test_free_text_goes_to_the_function_as_it_is(client: Any, server: ScriptedServer) -> None:
    """A tool whose argument is no JSON has a function of one parameter."""
    shell = Tool(pb.Tool(free_text=pb.FreeTextTool(name="shell")), lambda text: f"ran {text}")
    typed = pb.ToolCall(id="1", name="shell", arguments="ls -l", kind=pb.TOOL_CALL_KIND_FREE_TEXT)
    server.script("tools", Reply(tool_calls=[typed]), Reply(text="Done."))
    await client.run_tools("tools", "Hi", [shell])
    assert results(server)["1"].parts[0].text == "ran ls -l"


async def test_calls_of_a_round_run_at_the_same_time(client: Any, server: ScriptedServer) -> None:
    """Three calls that wait for each other come to an end."""
    barrier = threading.Barrier(3, timeout=5)

    def meet(number: int) -> int:
        barrier.wait()
        return number

    server.script("tools", Reply(tool_calls=[call(str(i), "meet", number=i) for i in range(3)]), Reply(text="Met."))
    assert (await client.run_tools("tools", "Hi", [meet])).text == "Met."
    assert [result.parts[0].text for result in results(server).values()] == ["0", "1", "2"]


async def test_a_loop_without_end_is_bounded(client: Any, server: ScriptedServer) -> None:
    """After the last round TooManyRounds has the conversation, and the model was not asked again."""
    server.script("tools", Reply(tool_calls=[call("1", "weather", place={"city": "Oslo"})]))
    with pytest.raises(TooManyRounds) as caught:
        await client.run_tools("tools", "Hi", [weather], max_rounds=3)
    assert len(server.calls) == 3
    assert len(caught.value.messages) == 1 + 2 * 2 + 1


async def test_answers_go_back_byte_for_byte(client: Any, server: ScriptedServer) -> None:
    """Reasoning, signatures, citations and vendors' own items are in the next request as they came."""
    message = pb.Message(
        role=pb.ROLE_ASSISTANT,
        parts=[
            pb.Part(reasoning=pb.Reasoning(text="Hm."), signature=b"c2ln\xff", issuer="anthropic", item_id="rs_1"),
            pb.Part(provider_item=pb.ProviderItem(type="x", json='{"a": 1.0}'), issuer="openai"),
            pb.Part(text="Let me see.", citations=[pb.Citation(opaque=b"\x00")]),
            pb.Part(tool_call=call("1", "weather", place={"city": "Oslo"}), signature=b"g", issuer="gemini"),
        ],
    )
    finish = pb.Finish(reason=pb.FINISH_REASON_TOOL_CALLS)
    response = pb.GenerateResponse(candidates=[pb.Candidate(message=message, finish=finish)])
    server.script("tools", Reply(response=response), Reply(text="Cold."))
    await client.run_tools("tools", "Hi", [weather])
    assert server.calls[-1].request.messages[1].SerializeToString(deterministic=True) == message.SerializeToString(
        deterministic=True
    )


async def test_a_tool_that_must_be_called_is_called_once(client: Any, server: ScriptedServer) -> None:
    """After its results the model is free to answer."""
    server.script("tools", Reply(tool_calls=[call("1", "weather", place={"city": "Oslo"})]), Reply(text="Cold."))
    await client.run_tools("tools", "Hi", [weather], tool_choice="weather")
    first, second = (each.request.tool_choice for each in server.calls)
    assert (first.mode, second.mode) == (pb.TOOL_CHOICE_MODE_REQUIRED, pb.TOOL_CHOICE_MODE_AUTO)


async def test_a_paused_turn_is_sent_back(client: Any, server: ScriptedServer) -> None:
    """A vendor that pauses a long turn gets it back and goes on."""
    paused = Reply(text="One moment").unary()
    paused.candidates[0].finish.reason = pb.FINISH_REASON_PAUSE
    server.script("tools", Reply(response=paused), Reply(text="Done."))
    assert (await client.run_tools("tools", "Hi", [weather])).text == "Done."
    assert len(server.calls[-1].request.messages) == 2


@pytest.mark.parametrize("reason", [pb.FINISH_REASON_MAX_TOKENS, pb.FINISH_REASON_CONTENT_FILTER])
async def test_calls_of_a_cut_off_answer_are_not_run(
    client: Any, server: ScriptedServer, reason: pb.FinishReason.ValueType
) -> None:
    """Arguments may be broken or blocked: the answer is given as it is."""
    cut = Reply(tool_calls=[call("1", "weather", place={"city": "Oslo"})]).unary()
    cut.candidates[0].finish.reason = reason
    server.script("tools", Reply(response=cut))
    assert (await client.run_tools("tools", "Hi", [weather])).answer.finish_reason == reason
    assert len(server.calls) == 1


async def test_the_loop_ends_at_a_tool_without_function(client: Any, server: ScriptedServer) -> None:
    """Declared tools, and those that the vendor runs itself, are left to whoever can answer them."""
    declared = {"type": "function", "function": {"name": "ask_human", "parameters": {"type": "object"}}}
    server.script("tools", Reply(tool_calls=[call("1", "ask_human"), call("2", "weather", place={"city": "Oslo"})]))
    run = await client.run_tools("tools", "Hi", [weather, declared])
    assert [each.name for each in run.answer.tool_calls] == ["ask_human", "weather"]
    assert server.calls[0].request.tools[1].function.parameters_schema == '{"type": "object"}'
    hosted = pb.ToolCall(id="1", name="web_search", kind=pb.TOOL_CALL_KIND_PROVIDER_EXECUTED)
    server.script("tools", Reply(text="Found.", tool_calls=[hosted]))
    assert (await client.run_tools("tools", "Hi", [weather])).text == "Found."


async def test_async_functions_run_in_the_loop(server: ScriptedServer) -> None:
    """AsyncClient awaits them, all at the same time."""
    from headgate import AsyncClient

    loop = asyncio.get_running_loop()
    barrier = asyncio.Barrier(2)

    async def meet(number: int) -> str:
        assert asyncio.get_running_loop() is loop
        await barrier.wait()
        return f"number {number}"

    server.script(
        "tools", Reply(tool_calls=[call("1", "meet", number=1), call("2", "meet", number=2)]), Reply(text=".")
    )
    async with AsyncClient(server.address) as client:
        await client.run_tools("tools", "Hi", [meet])
    assert [result.parts[0].text for result in results(server).values()] == ["number 1", "number 2"]


def test_an_async_function_cannot_run_without_a_loop() -> None:
    """Client refuses it before anything is sent."""
    from headgate import Client

    async def later() -> str:
        return ""

    with Client("127.0.0.1:1") as client, pytest.raises(TypeError, match="later"):
        client.run_tools("tools", "Hi", [later])


async def test_a_loop_over_streams_can_be_written(client: Any, server: ScriptedServer) -> None:
    """ToolLoop decides what is sent next and when it is over; whoever uses it reads streams and answers calls."""
    first = call("1", "weather", place={"city": "Oslo"})
    server.script("tools", Reply(text="Let me see.", tool_calls=[first]), Reply(text=["It is ", "cold."]))
    known = tool(weather)
    loop = ToolLoop(pb.GenerateRequest(model="tools", messages=[user("Hi")], tools=[known.proto]), [known])
    said: list[str] = []
    while not loop.done:
        async with client.stream(loop.request) as stream:
            said += [text async for text in stream.text]
            loop.add_answer(await stream.final())
        loop.add_results([result_of(each, "approved by people") for each in loop.calls])
    assert said == ["Let me see.", "It is ", "cold."]
    assert results(server)["1"].parts[0].text == "approved by people"
    assert loop.run.text == "It is cold."
