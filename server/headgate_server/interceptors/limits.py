"""Lets through what the limits have room for, and counts what became of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headgate_server.call import Call


@asynccontextmanager
async def limits(call: Call) -> AsyncIterator[None]:
    """Reserves the most that the call may use; on every way out what it used is settled, and the caller told."""
    call.limits = held = call.runtime.limits.of_call(call)
    if held is None:
        yield
        return
    try:
        await held.enter()
        yield
    finally:
        held.settle()
        call.trailer += held.trailer()
    if call.trailer:
        call.context.set_trailing_metadata(tuple(call.trailer))
