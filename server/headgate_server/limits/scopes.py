"""Who shares which counter: a counter's key says what it counts and for whom, so that it outlives a reload. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import NamedTuple
from urllib.parse import quote

from headgate_server.config.budgets import Budget as BudgetConfig, BudgetRule
from headgate_server.config.limits import Limit as LimitConfig, LimitRule
from headgate_server.config.values import ROLE
from headgate_server.limits.periods import Period
from headgate_server.limits.quota import MICROS, NANOS, Budget, Limit, Scoped, Threshold, calendar_limit, limit
from headgate_server.principal import Principal

MAX_VALUE = 64


class Whose(NamedTuple):
    """Whose a counter is: as a part of its key, for people, and what all such counters are called."""

    key: str
    subject: str
    rule: str


def whose(rule: LimitRule | BudgetRule, values: Mapping[str, str]) -> Whose:
    """Who shares a counter of this rule, by the values of its scopes."""
    only = [f"{scope}~{quote(glob)}" for scope, globs in sorted(rule.only.items()) for glob in globs]
    who = [f"{scope}={_short(values[scope])}" for scope in sorted(rule.per)]
    subject = " ".join(f"{scope}:{values[scope] or 'none'}" for scope in sorted(rule.per)) or "all callers"
    return Whose("|".join([*only, *who]), subject, _for_whom(rule))


def _for_whom(rule: LimitRule | BudgetRule) -> str:
    """Such as `per tenant, model=gpt-*`."""
    per = [f"per {'+'.join(sorted(rule.per))}"] if rule.per else []
    return ", ".join([*per, *(f"{scope}={'|'.join(globs)}" for scope, globs in rule.only.items())])


def budget_name(rule: BudgetRule) -> str:
    """What people call it."""
    return rule.name or f"{rule.period} {_for_whom(rule)}".rstrip()


def share_text(share: Decimal) -> str:
    """The share of a budget as metrics and the log write it."""
    return f"{share.normalize():f}"


def applies(rule: LimitRule | BudgetRule, values: Mapping[str, str], roles: Iterable[str] = ()) -> bool:
    """Whether the rule is for these values, and for one of these roles."""

    def fits(scope: str, globs: Iterable[str]) -> bool:
        found = roles if scope == ROLE else (values[scope],)
        return any(fnmatchcase(value, glob) for value in found for glob in globs)

    return all(fits(scope, globs) for scope, globs in rule.only.items())


def budget_of(budget: BudgetConfig, counter: Whose, period: Period) -> Scoped:
    """The counter of a budget in this period."""
    amount = int(budget.amount * NANOS)
    name = budget_name(budget) if isinstance(budget, BudgetRule) else f"{budget.period} {counter.rule}"
    soft = tuple(Threshold(share_text(share), int(amount * share)) for share in sorted(budget.soft))
    ends = None if period.ends is None else round(period.ends * MICROS)
    kept = calendar_limit(
        amount, ends, hard=budget.hard, budget=Budget(name, counter.subject, budget.period, period.name, soft)
    )
    zone = "" if period.ends is None else budget.time_zone
    return Scoped("|".join(filter(None, ["cost", period.name, zone, counter.key])), kept, counter.subject, name)


def limit_of(configured: LimitConfig) -> Limit:
    """The limit that is configured."""
    if configured.window is None:
        return limit("concurrency", "concurrency", configured.limit)
    return limit(configured.unit, configured.algorithm, configured.limit, configured.window, configured.burst)


def scoped(rule: LimitRule, limit: Limit, values: Mapping[str, str]) -> Scoped:
    """The counter of a limit."""
    counter = whose(rule, values)
    named = f"{_named(limit)}{' ' if rule.per else ', ' if rule.only else ''}{counter.rule}"
    return Scoped("|".join(filter(None, [_counting(limit), counter.key])), limit, counter.subject, named)


def own(principal: Principal) -> Whose:
    """Who shares a counter of a caller's own limit."""
    key = f"own|key={_short(principal.key_id)}|tenant={_short(principal.tenant)}"
    subject = f"key:{principal.key_id}" if principal.key_id else f"tenant:{principal.tenant}"
    return Whose(key, subject, "per caller's own")


def own_limits(principal: Principal) -> Iterable[Scoped]:
    """The caller's own limits."""
    who = own(principal)
    for one in map(limit_of, principal.limits):
        yield Scoped(f"{_counting(one)}|{who.key}", one, who.subject, f"{_named(one)} {who.rule}")


def lowest(counters: Iterable[Scoped]) -> list[Scoped]:
    """Each counter once, though several limits may count by it: what the lowest of them allows the others do.

    A budget that only counts allows everything, so one that refuses goes before it.
    """
    found: dict[str, Scoped] = {}
    for one in counters:
        if one.key not in found or _height(one.limit) < _height(found[one.key].limit):
            found[one.key] = one
    return list(found.values())


def _height(limit: Limit) -> tuple[int, int]:
    return limit.capacity, limit.amount


def _named(limit: Limit) -> str:
    """Such as `requests in 60 s`."""
    return limit.unit if limit.algorithm == "concurrency" else f"{limit.unit} in {limit.window / MICROS:g} s"


def _counting(limit: Limit) -> str:
    """How the counter counts: what may not change while it is kept. Limit and burst may."""
    if limit.algorithm == "token_bucket":
        return f"{limit.unit}|bucket|{limit.gain}:{limit.scale}"
    return f"{limit.unit}|{limit.algorithm}|{limit.window / MICROS:g}"


def _short(value: str) -> str:
    """The value as a part of a key: callers can neither make it long nor feign another's."""
    quoted = quote(value, safe="/.:@+-_")
    return quoted if len(quoted) <= MAX_VALUE else f"%{hashlib.sha256(value.encode()).hexdigest()}"
