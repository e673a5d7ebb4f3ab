"""Counts what calls do, for Prometheus. One registry a server."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING

import grpc
from google.protobuf.duration_pb2 import Duration
from headgate import v1 as pb
from prometheus_client import CollectorRegistry, Gauge, GCCollector, PlatformCollector, ProcessCollector

import headgate_server
from headgate_server.errors import GatewayError, InternalError
from headgate_server.telemetry import names
from headgate_server.telemetry.conventions import VENDORS
from headgate_server.telemetry.headroom import Headroom
from headgate_server.telemetry.instruments import Counter, Histogram
from headgate_server.telemetry.names import Name

if TYPE_CHECKING:
    from headgate_server.call import Call
    from headgate_server.limits.call import CallLimits

OTHER = "other"
NANOS = 1e9
OPERATIONS = {"Generate": "chat", "StreamGenerate": "chat", "Embed": "embeddings"}
RELOAD_RESULTS = ("applied", "refused")
OUTPUT = "output"
TOKEN_TYPES = ("input", OUTPUT, "cache_read", "cache_write", "reasoning")


class Metrics:
    """The instruments, and how a call is recorded."""

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
        self._loop_lag = self._histogram(names.LOOP_LAG)
        self.draining = self._gauge(names.DRAINING)
        self._reloads = self._counter(names.RELOADS)
        self._reloaded = self._gauge(names.RELOADED)
        self._reloaded.set_to_current_time()
        build = self._gauge(names.BUILD)
        build.labels(headgate_server.__version__, platform.python_version(), grpc.__version__).set(1)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Alerts look for an increase, and see none in a series that is born with its first event."""
        for result in RELOAD_RESULTS:
            self._reloads.add((result,), 0.0)
        for method in names.METHODS:
            self._errors.add((method, InternalError.reason), 0.0)

    def record_call(self, call: Call, error: GatewayError | None) -> None:
        """A call has ended, with that error or with its answer."""
        method, exemplar = call.name, call.exemplar
        self._duration.observe((method, error.code.name if error else "OK"), call.duration, exemplar)
        if error:
            self._errors.add((method, error.reason))
        if call.limits:
            self._record_limits(call.limits, time.monotonic())
        if not call.attempts:
            return
        self._overhead.observe((method,), max(call.duration - call.upstream.seconds, 0.0), exemplar)
        for attempt, cause in zip(call.attempts, call.causes, strict=True):
            self._record_attempt(call, method, attempt, cause)
        if call.cost is not None and (answering := call.answering):
            provider = answering.provider
            model = call.runtime.model_label(provider, answering.model)
            self._cost.add((provider, model, call.cost.currency_code), call.cost.total_nanos / NANOS)

    def _record_limits(self, limits: CallLimits, now: float) -> None:
        for rule, allowed, left in limits.decisions():
            self._decisions.add((rule, "allowed" if allowed else "refused"))
            self._headroom.record(rule, left, now)

    def record_reload(self, *, applied: bool) -> None:
        """The configuration was read again, and is served or was refused."""
        self._reloads.add((RELOAD_RESULTS[not applied],))
        if applied:
            self._reloaded.set_to_current_time()

    def record_lag(self, seconds: float) -> None:
        """The event loop was that late."""
        self._loop_lag.observe((), seconds)

    def _record_attempt(self, call: Call, method: str, attempt: pb.Attempt, cause: str) -> None:
        provider, reason, ended, exemplar = attempt.provider, attempt.error_reason, attempt.outcome, call.exemplar
        model = call.runtime.model_label(provider, attempt.model)
        outcome = _OUTCOMES[ended]
        is_ok = ended == pb.ATTEMPT_OUTCOME_OK
        self._attempts.add((provider, model, outcome, reason, cause))
        issuer = call.runtime.providers[provider].endpoint.issuer
        operation = (OPERATIONS.get(method, OTHER), VENDORS.get(issuer, issuer), model)
        latency = _seconds(attempt.latency)
        self._operation.observe((*operation, reason or ("" if is_ok else outcome)), latency, exemplar)
        output_tokens = 0
        if attempt.HasField("usage"):
            for field, count in attempt.usage.ListFields():
                if kind := _TOKEN_TYPES.get(field):
                    self._tokens.observe((*operation, kind), count, exemplar)
                    if kind == OUTPUT:
                        output_tokens = count
        if attempt.HasField("first_token_latency"):
            first = _seconds(attempt.first_token_latency)
            self._first_chunk.observe(operation, first, exemplar)
            if output_tokens > 1 and is_ok:
                self._output_chunk.observe(operation, (latency - first) / (output_tokens - 1), exemplar)

    def _histogram(self, name: Name) -> Histogram:
        histogram = Histogram(name)
        self.registry.register(histogram)
        return histogram

    def _counter(self, name: Name) -> Counter:
        counter = Counter(name)
        self.registry.register(counter)
        return counter

    def _gauge(self, name: Name) -> Gauge:
        return Gauge(name.name, name.help, name.labels, registry=self.registry)


_OUTCOMES = {
    outcome: pb.AttemptOutcome.Name(outcome).removeprefix("ATTEMPT_OUTCOME_").lower()
    for outcome in pb.AttemptOutcome.values()
}
_TOKEN_TYPES = {pb.Usage.DESCRIPTOR.fields_by_name[f"{kind}_tokens"]: kind for kind in TOKEN_TYPES}


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / NANOS
