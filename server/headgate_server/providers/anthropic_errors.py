"""Error answers of Messages: by HTTP status first, the error's code or type second, never by text.

https://platform.claude.com/docs/en/api/errors
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from headgate_server.errors import (
    ContextLengthExceeded,
    GatewayError,
    OpaqueStateRejected,
    ProviderCredentialsRejected,
    ProviderError,
    ProviderModelMissing,
    ProviderOverloaded,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejectedRequest,
    ProviderResourceNotFound,
    ProviderTimeout,
)
from headgate_server.json_codec import JsonObject, clip, loads
from headgate_server.providers.base import Target
from headgate_server.providers.openai_errors import BY_STATUS, MAX_CODE, PUBLIC, retry_after
from headgate_server.providers.reading import label, mapping

BY_TYPE: Mapping[str, type[ProviderError]] = {
    "invalid_request_error": ProviderRejectedRequest,
    "request_too_large": ProviderRejectedRequest,
    "authentication_error": ProviderCredentialsRejected,
    "permission_error": ProviderCredentialsRejected,
    "billing_error": ProviderQuotaExhausted,
    "not_found_error": ProviderModelMissing,
    "rate_limit_error": ProviderRateLimited,
    "timeout_error": ProviderTimeout,
    "overloaded_error": ProviderOverloaded,
    "exceed_context_size_error": ContextLengthExceeded,  # llama.cpp
}
BY_CODE: Mapping[str, type[ProviderError]] = {
    "contract_spend_limit_reached": ProviderQuotaExhausted,
    "enforced_spend_limit_reached": ProviderQuotaExhausted,
    "linked_organization_billing_unavailable": ProviderQuotaExhausted,
    "linked_organization_spend_limit_reached": ProviderQuotaExhausted,
    "file_expired": ProviderResourceNotFound,
    "compaction_signature_invalid": OpaqueStateRejected,
}
# What a type or code may turn a status into. A status that is not here stands, whatever they say.
REFINED: Mapping[type[ProviderError], tuple[type[ProviderError], ...]] = {
    ProviderRejectedRequest: (
        ContextLengthExceeded,
        OpaqueStateRejected,
        ProviderCredentialsRejected,
        ProviderQuotaExhausted,
        ProviderResourceNotFound,
    ),
    ProviderCredentialsRejected: (ProviderQuotaExhausted,),
    ProviderModelMissing: (ProviderResourceNotFound,),
    ProviderRateLimited: (ProviderQuotaExhausted,),
    ProviderError: (ProviderOverloaded, ProviderRateLimited, ProviderTimeout),
}
PUBLIC_TEXTS = {**PUBLIC, OpaqueStateRejected: "the provider does not accept opaque state that it was given back"}


class Report(NamedTuple):
    """What an error body says, in Anthropic's shape or in OpenAI's, which llama.cpp answers."""

    type: str
    code: str
    detail: str
    request_id: str


def error(status: int, headers: Mapping[str, str], body: bytes, target: Target) -> GatewayError:
    """The error of an answer with status 400 or more."""
    try:
        answer = mapping(loads(body))
    except ValueError:
        answer = {}
    report = _read(answer, clip(body))
    return _error(status, report, headers)


def reported_error(answer: JsonObject) -> GatewayError | None:
    """The error that a 200 answer or an event of a stream is instead of an answer, if it is one."""
    return failure(answer) if answer.get("type") == "error" or answer.get("error") else None


def failure(answer: JsonObject) -> GatewayError:
    """The error that an error object without an HTTP status stands for."""
    return _error(None, _read(answer, ""), {})


def _error(status: int | None, report: Report, headers: Mapping[str, str]) -> ProviderError:
    leaf = _classified(status, report)
    facts = {
        "http_status": str(status or ""),
        "provider_code": (report.code or report.type)[:MAX_CODE],
        "provider_request_id": (headers.get("request-id") or report.request_id)[:MAX_CODE],
    }
    return leaf(
        PUBLIC_TEXTS[leaf],
        retry_after=retry_after(headers),
        facts={name: fact for name, fact in facts.items() if fact},
        vendor_detail=report.detail,
    )


def _classified(status: int | None, report: Report) -> type[ProviderError]:
    by_report = BY_CODE.get(report.code) or BY_TYPE.get(report.type)
    if status is None:
        return by_report or ProviderError
    otherwise = ProviderError if status >= 500 else ProviderRejectedRequest
    by_status = BY_STATUS.get(status, otherwise)
    return by_report if by_report in REFINED.get(by_status, ()) else by_status


def _read(answer: JsonObject, body: str) -> Report:
    inner = answer.get("error")
    found = mapping(inner)
    return Report(
        type=label(found.get("type")),
        code=label(mapping(found.get("details")).get("error_code")),
        detail=(label(found.get("message")) or label(inner) or label(answer.get("message")) or body)[:2048],
        request_id=label(answer.get("request_id")),
    )
