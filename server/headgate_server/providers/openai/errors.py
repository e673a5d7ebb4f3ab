"""Error answers of Chat Completions hosts: by HTTP status first, the error's code or type second, never by text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from headgate_server.errors import (
    ContentFiltered,
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
from headgate_server.json_codec import JsonObject, clip, text_of
from headgate_server.providers.base import Target
from headgate_server.providers.failures import (
    BY_STATUS,
    classified,
    error_object,
    provider_error,
    request_id,
    retry_after,
)

BY_CODE: Mapping[str, type[ProviderError]] = {
    "context_length_exceeded": ContextLengthExceeded,
    "exceed_context_size_error": ContextLengthExceeded,
    "too_many_prompt_tokens": ContextLengthExceeded,
    "content_filter": ContentFiltered,
    "data_inspection_failed": ContentFiltered,
    "image_content_policy_violation": ContentFiltered,
    "bio_policy": ContentFiltered,
    "insufficient_quota": ProviderQuotaExhausted,
    "insufficient_balance": ProviderQuotaExhausted,
    "billing_hard_limit_reached": ProviderQuotaExhausted,
    "billing_not_active": ProviderQuotaExhausted,
    "arrearage": ProviderQuotaExhausted,
    "rate_limit_exceeded": ProviderRateLimited,
    "rate_limit_error": ProviderRateLimited,
    "ratelimitreached": ProviderRateLimited,
    "too_many_requests": ProviderRateLimited,
    "invalid_api_key": ProviderCredentialsRejected,
    "authentication_error": ProviderCredentialsRejected,
    "permission_error": ProviderCredentialsRejected,
    "permission_denied": ProviderCredentialsRejected,
    "model_not_found": ProviderModelMissing,
    "model_decommissioned": ProviderModelMissing,
    "deploymentnotfound": ProviderModelMissing,
    "unknown_model": ProviderModelMissing,
    "file_not_found": ProviderResourceNotFound,
    "image_file_not_found": ProviderResourceNotFound,
    "previous_response_not_found": ProviderResourceNotFound,
    "invalid_encrypted_content": OpaqueStateRejected,
    "overloaded_error": ProviderOverloaded,
    "timeout": ProviderTimeout,
    "vector_store_timeout": ProviderTimeout,
    "invalid_request_error": ProviderRejectedRequest,
    "invalid_prompt": ProviderRejectedRequest,
    "invalid_image": ProviderRejectedRequest,
    "invalid_image_format": ProviderRejectedRequest,
    "invalid_image_url": ProviderRejectedRequest,
    "invalid_base64_image": ProviderRejectedRequest,
    "image_too_large": ProviderRejectedRequest,
    "image_parse_error": ProviderRejectedRequest,
    "unsupported_image_media_type": ProviderRejectedRequest,
    "failed_to_download_image": ProviderRejectedRequest,
}
STATUSES: Mapping[int, type[ProviderError]] = {**BY_STATUS, 498: ProviderOverloaded}  # Groq: no flex capacity
MAX_FILTER_RESULT = 8192


class Report(NamedTuple):
    """What a vendor's error object says: its code, its type, and a status where it holds one."""

    code: str
    type: str
    status: int | None
    detail: str
    filter_result: JsonObject


def error(status: int, headers: Mapping[str, str], body: bytes, target: Target) -> GatewayError:
    """The error of an answer with status 400 or more."""
    report = _read(error_object(body), clip(body))
    return _error(status, report, headers, target)


def reported_error(answer: JsonObject, target: Target) -> GatewayError | None:
    """The error that a 200 answer or an event of a stream holds instead of an answer, if it does."""
    if not answer.get("error") and answer.get("object") != "error":
        return None
    report = _read(answer, "")
    return _error(report.status, report, {}, target)


def _error(status: int | None, report: Report, headers: Mapping[str, str], target: Target) -> ProviderError:
    told = BY_CODE.get(report.code.lower()) or BY_CODE.get(report.type.lower())
    found = provider_error(
        classified(status, told, STATUSES),
        status=status,
        code=report.code or report.type,
        detail=report.detail,
        request_id=request_id(headers),
        retry_after=retry_after(headers),
    )
    if isinstance(found, ContentFiltered) and report.filter_result:
        found.provider_metadata = {target.issuer: text_of(report.filter_result)}
    return found


def _read(answer: JsonObject, body: str) -> Report:
    inner = answer.get("error")
    found = inner if isinstance(inner, dict) else answer
    code = found.get("code")
    status = _status(code) or _status(found.get("status_code")) or _status(answer.get("status_code"))
    message = inner if isinstance(inner, str) else found.get("message") or answer.get("detail")
    return Report(
        code="" if code is None or _status(code) else str(code),
        type=str(found.get("type") or ""),
        status=status,
        detail=str(message or body),
        filter_result=_filter_result(found),
    )


def _filter_result(found: JsonObject) -> JsonObject:
    """What Azure's filter says of the prompt: categories and severities, none of the prompt's own words."""
    inner = found.get("innererror")
    result = inner.get("content_filter_result") if isinstance(inner, dict) else None
    if not isinstance(result, dict) or len(text_of(result)) > MAX_FILTER_RESULT:
        return {}
    return {"content_filter_result": result}


def _status(code: object) -> int | None:
    """An HTTP status that stands where others write a code."""
    if isinstance(code, str) and code.isascii() and code.isdigit():
        code = int(code[:4])
    if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600:
        return code
    return None
