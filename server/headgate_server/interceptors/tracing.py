"""The trace of a call, and what became of it. Sampling is decided first: most calls cost next to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headgate_server.call import Call
from headgate_server.errors import GatewayError
from headgate_server.interceptors.base import Begin
from headgate_server.telemetry.trace_context import passed_on

if TYPE_CHECKING:
    from headgate_server.telemetry.tracing import CallTracer


def begin_trace(tracer: CallTracer | None) -> Begin:
    """Records calls by this tracer; without one a caller's trace still goes on to the vendor."""
    return tracer.begin if tracer else pass_trace_on


def pass_trace_on(call: Call) -> None:
    """Hands the caller's trace to vendors, word for word."""
    call.trace_id, headers = passed_on(call.metadata)
    if call.runtime.config.telemetry.traces.propagate:
        call.trace_headers = headers


def end_trace(call: Call, error: GatewayError | None) -> None:
    """Ends the spans of a call that is sampled."""
    if call.trace:
        call.trace.end(call, error)
