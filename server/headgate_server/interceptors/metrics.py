"""Counts the call for Prometheus and for the status page."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headgate_server.call import Call
from headgate_server.interceptors.base import Interceptor
from headgate_server.telemetry.metrics import Metrics
from headgate_server.telemetry.recent import Recent


def metrics(instruments: Metrics, recent: Recent) -> Interceptor:
    """Records every call at its end, whatever that is."""

    @asynccontextmanager
    async def around(call: Call) -> AsyncIterator[None]:
        try:
            yield
        finally:
            error = call.conclude(sys.exception())
            instruments.record_call(call, error)
            recent.record(call, error, time.monotonic())

    return around
