"""What vendors' failures have in common: which error a status is, its public text, and when to try again.

Classified by HTTP status first, by the vendor's code second, never by its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

from headgate_server.errors import (
    ContentFiltered,
    ContextLengthExceeded,
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
    Resource,
)
from headgate_server.json_codec import JsonObject, loads
from headgate_server.providers.reading import mapping

BY_STATUS: Mapping[int, type[ProviderError]] = {
    401: ProviderCredentialsRejected,
    402: ProviderQuotaExhausted,
    403: ProviderCredentialsRejected,
    404: ProviderModelMissing,
    408: ProviderTimeout,
    409: ProviderError,
    425: ProviderOverloaded,
    429: ProviderRateLimited,
    499: ProviderError,
    503: ProviderOverloaded,
    504: ProviderTimeout,
    522: ProviderTimeout,
    524: ProviderTimeout,
    529: ProviderOverloaded,
}
# What a code may turn a status into. A status that is not here stands, whatever the code says.
REFINEMENTS: Mapping[type[ProviderError], tuple[type[ProviderError], ...]] = {
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
    ProviderError: (ProviderOverloaded, ProviderRateLimited, ProviderTimeout),
}
PUBLIC_TEXTS: Mapping[type[ProviderError], str] = {
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
    "request-id",
    "x-request-id",
    "apim-request-id",
    "mistral-correlation-id",
    "x-ds-trace-id",
    "x-inference-request-id",
)
CODE = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
"""A code is a word: a sentence in its place is the vendor's text, which no caller gets."""
WORD = re.compile(r"[!-~]{1,128}")
MAX_DETAIL = 2048
DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9})ms)?")
JUST_AFTER_EPOCH = datetime.fromisoformat("2001-01-01T00:00:00+00:00").timestamp()


def error_object(body: bytes) -> JsonObject:
    """What an error answer holds, which some send as the only element of an array; empty if it is no object."""
    try:
        answer = loads(body)
    except ValueError:
        return {}
    return mapping(answer[0] if isinstance(answer, list) and answer else answer)


def classified(
    status: int | None,
    told: type[ProviderError] | None,
    by_status: Mapping[int, type[ProviderError]] = BY_STATUS,
) -> type[ProviderError]:
    """The error that a status stands for, or what the vendor's code tells where that may refine it.

    Without a status, as within a stream, the code alone says it.
    """
    if status is None:
        return told or ProviderError
    found = by_status.get(status, ProviderError if status >= 500 else ProviderRejectedRequest)
    return told if told in REFINEMENTS.get(found, ()) else found


def provider_error(
    leaf: type[ProviderError],
    *,
    status: int | None = None,
    code: str = "",
    detail: str = "",
    request_id: str = "",
    retry_after: float | None = None,
    resource: Resource | None = None,
) -> ProviderError:
    """The error with our own public text; the vendor's `detail` is for the log."""
    facts = {
        "http_status": str(status or ""),
        "provider_code": code if CODE.fullmatch(code) else "",
        "provider_request_id": request_id if WORD.fullmatch(request_id) else "",
    }
    return leaf(
        PUBLIC_TEXTS[leaf],
        retry_after=retry_after,
        resource=resource,
        facts={name: fact for name, fact in facts.items() if fact},
        vendor_detail=detail[:MAX_DETAIL],
    )


def request_id(headers: Mapping[str, str]) -> str:
    """The vendor's own name for the call, by which its support finds it; empty if no header has it."""
    return next((headers[name] for name in REQUEST_ID_HEADERS if headers.get(name)), "")


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
        and (wait := duration(headers.get(f"x-ratelimit-reset-{kind}", ""))) is not None
    ]
    if waits:
        return max(waits)
    if headers.get("x-ratelimit-remaining") == "0" and (reset := _number(headers.get("x-ratelimit-reset"))):
        return _until(reset / 1000, headers)  # OpenRouter: milliseconds since the epoch
    return None


def duration(value: str) -> float | None:
    """Seconds of a duration such as `6m0s`, `1.5s` or `12ms`; None if it is none."""
    match = DURATION.fullmatch(value)
    if not value or match is None:
        return _number(value)
    hours, minutes, seconds, milliseconds = (float(group or 0) for group in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


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
