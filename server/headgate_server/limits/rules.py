"""Which limits apply to a call: those of the configuration, and the caller's own. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple
from urllib.parse import quote

from headgate_server.config.limits import Limit as LimitConfig, LimitRule
from headgate_server.limits.quota import MICROS, Limit, limit
from headgate_server.principal import Principal

REMEMBERED = 10_000
MAX_VALUE = 64


class Scoped(NamedTuple):
    """A limit as it applies to one caller: the key of its counter, and who that is, such as `tenant:acme`.

    `rule` is the same for all callers: by it metrics tell limits apart.
    """

    key: str
    limit: Limit
    subject: str
    rule: str


class Rules:
    """The limits of one configuration. A counter's key says what it counts, so that it outlives a reload."""

    def __init__(self, configured: Sequence[LimitRule]) -> None:
        rules = [(rule, _limit(rule)) for rule in configured]
        self._of_calls = [rule for rule in rules if not _is_of_attempts(rule[0])]
        self._of_attempts = [rule for rule in rules if _is_of_attempts(rule[0])]
        self._found: dict[tuple[str, ...], tuple[tuple[LimitConfig, ...], Sequence[Scoped]]] = {}

    def any_for(self, principal: Principal) -> bool:
        """Whether anything can limit this caller at all."""
        return bool(self._of_calls or self._of_attempts or principal.limits)

    def of_call(self, principal: Principal, model: str) -> Sequence[Scoped]:
        """What applies to a call as a whole."""
        if not self._of_calls and not principal.limits:
            return ()
        return self._remembered(principal, model, "")

    def of_attempt(self, principal: Principal, model: str, provider: str) -> Sequence[Scoped]:
        """What applies to what a call sends to this provider."""
        return self._remembered(principal, model, provider) if self._of_attempts else ()

    def _remembered(self, principal: Principal, model: str, provider: str) -> Sequence[Scoped]:
        place = (principal.key_id, principal.tenant, model, provider)
        found = self._found.get(place)
        if found is None or (found[0] is not principal.limits and found[0] != principal.limits):
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            found = self._found[place] = (principal.limits, self._find(principal, model, provider))
        return found[1]

    def _find(self, principal: Principal, model: str, provider: str) -> Sequence[Scoped]:
        values = {"key": principal.key_id, "tenant": principal.tenant, "model": model, "provider": provider}
        if provider:
            return [_scoped(rule, limit, values) for rule, limit in self._of_attempts if _applies(rule, values)]
        of_all = [_scoped(rule, limit, values) for rule, limit in self._of_calls if _applies(rule, values)]
        return of_all + list(_own(principal))


def _limit(configured: LimitConfig) -> Limit:
    if configured.window is None:
        return limit("concurrency", "concurrency", configured.limit)
    return limit(configured.unit, configured.algorithm, configured.limit, configured.window, configured.burst)


def _is_of_attempts(rule: LimitRule) -> bool:
    return "provider" in rule.per or "provider" in rule.only


def _applies(rule: LimitRule, values: Mapping[str, str]) -> bool:
    return all(any(fnmatchcase(values[scope], glob) for glob in globs) for scope, globs in rule.only.items())


def _scoped(rule: LimitRule, limit: Limit, values: Mapping[str, str]) -> Scoped:
    scopes = sorted(rule.per)
    only = [f"{scope}~{quote(glob)}" for scope, globs in sorted(rule.only.items()) for glob in globs]
    who = [f"{scope}={_short(values[scope])}" for scope in scopes]
    named = ", ".join([_named(limit, scopes), *(f"{scope}={'|'.join(globs)}" for scope, globs in rule.only.items())])
    subject = " ".join(f"{scope}:{values[scope] or 'none'}" for scope in scopes) or "all callers"
    return Scoped("|".join([_counting(limit), *only, *who]), limit, subject, named)


def _own(principal: Principal) -> Iterable[Scoped]:
    """The caller's own limits; of several on the same counter, the least."""
    who = f"key={_short(principal.key_id)}|tenant={_short(principal.tenant)}"
    subject = f"key:{principal.key_id}" if principal.key_id else f"tenant:{principal.tenant}"
    found: dict[str, Scoped] = {}
    for own in map(_limit, principal.limits):
        key = f"{_counting(own)}|own|{who}"
        if key not in found or own.capacity < found[key].limit.capacity:
            found[key] = Scoped(key, own, subject, _named(own, ["caller's own"]))
    return found.values()


def _named(limit: Limit, scopes: Sequence[str]) -> str:
    """Such as `requests in 60 s per tenant`."""
    window = "" if limit.algorithm == "concurrency" else f" in {limit.window / MICROS:g} s"
    return f"{limit.unit}{window}" + (f" per {'+'.join(scopes)}" if scopes else "")


def _counting(limit: Limit) -> str:
    """How the counter counts: what may not change while it is kept. Limit and burst may."""
    if limit.algorithm == "token_bucket":
        return f"{limit.unit}|bucket|{limit.gain}:{limit.scale}"
    return f"{limit.unit}|{limit.algorithm}|{limit.window / MICROS:g}"


def _short(value: str) -> str:
    """The value as a part of a key: callers can neither make it long nor feign another's."""
    quoted = quote(value, safe="/.:@+-_")
    return quoted if len(quoted) <= MAX_VALUE else f"%{hashlib.sha256(value.encode()).hexdigest()}"
