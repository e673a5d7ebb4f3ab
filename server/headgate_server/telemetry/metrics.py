"""Counts what calls do, for Prometheus. One registry a server."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import grpc
from google.protobuf.duration_pb2 import Duration
from headgate import v1 as pb
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

import headgate_server
from headgate_server.errors import GatewayError, InternalError
from headgate_server.telemetry import names
from headgate_server.telemetry.conventions import VENDORS
from headgate_server.telemetry.headroom import Headroom
from headgate_server.telemetry.names import Name

if TYPE_CHECKING:
    from headgate_server.call import Call
    from headgate_server.limits.call import CallLimits

OTHER = "other"
NANOS = 1e9
OPERATIONS = {"Generate": "chat", "StreamGenerate": "chat", "Embed": "embeddings"}
RELOAD_RESULTS = ("applied", "refused")
TOKEN_TYPES = ("input", "output", "cache_read", "cache_write", "reasoning")


class Metrics:
    """The instruments, and how a call is recorded. Children are kept: looking them up costs more than the rest."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._duration = self._histogram(names.CALL_DURATION)
        self._overhead = self._histogram(names.CALL_OVERHEAD)
        self._errors = self._counter(names.CALL_ERRORS)
        self._attempts = self._counter(names.ATTEMPTS)
        self._operation = self._histogram(names.OPERATION_DURATION)
        self._first_chunk = self._histogram(names.FIRST_CHUNK)
        self._output_chunk = self._histogram(names.OUTPUT_CHUNK)
        self._tokens = self._histogram(names.TOKEN_USAGE)
        self._cost = self._counter(names.COST)
        self._decisions = self._counter(names.LIMIT_DECISIONS)
        self._headroom = Headroom(time.monotonic)
        self.registry.register(self._headroom)
        self.loop_lag = self._histogram(names.LOOP_LAG)
        self.draining = self._gauge(names.DRAINING)
        self._reloads = self._counter(names.RELOADS)
        self._reloaded = self._gauge(names.RELOADED)
        self._reloaded.set_to_current_time()
        build = self._gauge(names.BUILD)
        build.labels(headgate_server.__version__, platform.python_version(), grpc.__version__).set(1)
        self._histograms: dict[tuple[object, ...], Histogram] = {}
        self._counters: dict[tuple[object, ...], Counter] = {}
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Alerts look for an increase, and see none in a series that is born with its first event."""
        for result in RELOAD_RESULTS:
            self._count(self._reloads, (result,), 0.0)
        for method in names.METHODS:
            self._count(self._errors, (method, InternalError.reason), 0.0)

    def record_call(self, call: Call, error: GatewayError | None) -> None:
        """A call has ended, with that error or with its answer."""
        method = call.name
        code = error.code.name if error else "OK"
        self._observe(self._duration, (method, code), call.duration, call)
        if error:
            self._count(self._errors, (method, error.reason))
        if call.limits:
            self._record_limits(call.limits, time.monotonic())
        if not call.attempts:
            return
        self._observe(self._overhead, (method,), max(call.duration - call.upstream.seconds, 0.0), call)
        for attempt, cause in zip(call.attempts, call.causes, strict=True):
            self._record_attempt(call, method, attempt, cause)
        if call.cost is not None and (answering := call.answering):
            labels = (
                answering.provider,
                call.runtime.model_label(answering.provider, answering.model),
                call.cost.currency_code,
            )
            self._count(self._cost, labels, call.cost.total_nanos / NANOS)

    def _record_limits(self, limits: CallLimits, now: float) -> None:
        for rule, allowed, left in limits.decisions():
            self._count(self._decisions, (rule, "allowed" if allowed else "refused"))
            self._headroom.record(rule, left, now)

    def record_reload(self, *, applied: bool) -> None:
        """The configuration was read again, and is served or was refused."""
        self._count(self._reloads, (RELOAD_RESULTS[not applied],))
        if applied:
            self._reloaded.set_to_current_time()

    def _record_attempt(self, call: Call, method: str, attempt: pb.Attempt, cause: str) -> None:
        model = call.runtime.model_label(attempt.provider, attempt.model)
        outcome = _OUTCOMES[attempt.outcome]
        self._count(self._attempts, (attempt.provider, model, outcome, attempt.error_reason, cause))
        issuer = call.runtime.providers[attempt.provider].endpoint.issuer
        operation = (OPERATIONS.get(method, OTHER), VENDORS.get(issuer, issuer), model)
        error_type = attempt.error_reason or ("" if attempt.outcome == pb.ATTEMPT_OUTCOME_OK else outcome)
        latency = _seconds(attempt.latency)
        self._observe(self._operation, (*operation, error_type), latency, call)
        usage = attempt.usage if attempt.HasField("usage") else None
        if attempt.HasField("first_token_latency"):
            first = _seconds(attempt.first_token_latency)
            self._observe(self._first_chunk, operation, first, call)
            if usage is not None and usage.output_tokens > 1 and attempt.outcome == pb.ATTEMPT_OUTCOME_OK:
                self._observe(self._output_chunk, operation, (latency - first) / (usage.output_tokens - 1), call)
        if usage is not None:
            for kind, count in _token_counts(usage):
                self._observe(self._tokens, (*operation, kind), count, call)

    def _observe(self, histogram: Histogram, labels: tuple[str, ...], value: float, call: Call) -> None:
        child = self._histograms.get((histogram, *labels))
        if child is None:
            child = self._histograms[(histogram, *labels)] = histogram.labels(*labels)
        child.observe(value, call.exemplar)

    def _count(self, counter: Counter, labels: tuple[str, ...], amount: float = 1.0) -> None:
        child = self._counters.get((counter, *labels))
        if child is None:
            child = self._counters[(counter, *labels)] = counter.labels(*labels)
        child.inc(amount)

    def _histogram(self, name: Name) -> Histogram:
        return Histogram(name.name, name.help, name.labels, registry=self.registry, buckets=name.buckets)

    def _gauge(self, name: Name) -> Gauge:
        return Gauge(name.name, name.help, name.labels, registry=self.registry)

    def _counter(self, name: Name) -> Counter:
        return Counter(name.name, name.help, name.labels, registry=self.registry)


_OUTCOMES = {
    outcome: pb.AttemptOutcome.Name(outcome).removeprefix("ATTEMPT_OUTCOME_").lower()
    for outcome in pb.AttemptOutcome.values()
}


def _token_counts(usage: pb.Usage) -> Iterator[tuple[str, int]]:
    for kind in TOKEN_TYPES:
        if usage.HasField(field := f"{kind}_tokens"):  # type: ignore[arg-type]  # built from a closed list of names
            yield kind, getattr(usage, field)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / NANOS
