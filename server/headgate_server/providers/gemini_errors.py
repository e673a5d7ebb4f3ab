"""Google's error answers: HTTP status first, then what google.rpc details say, never the message.

https://google.aip.dev/193 and https://ai.google.dev/gemini-api/docs/troubleshooting
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from headgate_server.errors import (
    GatewayError,
    ProviderCredentialsRejected,
    ProviderError,
    ProviderModelMissing,
    ProviderOverloaded,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejectedRequest,
    ProviderResourceNotFound,
    ProviderTimeout,
    Resource,
)
from headgate_server.json_codec import JsonObject, clip, loads
from headgate_server.providers.base import Target
from headgate_server.providers.openai_errors import PUBLIC
from headgate_server.providers.reading import mapping, objects

BY_STATUS: Mapping[int, type[ProviderError]] = {
    401: ProviderCredentialsRejected,
    403: ProviderCredentialsRejected,
    404: ProviderModelMissing,
    408: ProviderTimeout,
    409: ProviderError,  # ABORTED: the vendor says to try again
    429: ProviderRateLimited,
    499: ProviderError,
    503: ProviderOverloaded,
    504: ProviderTimeout,
}
BY_REASON: Mapping[str, type[ProviderError]] = {
    "API_KEY_INVALID": ProviderCredentialsRejected,
    "API_KEY_EXPIRED": ProviderCredentialsRejected,
    "API_KEY_SERVICE_BLOCKED": ProviderCredentialsRejected,
    "ACCESS_TOKEN_EXPIRED": ProviderCredentialsRejected,
    "BILLING_DISABLED": ProviderQuotaExhausted,
    "CREDENTIALS_MISSING": ProviderCredentialsRejected,
    "FAILED_PRECONDITION": ProviderQuotaExhausted,  # no free tier here, and no billing
    "SERVICE_DISABLED": ProviderCredentialsRejected,
}
# What a reason may turn a status into. A status that is not here stands.
REFINED: Mapping[type[ProviderError], tuple[type[ProviderError], ...]] = {
    ProviderRejectedRequest: (ProviderCredentialsRejected, ProviderQuotaExhausted),
    ProviderCredentialsRejected: (ProviderQuotaExhausted,),
}
DETAIL_TYPE = "type.googleapis.com/google.rpc."
DAILY = "PerDay"
SECONDS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s?")
MAX_FACT = 128


def error(status: int, headers: Mapping[str, str], body: bytes, target: Target) -> GatewayError:
    """The error of an answer with status 400 or more."""
    try:
        answer = loads(body)
    except ValueError:
        answer = None
    if isinstance(answer, list) and answer:
        answer = answer[0]
    return _error(status, mapping(mapping(answer).get("error")), _seconds(headers.get("retry-after")), clip(body))


def reported_error(answer: JsonObject, target: Target) -> GatewayError | None:
    """The error that a 200 answer or a chunk of a stream holds instead of an answer, if it does."""
    if not answer.get("error"):
        return None
    found = mapping(answer["error"])
    code = found.get("code")
    return _error(code if isinstance(code, int) and 400 <= code < 600 else 500, found, None, "")


def _error(status: int, found: JsonObject, retry_after: float | None, body: str) -> ProviderError:
    details = {str(item.get("@type")).removeprefix(DETAIL_TYPE): item for item in objects(found.get("details"))}
    reason = str(mapping(details.get("ErrorInfo")).get("reason") or found.get("status") or "")
    missing = mapping(details.get("ResourceInfo"))
    leaf = _classified(status, reason, details)
    told = _seconds(mapping(details.get("RetryInfo")).get("retryDelay"))
    facts = {"http_status": str(status), "provider_code": reason[:MAX_FACT]}
    return leaf(
        PUBLIC[leaf],
        retry_after=retry_after if told is None else told,
        resource=_resource(missing) if leaf is ProviderResourceNotFound else None,
        facts={name: fact for name, fact in facts.items() if fact},
        vendor_detail=str(found.get("message") or body)[:2048],
    )


def _classified(status: int, reason: str, details: Mapping[str, JsonObject]) -> type[ProviderError]:
    otherwise = ProviderError if status >= 500 else ProviderRejectedRequest
    by_status = BY_STATUS.get(status, otherwise)
    if by_status is ProviderModelMissing and "ResourceInfo" in details:
        return ProviderResourceNotFound
    if by_status is ProviderRateLimited and _is_daily(mapping(details.get("QuotaFailure"))):
        return ProviderQuotaExhausted
    by_reason = BY_REASON.get(reason)
    return by_reason if by_reason in REFINED.get(by_status, ()) else by_status


def _is_daily(failure: JsonObject) -> bool:
    """A quota of the day is used up, which no short wait mends, whatever RetryInfo says beside."""
    return any(DAILY in str(violation.get("quotaId")) for violation in objects(failure.get("violations")))


def _resource(info: JsonObject) -> Resource:
    return Resource(str(info.get("resourceType") or "")[:MAX_FACT], str(info.get("resourceName") or "")[:MAX_FACT])


def _seconds(value: object) -> float | None:
    """Seconds of a protobuf Duration in JSON, such as `48s`, or of a plain number."""
    match = SECONDS.fullmatch(value) if isinstance(value, str) else None
    return float(match[1]) if match else None
