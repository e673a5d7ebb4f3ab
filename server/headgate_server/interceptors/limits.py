"""Lets through what the limits have room for, and counts what became of it."""

from __future__ import annotations

from headgate_server.call import Call
from headgate_server.errors import GatewayError


async def reserve(call: Call) -> None:
    """Reserves the most that the call may use."""
    call.limits = call.runtime.limits.of_call(call)
    if call.limits:
        await call.limits.enter()


def settle(call: Call, error: GatewayError | None) -> None:
    """Counts what the call has used, gives back the rest, and tells the caller how its limits stand."""
    if call.limits:
        call.limits.settle()
        call.trailer += call.limits.trailer()
