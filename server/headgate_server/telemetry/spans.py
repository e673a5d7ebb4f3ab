"""The spans of one sampled call: the caller's RPC, and under it one for each attempt at a vendor.

They go by explicit reference, never by context variables: a stream's generators end in other tasks than they began in.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from google.protobuf.message import Message
from grpc import StatusCode
from headgate import v1 as pb
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode as SpanStatus, Tracer, set_span_in_context

from headgate_server.errors import CallCancelled, GatewayError, InternalError
from headgate_server.limits.estimate import Request
from headgate_server.telemetry import conventions as names
from headgate_server.telemetry.content import Transcript, finish_reason
from headgate_server.telemetry.trace_context import TRACEPARENT, TRACESTATE, traceparent

if TYPE_CHECKING:
    from headgate_server.call import Call
    from headgate_server.providers.base import Target

Attributes = dict[str, Any]

MAX_TEXT = 256
SERVER_ERRORS = frozenset(
    {
        StatusCode.UNKNOWN,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.UNIMPLEMENTED,
        StatusCode.INTERNAL,
        StatusCode.UNAVAILABLE,
        StatusCode.DATA_LOSS,
        StatusCode.ABORTED,
    }
)
"""Codes that make the server's span an error: those of the conventions, and ABORTED, which here is always a stream that
broke under its caller."""


class CallTrace:
    """What is recorded of one sampled call. `content_limit` is how many characters of prompt and answer; 0 for none."""

    def __init__(self, tracer: Tracer, span: Span, *, propagates: bool, content_limit: int) -> None:
        self._tracer = tracer
        self._span = span
        self._context = set_span_in_context(span, Context())  # without the caller's baggage
        self._propagates = propagates
        self._content_limit = content_limit
        self._attempts: list[AttemptSpan] = []
        self._answer = _Answer(content_limit)

    def attempt(self, call: Call, record: pb.Attempt, target: Target, cause: str) -> AttemptSpan:
        """The span of an attempt that begins now."""
        model = target.model[:MAX_TEXT]
        embeds = isinstance(call.request, pb.EmbedRequest)
        operation = names.EMBEDDINGS if embeds else names.CHAT
        span = self._tracer.start_span(
            f"{operation} {model}",
            self._context,
            SpanKind.CLIENT,
            {
                names.OPERATION: operation,
                names.PROVIDER: names.VENDORS.get(target.issuer, target.issuer),
                names.REQUEST_MODEL: model,
                names.REQUEST_STREAM: call.method.endswith("/StreamGenerate"),
                names.CONFIGURED_PROVIDER: target.provider,
                names.ATTEMPT_NUMBER: record.number,
                names.ATTEMPT_CAUSE: cause,
                **_server(target.host.base_url),
            },
        )
        if event := names.CAUSES.get(cause):
            attributes: Attributes = {names.ATTEMPT_NUMBER: record.number, names.CONFIGURED_PROVIDER: target.provider}
            self._span.add_event(event, attributes)
        attempt = AttemptSpan(self._span, span, record, self._propagates)
        self._attempts.append(attempt)
        return attempt

    def replied(self, message: Message) -> None:
        """A message goes to the caller: a whole answer, or an event of one."""
        self._answer.take(message)

    def end(self, call: Call, error: GatewayError | None) -> None:
        """Ends all spans, with what became of the call and of each attempt."""
        request = dict(_settings(call.request))
        for attempt in self._attempts:
            attempt.end({**request, **self._answer.of(attempt.record)})
        if self._content_limit and self._attempts and isinstance(call.request, pb.GenerateRequest):
            self._add_content(call.request)
        for attempt in self._attempts:
            attempt.span.end(attempt.ended_at)
        self._end(call, error)

    def _add_content(self, request: pb.GenerateRequest) -> None:
        """Prompt and answer on the attempt that answered, or else on the last."""
        answered = [attempt for attempt in self._attempts if self._answer.is_of(attempt.record)]
        span = (answered or self._attempts)[-1].span
        prompt = Transcript(self._content_limit)
        prompt.add(request.messages)
        span.set_attribute(names.INPUT_MESSAGES, prompt.json())
        span.set_attribute(names.OUTPUT_MESSAGES, self._answer.transcript.json())

    def _end(self, call: Call, error: GatewayError | None) -> None:
        code = error.code if error else StatusCode.OK
        self._span.set_attributes({names.RPC_STATUS: code.name, **_of_call(call)})
        if error and not isinstance(error, CallCancelled):
            self._span.set_attribute(names.ERROR_TYPE, error.reason)
        if error and code in SERVER_ERRORS:
            self._span.set_status(Status(SpanStatus.ERROR, error.message[:MAX_TEXT]))
        if isinstance(error, InternalError) and error.__cause__:
            self._span.add_event(names.EXCEPTION_EVENT, _exception(error.__cause__))
        self._span.end()


class AttemptSpan:
    """The span of one attempt. It is ended with its call, because what came of an attempt can still change."""

    __slots__ = ("_call_span", "ended_at", "headers", "record", "span")

    def __init__(self, call_span: Span, span: Span, record: pb.Attempt, propagates: bool) -> None:
        self.span = span
        self.record = record
        self.headers: Mapping[str, str] = headers_of(span) if propagates else {}
        self.ended_at: int | None = None
        self._call_span = call_span

    def content_came(self) -> None:
        """The first content of a stream arrived."""
        self._call_span.add_event(names.FIRST_TOKEN, {names.ATTEMPT_NUMBER: self.record.number})

    def over(self) -> None:
        """The attempt ended now."""
        self.ended_at = time.time_ns()

    def end(self, attributes: Attributes) -> None:
        """Adds what is on record."""
        record = self.record
        outcome = pb.AttemptOutcome.Name(record.outcome).removeprefix("ATTEMPT_OUTCOME_")
        self.span.set_attributes({**attributes, names.ATTEMPT_OUTCOME: outcome, **_of_record(record)})
        failed = record.outcome in (pb.ATTEMPT_OUTCOME_FAILED, pb.ATTEMPT_OUTCOME_TIMED_OUT)
        if failed:
            self.span.set_attribute(names.ERROR_TYPE, record.error_reason)
            self.span.set_status(Status(SpanStatus.ERROR, record.error_reason))


class _Answer:
    """What the caller was sent, as far as spans tell it."""

    def __init__(self, content_limit: int) -> None:
        self.transcript = Transcript(content_limit)
        self._content = content_limit > 0
        self._number = 0
        self._finishes: dict[int, str] = {}
        self._attributes: Attributes = {}

    def take(self, message: Message) -> None:
        match message:
            case pb.StreamGenerateResponse():
                self._event(message)
            case pb.GenerateResponse():
                self._attributes[names.RESPONSE_ID] = message.provider_response_id
                self._attributes[names.RESPONSE_MODEL] = message.model
                self._finishes = {c.index: finish_reason(c.finish) for c in message.candidates}
                if self._content:
                    self.transcript.add_answer(message)
            case pb.EmbedResponse():
                self._attributes[names.RESPONSE_MODEL] = message.model
                self._attributes[names.EMBEDDING_DIMENSIONS] = message.dimensions

    def _event(self, event: pb.StreamGenerateResponse) -> None:
        if event.HasField("generation_start"):
            start = event.generation_start
            self._number = start.attempt
            self._attributes[names.RESPONSE_ID] = start.provider_response_id
            self._attributes[names.RESPONSE_MODEL] = start.model
        elif event.HasField("candidate_end"):
            self._finishes[event.candidate_index] = finish_reason(event.candidate_end.finish)
        if self._content:
            self.transcript.feed(event)

    def is_of(self, record: pb.Attempt) -> bool:
        """Whether that attempt gave it: a stream says so; a plain answer is of whichever was not in vain."""
        return record.number == self._number if self._number else record.outcome == pb.ATTEMPT_OUTCOME_OK

    def of(self, record: pb.Attempt) -> Attributes:
        """What it says of that attempt."""
        if not self._attributes or not self.is_of(record):
            return {}
        told = {name: value for name, value in self._attributes.items() if value}
        if self._finishes:
            told[names.FINISH_REASONS] = [self._finishes[index] for index in sorted(self._finishes)]
        return told


def headers_of(span: Span) -> dict[str, str]:
    """The headers by which a vendor can continue the trace under this span; none where there is no trace."""
    context = span.get_span_context()
    if not context.is_valid:
        return {}
    headers = {TRACEPARENT: traceparent(context.trace_id, context.span_id, context.trace_flags)}
    if context.trace_state:
        headers[TRACESTATE] = context.trace_state.to_header()
    return headers


@lru_cache(maxsize=1024)
def _server(base_url: str) -> Mapping[str, str | int]:
    url = urlsplit(base_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    return {names.SERVER_ADDRESS: url.hostname or "", names.SERVER_PORT: port}


def _settings(request: Message | None) -> Iterator[tuple[str, Any]]:
    if isinstance(request, pb.GenerateRequest):
        for field, name in names.REQUEST_SETTINGS.items():
            if request.config.HasField(field):  # type: ignore[arg-type]  # a closed list of names
                yield name, getattr(request.config, field)


def _of_call(call: Call) -> Attributes:
    told: Attributes = {names.REQUEST_ID: call.request_id, names.ATTEMPTS: len(call.attempts)}
    if isinstance(call.request, Request):
        told[names.REQUEST_MODEL] = call.request.model[:MAX_TEXT]
    told |= {names.TENANT: call.principal.tenant, names.ARM: call.arm, names.ROUTED_TO: call.routed_to}
    if call.cost:
        told |= {names.COST: call.cost.total_nanos, names.CURRENCY: call.cost.currency_code}
    return {name: value for name, value in told.items() if value != ""}


def _of_record(record: pb.Attempt) -> Attributes:
    told: Attributes = {}
    if record.http_status:
        told[names.HTTP_STATUS] = record.http_status
    if record.provider_request_id:
        told[names.PROVIDER_REQUEST_ID] = record.provider_request_id[:MAX_TEXT]
    if record.HasField("first_token_latency"):
        told[names.TIME_TO_FIRST_CHUNK] = record.first_token_latency.ToNanoseconds() / 1e9
    for field, name in names.USAGE.items():
        if record.usage.HasField(field):  # type: ignore[arg-type]  # a closed list of names
            told[name] = getattr(record.usage, field)
    return told


def _exception(exception: BaseException) -> Attributes:
    """Type and place of a bug. Not its text: it may repeat a prompt or a key."""
    stack = "".join(traceback.format_tb(exception.__traceback__))
    return {names.EXCEPTION_TYPE: type(exception).__qualname__, names.EXCEPTION_STACK: stack}
