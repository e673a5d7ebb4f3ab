"""What budgets have spent by the ledger, which counters in memory forget with their process, and Redis may forget.

The counters take the larger of both, so that it does not matter how often they are told, nor how late the ledger is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from headgate_server.limits.limiter import Limiter
from headgate_server.limits.quota import Take

AGAIN_SECONDS = (5.0, 60.0)
"""Until the ledger has what was in flight, or on its way there, when the counters forgot."""
RETRY_SECONDS = 5.0

Known = Callable[[], Awaitable[Sequence[Take]]]
"""What the ledger knows of every counter."""

log = structlog.get_logger(component="limits")


class BudgetHistory:
    """Tells the limiter whenever it forgot."""

    def __init__(self, known: Known, limiter: Limiter) -> None:
        self._known = known
        self._limiter = limiter
        self._task: asyncio.Task[None] | None = None
