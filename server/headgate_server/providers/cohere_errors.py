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
from headgate_server.json_codec import JsonObject, clip, loads
from headgate_server.providers.base import Target
from headgate_server.providers.openai_errors import BY_STATUS, MAX_CODE, PUBLIC, retry_after
from headgate_server.providers.reading import label, mapping

STATUSES: Mapping[int, type[ProviderError]] = {
    **BY_STATUS,
    498: ContentFiltered,  # a token of the request is on a deny list
    501: ProviderRejectedRequest,  # a feature that the model does not have
}
REFINED: Mapping[str, type[ProviderError]] = {"TOO_MANY_TOKENS": ContextLengthExceeded}
FAILURES: Mapping[str, type[ProviderError]] = {"ERROR": ProviderError, "TIMEOUT": ProviderTimeout}


def error(status: int, headers: Mapping[str, str], body: bytes, target: Target) -> GatewayError:
    """The error of an answer with status 400 or more."""
    try:
        answer = mapping(loads(body))
    except ValueError:
        answer = {}
    code = label(answer.get("error_type"))
    leaf = STATUSES.get(status, ProviderError if status >= 500 else ProviderRejectedRequest)
    if leaf is ProviderRejectedRequest:
        leaf = REFINED.get(code, leaf)
    return _error(leaf, answer, code, label(answer.get("message")) or clip(body), headers, status)


def reported_error(answer: JsonObject) -> GatewayError | None:
    """The error that a 200 answer or an event of a stream is instead of an answer: one whose message is a text."""
    detail = answer.get("message")
    if not isinstance(detail, str):
        return None
    code = label(answer.get("error_type"))
    return _error(REFINED.get(code, ProviderError), answer, code, detail)


def failure(finish_reason: str, answer: JsonObject, detail: str) -> GatewayError | None:
    """The error that the generation ended with: not the model's outcome, but the vendor's failure."""
    leaf = FAILURES.get(finish_reason)
    return _error(leaf, answer, finish_reason, detail) if leaf else None


def _error(
    leaf: type[ProviderError],
    answer: JsonObject,
    code: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    status: int | None = None,
) -> ProviderError:
    facts = {
        "http_status": str(status or ""),
        "provider_code": code[:MAX_CODE],
        "provider_request_id": label(answer.get("id"))[:MAX_CODE],
    }
    return leaf(
        PUBLIC[leaf],
        retry_after=retry_after(headers or {}),
        facts={name: fact for name, fact in facts.items() if fact},
        vendor_detail=detail[:2048],
    )
