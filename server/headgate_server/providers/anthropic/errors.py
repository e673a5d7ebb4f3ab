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
from headgate_server.json_codec import JsonObject, clip
from headgate_server.providers.base import Target
from headgate_server.providers.failures import classified, error_object, provider_error, request_id, retry_after
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


class Report(NamedTuple):
    """What an error body says, in Anthropic's shape or in OpenAI's, which llama.cpp answers."""

    type: str
    code: str
    detail: str
    request_id: str


def error(status: int, headers: Mapping[str, str], body: bytes, target: Target) -> GatewayError:
    """The error of an answer with status 400 or more."""
    return _error(status, _read(error_object(body), clip(body)), headers)


def reported_error(answer: JsonObject) -> GatewayError | None:
    """The error that a 200 answer or an event of a stream is instead of an answer, if it is one."""
    return failure(answer) if answer.get("type") == "error" or answer.get("error") else None


def failure(answer: JsonObject) -> GatewayError:
    """The error that an error object without an HTTP status stands for."""
    return _error(None, _read(answer, ""), {})


def _error(status: int | None, report: Report, headers: Mapping[str, str]) -> ProviderError:
    told = BY_CODE.get(report.code) or BY_TYPE.get(report.type)
    return provider_error(
        classified(status, told),
        status=status,
        code=report.code or report.type,
        detail=report.detail,
        request_id=request_id(headers) or report.request_id,
        retry_after=retry_after(headers),
    )


def _read(answer: JsonObject, body: str) -> Report:
    inner = answer.get("error")
    found = mapping(inner)
    return Report(
        type=label(found.get("type")),
        code=label(mapping(found.get("details")).get("error_code")),
        detail=label(found.get("message")) or label(inner) or label(answer.get("message")) or body,
        request_id=label(answer.get("request_id")),
    )
