"""Embed through the front door: batches, element types, layouts, limits."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import grpc
import numpy as np
import pytest
from headgate import v1 as pb

from tests.conftest import Serve
from tests.headgate_process import failing
from tests.vendor import Exchange, Vendor

ROWS = {"a": [1.0, -0.5, 0.25], "b": [0.0, 3.0, -1.5], "c": [1e-3, 2e-3, 4e-3]}


def embed(*texts: str, **fields: Any) -> pb.EmbedRequest:
    """A request for these texts."""
    return pb.EmbedRequest(model="v/m", inputs=[pb.EmbedInput(text=text) for text in texts], **fields)


def matrix(answer: pb.EmbedResponse, dtype: str = "<f4") -> np.ndarray[Any, Any]:
    """The contract's decoder."""
    return np.frombuffer(answer.data, dtype).reshape(answer.rows, answer.dimensions)


async def embeds(exchange: Exchange) -> None:
    """A vendor that answers each batch in reverse order, in the form asked for."""
    asked = exchange.json
    rows: list[Any] = [ROWS[text] for text in asked["input"]]
    if asked.get("encoding_format") == "base64":
        rows = [base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode() for row in rows]
    data = [{"index": index, "embedding": row} for index, row in enumerate(rows)]
    usage = {"prompt_tokens": len(rows), "total_tokens": len(rows)}
    await exchange.answer(200, {"data": data[::-1], "model": "embedder-1", "usage": usage})


@pytest.mark.parametrize("form", ["float", "base64"])
async def test_batches_are_split_to_the_hosts_limit_and_come_back_in_order(serve: Serve, form: str) -> None:
    """Five inputs at two a call make three calls; order in is order out, usage is the sum, attempts are on record."""
    async with Vendor(embeds) as vendor:
        quirks = {"embed_batch": 2, "embed_format": form}
        provider = {"adapter": "openai", "base_url": vendor.base_url, "quirks": quirks}
        async with serve(providers={"v": provider}) as headgate:
            answer = await headgate.stub.Embed(embed("a", "b", "c", "a", "b"))
    np.testing.assert_allclose(matrix(answer), [ROWS[text] for text in "abcab"])
    assert sorted(len(exchange.json["input"]) for exchange in vendor.exchanges) == [1, 2, 2]
    assert (answer.usage.input_tokens, answer.usage.total_tokens) == (5, 5)
    assert [attempt.outcome for attempt in answer.attempts] == [pb.ATTEMPT_OUTCOME_OK] * 3
    assert (answer.model, answer.element_type) == ("embedder-1", pb.ELEMENT_TYPE_FLOAT32)


async def test_no_more_sub_batches_run_at_once_than_configured(serve: Serve) -> None:
    """embed_concurrency bounds what one call does to a vendor."""
    running, most = 0, 0

    async def counts(exchange: Exchange) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        await embeds(exchange)

    async with Vendor(counts) as vendor:
        provider = {"adapter": "openai", "base_url": vendor.base_url, "quirks": {"embed_batch": 1}}
        async with serve(providers={"v": {**provider, "embed_concurrency": 2}}) as headgate:
            answer = await headgate.stub.Embed(embed(*"abcabcab"))
    assert answer.rows == 8
    assert most == 2


async def test_element_types_and_layouts(serve: Serve) -> None:
    """float16 and int8 are the same rows in fewer bytes; FLOAT_LIST is the same numbers for people."""
    async with Vendor(embeds) as vendor:
        async with serve(providers={"v": {"adapter": "openai", "base_url": vendor.base_url}}) as headgate:
            half = await headgate.stub.Embed(embed("a", "b", element_type=pb.ELEMENT_TYPE_FLOAT16))
            small = await headgate.stub.Embed(embed("a", "b", element_type=pb.ELEMENT_TYPE_INT8))
            listed = await headgate.stub.Embed(embed("a", "b", layout=pb.EMBED_LAYOUT_FLOAT_LIST))
    np.testing.assert_allclose(matrix(half, "<f2"), [ROWS["a"], ROWS["b"]], rtol=1e-3)
    np.testing.assert_array_equal(matrix(small, "i1"), [[127, -64, 32], [0, 127, -64]])
    assert not listed.data
    np.testing.assert_allclose([row.values for row in listed.vectors], [ROWS["a"], ROWS["b"]])


async def test_a_matrix_too_large_for_a_reply_is_refused_before_the_vendor_is_called(serve: Serve) -> None:
    """With dimensions asked for at once, and without from the second call on, when the model's own are known."""
    async with Vendor(embeds) as vendor:
        provider = {"adapter": "openai", "base_url": vendor.base_url}
        async with serve(providers={"v": provider}, server={"max_reply_bytes": 2048}) as headgate:
            asked = await failing(headgate.stub.Embed(embed("a", dimensions=513)))
            assert vendor.exchanges == []
            await headgate.stub.Embed(embed("a"))
            learnt = await failing(headgate.stub.Embed(embed(*"abc" * 100)))
    assert len(vendor.exchanges) == 1
    for failed in (asked, learnt):
        assert (failed.code, failed.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["inputs"])
        assert "max_reply_bytes" in failed.message


async def test_tokens_and_dimensions_reach_the_vendor(serve: Serve) -> None:
    """Token ids go out as they are, dimensions as asked."""

    async def answers(exchange: Exchange) -> None:
        await exchange.answer(200, {"data": [{"index": 0, "embedding": [1.0, 2.0]}], "model": "m"})

    async with Vendor(answers) as vendor:
        async with serve(providers={"v": {"adapter": "openai", "base_url": vendor.base_url}}) as headgate:
            tokens = pb.EmbedInput(token_ids=pb.TokenIds(values=[5, 7]))
            answer = await headgate.stub.Embed(pb.EmbedRequest(model="v/m", inputs=[tokens], dimensions=2))
    assert vendor.exchanges[0].json["input"] == [[5, 7]]
    assert vendor.exchanges[0].json["dimensions"] == 2
    assert not answer.HasField("usage")


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
        [{"index": 0, "embedding": "%%%"}, {"index": 1, "embedding": "%%%"}],
        [{"index": 0, "embedding": ["x"]}, {"index": 1, "embedding": None}],
    ],
    ids=["missing", "twice the same row", "ragged", "not base64", "not numbers"],
)
async def test_a_matrix_that_is_none_is_the_providers_error(serve: Serve, data: list[Any]) -> None:
    """Rows missing, repeated, ragged or unreadable are PROVIDER_PROTOCOL_ERROR, never a wrong matrix."""

    async def answers(exchange: Exchange) -> None:
        await exchange.answer(200, {"data": data, "model": "m"})

    async with Vendor(answers) as vendor:
        async with serve(providers={"v": {"adapter": "openai", "base_url": vendor.base_url}}) as headgate:
            failed = await failing(headgate.stub.Embed(embed("a", "b")))
    assert failed.reason == "PROVIDER_PROTOCOL_ERROR"
