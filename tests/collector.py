"""A real OTLP receiver in a collector's place: it takes spans by gRPC and keeps them as a test wants to read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service, trace_service_pb2_grpc as service_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(slots=True)
class Event:
    """One event of a span."""

    name: str
    attributes: dict[str, Any]


@dataclass(slots=True)
class Span:
    """One span, its ids in hexadecimal; `status` is UNSET, OK or ERROR, `seconds` how long it took."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    status: str
    status_text: str
    seconds: float
    attributes: dict[str, Any]
    events: list[Event]
    resource: dict[str, Any]
    trace_state: str

    @property
    def event_names(self) -> list[str]:
        """What happened, in order."""
        return [event.name for event in self.events]


@dataclass(slots=True)
class Collector:
    """What arrived, in any order."""

    port: int = 0
    spans: list[Span] = field(default_factory=list)
    raw: bytes = b""
    metadata: list[dict[str, Any]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a server finds it."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}"}

    def take(self, body: bytes) -> None:
        """One request of an exporter."""
        self.raw += body
        request = service.ExportTraceServiceRequest.FromString(body)
        for resource_spans in request.resource_spans:
            resource = _values(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                self.spans += [_span(span, resource) for span in scope_spans.spans]

    @property
    def servers(self) -> list[Span]:
        """The spans of calls."""
        return [span for span in self.spans if span.kind == "SERVER"]

    @property
    def call(self) -> Span:
        """The span of the only call."""
        (span,) = self.servers
        return span

    @property
    def attempts(self) -> list[Span]:
        """The spans of attempts at vendors, in the order of their numbers."""
        clients = [span for span in self.spans if span.kind == "CLIENT"]
        return sorted(clients, key=lambda span: int(span.attributes["headgate.attempt.number"]))


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on a free port."""
    collector = Collector()

    class Servicer(service_grpc.TraceServiceServicer):
        async def Export(self, request: Any, context: Any) -> Any:
            collector.metadata.append(dict(context.invocation_metadata()))
            collector.take(request.SerializeToString())
            return service.ExportTraceServiceResponse()

    server = grpc.aio.server()
    service_grpc.add_TraceServiceServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call]  # generated
    collector.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(0)


def _span(span: trace_pb2.Span, resource: dict[str, Any]) -> Span:
    return Span(
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        status_text=span.status.message,
        seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        attributes=_values(span.attributes),
        events=[Event(event.name, _values(event.attributes)) for event in span.events],
        resource=resource,
        trace_state=span.trace_state,
    )


def _values(attributes: Iterable[Any]) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)
