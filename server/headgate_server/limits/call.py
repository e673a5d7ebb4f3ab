"""The limits of one call: reserved before anything is sent, settled when all of it is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from headgate import v1 as pb

from headgate_server.errors import (
    LargerThanLimit,
    LargerThanProviderLimit,
    ProviderLimitReached,
    RateLimited,
    ReachedLimit,
)
from headgate_server.limits import truth
from headgate_server.limits.limiter import Limiter, Reservation
from headgate_server.limits.quota import MICROS, NEVER, Limit, Standing, Take
from headgate_server.limits.rules import Rules, Scoped
from headgate_server.principal import Principal
from headgate_server.providers.base import Target

NAMES = {"requests": "requests", **dict.fromkeys(truth.TOKENS, "tokens")}
FOR_GOOD: dict[type[RateLimited], type[RateLimited]] = {
    RateLimited: LargerThanLimit,
    ProviderLimitReached: LargerThanProviderLimit,
}


class Share(NamedTuple):
    """The part of a call that goes to this provider, and that came to it by this name; empty is any."""

    provider: str = ""
    name: str = ""


WHOLE = Share()


class Held(NamedTuple):
    """One reservation of the call, for this share of it, take by take of these limits."""

    share: Share
    scoped: Sequence[Scoped]
    reservation: Reservation
    standings: Sequence[Standing]

    def amount(self, unit: str) -> int:
        """What is held of a unit; it is the same in each limit of that unit."""
        return next((take.amount for take in self.reservation.takes if take.limit.unit == unit), 0)


class CallLimits:
    """What one call holds.

    The estimate is reserved once for the call, and again for what is sent after or beside an attempt that may have
    used it up. The same goes for each provider that is limited as such, where every attempt is a request, and for each
    other name whose targets are asked: a fallback's, or the one that a rule put in place of the caller's.
    """

    def __init__(
        self,
        limiter: Limiter,
        rules: Rules,
        principal: Principal,
        model: str,
        estimate: Mapping[str, int],
        attempts: Sequence[pb.Attempt],
    ) -> None:
        self._limiter = limiter
        self._rules = rules
        self._principal = principal
        self._model = model
        self._estimate = estimate
        self._attempts = attempts
        self._of_call = rules.of_call(principal, model)
        self._tries = 0
        self._names: dict[tuple[str, str], str] = {}
        """By which name the call came to a target."""
        self._held: list[Held] = []
        self._standings: dict[str, tuple[Scoped, Standing, int]] = {}
        """What was said last of each limit, and what was given back to it since."""

    async def enter(self) -> None:
        """Reserves for the call.

        Raises:
            RateLimited: there is no room in some limit, and nothing was taken from any.
        """
        await self._reserve(WHOLE, self._of_call, self._estimate, RateLimited)

    async def attempt(self, target: Target, name: str = "") -> None:
        """Reserves for what is about to be sent to this target, to which the call came by `name`, or by its own.

        Raises:
            ProviderLimitReached: there is no room for it at this provider, or under this name.
            RateLimited: earlier attempts have used what was reserved, and there is no room for more.
        """
        self._tries += 1
        self._names[target.provider, target.model] = name or self._model
        if self._attempts:
            await self._reserve(WHOLE, self._of_call, self._needed(WHOLE), RateLimited)
        for share, scoped in self._shares(target.provider, name or self._model):
            if scoped:
                await self._reserve(share, scoped, self._needed(share), ProviderLimitReached)

    def _shares(self, provider: str, name: str) -> Iterator[tuple[Share, Sequence[Scoped]]]:
        """What limits an attempt beside what limits the whole call; no counter twice."""
        at_provider = self._rules.of_attempt(self._principal, self._model, provider)
        yield Share(provider), at_provider
        if name != self._model:
            yield Share(name=name), _others(self._rules.of_call(self._principal, name), self._of_call)
            of_both = self._rules.of_attempt(self._principal, name, provider)
            yield Share(provider, name), _others(of_both, at_provider)

    def _needed(self, share: Share) -> dict[str, int]:
        """What is to be reserved so that one more attempt has room beside all that earlier ones may have used."""
        used = self._used(share)
        most = {unit: used[unit] + self._estimate[unit] for unit in truth.TOKENS}
        most["requests"] = used["requests"] + 1 if share.provider else 1
        most["concurrency"] = 1
        return {unit: amount - self._reserved(share, unit) for unit, amount in most.items()}

    def settle(self) -> None:
        """Counts what the call has used, and gives back the rest."""
        for share in dict.fromkeys([held.share for held in self._held]):
            several = [held for held in self._held if held.share == share]
            used = self._used(share)
            for n, held in enumerate(several, 1):
                part = _part(used, held, several[n:])
                self._settle(held, part)
                used = {unit: amount - part[unit] for unit, amount in used.items()}

    def _used(self, share: Share) -> dict[str, int]:
        """What the attempts of this share have used; but for providers a call is one request, however often sent."""
        attempts = [attempt for attempt in self._attempts if self._is_of(share, attempt)]
        used = truth.of_attempts(attempts, self._estimate, max(self._tries, 1))
        if not share.provider:
            used["requests"] = min(used["requests"], 1)
        return used

    def _is_of(self, share: Share, attempt: pb.Attempt) -> bool:
        if share.provider and share.provider != attempt.provider:
            return False
        return not share.name or share.name == self._names.get((attempt.provider, attempt.model))

    def decisions(self) -> Iterator[tuple[str, bool, float]]:
        """Of each rule that was asked: its name, whether it had room, and the share of it that is left by now."""
        for scoped, standing, back in self._standings.values():
            capacity = scoped.limit.capacity
            left = (capacity - standing.used + back) / capacity
            yield scoped.rule, not standing.wait, min(max(left, 0.0), 1.0)

    def trailer(self) -> list[tuple[str, str]]:
        """How the limits stand that have least room, of requests and of tokens."""
        tightest: dict[str, tuple[int, int, int]] = {}
        for scoped, standing, back in self._standings.values():
            name = NAMES.get(scoped.limit.unit)
            capacity = scoped.limit.capacity
            remaining = min(capacity - standing.used + back, capacity)
            if name and (name not in tightest or remaining < tightest[name][0]):
                tightest[name] = (remaining, capacity, standing.reset)
        trailer = []
        for name, (remaining, capacity, reset) in tightest.items():
            trailer += [
                (f"x-ratelimit-limit-{name}", str(capacity)),
                (f"x-ratelimit-remaining-{name}", str(max(remaining, 0))),
                (f"x-ratelimit-reset-{name}", f"{reset / MICROS:.3f}"),
            ]
        return trailer

    async def _reserve(
        self, share: Share, scoped: Sequence[Scoped], amounts: Mapping[str, int], refusal: type[RateLimited]
    ) -> None:
        asked = [each for each in scoped if amounts.get(each.limit.unit, 0) > 0]
        if not asked:
            return
        takes = [Take(each.key, each.limit, amounts[each.limit.unit]) for each in asked]
        reservation, verdict = await self._limiter.reserve(takes)
        if not verdict.granted:
            for each, standing in zip(asked, verdict.standings, strict=True):
                self._standings[each.key] = (each, standing, 0)
            raise _refused(asked, takes, verdict.standings, refusal)
        self._held.append(Held(share, asked, reservation, verdict.standings))

    def _reserved(self, share: Share, unit: str) -> int:
        return sum(held.amount(unit) for held in self._held if held.share == share)

    def _settle(self, held: Held, used: Mapping[str, int]) -> None:
        amounts = []
        for scoped, take, standing in zip(held.scoped, held.reservation.takes, held.standings, strict=True):
            amount = used.get(scoped.limit.unit, 0)
            amounts.append(amount)
            given_back = self._standings[scoped.key][2] if scoped.key in self._standings else 0
            self._standings[scoped.key] = (scoped, standing, given_back + take.amount - amount)
        self._limiter.settle(held.reservation, amounts)


def _part(used: Mapping[str, int], held: Held, later: Sequence[Held]) -> Mapping[str, int]:
    """What of it is counted in this reservation: all, or as much as it holds where a later one holds the unit, too."""
    if not later:
        return used
    return {
        unit: min(amount, held.amount(unit)) if any(other.amount(unit) for other in later) else amount
        for unit, amount in used.items()
    }


def _others(scoped: Sequence[Scoped], counted: Sequence[Scoped]) -> Sequence[Scoped]:
    keys = {each.key for each in counted}
    return [each for each in scoped if each.key not in keys]


def _refused(
    asked: Sequence[Scoped], takes: Sequence[Take], standings: Sequence[Standing], refusal: type[RateLimited]
) -> RateLimited:
    """The refusal, with every limit that has no room."""
    without_room = [
        (ReachedLimit(take.limit.unit, scoped.subject, _in_words(take)), standing.wait)
        for scoped, take, standing in zip(asked, takes, standings, strict=True)
        if standing.wait
    ]
    reached = [limit for limit, _ in without_room]
    if never := [limit for limit, wait in without_room if wait == NEVER]:
        return FOR_GOOD[refusal](str(never[0]), reached_limits=reached)
    wait = max(wait for _, wait in without_room)
    return refusal(str(reached[0]), reached_limits=reached, retry_after=wait / MICROS)


def _in_words(take: Take) -> str:
    return f"{_allowed(take.limit)}, and the call may take {take.amount}"


def _allowed(limit: Limit) -> str:
    match limit.algorithm:
        case "concurrency":
            return f"{limit.amount} calls are allowed at a time"
        case "sliding_window":
            return f"{limit.amount} {_noun(limit)} are allowed in {limit.window / MICROS:g} s"
        case "token_bucket":
            return f"{limit.capacity} {_noun(limit)} are allowed at once, {limit.amount} in {limit.window / MICROS:g} s"


def _noun(limit: Limit) -> str:
    return limit.unit.replace("_", " ")
