"""Embeddings of text and images. https://docs.cohere.com/reference/embed"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

from headgate import v1 as pb

from headgate_server.errors import ProviderProtocolError
from headgate_server.json_codec import JsonObject, dumps, loads_object
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.cohere.errors import reported_error
from headgate_server.providers.cohere.usage import embed_usage
from headgate_server.providers.losses import Losses, unsupported
from headgate_server.providers.media import media_address, media_kind
from headgate_server.providers.options import with_caller_options
from headgate_server.providers.reading import decode_base64, mapping

EMBED_PATH = "/embed"
FLOAT_BYTES = 4
TASKS = {"retrieval-query": "search_query", "retrieval-document": "search_document"}
DEFAULT_TASK = "search_document"
SIMILARITY = "similarity"
NEAREST_TO_SIMILARITY = "clustering"


def encode_embed(request: pb.EmbedRequest, inputs: Sequence[pb.EmbedInput], target: Target) -> HttpCall:
    """The request for one sub-batch.

    Raises:
        UnsupportedParameter: an input is token ids, or holds what is neither text nor an image.
    """
    losses = Losses(request.routing.unsupported_policy)
    body: JsonObject = {
        "model": target.model,
        **_inputs(inputs, losses),
        "input_type": _input_type(request.task_type, losses),
        "embedding_types": [target.host.quirks.embed_format],
    }
    if request.HasField("dimensions"):
        body["output_dimension"] = request.dimensions
    if request.end_user_id:
        losses.setting("end_user_id", "this provider has no such setting")
    with_caller_options(body, request, target)
    return HttpCall(EMBED_PATH, dumps(body), warnings=losses.warnings)


def decode_embed(body: bytes, rows: int, target: Target) -> pb.EmbedResponse:
    """One sub-batch as packed little-endian float32, in the order of the inputs.

    Raises:
        ProviderProtocolError: rows are missing, or differ in length, or are neither floats nor base64 of them.
    """
    answer = loads_object(body)
    if error := reported_error(answer):
        raise error
    embeddings = mapping(answer.get("embeddings"))
    found = embeddings.get("float") or embeddings.get("base64")
    vectors = [_packed(vector) for vector in found] if isinstance(found, list) else []
    if len(vectors) != rows:
        raise ProviderProtocolError(f"the provider answered {len(vectors)} embeddings for {rows} inputs")
    size = len(vectors[0]) if vectors else 0
    if not size or any(len(vector) != size for vector in vectors) or size % FLOAT_BYTES:
        raise ProviderProtocolError("the provider's embeddings are empty or differ in length")
    response = pb.EmbedResponse(
        data=b"".join(vectors),
        rows=rows,
        dimensions=size // FLOAT_BYTES,
        element_type=pb.ELEMENT_TYPE_FLOAT32,
    )
    if meta := mapping(answer.get("meta")):
        response.usage.CopyFrom(embed_usage(meta))
    return response


def _input_type(task: str, losses: Losses) -> str:
    """What the embeddings are for, which this vendor wants to know of every call."""
    if not task:
        losses.default("task_type", f"this provider demands one: {DEFAULT_TASK} was sent")
        return DEFAULT_TASK
    if task == SIMILARITY:
        losses.setting("task_type", f"this provider does not know it: {NEAREST_TO_SIMILARITY} was sent")
        return NEAREST_TO_SIMILARITY
    return TASKS.get(task, task.replace("-", "_"))


def _inputs(inputs: Sequence[pb.EmbedInput], losses: Losses) -> JsonObject:
    """Plain texts, or where any input is more than that, each as a list of its content."""
    if all(item.WhichOneof("input") == "text" for item in inputs):
        return {"texts": [item.text for item in inputs]}
    return {"inputs": [{"content": _content(item, f"inputs[{n}]", losses)} for n, item in enumerate(inputs)]}


def _content(item: pb.EmbedInput, path: str, losses: Losses) -> list[JsonObject]:
    match item.WhichOneof("input"):
        case "text":
            return [{"type": "text", "text": item.text}]
        case "content":
            parts = enumerate(item.content.parts)
            return [_part(part, f"{path}.content.parts[{number}]", losses) for number, part in parts]
        case _:
            raise unsupported(path, "this provider embeds text and images only")


def _part(part: pb.Part, path: str, losses: Losses) -> JsonObject:
    if part.HasField("text"):
        return {"type": "text", "text": part.text}
    media = part.media
    if media_kind(media) != pb.MEDIA_KIND_IMAGE or media.WhichOneof("source") not in ("data", "uri"):
        raise unsupported(path, "this provider embeds text and images only, by data or uri")
    if media.detail:
        losses.setting(f"{path}.media.detail", "this provider chooses the resolution itself")
    return {"type": "image_url", "image_url": {"url": media_address(media)}}


def _packed(vector: object) -> bytes:
    """One vector as little-endian float32, which is also what base64 holds."""
    try:
        if isinstance(vector, str):
            return decode_base64(vector)
        packed = array("f", vector if isinstance(vector, list) else ())
    except (TypeError, ValueError, OverflowError):
        raise ProviderProtocolError("the provider sent an embedding that is neither floats nor base64") from None
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
