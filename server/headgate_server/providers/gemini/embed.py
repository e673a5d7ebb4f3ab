"""Embeddings: batchEmbedContents at the Gemini API; embedContent or predict, by the model, at Vertex AI.

https://ai.google.dev/api/embeddings and
https://docs.cloud.google.com/vertex-ai/generative-ai/docs/model-reference/text-embeddings-api
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from urllib.parse import quote

from headgate import v1 as pb

from headgate_server.errors import ProviderProtocolError
from headgate_server.json_codec import JsonObject, dumps, loads_object
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.gemini.contents import ContentWriter
from headgate_server.providers.gemini.errors import reported_error
from headgate_server.providers.gemini.usage import usage
from headgate_server.providers.losses import Losses, unsupported
from headgate_server.providers.options import with_caller_options
from headgate_server.providers.reading import count, mapping, objects

FLOAT_BYTES = 4
TASKS = {
    "retrieval-query": "RETRIEVAL_QUERY",
    "retrieval-document": "RETRIEVAL_DOCUMENT",
    "similarity": "SEMANTIC_SIMILARITY",
}


def encode_embed(request: pb.EmbedRequest, inputs: Sequence[pb.EmbedInput], target: Target) -> HttpCall:
    """The batchEmbedContents request for one sub-batch. provider_options are merged into each input's request.

    Raises:
        UnsupportedParameter: an input is token ids.
    """
    losses = Losses(request.routing.unsupported_policy)
    name = target.model if "/" in target.model else f"models/{target.model}"
    body = {
        "requests": [
            {"model": name, **embed_content(request, item, f"inputs[{number}]", target, losses)}
            for number, item in enumerate(inputs)
        ]
    }
    tell_of_end_user(request, losses)
    return HttpCall(f"/{quote(name)}:batchEmbedContents", dumps(body), warnings=losses.warnings)


def embed_content(
    request: pb.EmbedRequest, item: pb.EmbedInput, path: str, target: Target, losses: Losses
) -> JsonObject:
    """One embedContent request without its model."""
    written: JsonObject = {"content": {"parts": _parts(item, path, target, losses)}}
    if request.task_type:
        written["taskType"] = task_type(request.task_type)
    if request.HasField("dimensions"):
        written["outputDimensionality"] = request.dimensions
    return with_caller_options(written, request, target)


def tell_of_end_user(request: pb.EmbedRequest, losses: Losses) -> None:
    """Google has no field for the end user."""
    if request.end_user_id:
        losses.setting("end_user_id", "this provider has no such setting")


def task_type(word: str) -> str:
    """The vendor's word for what the embeddings are for."""
    return TASKS.get(word, word.upper().replace("-", "_"))


def decode_embed(body: bytes, rows: int, target: Target) -> pb.EmbedResponse:
    """One sub-batch as packed little-endian float32, in the order of the inputs, whichever call it answers.

    Raises:
        ProviderProtocolError: rows are missing, or differ in length, or are no numbers.
    """
    answer = loads_object(body)
    if error := reported_error(answer, target):
        raise error
    predictions = objects(answer.get("predictions"))
    found = (
        objects(answer.get("embeddings"))
        or [mapping(prediction.get("embeddings")) for prediction in predictions]
        or [mapping(answer.get("embedding"))]
    )
    vectors = [_packed(vector.get("values")) for vector in found]
    if len(vectors) != rows:
        raise ProviderProtocolError(f"the provider answered {len(vectors)} embeddings for {rows} inputs")
    size = len(vectors[0]) if vectors else 0
    if not size or any(len(vector) != size for vector in vectors):
        raise ProviderProtocolError("the provider's embeddings are empty or differ in length")
    response = pb.EmbedResponse(
        data=b"".join(vectors),
        rows=rows,
        dimensions=size // FLOAT_BYTES,
        element_type=pb.ELEMENT_TYPE_FLOAT32,
    )
    if reported := mapping(answer.get("usageMetadata")):
        response.usage.CopyFrom(usage(reported))
    elif predictions:
        counts = [count(mapping(vector.get("statistics")).get("token_count")) for vector in found]
        if None not in counts:
            response.usage.input_tokens = sum(number for number in counts if number is not None)
    return response


def _parts(item: pb.EmbedInput, path: str, target: Target, losses: Losses) -> list[JsonObject]:
    match item.WhichOneof("input"):
        case "text":
            return [{"text": item.text}]
        case "content":
            return ContentWriter(target, losses).parts(item.content.parts, f"{path}.content")
        case _:
            raise unsupported(path, "this provider embeds text and media only")


def _packed(values: object) -> bytes:
    """One vector as little-endian float32."""
    try:
        packed = array("f", values if isinstance(values, list) else ())
    except (TypeError, ValueError, OverflowError):
        raise ProviderProtocolError("the provider sent an embedding that is no array of numbers") from None
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
