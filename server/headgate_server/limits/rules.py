"""Which limits and budgets apply to a call: those of the configuration, and the caller's own. Pure but for a clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import NamedTuple

from headgate_server.config.budgets import Budget as BudgetConfig, BudgetRule
from headgate_server.config.limits import Limit as LimitConfig, LimitRule
from headgate_server.config.values import LABEL
from headgate_server.limits.periods import period_of
from headgate_server.limits.quota import Limit, Scoped
from headgate_server.limits.scopes import (
    Whose,
    applies,
    budget_of,
    limit_of,
    lowest,
    own,
    own_limits,
    scoped,
    whose,
)
from headgate_server.principal import Principal
from headgate_server.providers.base import Target

REMEMBERED = 10_000

Of = str
"""What rules go by: OF_CALL, or more of an attempt."""
OF_CALL, OF_PROVIDER, OF_TARGET = "call", "provider", "target"
OF_ATTEMPT = (OF_PROVIDER, OF_TARGET)
NO_LABELS: Mapping[str, str] = {}


class Found(NamedTuple):
    """What applies to a caller, as long as these are its own limits and no period ends."""

    limits: tuple[LimitConfig, ...]
    budgets: tuple[BudgetConfig, ...]
    since: float
    until: float
    scoped: Sequence[Scoped]

    def holds(self, principal: Principal, now: float) -> bool:
        return (
            self.since <= now < self.until
            and (self.limits is principal.limits or self.limits == principal.limits)
            and (self.budgets is principal.budgets or self.budgets == principal.budgets)
        )


class Rules:
    """The limits of one configuration. A counter's key says what it counts, so that it outlives a reload.

    `clock` is in seconds since the epoch: it decides which period it is.
    """

    def __init__(
        self,
        limits: Sequence[LimitRule],
        budgets: Sequence[BudgetRule] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._limits: dict[Of, list[tuple[LimitRule, Limit]]] = {of: [] for of in (OF_CALL, *OF_ATTEMPT)}
        self._budgets: dict[Of, list[BudgetRule]] = {of: [] for of in (OF_CALL, *OF_ATTEMPT)}
        for rule in limits:
            self._limits[_of(rule)].append((rule, limit_of(rule)))
        for budget in budgets:
            self._budgets[_of(budget)].append(budget)
        rules: list[LimitRule | BudgetRule] = [*limits, *budgets]
        scopes = {scope for rule in rules for scope in (*rule.per, *rule.only)}
        self._labels = tuple(sorted(scope.removeprefix(LABEL) for scope in scopes if scope.startswith(LABEL)))
        self._clock = clock
        self._found: dict[tuple[object, ...], Found] = {}
        self.of_attempts = tuple(of for of in OF_ATTEMPT if self._limits[of] or self._budgets[of])
        """What of an attempt any rule goes by."""
        self._any_of_calls = bool(self._limits[OF_CALL] or self._budgets[OF_CALL])
        self._any_budgets = bool(budgets)

    def any_for(self, principal: Principal) -> bool:
        """Whether anything can limit this caller at all."""
        return bool(self._any_of_calls or self.of_attempts or principal.limits or principal.budgets)

    def any_budget_for(self, principal: Principal) -> bool:
        """Whether any budget can apply to this caller."""
        return self._any_budgets or bool(principal.budgets)

    def of_call(self, principal: Principal, model: str, labels: Mapping[str, str] = NO_LABELS) -> Sequence[Scoped]:
        """What applies to a call as a whole."""
        if not self._any_of_calls and not principal.limits and not principal.budgets:
            return ()
        return self._remembered((OF_CALL, "", ""), principal, model, labels)

    def of_attempt(
        self, of: Of, target: Target, principal: Principal, model: str, labels: Mapping[str, str] = NO_LABELS
    ) -> Sequence[Scoped]:
        """What applies to that which a call sends to the provider of this target, or to this target alone."""
        place = (of, target.provider, target.model if of == OF_TARGET else "")
        return self._remembered(place, principal, model, labels)

    def _remembered(
        self, place: tuple[Of, str, str], principal: Principal, model: str, labels: Mapping[str, str]
    ) -> Sequence[Scoped]:
        named = [labels.get(name, "") for name in self._labels] if self._labels else ()
        who = (*place, principal.key_id, principal.tenant, principal.roles, model, *named)
        found, now = self._found.get(who), self._clock()
        if found is None or not found.holds(principal, now):
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            of, provider, target_model = place
            values = {"key": principal.key_id, "tenant": principal.tenant, "model": model, "provider": provider}
            values["target"] = f"{provider}/{target_model}"
            values |= {f"{LABEL}{name}": value for name, value in zip(self._labels, named, strict=True)}
            found = self._found[who] = self._find(of, principal, values, now)
        return found.scoped

    def _find(self, of: Of, principal: Principal, values: Mapping[str, str], now: float) -> Found:
        found = [
            scoped(rule, limit, values) for rule, limit in self._limits[of] if applies(rule, values, principal.roles)
        ]
        counted: list[tuple[BudgetConfig, Whose]] = [
            (budget, whose(budget, values)) for budget in self._budgets[of] if applies(budget, values)
        ]
        if of == OF_CALL:
            found += own_limits(principal)
            counted += [(budget, own(principal)) for budget in principal.budgets]
        since, until = 0.0, inf
        for budget, counter in counted:
            period = period_of(budget.period, budget.time_zone, now)
            since, until = max(since, period.starts or 0.0), min(until, period.ends or inf)
            found.append(budget_of(budget, counter, period))
        return Found(principal.limits, principal.budgets, since, until, lowest(found))


def _of(rule: LimitRule | BudgetRule) -> Of:
    scopes = {*rule.per, *rule.only}
    return OF_TARGET if "target" in scopes else OF_PROVIDER if "provider" in scopes else OF_CALL
