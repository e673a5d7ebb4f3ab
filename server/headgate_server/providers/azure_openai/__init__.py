"""Azure OpenAI: the Chat Completions wire at a resource's address, where the model is the name of a deployment.

`base_url` is https://NAME.openai.azure.com, or .services.ai.azure.com. With `api_version` the deployment stands in the
path; without it, the v1 API is asked, which has it in the body. A `base_url` that ends in /v1 or /models is one that
paths are appended to as they are. https://learn.microsoft.com/azure/ai-foundry/openai/reference
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import quote, urlencode

from headgate import v1 as pb

from headgate_server.providers import openai
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.openai import CAPABILITIES, Stream, decode, decode_embed, error

__all__ = [
    "CAPABILITIES",
    "Stream",
    "decode",
    "decode_embed",
    "encode",
    "encode_embed",
    "error",
    "headers",
    "query",
    "takes_paths",
]

PATHS_APPENDED_TO = ("/v1", "/models")


def headers(credential: str | None) -> dict[str, str]:
    """Authentication by key; a token of Entra ID is a header of its own."""
    return {"api-key": credential} if credential else {}


def encode(request: pb.GenerateRequest, target: Target, *, stream: bool) -> HttpCall:
    """The chat completion request.

    Raises:
        InvalidRequest: a JSON text of the request is none.
        UnsupportedParameter: the request holds something that this vendor cannot represent.
    """
    return _addressed(openai.encode(request, target, stream=stream), target)


def encode_embed(request: pb.EmbedRequest, inputs: Sequence[pb.EmbedInput], target: Target) -> HttpCall:
    """The embeddings request for one sub-batch."""
    return _addressed(openai.encode_embed(request, inputs, target), target)


def takes_paths(target: Target) -> bool:
    """Whether OpenAI's paths are appended to the base URL as they are."""
    return target.host.base_url.endswith(PATHS_APPENDED_TO)


def query(target: Target) -> str:
    """The dated API that is asked; empty for v1."""
    version = target.host.api_version
    return f"?{urlencode({'api-version': version})}" if version else ""


def _addressed(call: HttpCall, target: Target) -> HttpCall:
    return replace(call, path=f"{_prefix(target)}{call.path}{query(target)}")


def _prefix(target: Target) -> str:
    if takes_paths(target):
        return ""
    return f"/openai/deployments/{quote(target.model, safe='')}" if target.host.api_version else "/openai/v1"
