"""Azure OpenAI's Responses: OpenAI's wire at a resource's address, the deployment in the body whatever the version.

https://learn.microsoft.com/azure/ai-foundry/openai/how-to/responses
"""

from __future__ import annotations

from dataclasses import replace

from headgate import v1 as pb

from headgate_server.providers import openai_responses
from headgate_server.providers.azure_openai import encode_embed, headers, query, takes_paths
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.openai_responses import CAPABILITIES, Stream, decode, decode_embed, error

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


def encode(request: pb.GenerateRequest, target: Target, *, stream: bool) -> HttpCall:
    """The request for one response.

    Raises:
        InvalidRequest: a JSON text of the request is none.
        UnsupportedParameter: the request holds something that this vendor cannot represent.
    """
    call = openai_responses.encode(request, target, stream=stream)
    return replace(call, path=f"{_prefix(target)}{call.path}{query(target)}")


def _prefix(target: Target) -> str:
    if takes_paths(target):
        return ""
    return "/openai" if target.host.api_version else "/openai/v1"
