"""The limits of one call: reserved before anything is sent, settled when all of it is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from headgate import v1 as pb

from headgate_server.errors import ProviderLimitReached, RateLimited, UnpricedTarget
from headgate_server.ledger.estimate import uncounted_tokens
from headgate_server.limits import truth
from headgate_server.limits.costs import Costs
from headgate_server.limits.estimate import Request
from headgate_server.limits.limiter import Limiter, Reservation
from headgate_server.limits.quota import MICROS, Scoped, Take
from headgate_server.limits.refusal import refused
from headgate_server.limits.rules import OF_TARGET, Rules
from headgate_server.principal import Principal
from headgate_server.providers.base import Target

if TYPE_CHECKING:
    from headgate_server.attempt import Attempt

NAMES = {"requests": "requests", **dict.fromkeys(truth.TOKENS, "tokens")}
TRAILERS = {
    name: tuple(f"x-ratelimit-{what}-{name}" for what in ("limit", "remaining", "reset"))
    for name in dict.fromkeys(NAMES.values())
}


class Share(NamedTuple):
    """The part of a call that goes to this provider, to this model of it, and that came to it by this name; empty is
    any."""

    provider: str = ""
    model: str = ""
    name: str = ""


WHOLE = Share()


class Try(msgspec.Struct):
    """A target's turn, of so many requests of which these were `sent`."""

    target: Target
    name: str
    requests: int
    sent: Sequence[Attempt]
    over: bool = False

    def waiting(self, share: Share) -> int:
        """How many requests of it are still to come in this share: they may wait for a place."""
        if self.over or not _is_of(share, self.target.provider, self.target.model, self.name):
            return 0
        return max(self.requests - len(self.sent), 0)


