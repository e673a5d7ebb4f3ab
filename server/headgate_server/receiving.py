"""Receives requests, within a time: one that never ends holds all that came of it."""

from __future__ import annotations

import asyncio
from typing import Any

from headgate_server.call import Call
from headgate_server.errors import GatewayOverloaded, InvalidRequest

YOUNG_SECONDS = 0.1
"""So long a request is left alone, whatever the memory: most are there at once."""
RETRY_AFTER_SECONDS = 1.0


class Reception:
    """The requests that are on their way in."""

    def __init__(self) -> None:
        self._limits: dict[asyncio.Timeout, float] = {}
        """The time of each, and when it began, by the loop's clock."""

    async def read(self, call: Call) -> Any:
        """The message as gRPC has it: bytes, or its EOF.

        Raises:
            InvalidRequest: it did not arrive within `server.receive_timeout`.
            GatewayOverloaded: its beginning was given up to have memory back.
        """
        seconds = call.runtime.config.server.receive_timeout
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(seconds) as limit:
                self._limits[limit] = began
                try:
                    return await call.context.read()
                finally:
                    del self._limits[limit]
        except TimeoutError:
            if asyncio.get_running_loop().time() - began >= seconds:
                raise InvalidRequest(f"the request did not arrive within {seconds:g} s") from None
            raise GatewayOverloaded(
                "the server is short of memory, and the request was slow to arrive", retry_after=RETRY_AFTER_SECONDS
            ) from None

    def give_up_slow(self) -> int:
        """Gives up every request that has been on its way for some time; how many these are."""
        now = asyncio.get_running_loop().time()
        slow = [limit for limit, began in self._limits.items() if now - began > YOUNG_SECONDS]
        for limit in slow:
            limit.reschedule(now)
        return len(slow)
