"""Which limits and budgets apply to a call: those of the configuration, and the caller's own. Pure."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from math import inf
from typing import NamedTuple
from urllib.parse import quote

from headgate_server.config.budgets import Budget as BudgetConfig, BudgetRule
from headgate_server.config.limits import Limit as LimitConfig, LimitRule
from headgate_server.config.values import LABEL, ROLE
from headgate_server.limits.periods import Period, period_of
from headgate_server.limits.quota import MICROS, NANOS, Budget, Limit, Threshold, calendar_limit, limit
from headgate_server.principal import Principal
from headgate_server.providers.base import Target

REMEMBERED = 10_000
MAX_VALUE = 64

Of = str
"""What rules go by: OF_CALL, or more of an attempt."""
OF_CALL, OF_PROVIDER, OF_TARGET = "call", "provider", "target"
OF_ATTEMPT = (OF_PROVIDER, OF_TARGET)
NO_LABELS: Mapping[str, str] = {}


class Scoped(NamedTuple):
    """A limit as it applies to one caller: the key of its counter, and who that is, such as `tenant:acme`.

    `rule` is the same for all callers: by it metrics tell limits apart.
    """

    key: str
    limit: Limit
    subject: str
    rule: str


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
            self._limits[_of(rule)].append((rule, _limit(rule)))
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
        scoped = [
            _scoped(rule, limit, values) for rule, limit in self._limits[of] if applies(rule, values, principal.roles)
        ]
        counted: list[tuple[BudgetConfig, Whose]] = [
            (budget, whose(budget, values)) for budget in self._budgets[of] if applies(budget, values)
        ]
        if of == OF_CALL:
            scoped += _own_limits(principal)
            counted += [(budget, own(principal)) for budget in principal.budgets]
        since, until = 0.0, inf
        budgets: dict[str, Scoped] = {}
        for budget, counter in counted:
            period = period_of(budget.period, budget.time_zone, now)
            since, until = max(since, period.starts or 0.0), min(until, period.ends or inf)
            one = budget_of(budget, counter, period)
            if one.key not in budgets or one.limit.amount < budgets[one.key].limit.amount:
                budgets[one.key] = one
        return Found(principal.limits, principal.budgets, since, until, [*scoped, *budgets.values()])


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


def _of(rule: LimitRule | BudgetRule) -> Of:
    scopes = {*rule.per, *rule.only}
    return OF_TARGET if "target" in scopes else OF_PROVIDER if "provider" in scopes else OF_CALL


def _limit(configured: LimitConfig) -> Limit:
    if configured.window is None:
        return limit("concurrency", "concurrency", configured.limit)
    return limit(configured.unit, configured.algorithm, configured.limit, configured.window, configured.burst)


def _scoped(rule: LimitRule, limit: Limit, values: Mapping[str, str]) -> Scoped:
    counter = whose(rule, values)
    named = f"{_named(limit)}{' ' if rule.per else ', ' if rule.only else ''}{counter.rule}"
    return Scoped("|".join(filter(None, [_counting(limit), counter.key])), limit, counter.subject, named)


def own(principal: Principal) -> Whose:
    """Who shares a counter of a caller's own limit."""
    key = f"own|key={_short(principal.key_id)}|tenant={_short(principal.tenant)}"
    subject = f"key:{principal.key_id}" if principal.key_id else f"tenant:{principal.tenant}"
    return Whose(key, subject, "per caller's own")


def _own_limits(principal: Principal) -> Iterable[Scoped]:
    """The caller's own limits; of several on the same counter, the least."""
    who = own(principal)
    found: dict[str, Scoped] = {}
    for one in map(_limit, principal.limits):
        key = f"{_counting(one)}|{who.key}"
        if key not in found or one.capacity < found[key].limit.capacity:
            found[key] = Scoped(key, one, who.subject, f"{_named(one)} {who.rule}")
    return found.values()


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
