"""What the chain does around a call, in plain functions: they begin, check and end it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import structlog

from headgate_server.call import Call
from headgate_server.errors import GatewayError

Begin: TypeAlias = Callable[[Call], None]
"""Does something at the first byte of a call."""

Check: TypeAlias = Callable[[Call], Awaitable[None] | None]
"""Raises a GatewayError to refuse the call. One that has to wait for something returns what to await."""

End: TypeAlias = Callable[[Call, GatewayError | None], None]
"""Does something at the end of every call, whatever that is; None is OK."""

log = structlog.get_logger(component="server")


def tell(end: End, call: Call, error: GatewayError | None) -> None:
    """Has this one hear of the end. A bug of its own is logged, and costs neither the others nor the caller a thing."""
    try:
        end(call, error)
    except Exception:
        log.exception("call_not_told", request_id=call.request_id)
