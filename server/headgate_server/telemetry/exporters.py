"""Which exporters traces go through, by the names of OTEL_TRACES_EXPORTER. Imports no OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

GROUP = "opentelemetry_traces_exporter"
OTLP = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


def otel_extra_missing() -> str:
    """What to install when OpenTelemetry is not there; empty when it is."""
    if find_spec("opentelemetry") and find_spec("opentelemetry.sdk") and "otlp" in entry_points(group=GROUP).names:
        return ""
    return "OpenTelemetry is not installed: pip install 'headgate-server[otel]'"


def unknown_exporters(names: Sequence[str]) -> Iterator[str]:
    """Those that no installed package provides."""
    installed = entry_points(group=GROUP).names
    return (name for name in names if name not in installed and name != "none")


def exporters(names: Sequence[str], protocol: str) -> list[EntryPoint]:
    """Where to load them from; `none` is no exporter, `otlp` that of the protocol."""
    by_name = {point.name: point for point in entry_points(group=GROUP)}
    return [by_name[OTLP[protocol] if name == "otlp" else name] for name in names if name != "none"]
