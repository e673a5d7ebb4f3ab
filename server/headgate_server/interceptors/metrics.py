"""Counts the call for Prometheus and for the status page."""

from __future__ import annotations

from headgate_server.call import Call
from headgate_server.errors import GatewayError
from headgate_server.interceptors.base import End
from headgate_server.telemetry.metrics import Metrics
from headgate_server.telemetry.recent import Recent


def metrics(instruments: Metrics, recent: Recent) -> End:
    """Records every call at its end, whatever that is."""

    def record(call: Call, error: GatewayError | None) -> None:
        instruments.record_call(call, error)
        recent.record(call, error, call.started + call.duration)

    return record
