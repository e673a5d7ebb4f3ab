"""The caller's provider_options: the last word on the vendor's body, but for what the gateway answers for."""

from __future__ import annotations

from headgate import v1 as pb

from headgate_server.errors import InvalidRequest, Violation
from headgate_server.json_codec import JsonObject, caller_object, merge_patch
from headgate_server.providers.base import Target

OWNED = frozenset({"fallbacks", "model", "models", "preset", "route", "stream", "stream_options"})
"""Which model answers, and whether in a stream: permissions, limits, prices and the log go by the request's own fields.

Those beside `model` and the stream's are how OpenRouter and others are asked for models of the caller's choice.
"""


def caller_options(request: pb.GenerateRequest | pb.EmbedRequest, target: Target) -> JsonObject:
    """What the caller has for the vendor of this target; empty without.

    Raises:
        InvalidRequest: it is not a JSON object, or has a member that is the gateway's.
    """
    if target.issuer not in request.provider_options:
        return {}
    field = f'provider_options["{target.issuer}"]'
    options = caller_object(request.provider_options[target.issuer], field)
    # Vendors written in Go read names in any case.
    if owned := [name for name in options if name.casefold() in OWNED]:
        raise InvalidRequest.of([Violation(f"{field}.{name}", "is for the gateway to set") for name in owned])
    return options


def with_caller_options(body: JsonObject, request: pb.GenerateRequest | pb.EmbedRequest, target: Target) -> JsonObject:
    """`body`, changed, with the caller's options merged in as JSON Merge Patch.

    Raises:
        InvalidRequest: as caller_options.
    """
    merge_patch(body, caller_options(request, target))
    return body
