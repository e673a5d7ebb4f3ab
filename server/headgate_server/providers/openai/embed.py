"""Embeddings as OpenAI's wire has them."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence

from headgate import v1 as pb

from headgate_server.errors import ProviderProtocolError
from headgate_server.json_codec import JsonObject, dumps, loads_object
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.losses import Losses, unsupported
from headgate_server.providers.openai.errors import reported_error
from headgate_server.providers.openai.usage import cost, find_usage, usage
from headgate_server.providers.options import with_caller_options
from headgate_server.providers.reading import decode_base64, label, objects

FLOAT_BYTES = 4
TASKS = {
    "retrieval-query": "search_query",
    "retrieval-document": "search_document",
    "classification": "classification",
    "clustering": "clustering",
}


def encode_embed(request: pb.EmbedRequest, inputs: Sequence[pb.EmbedInput], target: Target) -> HttpCall:
    """The request for one sub-batch.

    Raises:
        UnsupportedParameter: an input is neither text nor token ids.
    """
    quirks = target.host.quirks
    losses = Losses(request.routing.unsupported_policy)
    body: JsonObject = {
        "model": target.model,
        "input": [_input(item, f"inputs[{number}]") for number, item in enumerate(inputs)],
        "encoding_format": quirks.embed_format,
    }
    if request.HasField("dimensions"):
        body["dimensions"] = request.dimensions
    if request.task_type and quirks.embed_task:
        body[quirks.embed_task] = TASKS.get(request.task_type, request.task_type)
    elif request.task_type:
        losses.setting("task_type", "this provider does not distinguish tasks")
    if request.end_user_id:
        body["user"] = request.end_user_id
    with_caller_options(body, request, target)
    return HttpCall(quirks.embed_path, dumps(body), warnings=losses.warnings)


def decode_embed(body: bytes, rows: int, target: Target) -> pb.EmbedResponse:
    """One sub-batch as packed little-endian float32, in the order of the inputs.

    Raises:
        ProviderProtocolError: rows are missing, or differ in length, or are no numbers.
    """
    answer = loads_object(body)
    if error := reported_error(answer, target):
        raise error
    is_int8 = target.host.quirks.embed_format == "base64_int8"
    vectors = _ordered(objects(answer.get("data")), rows, is_int8=is_int8)
    size = len(vectors[0]) if vectors else 0
    if not size or any(len(vector) != size for vector in vectors) or size % FLOAT_BYTES:
        raise ProviderProtocolError("the provider's embeddings are empty or differ in length")
    response = pb.EmbedResponse(
        data=b"".join(vectors),
        rows=rows,
        dimensions=size // FLOAT_BYTES,
        element_type=pb.ELEMENT_TYPE_FLOAT32,
        model=label(answer.get("model")),
    )
    if reported := find_usage(answer):
        response.usage.CopyFrom(usage(reported))
        if price := cost(reported):
            response.cost.CopyFrom(price)
    return response


def _input(item: pb.EmbedInput, path: str) -> str | list[int]:
    match item.WhichOneof("input"):
        case "text":
            return item.text
        case "token_ids":
            return list(item.token_ids.values)
        case _:
            raise unsupported(path, "this provider embeds text and token ids only")


def _ordered(data: list[JsonObject], rows: int, *, is_int8: bool) -> list[bytes]:
    """The vectors by their index; by position where the vendor gives none."""
    vectors: list[bytes | None] = [None] * rows
    for position, item in enumerate(data):
        index = item.get("index", position)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < rows or vectors[index] is not None:
            raise ProviderProtocolError("the provider's embeddings have impossible indices")
        vectors[index] = _packed(item.get("embedding"), is_int8=is_int8)
    found = [vector for vector in vectors if vector is not None]
    if len(found) != rows:
        raise ProviderProtocolError(f"the provider answered {len(found)} embeddings for {rows} inputs")
    return found


def _packed(embedding: object, *, is_int8: bool) -> bytes:
    """One vector as little-endian float32."""
    try:
        if isinstance(embedding, str):
            data = decode_base64(embedding)
            return _packed_floats(array("b", data)) if is_int8 else data
        if isinstance(embedding, list):
            return _packed_floats(embedding)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ProviderProtocolError("the provider sent an embedding that is neither floats nor base64")


def _packed_floats(numbers: Iterable[float]) -> bytes:
    packed = array("f", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
