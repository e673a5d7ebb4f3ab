"""HeadgateLLM and HeadgateEmbedding in LlamaIndex's own machinery."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from headgate import v1 as pb
from headgate.llamaindex import HeadgateEmbedding, HeadgateLLM
from headgate.testing import Reply, ScriptedServer
from llama_index.core.base.llms.types import CacheControl, CachePoint, ChatMessage, DocumentBlock, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

PNG = b"\x89PNG\r\n\x1a\n" + bytes(30)
WEATHER_CALL = pb.ToolCall(id="1", name="weather", arguments='{"city": "Oslo"}', kind=pb.TOOL_CALL_KIND_FUNCTION)


def weather(city: str) -> str:
    """Tells the weather."""
    return f"cold in {city}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    script = {"fast": [Reply(text=["Hel", "lo"])], "embed": [Reply(dimensions=3)]}
    with ScriptedServer(script) as server:
        monkeypatch.setenv("HEADGATE_ADDRESS", server.address)
        yield server


async def test_chat_and_complete_in_all_four_ways(server: ScriptedServer) -> None:
    """Plain and streamed, sync and async: the same text, and deltas that add up."""
    model = HeadgateLLM(model="fast", temperature=0.5, max_tokens=7)
    message = ChatMessage(content="Hi")
    assert model.chat([message]).message.content == "Hello"
    assert (await model.achat([message])).message.content == "Hello"
    assert model.complete("Hi").text == (await model.acomplete("Hi")).text == "Hello"
    assert "".join(chunk.delta or "" for chunk in model.stream_chat([message])) == "Hello"
    assert [chunk.message.content async for chunk in await model.astream_chat([message])] == ["Hel", "Hello", "Hello"]
    assert [chunk.text for chunk in model.stream_complete("Hi")][-1] == "Hello"
    assert [chunk.text async for chunk in await model.astream_complete("Hi")][-1] == "Hello"
    config = pb.GenerationConfig(temperature=0.5, max_output_tokens=7)
    assert all(call.request.config == config for call in server.calls)
    assert len(server.calls) == 8


async def test_functions_are_called_and_answered(server: ScriptedServer) -> None:
    """LlamaIndex's own loop: the model calls, the function runs, the model says."""
    server.script("tools", Reply(tool_calls=[WEATHER_CALL]), Reply(text="Cold."))
    tool = FunctionTool.from_defaults(weather)
    response = HeadgateLLM(model="tools").predict_and_call([tool], "Weather?")
    assert str(response) == "cold in Oslo"
    declared = server.calls[0].request.tools[0].function
    assert declared.name == "weather"
    assert "city" in declared.parameters_schema


def test_structured_output_is_a_function_call(server: ScriptedServer) -> None:
    """`as_structured_llm` gives a pydantic model."""

    class Weather(BaseModel):
        """The weather."""

        city: str

    call = pb.ToolCall(id="1", name="Weather", arguments='{"city": "Oslo"}', kind=pb.TOOL_CALL_KIND_FUNCTION)
    server.script("tools", Reply(tool_calls=[call]))
    answer = HeadgateLLM(model="tools").as_structured_llm(Weather).complete("Weather?")
    assert answer.raw == Weather(city="Oslo")


def test_what_llamaindex_has_no_word_for_goes_back_byte_for_byte(server: ScriptedServer) -> None:
    """Signatures survive a round; an edited answer goes as edited."""
    thinking = pb.Message(
        role=pb.ROLE_ASSISTANT,
        parts=[
            pb.Part(reasoning=pb.Reasoning(text="Hm."), signature=b"sig\xff", issuer="anthropic"),
            pb.Part(tool_call=WEATHER_CALL, signature=b"s", issuer="gemini"),
        ],
    )
    server.script("thinking", Reply(response=pb.GenerateResponse(candidates=[pb.Candidate(message=thinking)])))
    model = HeadgateLLM(model="thinking")
    answer = model.chat([ChatMessage(content="Hi")]).message
    result = ChatMessage(role="tool", content="cold", additional_kwargs={"tool_call_id": "1", "name": "weather"})
    model.chat([ChatMessage(content="Hi"), answer, result])
    sent = server.calls[-1].request.messages
    assert sent[1] == thinking
    assert sent[2].parts[0].tool_result.call_id == "1"
    answer.blocks = [TextBlock(text="Something else.")]
    model.chat([ChatMessage(content="Hi"), answer])
    assert server.calls[-1].request.messages[1].parts[0].text == "Something else."


def test_images_are_sent(server: ScriptedServer) -> None:
    """By value and by address."""
    blocks = [TextBlock(text="See:"), ImageBlock(image=PNG), ImageBlock(url="https://example.com/a.png", detail="low")]
    HeadgateLLM(model="fast").chat([ChatMessage(blocks=blocks)])
    _, by_value, by_address = server.calls[-1].request.messages[0].parts
    assert (by_value.media.data, by_value.media.mime_type) == (PNG, "image/png")
    assert (by_address.media.uri, by_address.media.detail) == ("https://example.com/a.png", "low")


@pytest.mark.parametrize("block", [ImageBlock(url=f"file://{__file__}"), DocumentBlock(url=__file__, title="x")])
def test_an_address_never_names_a_local_file(block: Any) -> None:
    """Messages come from users of the program, too; `path=` is for files of its own."""
    with pytest.raises(ValueError, match="is no address"):
        HeadgateLLM(model="fast").chat([ChatMessage(blocks=[block])])


def test_cache_points_mark_what_stands_before_them(server: ScriptedServer) -> None:
    """As the contract's breakpoints, with their time."""
    point = CachePoint(cache_control=CacheControl(type="ephemeral", ttl="1h"))
    HeadgateLLM(model="fast").chat([ChatMessage(blocks=[TextBlock(text="Long."), point, TextBlock(text="Short.")])])
    long, short = server.calls[-1].request.messages[0].parts
    assert long.cache_breakpoint.ttl.seconds == 3600
    assert not short.HasField("cache_breakpoint")


async def test_embeddings_of_texts_and_queries(server: ScriptedServer) -> None:
    """One call for a batch of texts; queries are told apart."""
    model = HeadgateEmbedding(model="embed")
    assert model.get_text_embedding_batch(["1", "2"]) == [[1, 1, 1], [2, 2, 2]]
    assert await model.aget_text_embedding_batch(["1", "2"]) == [[1, 1, 1], [2, 2, 2]]
    assert model.get_query_embedding("3") == await model.aget_query_embedding("3") == [3, 3, 3]
    assert [call.request.task_type for call in server.calls] == ["retrieval-document"] * 2 + ["retrieval-query"] * 2
