"""Error answers of Cohere: by HTTP status first, error_type second, never by text.

https://docs.cohere.com/reference/errors
"""

from __future__ import annotations

from collections.abc import Mapping

from headgate_server.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    GatewayError,
    ProviderError,
    ProviderRejectedRequest,
    ProviderTimeout,
)
from headgate_server.json_codec import JsonObject, clip
from headgate_server.providers.base import Target
from headgate_server.providers.failures import BY_STATUS, classified, error_object, provider_error, retry_after
from headgate_server.providers.reading import label

STATUSES: Mapping[int, type[ProviderError]] = {
    **BY_STATUS,
    498: ContentFiltered,  # a token of the request is on a deny list
    501: ProviderRejectedRequest,  # a feature that the model does not have
}
BY_TYPE: Mapping[str, type[ProviderError]] = {"TOO_MANY_TOKENS": ContextLengthExceeded}
FAILURES: Mapping[str, type[ProviderError]] = {"ERROR": ProviderError, "TIMEOUT": ProviderTimeout}


def error(status: int, headers: Mapping[str, str], body: bytes, target: Target) -> GatewayError:
    """The error of an answer with status 400 or more."""
    answer = error_object(body)
    code = label(answer.get("error_type"))
    leaf = classified(status, BY_TYPE.get(code), STATUSES)
    detail = label(answer.get("message")) or clip(body)
    return _error(leaf, answer, code, detail, status=status, retry_after=retry_after(headers))


def reported_error(answer: JsonObject) -> GatewayError | None:
    """The error that a 200 answer or an event of a stream is instead of an answer: one whose message is a text."""
    detail = answer.get("message")
    if not isinstance(detail, str):
        return None
    code = label(answer.get("error_type"))
    return _error(classified(None, BY_TYPE.get(code)), answer, code, detail)


def failure(finish_reason: str, answer: JsonObject, detail: str) -> GatewayError | None:
    """The error that the generation ended with: not the model's outcome, but the vendor's failure."""
    leaf = FAILURES.get(finish_reason)
    return _error(leaf, answer, finish_reason, detail) if leaf else None


def _error(
    leaf: type[ProviderError],
    answer: JsonObject,
    code: str,
    detail: str,
    *,
    status: int | None = None,
    retry_after: float | None = None,
) -> ProviderError:
    request_id = label(answer.get("id"))
    return provider_error(leaf, status=status, code=code, detail=detail, request_id=request_id, retry_after=retry_after)
