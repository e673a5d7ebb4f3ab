"""What budgets have spent by the ledger, which counters in memory forget with their process, and Redis may forget.

Counters take the larger of both, so that it does not matter how often they are told, nor how late the ledger is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import structlog

from headgate_server.config.budgets import Budget, BudgetRule
from headgate_server.limits.limiter import Limiter
from headgate_server.limits.periods import Period, period_of
from headgate_server.limits.quota import Scoped, Take
from headgate_server.limits.scopes import applies, budget_of, own, whose
from headgate_server.principal import Principal

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

AGAIN_SECONDS = (5.0, 60.0)
"""Until the ledger has what was in flight, or on its way there, when counters forgot."""
RETRY_SECONDS = 5.0
READING_SECONDS = 60.0

CallersOwn = Callable[[], Iterable[Budget]]
"""The budgets that callers may have of their own."""

log = structlog.get_logger(component="budgets")


class Spent(NamedTuple):
    """Nanos that a counter has spent in this period."""

    counter: Scoped
    period: Period
    nanos: int


async def spent(
    connection: AsyncConnection, budgets: Sequence[BudgetRule], callers_own: Iterable[Budget], now: float
) -> AsyncIterator[Spent]:
    """What the ledger knows of the counters of these budgets, and of callers' own; `now` is since the epoch."""
    from headgate_server.ledger.totals import spending  # an extra

    for budget in budgets:
        period = period_of(budget.period, budget.time_zone, now)
        sums: dict[str, Spent] = {}
        for values, nanos in await spending(connection, sorted({*budget.per, *budget.only}), *period.bounds):
            if applies(budget, values):
                counter = budget_of(budget, whose(budget, values), period)
                before = sums[counter.key].nanos if counter.key in sums else 0
                sums[counter.key] = Spent(counter, period, before + nanos)
        for each in sums.values():
            yield each
    for terms in {(budget.period, budget.time_zone): budget for budget in callers_own}.values():
        period = period_of(terms.period, terms.time_zone, now)
        for values, nanos in await spending(connection, ("tenant", "key"), *period.bounds):
            caller = Principal(tenant=values["tenant"], key_id=values["key"])
            yield Spent(budget_of(terms, own(caller), period), period, nanos)


class BudgetHistory:
    """Reads the ledger at `url` whenever the limiter forgot what these budgets had spent."""

    def __init__(
        self,
        url: str,
        limiter: Limiter,
        budgets: Sequence[BudgetRule],
        callers_own: CallersOwn,
        clock: Callable[[], float],
    ) -> None:
        self._url = url
        self._limiter = limiter
        self._budgets = budgets
        self._callers_own = callers_own
        self._clock = clock
        self.is_unread = False
        """The ledger could not be read, and counters may know less than was spent."""
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, patience: float) -> None:
        """Waits for the ledger at most so many seconds. Without it budgets begin at zero, and it is asked again."""
        self._task = asyncio.create_task(self._keep_restoring())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), patience)

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_restoring(self) -> None:
        while True:
            self._limiter.forgot.clear()
            counters = await self._restore()
            self._tried.set()
            self.is_unread = counters is None
            if counters is None:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if counters:
                log.info("budgets_restored", counters=counters)
            for seconds in AGAIN_SECONDS:
                if await self._forgets_within(seconds):
                    break
                await self._restore()
            else:
                await self._limiter.forgot.wait()

    async def _restore(self) -> int | None:
        """How many counters were told; None if the ledger could not be read."""
        callers_own = tuple(self._callers_own())
        if not (self._budgets or callers_own):
            return 0
        from headgate_server.ledger.reading import reading  # an extra

        try:
            async with asyncio.timeout(READING_SECONDS), reading(self._url) as connection:
                known = [
                    Take(each.counter, each.nanos)
                    async for each in spent(connection, self._budgets, callers_own, self._clock())
                ]
        except Exception as error:  # of the file system, the driver or SQLAlchemy: without the ledger calls go on
            log.warning("budgets_not_restored", reason=str(getattr(error, "orig", error)) or type(error).__name__)
            return None
        self._limiter.restore(known)
        return len(known)

    async def _forgets_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            return await asyncio.wait_for(self._limiter.forgot.wait(), seconds)
        return False
