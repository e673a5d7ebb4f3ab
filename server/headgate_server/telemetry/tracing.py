"""Beginning traces, and sending them to a collector. The extra `[otel]`; imported only where traces are on.

OpenTelemetry's SDK reads its own variables (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER,
OTEL_PROPAGATORS, OTEL_BSP_*, OTEL_EXPORTER_OTLP_*, OTEL_SDK_DISABLED, ...): the one exception to the rule that nothing
below the configuration reads the environment.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from contextlib import suppress
from ipaddress import ip_address
from typing import cast
from urllib.parse import unquote

import structlog
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Tracer as SdkTracer, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanKind, TraceFlags

import headgate_server
from headgate_server.call import Call
from headgate_server.config import Traces
from headgate_server.config.values import split_address
from headgate_server.telemetry import conventions as names
from headgate_server.telemetry.exporters import exporters
from headgate_server.telemetry.spans import CallTrace, headers_of
from headgate_server.telemetry.trace_context import TRACEPARENT, traceparent

FLUSH_SECONDS = 5.0
_RATIO = re.compile(r"(?:ParentBased\{root:)?TraceIdRatioBased\{([^}]+)\}")

log = structlog.get_logger(component="tracing")


class TraceIds(RandomIdGenerator):
    """Gives the span that begins next the id by which its trace was chosen."""

    chosen = 0

    def generate_trace_id(self) -> int:
        chosen, self.chosen = self.chosen, 0
        return chosen or super().generate_trace_id()


class CallTracer:
    """Decides which calls are recorded, and begins their spans."""

    def __init__(self, provider: TracerProvider, propagator: TextMapPropagator, settings: Traces, listen: str) -> None:
        self._tracer = provider.get_tracer(names.SCOPE, headgate_server.__version__)
        self._ids = cast(TraceIds, provider.id_generator)
        self._sampler = provider.sampler if isinstance(self._tracer, SdkTracer) else ALWAYS_ON
        self._bound = _bound(self._sampler)
        self._propagator = propagator
        self._incoming = frozenset(propagator.fields)
        self._propagates = settings.propagate
        self._content_limit = settings.content_limit if settings.content else 0
        self._server = _server(listen)
        self._methods: dict[str, tuple[str, dict[str, str | int]]] = {}
        self._shutdown = provider.shutdown

    def begin(self, call: Call) -> None:
        """Continues the caller's trace, or begins one; a call that is not sampled has no more than its trace id."""
        name, attributes = self._methods.get(call.method) or self._method(call.method)
        context = Context()
        if not self._incoming.isdisjoint(call.metadata):
            context = self._propagator.extract(call.metadata, context)
        elif not self._chooses(call, name, attributes):
            return
        span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes)
        span_context = span.get_span_context()
        if span_context.is_valid:
            call.trace_id = f"{span_context.trace_id:032x}"
        if span.is_recording():
            span.set_attributes(_peer(call.peer))
            call.exemplar = {names.EXEMPLAR: call.trace_id}
            call.trace = CallTrace(self._tracer, span, propagates=self._propagates, content_limit=self._content_limit)
        elif self._propagates:
            call.trace_headers = headers_of(span)

    def _chooses(self, call: Call, name: str, attributes: dict[str, str | int]) -> bool:
        """Whether the trace that begins with this call is recorded. One that is not has no span at all."""
        trace_id = self._ids.generate_trace_id()
        if self._bound is not None:
            chooses = trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
        else:
            sampling = self._sampler.should_sample(Context(), trace_id, name, SpanKind.SERVER, attributes)
            chooses = sampling.decision is not Decision.DROP
        if chooses:
            self._ids.chosen = trace_id
            return True
        call.trace_id = f"{trace_id:032x}"
        if self._propagates:
            header = traceparent(trace_id, self._ids.generate_span_id(), TraceFlags.RANDOM_TRACE_ID)
            call.trace_headers = {TRACEPARENT: header}
        return False

    async def close(self) -> None:
        """Sends what is left, for a few seconds at most and off the event loop.

        In a thread of its own: asyncio would wait for one of its pool for as long as it takes.
        """
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._shutdown()
            with suppress(RuntimeError):  # it took so long that the loop is closed
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="traces", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), FLUSH_SECONDS)
        except TimeoutError:
            log.warning("traces_lost", seconds=FLUSH_SECONDS)

    def _method(self, method: str) -> tuple[str, dict[str, str | int]]:
        name = method.removeprefix("/")
        self._methods[method] = name, {names.RPC_SYSTEM: names.GRPC, names.RPC_METHOD: name, **self._server}
        return self._methods[method]


def call_tracer(settings: Traces, listen: str) -> CallTracer:
    """The tracer of a server that listens there, with an exporting thread of its own.

    Raises:
        OSError: what OpenTelemetry's variables ask for cannot be had.
    """
    try:
        provider = _provider(settings)
        propagator = _propagator()
    except Exception as error:
        raise OSError(f"traces cannot be sent: {error}") from error
    return CallTracer(provider, propagator, settings, listen)


def _provider(settings: Traces) -> TracerProvider:
    """Not set as the process's own: nothing but a call's own interceptor begins spans."""
    ours = Resource({SERVICE_NAME: names.DEFAULT_SERVICE, SERVICE_VERSION: headgate_server.__version__})
    resource = Resource.create(ours.merge(OTELResourceDetector().detect()).attributes)
    provider = TracerProvider(resource=resource, id_generator=TraceIds(), shutdown_on_exit=False)
    for exporter in exporters(settings.exporters, settings.protocol):
        provider.add_span_processor(BatchSpanProcessor(exporter.load()()))
    return provider


def _propagator() -> TextMapPropagator:
    from opentelemetry import propagate  # reads OTEL_PROPAGATORS when it is imported, and raises there

    return propagate.get_global_textmap()


def _bound(sampler: Sampler) -> int | None:
    """Below which ids a sampler chooses traces that begin here, if it goes by their ids alone: asking it takes
    twenty times as long. OpenTelemetry's samplers say what they do in a form that is specified."""
    if type(sampler) not in (ParentBased, TraceIdRatioBased):
        return None
    ratio = _RATIO.match(sampler.get_description())
    return TraceIdRatioBased.get_bound_for_rate(float(ratio[1])) if ratio else None


def _server(listen: str) -> dict[str, str | int]:
    """Where the server listens; its name where that is every address."""
    host, port = split_address(listen)
    with suppress(ValueError):
        if ip_address(host).is_unspecified:
            host = socket.gethostname()
    return {names.SERVER_ADDRESS: host, **({names.SERVER_PORT: port} if port else {})}


def _peer(peer: str) -> dict[str, str | int]:
    """Address and port of `ipv4:127.0.0.1:40000`, as gRPC writes a caller's."""
    kind, _, address = peer.partition(":")
    host, colon, port = address.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not colon or not port.isdigit():
        return {}
    return {names.PEER_ADDRESS: unquote(host).strip("[]"), names.PEER_PORT: int(port)}
