"""The official openai package as second opinion on the Chat Completions and Embeddings wire."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from headgate import v1 as pb
from openai.types import EmbeddingCreateParams
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from pydantic import TypeAdapter

from tests.conftest import Serve
from tests.headgate_process import ask
from tests.vendor import Vendor, answers_text

REQUESTS = {
    "plain": ask("v/m"),
    "settings": ask(
        "v/m",
        config=pb.GenerationConfig(
            max_output_tokens=5,
            temperature=0.7,
            top_p=0.5,
            stop_sequences=["x"],
            seed=7,
            presence_penalty=1,
            frequency_penalty=-1,
            candidate_count=2,
            logprobs=True,
            top_logprobs=3,
            logit_bias={7: -100},
            verbosity="low",
        ),
        reasoning=pb.ReasoningConfig(effort="low"),
        end_user_id="u",
        prompt_cache_key="k",
    ),
    "tools": ask(
        "v/m",
        tools=[
            pb.Tool(
                function=pb.FunctionTool(name="f", description="d", parameters_schema='{"type":"object"}', strict=True)
            )
        ],
        tool_choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED, allowed_tools=["f"], parallel_calls=False),
    ),
    "schema": ask(
        "v/m",
        config=pb.GenerationConfig(
            response_format=pb.ResponseFormat(
                type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, name="n", schema='{"type":"object"}', strict=True
            )
        ),
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_the_official_types_accept_what_headgate_sends(serve: Serve, name: str) -> None:
    """Both parameter types of the package take our request bodies, plain and streamed, without a key too many."""
    async with Vendor(answers_text) as vendor:
        async with serve(providers={"v": {"host": "openai", "base_url": vendor.base_url, "api_key": "k"}}) as headgate:
            await headgate.stub.Generate(REQUESTS[name])
            assert [event async for event in headgate.stub.StreamGenerate(REQUESTS[name])]
    plain, streamed = (exchange.json for exchange in vendor.exchanges)
    for body, kind in ((plain, CompletionCreateParamsNonStreaming), (streamed, CompletionCreateParamsStreaming)):
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        adapter.validate_python(body)
        assert (
            body.keys()
            <= kind.__annotations__.keys() | CompletionCreateParamsNonStreaming.__mro__[0].__annotations__.keys()
        )


async def test_the_official_types_accept_an_embeddings_request(serve: Serve) -> None:
    """So does the embeddings type."""

    async def one_row(exchange: Any) -> None:
        await exchange.answer(200, {"data": [{"index": 0, "embedding": [1.0]}], "model": "m"})

    async with Vendor(one_row) as vendor:
        async with serve(providers={"v": {"host": "openai", "base_url": vendor.base_url, "api_key": "k"}}) as headgate:
            await headgate.stub.Embed(pb.EmbedRequest(model="v/m", inputs=[pb.EmbedInput(text="a")], dimensions=1))
    adapter: TypeAdapter[Any] = TypeAdapter(EmbeddingCreateParams)
    adapter.validate_python(vendor.exchanges[0].json)


async def test_the_official_client_reads_what_our_vendor_in_tests_answers() -> None:
    """The stand-in for a vendor speaks OpenAI's wire as OpenAI's own client reads it."""
    async with Vendor(answers_text) as vendor:
        client = openai.AsyncOpenAI(base_url=vendor.base_url, api_key="k", max_retries=0)
        messages: Any = [{"role": "user", "content": "Hi"}]
        plain = await client.chat.completions.create(model="m", messages=messages)
        stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
        chunks = [chunk async for chunk in stream]
        await client.close()
    assert plain.choices[0].message.content == "Hello there"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello there"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 8
