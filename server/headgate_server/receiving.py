"""Receives requests, within a time: one that never ends holds all that came of it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from headgate_server.call import Call
from headgate_server.errors import GatewayError, GatewayOverloaded, InvalidRequest

SWEEP_SECONDS = 0.1
YOUNG_SECONDS = 0.1
"""So long a request is left alone, whatever the memory: most are there at once."""
RETRY_AFTER_SECONDS = 1.0


class Reception:
    """The requests that are on their way in. One sweep looks after all of them: a timer each would cost every call."""

    def __init__(self) -> None:
        self._arriving: dict[Call, float] = {}
        """Since when, by the monotonic clock."""
        self._given_up: dict[Call, GatewayError] = {}

    async def read(self, call: Call) -> Any:
        """The message as gRPC has it: bytes, or its EOF.

        Raises:
            InvalidRequest: it did not arrive within `server.receive_timeout`.
            GatewayOverloaded: its beginning was given up to have memory back.
        """
        self._arriving[call] = time.monotonic()
        try:
            return await call.context.read()
        except asyncio.CancelledError:
            error = self._given_up.pop(call, None)
            if error is None or call.task is None or call.task.uncancel():
                raise
            raise error from None
        finally:
            del self._arriving[call]

    async def run(self) -> None:
        """Gives up what takes too long, until it is cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for call, since in self._arriving.items():
                seconds = call.runtime.config.server.receive_timeout
                if now - since > seconds:
                    self._give_up(call, InvalidRequest(f"the request did not arrive within {seconds:g} s"))

    def give_up_slow(self) -> int:
        """Gives up every request that has been on its way for some time; how many these are."""
        now = time.monotonic()
        slow = [call for call, since in self._arriving.items() if now - since > YOUNG_SECONDS]
        for call in slow:
            reason = "the server is short of memory, and the request was slow to arrive"
            self._give_up(call, GatewayOverloaded(reason, retry_after=RETRY_AFTER_SECONDS))
        return len(slow)

    def _give_up(self, call: Call, error: GatewayError) -> None:
        if call.task and call not in self._given_up:
            self._given_up[call] = error
            call.task.cancel()
