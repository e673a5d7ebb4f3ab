"""Sheds calls beyond what this process should hold at once, with an honest answer instead of a queue."""

from __future__ import annotations

from collections.abc import Callable

from headgate_server.call import Call, CallRegistry
from headgate_server.errors import GatewayOverloaded
from headgate_server.interceptors.base import Check

RETRY_AFTER_SECONDS = 1.0


def admission(calls: CallRegistry, short_of_memory: Callable[[], bool]) -> Check:
    """Refuses a call while `server.max_concurrent_calls` others are in flight (0 refuses none), or memory is short."""

    def admit(call: Call) -> None:
        limit = call.runtime.config.server.max_concurrent_calls
        if limit and len(calls) > limit:
            raise GatewayOverloaded(f"{limit} calls are in flight already", retry_after=RETRY_AFTER_SECONDS)
        if short_of_memory():
            raise GatewayOverloaded("the server is short of memory", retry_after=RETRY_AFTER_SECONDS)

    return admit
