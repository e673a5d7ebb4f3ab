"""One log line a call, with its one outcome and no text of prompt or answer."""

from __future__ import annotations

from typing import Any

import structlog
from headgate import v1 as pb

from headgate_server import logs
from headgate_server.call import Call
from headgate_server.errors import GatewayError
from headgate_server.limits.estimate import Request
from headgate_server.principal import ANONYMOUS
from headgate_server.redaction import redacted
from headgate_server.timestamps import rfc3339

MAX_TEXT = 256
OUTCOMES = {value: name.removeprefix("ATTEMPT_OUTCOME_") for name, value in pb.AttemptOutcome.items()}
TOKENS = {
    pb.Usage.DESCRIPTOR.fields_by_name[f"{name}_tokens"]: name
    for name in ("input", "output", "cache_read", "cache_write", "reasoning")
}

log = structlog.get_logger(component="access")


def log_call(call: Call, error: GatewayError | None) -> None:
    """Writes the last line of the call."""
    if logs.tells_calls():
        logs.tell_call(_line(call, error))
    if error and error.vendor_detail:
        # A vendor's words may repeat the prompt: they are for those who ask for them.
        log.debug("vendor_detail", **logs.of_call(call), detail=redacted(error.vendor_detail))


def _line(call: Call, error: GatewayError | None) -> dict[str, Any]:
    line: dict[str, Any] = {
        "event": "call",
        "component": "access",
        **logs.of_call(call),
        "timestamp": rfc3339(call.ended_at),
        "method": call.method,
        "peer": call.peer,
        "code": error.code.name if error else "OK",
        "duration_ms": round(call.duration * 1000, 3),
    }
    if call.principal is not ANONYMOUS:
        line["key_id"] = call.principal.key_id
    if error:
        line["reason"] = error.reason
        line["error"] = error.message[:MAX_TEXT]
        if error.facts:
            line["facts"] = error.facts
    if isinstance(call.request, Request):
        line["model"] = call.request.model[:MAX_TEXT]
        line["labels"] = call.labels
    if call.routed_to:
        line["routed_to"] = call.routed_to
    if call.arm:
        line["arm"] = call.arm
    if call.finish_reasons:
        line["finish"] = call.finish_reasons
    if call.attempts:
        line["attempts"] = [_attempt(attempt) for attempt in call.attempts]
    return line


def _attempt(attempt: pb.Attempt) -> dict[str, Any]:
    line: dict[str, Any] = {
        "provider": attempt.provider,
        "model": attempt.model,
        "outcome": OUTCOMES[attempt.outcome],
        "latency_ms": attempt.latency.ToMicroseconds() / 1000,
    }
    if attempt.error_reason:
        line["reason"] = attempt.error_reason
    if attempt.http_status:
        line["http_status"] = attempt.http_status
    if attempt.provider_request_id:
        line["provider_request_id"] = attempt.provider_request_id
    if attempt.HasField("first_token_latency"):
        line["first_token_ms"] = attempt.first_token_latency.ToMicroseconds() / 1000
    if attempt.HasField("usage"):
        line["tokens"] = {TOKENS[field]: n for field, n in attempt.usage.ListFields() if field in TOKENS}
    return line
