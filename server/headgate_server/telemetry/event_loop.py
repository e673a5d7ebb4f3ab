"""How late the event loop is: whatever blocks it delays every call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

SAMPLE_SECONDS = 0.25


async def watch_lag(observe: Callable[[float], None]) -> None:
    """Reports seconds of lateness, four times a second, until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + SAMPLE_SECONDS
        await asyncio.sleep(SAMPLE_SECONDS)
        observe(max(0.0, loop.time() - due))
