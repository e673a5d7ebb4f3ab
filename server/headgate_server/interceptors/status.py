"""Turns the one outcome of a call into a gRPC status with google.rpc details."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from headgate import v1 as pb

from headgate_server.call import REQUEST_ID, Call
from headgate_server.errors import GatewayError, GatewayOverloaded, InternalError, ReachedLimit, Violation

DOMAIN = "headgate"
MAX_MESSAGE_BYTES = 512
MAX_DETAILS_BYTES = 2048
MAX_FACT_BYTES = 128
MAX_VIOLATIONS = 8
UNREAD_SECONDS = 1.0

_unread: set[asyncio.Future[NoReturn]] = set()
"""Statuses on their way to those who do not read: the event loop itself holds no reference to them."""

log = structlog.get_logger(component="status")


@dataclass(frozen=True, slots=True)
class RpcStatus(grpc.Status):
    """A status as grpc.aio's abort_with_status takes it."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


async def fail(call: Call, exception: BaseException) -> NoReturn:
    """Answers a failure; a caller who is gone gets no answer, and the cancellation goes on."""
    error = call.conclude(exception) or InternalError()
    if call.unanswerable:
        raise asyncio.CancelledError from None
    if isinstance(error, InternalError):
        log.error("internal_error", method=call.method, exc_info=exception)
    await _abort(call, to_status(error, call.request_id, call.attempts, call.trailer))


async def _abort(call: Call, rpc_status: RpcStatus) -> NoReturn:
    """Sends the status. It queues behind what was written: one who reads no more does not hold the call for that."""
    if not call.ended_by_server:
        await call.context.abort_with_status(rpc_status)
    aborting = asyncio.ensure_future(call.context.abort_with_status(rpc_status))
    _unread.add(aborting)
    aborting.add_done_callback(_forget)
    sent, _ = await asyncio.wait((aborting,), timeout=UNREAD_SECONDS)
    if sent:
        await aborting
    raise asyncio.CancelledError


def _forget(aborting: asyncio.Future[NoReturn]) -> None:
    _unread.discard(aborting)
    if not aborting.cancelled():
        aborting.exception()  # abort always raises, and nobody else looks


def to_status(
    error: GatewayError, request_id: str, attempts: Sequence[pb.Attempt], more: Sequence[tuple[str, str | bytes]] = ()
) -> RpcStatus:
    """The status of an error: message of at most 512 ASCII bytes, details of at most 2 KiB, and `more` trailers."""
    if error.code is grpc.StatusCode.OK:  # gRPC would answer nothing at all
        error = InternalError()
    message = _ascii(error.message, MAX_MESSAGE_BYTES)
    rich = status_pb2.Status(code=error.code.value[0], message=message)
    for detail in _details(error, request_id, len(attempts)):
        _add(rich, detail)
    _add_violations(rich, error.violations)
    _add_quota_failure(rich, error.reached_limits)
    trailer: list[tuple[str, str | bytes]] = [
        (REQUEST_ID, request_id),
        ("grpc-status-details-bin", rich.SerializeToString()),
        *more,
    ]
    pushback = _pushback(error, attempts)
    if pushback is not None:
        trailer.append(("grpc-retry-pushback-ms", str(pushback)))
    return RpcStatus(error.code, message, tuple(trailer))


def _details(error: GatewayError, request_id: str, attempts: int) -> list[Message]:
    """Most important first: what does not fit into the budget is left out."""
    facts = {key: _ascii(value, MAX_FACT_BYTES) for key, value in error.facts.items() if value}
    if attempts:
        facts["attempt_count"] = str(attempts)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after)))
    if error.resource is not None:
        details.append(
            error_details_pb2.ResourceInfo(
                resource_type=_ascii(error.resource.type, MAX_FACT_BYTES),
                resource_name=_ascii(error.resource.name, MAX_FACT_BYTES),
            )
        )
    return details


def _add(rich: status_pb2.Status, detail: Message) -> bool:
    """Adds a detail if it fits."""
    packed = AnyMessage()
    packed.Pack(detail)
    fits = rich.ByteSize() + packed.ByteSize() + 8 <= MAX_DETAILS_BYTES
    if fits:
        rich.details.append(packed)
    return fits


def _add_violations(rich: status_pb2.Status, violations: Sequence[Violation]) -> None:
    """As many as fit, the first first."""
    bad_request = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=_ascii(violation.field, MAX_FACT_BYTES),
                description=_ascii(violation.description, MAX_FACT_BYTES),
            )
            for violation in violations[:MAX_VIOLATIONS]
        ]
    )
    while bad_request.field_violations and not _add(rich, bad_request):
        bad_request.field_violations.pop()


def _add_quota_failure(rich: status_pb2.Status, reached: Sequence[ReachedLimit]) -> None:
    """As many as fit, the first first."""
    quota_failure = error_details_pb2.QuotaFailure(
        violations=[
            error_details_pb2.QuotaFailure.Violation(
                subject=_ascii(limit.subject, MAX_FACT_BYTES),
                description=_ascii(limit.description, MAX_FACT_BYTES),
                quota_metric=limit.unit,
            )
            for limit in reached[:MAX_VIOLATIONS]
        ]
    )
    while quota_failure.violations and not _add(rich, quota_failure):
        quota_failure.violations.pop()


def _pushback(error: GatewayError, attempts: Sequence[pb.Attempt]) -> int | None:
    """Milliseconds for gRPC's own retry machinery; -1 stops it.

    Once a vendor was reached the gateway has tried enough, and a call that cannot be retried never should.
    """
    reached_vendor = any(attempt.error_reason != GatewayOverloaded.reason for attempt in attempts)
    if not error.retryable or reached_vendor:
        return -1
    return None if error.retry_after is None else math.ceil(error.retry_after * 1000)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(math.ceil(seconds * 1000))
    return duration


def _ascii(text: str, limit: int) -> str:
    """Printable ASCII of at most `limit` bytes: gRPC percent-encodes the rest, and peers refuse long headers."""
    safe = "".join(c if " " <= c <= "~" else "?" for c in text[:limit])
    return safe if len(text) <= limit else safe[: limit - 3] + "..."
