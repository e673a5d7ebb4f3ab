"""Google's error answers: HTTP status first, then what google.rpc details say, never the message.

https://google.aip.dev/193 and https://ai.google.dev/gemini-api/docs/troubleshooting
"""

from __future__ import annotations

from collections.abc import Mapping

from headgate_server.errors import (
    GatewayError,
    ProviderCredentialsRejected,
    ProviderError,
    ProviderModelMissing,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderResourceNotFound,
    Resource,
)
from headgate_server.json_codec import JsonObject, clip
from headgate_server.providers.base import Target
from headgate_server.providers.failures import (
    WORD,
    classified,
    duration,
    error_object,
    provider_error,
    retry_after,
)
from headgate_server.providers.reading import mapping, objects

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
DETAIL_TYPE = "type.googleapis.com/google.rpc."
DAILY = "PerDay"


def error(status: int, headers: Mapping[str, str], body: bytes, target: Target) -> GatewayError:
    """The error of an answer with status 400 or more."""
    return _error(status, mapping(error_object(body).get("error")), retry_after(headers), clip(body))


def reported_error(answer: JsonObject, target: Target) -> GatewayError | None:
    """The error that a 200 answer or a chunk of a stream holds instead of an answer, if it does."""
    if not answer.get("error"):
        return None
    found = mapping(answer["error"])
    code = found.get("code")
    return _error(code if isinstance(code, int) and 400 <= code < 600 else 500, found, None, "")


def _error(status: int, found: JsonObject, wait: float | None, body: str) -> ProviderError:
    details = {str(item.get("@type")).removeprefix(DETAIL_TYPE): item for item in objects(found.get("details"))}
    reason = str(mapping(details.get("ErrorInfo")).get("reason") or found.get("status") or "")
    leaf = _leaf(status, reason, details)
    delay = mapping(details.get("RetryInfo")).get("retryDelay")
    told = duration(delay) if isinstance(delay, str) else None
    return provider_error(
        leaf,
        status=status,
        code=reason,
        detail=str(found.get("message") or body),
        retry_after=wait if told is None else told,
        resource=_resource(mapping(details.get("ResourceInfo"))) if leaf is ProviderResourceNotFound else None,
    )


def _leaf(status: int, reason: str, details: Mapping[str, JsonObject]) -> type[ProviderError]:
    leaf = classified(status, BY_REASON.get(reason))
    if leaf is ProviderModelMissing and "ResourceInfo" in details:
        return ProviderResourceNotFound
    if leaf is ProviderRateLimited and _is_daily(mapping(details.get("QuotaFailure"))):
        return ProviderQuotaExhausted
    return leaf


def _is_daily(failure: JsonObject) -> bool:
    """A quota of the day is used up, which no short wait mends, whatever RetryInfo says beside."""
    return any(DAILY in str(violation.get("quotaId")) for violation in objects(failure.get("violations")))


def _resource(info: JsonObject) -> Resource:
    named = (str(info.get(name) or "") for name in ("resourceType", "resourceName"))
    return Resource(*(name if WORD.fullmatch(name) else "" for name in named))
