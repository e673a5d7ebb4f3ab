"""Embeddings of any size are one matrix."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from headgate import v1 as pb, vectors
from headgate.embeddings import MAX_BYTES, MAX_ROWS, batches, joined
from headgate.errors import ProviderRejectedRequest
from headgate.testing import Reply, ScriptedServer

ROWS, DIMENSIONS = 20_000, 1536


async def test_large_embeddings_are_sent_in_batches_and_come_in_order(client: Any, server: ScriptedServer) -> None:
    """20,000 rows of 1536 numbers are one array that may be written to."""
    server.script("embed", Reply(dimensions=DIMENSIONS))
    matrix = await client.embed("embed", [str(number) for number in range(ROWS)], request_id="one")
    assert matrix.shape == (ROWS, DIMENSIONS)
    assert matrix.dtype == np.float32
    assert (matrix == np.arange(ROWS, dtype=np.float32)[:, None]).all()
    matrix *= 2
    assert len(server.calls) == -(-ROWS // MAX_ROWS)
    assert {call.metadata["x-request-id"] for call in server.calls} == {"one"}


async def test_one_failed_batch_fails_all(client: Any, server: ScriptedServer) -> None:
    """All or nothing, as in one call."""
    server.script("embed", Reply(), Reply(error=ProviderRejectedRequest("no")))
    with pytest.raises(ProviderRejectedRequest):
        await client.embed("embed", ["x"] * (MAX_ROWS + 1))


async def test_inputs_are_text_tokens_parts_or_protos(client: Any, server: ScriptedServer) -> None:
    """Each kind of input goes as the contract has it, with every option."""
    server.script("embed", Reply())
    given = ["text", [1, 2], [pb.Part(text="part")], pb.EmbedInput(text="proto")]
    await client.embed(
        "embed",
        given,
        dimensions=3,
        task_type="similarity",
        element_type="float32",
        end_user_id="u",
        labels={"team": "search"},
        provider_options={"cohere": {"truncate": "END"}},
    )
    assert server.calls[0].request == pb.EmbedRequest(
        model="embed",
        inputs=[
            pb.EmbedInput(text="text"),
            pb.EmbedInput(token_ids=pb.TokenIds(values=[1, 2])),
            pb.EmbedInput(content=pb.EmbedContent(parts=[pb.Part(text="part")])),
            pb.EmbedInput(text="proto"),
        ],
        dimensions=3,
        task_type="similarity",
        element_type=pb.ELEMENT_TYPE_FLOAT32,
        end_user_id="u",
        labels={"team": "search"},
        provider_options={"cohere": '{"truncate": "END"}'},
    )


async def test_the_contracts_answer_sums_all_batches(client: Any, server: ScriptedServer) -> None:
    """`embed_response` has usage of the whole and the rows of all batches."""
    server.script("embed", Reply(dimensions=2))
    response = await client.embed_response("embed", ["7"] * (MAX_ROWS + 1))
    assert (response.rows, response.usage.input_tokens) == (MAX_ROWS + 1, MAX_ROWS + 1)
    assert vectors(response).tolist() == [[7, 7]] * (MAX_ROWS + 1)


def test_batches_are_cut_by_bytes_too() -> None:
    """Long texts travel in more messages; a text that is longer than a message goes alone."""
    long = "x" * (MAX_BYTES // 2)
    request = pb.EmbedRequest(model="m", inputs=[pb.EmbedInput(text=text) for text in (long, "a", long, long * 3, "b")])
    pieces = batches(request)
    assert [[len(each.text) for each in piece.inputs] for piece in pieces] == [
        [len(long), 1],
        [len(long)],
        [len(long) * 3],
        [1],
    ]
    assert {piece.model for piece in pieces} == {"m"}


def test_costs_are_summed_only_if_all_are_known() -> None:
    """A sum without the unknown part would be too low."""
    priced = pb.EmbedResponse(rows=1, dimensions=1, cost=pb.Cost(total_nanos=5, currency_code="USD"))
    unpriced = pb.EmbedResponse(rows=1, dimensions=1)
    assert joined([priced, priced]).cost == pb.Cost(total_nanos=10, currency_code="USD")
    assert not joined([priced, unpriced]).HasField("cost")


def test_other_number_formats_keep_their_type() -> None:
    """float16 and int8 are not widened."""
    half = pb.EmbedResponse(data=np.array([[1.5]], "<f2").tobytes(), rows=1, dimensions=1)
    half.element_type = pb.ELEMENT_TYPE_FLOAT16
    small = pb.EmbedResponse(data=b"\x81\x7f", rows=1, dimensions=2, element_type=pb.ELEMENT_TYPE_INT8)
    assert vectors(half).dtype == np.float16
    assert vectors(small).tolist() == [[-127, 127]]


def test_without_numpy_there_is_a_memoryview() -> None:
    """Whoever has no numpy gets the same numbers by the standard library."""
    program = """
import sys
sys.modules["numpy"] = None
from headgate import Client
from headgate.testing import Reply, ScriptedServer
with ScriptedServer({"embed": [Reply(dimensions=3)]}) as server, Client(server.address) as client:
    matrix = client.embed("embed", ["1", "2"])
    print(type(matrix).__name__, matrix.shape, matrix.tolist(), matrix[1, 2])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "memoryview (2, 3) [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]] 2.0"