class CallLimits:
    """What one call holds.

    The estimate is reserved once for the call, and again for what is sent after or beside an attempt that may have
    used it up. The same goes for each provider and target that is limited as such, where every attempt is a request,
    and for each other name whose targets are asked: a fallback's, or the one that a rule put in place of the caller's.
    """

    def __init__(
        self,
        limiter: Limiter,
        rules: Rules,
        principal: Principal,
        request: Request,
        estimate: Mapping[str, int],
        attempts: Sequence[pb.Attempt],
        costs: Costs | None = None,
        callers_own: Collection[str] = (),
    ) -> None:
        self._limiter = limiter
        self._rules = rules
        self._principal = principal
        self._request = request
        self._model = request.model
        self._labels = request.labels
        self._estimate = estimate
        self._attempts = attempts
        self._costs = costs
        self._callers_own = callers_own
        """Issuers that charge the caller's own account."""
        self._of_call = rules.of_call(principal, self._model, self._labels)
        self._tries: list[Try] = []
        self._names: dict[tuple[str, str], str] = {}
        """By which name the call came to a target."""
        self._held: dict[Share, list[Reservation]] = {}
        self._asked: list[Reservation] = []
        """In order, what was granted and what was not."""

    def enter(self) -> Awaitable[None] | None:
        """Reserves for the call, or says what to await for that.

        Raises, here or when awaited:
            RateLimited: there is no room in some limit, and nothing was taken from any.
        """
        return self._reserve(WHOLE, self._of_call, self._estimate, RateLimited)

    def attempt(self, target: Target, name: str, requests: int, sent: Sequence[Attempt]) -> Try:
        """This target's turn begins, to which the call came by `name`, or by its own; whoever begins it says when it is
        over. `sent` grows as the `requests` go out."""
        one = Try(target, name or self._model, requests, sent)
        self._names[target.provider, target.model] = one.name
        self._tries.append(one)
        return one

    def enter_attempt(self, one: Try) -> Awaitable[None] | None:
        """Reserves for what is about to be sent, or says what to await for that.

        Raises, when awaited:
            ProviderLimitReached, ProviderBudgetExceeded: there is no room for it at this provider or target, or under
                this name.
            RateLimited, BudgetExceeded: earlier attempts have used what was reserved, and there is no room for more.
            UnpricedTarget: nobody knows what it costs, and that is refused.
        """
        if len(self._tries) == 1 and one.name == self._model and not self._rules.of_attempts and not self._costs:
            return None  # there are no shares, and the call has reserved what it needs
        return self._reserve_for(one)

    async def _reserve_for(self, one: Try) -> None:
        is_another = len(self._tries) > 1
        if is_another and (waiting := self._reserve(WHOLE, self._of_call, self._needed(WHOLE), RateLimited)):
            await waiting
        shares = list(self._shares(one))
        if self._costs and self._is_refused(one.target, self._costs) and self._has_budgets(s for _, s in shares):
            name = f"{one.target.provider}/{one.target.model}"
            raise UnpricedTarget(f"the price of {name} is not known, and a budget applies")
        for share, scoped in shares:
            if scoped and (waiting := self._reserve(share, scoped, self._needed(share), ProviderLimitReached)):
                await waiting

    def _shares(self, one: Try) -> Iterator[tuple[Share, Sequence[Scoped]]]:
        """What limits an attempt beside what limits the whole call; no counter twice."""
        target, who = one.target, (self._principal, self._model, self._labels)
        other = (self._principal, one.name, self._labels) if one.name != self._model else None
        for of in self._rules.of_attempts:
            share = Share(target.provider, target.model if of == OF_TARGET else "")
            own = self._rules.of_attempt(of, target, *who)
            yield share, own
            if other:
                yield share._replace(name=one.name), _others(self._rules.of_attempt(of, target, *other), own)
        if other:
            yield Share(name=one.name), _others(self._rules.of_call(*other), self._of_call)

    def _is_refused(self, target: Target, costs: Costs) -> bool:
        """Nobody knows what it costs, and the operator would pay."""
        return costs.refuses(target) and target.issuer.lower() not in self._callers_own

    def _has_budgets(self, shares: Iterable[Sequence[Scoped]]) -> bool:
        return any(each.limit.budget for scoped in (self._of_call, *shares) for each in scoped)

    def _needed(self, share: Share) -> dict[str, int]:
        """What is to be reserved so that all that was used has room, and all that is still to come.

        What a try uses that has sent nothing is the estimate; the same goes, among what is used, for one that has.
        """
        used = self._used(share)
        unsent = sum(not one.sent for one in self._tries if one.waiting(share))
        most = {unit: amount + self._estimate[unit] * unsent for unit, amount in used.items()}
        waiting = sum(one.waiting(share) for one in self._tries)
        most["requests"] = used["requests"] + waiting if share.provider else 1
        most["concurrency"] = 1
        return {unit: amount - self._reserved(share, unit) for unit, amount in most.items()}

    def settle(self) -> None:
        """Counts what the call has used, and gives back the rest."""
        for share, (*earlier, last) in self._held.items():
            used = self._used(share)
            for n, held in enumerate(earlier, 1):
                part = _part(used, held, [*earlier[n:], last])
                self._settle(held, part)
                used = {unit: amount - part[unit] for unit, amount in used.items()}
            self._settle(last, used)

    def _settle(self, held: Reservation, used: Mapping[str, int]) -> None:
        for take in held.takes:
            take.truth = used.get(take.counter.limit.unit, 0)
        self._limiter.settle(held)

    def _used(self, share: Share) -> dict[str, int]:
        """What the attempts of this share have used; but for providers a call is one request, however often sent."""
        attempts = self._attempts
        if share is not WHOLE:
            attempts = [
                attempt
                for attempt in attempts
                if _is_of(share, attempt.provider, attempt.model, self._names.get((attempt.provider, attempt.model)))
            ]
        most_estimates = len(self._tries) or 1
        used = truth.of_attempts(attempts, self._estimate, most_estimates)
        for attempt in self._sent(share):
            if uncounted := uncounted_tokens(attempt):
                used["output_tokens"] += uncounted
                used["total_tokens"] += uncounted
        if self._costs:
            used["cost"] = self._cost(share, self._costs, most_estimates)
        if not share.provider and used["requests"] > 1:
            used["requests"] = 1
        return used

    def _cost(self, share: Share, costs: Costs, most_estimates: int) -> int:
        """What is in flight may cost as much as the estimate."""
        ended, in_flight = 0, 0
        for attempt in self._sent(share):
            if attempt.record.outcome:
                ended += costs.of(attempt, self._request)
            else:
                in_flight += 1
        return ended + self._estimate["cost"] * min(in_flight, most_estimates)

    def _sent(self, share: Share) -> Iterator[Attempt]:
        for one in self._tries:
            if share is WHOLE or _is_of(share, one.target.provider, one.target.model, one.name):
                yield from one.sent

    def decisions(self) -> Iterator[tuple[str, bool, float]]:
        """Of each rule that was asked: its name, whether it had room, and the share of it that is left by now."""
        for take, used in self._standings():
            limit = take.counter.limit
            capacity = limit.amount if limit.budget else limit.capacity
            yield take.counter.rule, not take.wait, min(max((capacity - used) / capacity, 0.0), 1.0)

    def trailer(self) -> list[tuple[str, bytes]]:
        """How the limits stand that have least room, of requests and of tokens."""
        tightest: dict[str, tuple[int, int, int]] = {}
        for take, used in self._standings():
            limit = take.counter.limit
            if name := NAMES.get(limit.unit):
                remaining = limit.capacity - used
                if name not in tightest or remaining < tightest[name][0]:
                    tightest[name] = (remaining, limit.capacity, take.reset)
        trailer: list[tuple[str, bytes]] = []  # gRPC would encode texts, at some expense
        for name, (remaining, capacity, reset) in tightest.items():
            limit_name, remaining_name, reset_name = TRAILERS[name]
            trailer += (
                (limit_name, b"%d" % capacity),
                (remaining_name, b"%d" % (remaining if remaining > 0 else 0)),
                (reset_name, b"%.3f" % (reset / MICROS)),
            )
        return trailer

    def _reserve(
        self, share: Share, scoped: Sequence[Scoped], amounts: Mapping[str, int], refusal: type[RateLimited]
    ) -> Awaitable[None] | None:
        takes = [Take(each, amount) for each in scoped if (amount := amounts.get(each.limit.unit, 0)) > 0]
        if not takes:
            return None
        asked = self._limiter.reserve(takes)
        if not isinstance(asked, Reservation):
            return self._take_later(share, asked, refusal)
        self._take(share, asked, refusal)
        return None

    async def _take_later(self, share: Share, asked: Awaitable[Reservation], refusal: type[RateLimited]) -> None:
        self._take(share, await asked, refusal)

    def _take(self, share: Share, asked: Reservation, refusal: type[RateLimited]) -> None:
        self._asked.append(asked)
        if asked.granted:
            self._held.setdefault(share, []).append(asked)
            return
        for take in asked.takes:
            if take.wait:
                self._limiter.watch.refused(take)
        raise refused(asked.takes, refusal)

    def _reserved(self, share: Share, unit: str) -> int:
        return sum(held.amount(unit) for held in self._held.get(share, ()))

    def _standings(self) -> Iterable[tuple[Take, int]]:
        """How each limit stood when it was asked last, and what is used of it once the call is settled."""
        if len(self._asked) == 1 and self._asked[0].granted:
            return [(take, take.used - take.amount + take.truth) for take in self._asked[0].takes]
        back: Counter[str] = Counter()
        last: dict[str, Take] = {}
        for asked in self._asked:
            for take in asked.takes:
                last[take.key] = take
                if asked.granted:
                    back[take.key] += take.amount - take.truth
        return [(take, max(take.used - back[key], 0)) for key, take in last.items()]


def _is_of(share: Share, provider: str, model: str, name: str | None) -> bool:
    return share is WHOLE or (
        share.provider in ("", provider) and share.model in ("", model) and share.name in ("", name)
    )


def _part(used: Mapping[str, int], held: Reservation, later: Sequence[Reservation]) -> Mapping[str, int]:
    """What of it is counted in this reservation: all, or as much as it holds where a later one holds the unit, too."""
    return {
        unit: min(amount, held.amount(unit)) if any(other.amount(unit) for other in later) else amount
        for unit, amount in used.items()
    }


def _others(scoped: Sequence[Scoped], counted: Sequence[Scoped]) -> Sequence[Scoped]:
    """Those under another name. Money is of the name that the caller used, as the ledger has it."""
    keys = {each.key for each in counted}
    return [each for each in scoped if each.key not in keys and not each.limit.budget]
