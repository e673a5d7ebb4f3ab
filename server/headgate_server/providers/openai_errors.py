"""Error answers of Chat Completions hosts: by HTTP status first, the error's code or type second, never by text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
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
from headgate_server.json_codec import JsonObject, clip, loads, text_of
from headgate_server.providers.base import Target

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
BY_STATUS: Mapping[int, type[ProviderError]] = {
    401: ProviderCredentialsRejected,
    402: ProviderQuotaExhausted,
    403: ProviderCredentialsRejected,
    404: ProviderModelMissing,
    408: ProviderTimeout,
    409: ProviderError,
    425: ProviderOverloaded,
    429: ProviderRateLimited,
    498: ProviderOverloaded,  # Groq: no flex capacity
    499: ProviderError,
    503: ProviderOverloaded,
    504: ProviderTimeout,
    522: ProviderTimeout,
    524: ProviderTimeout,
    529: ProviderOverloaded,
}
# What a code may turn a status into. A status that is not here stands, whatever the code says.
REFINED: Mapping[type[ProviderError], tuple[type[ProviderError], ...]] = {
    ProviderRejectedRequest: (
        ContextLengthExceeded,
        ContentFiltered,
        OpaqueStateRejected,
        ProviderCredentialsRejected,
        ProviderModelMissing,
        ProviderQuotaExhausted,
        ProviderResourceNotFound,
    ),
    ProviderCredentialsRejected: (ContentFiltered, ProviderModelMissing, ProviderQuotaExhausted),
    ProviderModelMissing: (ProviderResourceNotFound,),
    ProviderRateLimited: (ProviderQuotaExhausted,),
    ProviderError: (ProviderOverloaded, ProviderRateLimited),
}
PUBLIC: Mapping[type[ProviderError], str] = {
    ContextLengthExceeded: "the conversation is longer than the model's context window",
    ContentFiltered: "the provider's content filter blocked the prompt",
    ProviderQuotaExhausted: "the quota or credit at the provider is used up",
    ProviderRateLimited: "the provider's rate limit is reached",
    ProviderCredentialsRejected: "the provider does not accept the gateway's credentials",
    ProviderModelMissing: "the provider does not have the model",
    ProviderResourceNotFound: "the provider does not have a file or other resource that the request names",
    OpaqueStateRejected: "the provider does not accept a signature or id that it was given back",
    ProviderOverloaded: "the provider is overloaded",
    ProviderTimeout: "the provider timed out",
    ProviderRejectedRequest: "the provider rejected the request",
    ProviderError: "the provider failed",
}
REQUEST_ID_HEADERS = (
    "x-request-id",
    "apim-request-id",
    "mistral-correlation-id",
    "x-ds-trace-id",
    "x-inference-request-id",
)
MAX_CODE = 128
MAX_FILTER_RESULT = 8192
DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")
JUST_AFTER_EPOCH = datetime.fromisoformat("2001-01-01T00:00:00+00:00").timestamp()


class Report(NamedTuple):
    """What a vendor's error object says: its code and type in lower case, and a status where it holds one."""

    code: str
    type: str
    status: int | None
    detail: str
    filter_result: JsonObject


def error(status: int, headers: Mapping[str, str], body: bytes, target: Target) -> GatewayError:
    """The error of an answer with status 400 or more."""
    try:
        answer = loads(body)
    except ValueError:
        answer = None
    report = _read(answer, clip(body))
    request_id = next((headers[name] for name in REQUEST_ID_HEADERS if headers.get(name)), "")
    return _error(status, report, retry_after(headers), request_id, target)


def reported_error(answer: JsonObject, target: Target) -> GatewayError | None:
    """The error that a 200 answer or an event of a stream holds instead of an answer, if it does."""
    if not answer.get("error") and answer.get("object") != "error":
        return None
    report = _read(answer, "")
    return _error(report.status, report, None, "", target)


def _error(
    status: int | None, report: Report, retry_after: float | None, request_id: str, target: Target
) -> ProviderError:
    leaf = _classified(status, report)
    facts = {
        "http_status": str(status or ""),
        "provider_code": (report.code or report.type)[:MAX_CODE],
        "provider_request_id": request_id[:MAX_CODE],
    }
    found = leaf(
        PUBLIC[leaf],
        retry_after=retry_after,
        facts={name: fact for name, fact in facts.items() if fact},
        vendor_detail=report.detail,
    )
    if isinstance(found, ContentFiltered) and report.filter_result:
        found.provider_metadata = {target.issuer: text_of(report.filter_result)}
    return found


def _classified(status: int | None, report: Report) -> type[ProviderError]:
    by_code = BY_CODE.get(report.code.lower()) or BY_CODE.get(report.type.lower())
    if status is None:
        return by_code or ProviderError
    otherwise = ProviderError if status >= 500 else ProviderRejectedRequest
    by_status = BY_STATUS.get(status, otherwise)
    return by_code if by_code in REFINED.get(by_status, ()) else by_status


def _read(answer: object, body: str) -> Report:
    if isinstance(answer, list) and answer:
        answer = answer[0]
    top = answer if isinstance(answer, dict) else {}
    inner = top.get("error")
    found = inner if isinstance(inner, dict) else top
    code = found.get("code")
    status = _status(code) or _status(found.get("status_code")) or _status(top.get("status_code"))
    message = inner if isinstance(inner, str) else found.get("message") or top.get("detail")
    return Report(
        code="" if code is None or _status(code) else str(code),
        type=str(found.get("type") or ""),
        status=status,
        detail=str(message or body)[:2048],
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


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from whichever header says it. Dates are read against the answer's own Date."""
    if milliseconds := _number(headers.get("retry-after-ms")):  # Azure sends 0 beside a Retry-After of seconds
        return milliseconds / 1000
    if value := headers.get("retry-after"):
        seconds = _number(value)
        return seconds if seconds is not None else _until(_date(value), headers)
    waits = [
        wait
        for kind in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{kind}") == "0"
        and (wait := _duration(headers.get(f"x-ratelimit-reset-{kind}", ""))) is not None
    ]
    if waits:
        return max(waits)
    if headers.get("x-ratelimit-remaining") == "0" and (reset := _number(headers.get("x-ratelimit-reset"))):
        return _until(reset / 1000, headers)  # OpenRouter: milliseconds since the epoch
    return None


def _until(moment: float | None, headers: Mapping[str, str]) -> float | None:
    now = _date(headers.get("date", ""))
    if moment is None or now is None or moment < JUST_AFTER_EPOCH:
        return None
    return max(0.0, moment - now)


def _date(value: str) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None


def _number(value: str | None) -> float | None:
    try:
        found = float(value) if value else None
    except ValueError:
        return None
    return found if found is not None and 0 <= found < float("inf") else None


def _duration(value: str) -> float | None:
    """Seconds of a duration such as `6m0s`, `1.5s` or `12ms`."""
    match = DURATION.fullmatch(value)
    if not value or match is None:
        return _number(value)
    hours, minutes, seconds, milliseconds = (float(group or 0) for group in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
