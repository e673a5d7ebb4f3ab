"""One span a call, with what became of it. Whether it is sampled is decided first: most calls cost next to nothing."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from headgate_server.call import Call
from headgate_server.interceptors.base import Interceptor
from headgate_server.telemetry.trace_context import passed_on

if TYPE_CHECKING:
    from headgate_server.telemetry.tracing import CallTracer


def tracing(tracer: CallTracer | None) -> Interceptor:
    """Records calls by this tracer; without one a caller's trace still goes on to the vendor."""
    return traced_by(tracer) if tracer else traced_by_others


def traced_by(tracer: CallTracer) -> Interceptor:
    @asynccontextmanager
    async def around(call: Call) -> AsyncIterator[None]:
        tracer.begin(call)
        try:
            yield
        finally:
            if call.trace:
                call.trace.end(call, call.conclude(sys.exception()))

    return around


@asynccontextmanager
async def traced_by_others(call: Call) -> AsyncIterator[None]:
    """Passes the caller's trace on, word for word."""
    call.trace_id, headers = passed_on(call.metadata)
    if call.runtime.config.telemetry.traces.propagate:
        call.trace_headers = headers
    yield
