"""Gemini at Vertex AI: the same wire under a project's address, where only embeddings are asked for otherwise.

`base_url` is https://LOCATION-aiplatform.googleapis.com/v1/projects/PROJECT/locations/LOCATION, without the first
LOCATION- for global. A model with a slash in its name is a path below it, such as endpoints/1234.
https://docs.cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, dumps
from headgate_server.providers import gemini
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.gemini import CAPABILITIES, Stream, decode, error, headers
from headgate_server.providers.gemini.embed import (
    decode_embed,
    embed_content,
    task_type,
    tell_of_end_user,
)
from headgate_server.providers.losses import Losses, unsupported
from headgate_server.providers.options import with_caller_options

__all__ = [
    "CAPABILITIES",
    "Stream",
    "decode",
    "decode_embed",
    "encode",
    "encode_embed",
    "error",
    "headers",
]

PREDICT_MODELS = ("text-embedding-", "text-multilingual-embedding-", "textembedding-gecko", "gemini-embedding-001")


def encode(request: pb.GenerateRequest, target: Target, *, stream: bool) -> HttpCall:
    """The request for generateContent or streamGenerateContent.

    Raises:
        InvalidRequest: a JSON text of the request is none.
        UnsupportedParameter: the request holds something that this vendor cannot represent.
    """
    losses = Losses(request.routing.unsupported_policy)
    body = gemini.body(request, target, losses)
    return HttpCall(f"{_model_path(target)}:{gemini.method(stream)}", dumps(body), warnings=losses.warnings)


def encode_embed(request: pb.EmbedRequest, inputs: Sequence[pb.EmbedInput], target: Target) -> HttpCall:
    """The request for one sub-batch; embedContent takes one input.

    Raises:
        UnsupportedParameter: an input is something that the model does not embed, or there are too many.
    """
    losses = Losses(request.routing.unsupported_policy)
    tell_of_end_user(request, losses)
    if target.model.startswith(PREDICT_MODELS):
        body = _predict(request, inputs, target)
        return HttpCall(f"{_model_path(target)}:predict", dumps(body), warnings=losses.warnings)
    if len(inputs) != 1:
        raise unsupported("inputs", "this provider embeds one at a time: leave quirks.embed_batch at 1")
    body = embed_content(request, inputs[0], "inputs[0]", target, losses)
    return HttpCall(f"{_model_path(target)}:embedContent", dumps(body), warnings=losses.warnings)


def _predict(request: pb.EmbedRequest, inputs: Sequence[pb.EmbedInput], target: Target) -> JsonObject:
    instances: list[JsonObject] = []
    for number, item in enumerate(inputs):
        if not item.HasField("text"):
            raise unsupported(f"inputs[{number}]", "this model embeds text only")
        instance: JsonObject = {"content": item.text}
        if request.task_type:
            instance["task_type"] = task_type(request.task_type)
        instances.append(instance)
    body: JsonObject = {"instances": instances}
    if request.HasField("dimensions"):
        body["parameters"] = {"outputDimensionality": request.dimensions}
    return with_caller_options(body, request, target)


def _model_path(target: Target) -> str:
    name = target.model if "/" in target.model else f"publishers/google/models/{target.model}"
    return f"/{quote(name)}"
