"""Lets through what the limits have room for, and counts what became of it."""

from __future__ import annotations

from collections.abc import Awaitable

from headgate_server.call import Call
from headgate_server.errors import GatewayError


def reserve(call: Call) -> Awaitable[None] | None:
    """Reserves the most that the call may use."""
    call.limits = call.runtime.limits.of_call(call)
    return call.limits.enter() if call.limits else None


def settle(call: Call, error: GatewayError | None) -> None:
    """Counts what the call has used, gives back the rest, and tells the caller how its limits stand."""
    if call.limits:
        call.limits.settle()
        call.trailer += call.limits.trailer()
