"""The limits of one configuration generation: its rules and estimates, and the counters that outlive it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import structlog

from headgate_server.limits.call import CallLimits
from headgate_server.limits.costs import Costs
from headgate_server.limits.estimate import Estimator, Request
from headgate_server.limits.history import BudgetHistory, CallersOwn
from headgate_server.limits.limiter import Limiter, LocalLimiter
from headgate_server.limits.quota import NANOS
from headgate_server.limits.rules import Rules
from headgate_server.limits.scopes import budget_name, share_text
from headgate_server.limits.watch import EXCEEDED

if TYPE_CHECKING:
    from headgate_server.call import Call
    from headgate_server.config import Config, LimitStore

log = structlog.get_logger(component="budgets")


class ConfiguredBudget(NamedTuple):
    """A budget as metrics have it; `amount` is in nanos."""

    name: str
    amount: int
    events: Sequence[str]


class LimitPolicy:
    """What limits a call. The limiter of the previous generation goes on counting if its store is the same."""

    def __init__(
        self, config: Config, estimator: Estimator, callers_own: CallersOwn, previous: LimitPolicy | None = None
    ) -> None:
        self._store = config.limits.store
        self._rules = Rules(config.limits.rules, config.limits.budgets)
        self.budgets: Sequence[ConfiguredBudget] = [
            ConfiguredBudget(budget_name(rule), int(rule.amount * NANOS), [*map(share_text, rule.soft), EXCEEDED])
            for rule in config.limits.budgets
        ]
        self._estimator = estimator
        self._costs = Costs(estimator.prices, refuse_unpriced=config.limits.unpriced == "refuse")
        is_same = previous and previous._store == self._store
        self.limiter: Limiter = previous.limiter if previous and is_same else _limiter(self._store)
        self._history = self._history_of(config, callers_own)

    @property
    def is_history_unread(self) -> bool:
        """Budgets may have spent more than they count: the ledger could not be read."""
        return self._history is not None and self._history.is_unread

    async def start(self, patience: float) -> None:
        """Connects, and restores what budgets have spent, for which it waits at most `patience` seconds."""
        await self.limiter.start()
        if self._history:
            await self._history.start(patience)
        elif self.budgets:
            log.warning("budgets_without_ledger", store=self._store.type)

    async def retire(self) -> None:
        """New calls begin with another generation."""
        if self._history:
            await self._history.stop()

    async def close(self, successor: LimitPolicy | None) -> None:
        """Ends the limiter unless the successor took it over."""
        await self.retire()
        if successor is None or successor.limiter is not self.limiter:
            await self.limiter.close()

    def _history_of(self, config: Config, callers_own: CallersOwn) -> BudgetHistory | None:
        if config.ledger is None:
            return None
        url = config.ledger.url.get_secret_value()
        return BudgetHistory(url, self.limiter, config.limits.budgets, callers_own, time.time)

    def of_call(self, call: Call) -> CallLimits | None:
        """What limits the call, if anything does."""
        request = call.request
        if not isinstance(request, Request) or not self._rules.any_for(call.principal):
            return None
        costs = self._costs if self._rules.any_budget_for(call.principal) else None
        callers_own = call.provider_keys if costs else None
        estimate = self._estimator.amounts(request, callers_own, has_media=call.has_media, size=call.request_bytes)
        return CallLimits(
            self.limiter, self._rules, call.principal, request, estimate, call.attempts, costs, call.provider_keys
        )


def _limiter(store: LimitStore) -> Limiter:
    if store.type == "memory":
        return LocalLimiter()
    from headgate_server.limits.shared import SharedLimiter  # an extra

    return SharedLimiter(store)
