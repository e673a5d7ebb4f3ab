"""Tells of budgets: what they have spent, when that is much, and when there is no money left."""

from __future__ import annotations

from collections import Counter, OrderedDict

import structlog

from headgate_server.limits.quota import Budget, Take, dollars

REMEMBERED = 10_000
EXCEEDED = "exceeded"

log = structlog.get_logger(component="budgets")


class BudgetWatch:
    """Of each budget by its name, whoever it is for. Counted is what this server has settled and told."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        """Nanos."""
        self.events: Counter[tuple[str, str]] = Counter()
        """How often a share of it was passed, or EXCEEDED."""
        self._exceeded: OrderedDict[str, None] = OrderedDict()

    def settled(self, take: Take, spent: int) -> None:
        """By the truth of this the counter has `spent` so much. No two settlements pass the same threshold."""
        used, limit = take.truth, take.limit
        budget = limit.budget
        if budget is None:
            return
        self.spent[budget.name] += used
        for share, nanos in budget.soft:
            if spent - used < nanos <= spent:
                self._tell(
                    "budget_threshold_passed",
                    share,
                    budget,
                    share=share,
                    spent_usd=dollars(spent),
                    amount_usd=dollars(limit.amount),
                )

    def refused(self, take: Take) -> None:
        """There is no money for a call that there would have been at first. Told once in a period of each counter."""
        if take.limit.budget is None or take.amount > take.limit.capacity or take.key in self._exceeded:
            return
        self._exceeded[take.key] = None
        if len(self._exceeded) > REMEMBERED:
            self._exceeded.popitem(last=False)
        self._tell("budget_exceeded", EXCEEDED, take.limit.budget, amount_usd=dollars(take.limit.amount))

    def _tell(self, event: str, kind: str, budget: Budget, **facts: str) -> None:
        self.events[budget.name, kind] += 1
        log.warning(event, budget=budget.name, subject=budget.subject, period=budget.period, **facts)
