"""The limits of one call: reserved before anything is sent, settled when all of it is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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

ALL_PROVIDERS = ""
NAMES = {"requests": "requests", **dict.fromkeys(truth.TOKENS, "tokens")}
FOR_GOOD: dict[type[RateLimited], type[RateLimited]] = {
    RateLimited: LargerThanLimit,
    ProviderLimitReached: LargerThanProviderLimit,
}


@dataclass(frozen=True, slots=True)
class Held:
    """One reservation of the call: for what goes to this provider, or to all together."""

    provider: str
    reservation: Reservation
    standings: Sequence[Standing]

    def amount(self, unit: str) -> int:
        """What is held of a unit; it is the same in each limit of that unit."""
        return next((take.amount for take in self.reservation.takes if take.limit.unit == unit), 0)


class CallLimits:
    """What one call holds.

    The estimate is reserved once for the call, again for whatever is sent while an earlier attempt may still use its
    own, and once for each provider that is limited as such.
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
        self._held: list[Held] = []
        self._rule_of: dict[str, str] = {}
        self._standings: dict[str, tuple[Limit, Standing, int]] = {}
        """What was said last of each limit, and what was given back to it since."""

    async def enter(self) -> None:
        """Reserves for the call.

        Raises:
            RateLimited: there is no room in some limit, and nothing was taken from any.
        """
        await self._reserve(ALL_PROVIDERS, self._of_call, self._estimate, RateLimited)

    async def attempt(self, provider: str) -> None:
        """Reserves for what is about to be sent to this provider.

        Raises:
            ProviderLimitReached: there is no room for it at this provider.
            RateLimited: earlier attempts have used what was reserved, and there is no room for more.
        """
        self._tries += 1
        if self._attempts:
            used = truth.of_attempts(self._attempts, self._estimate, self._tries)
            needed = {unit: used[unit] + self._estimate[unit] - self._reserved(unit) for unit in truth.TOKENS}
            await self._reserve(ALL_PROVIDERS, self._of_call, needed, RateLimited)
        scoped = self._rules.of_attempt(self._principal, self._model, provider)
        if scoped and all(held.provider != provider for held in self._held):
            await self._reserve(provider, scoped, self._estimate, ProviderLimitReached)

    def settle(self) -> None:
        """Counts what the call has used, and gives back the rest."""
        for provider in dict.fromkeys([held.provider for held in self._held]):
            several = [held for held in self._held if held.provider == provider]
            used = self._used(provider)
            for held in several[:-1]:
                self._settle(held, {unit: min(amount, held.amount(unit)) for unit, amount in used.items()})
                used = {unit: max(0, amount - held.amount(unit)) for unit, amount in used.items()}
            self._settle(several[-1], used)

    def _used(self, provider: str) -> dict[str, int]:
        most_estimates = max(self._tries, 1)
        if provider != ALL_PROVIDERS:
            attempts = [attempt for attempt in self._attempts if attempt.provider == provider]
            return truth.of_attempts(attempts, self._estimate, most_estimates)
        used = truth.of_attempts(self._attempts, self._estimate, most_estimates)
        used["requests"] = min(used["requests"], 1)
        return used

    def decisions(self) -> Iterator[tuple[str, bool, float]]:
        """Of each rule that was asked: its name, whether it had room, and the share of it that is left by now."""
        for key, (limit, standing, back) in self._standings.items():
            left = (limit.capacity - standing.used + back) / limit.capacity
            yield self._rule_of[key], not standing.wait, min(max(left, 0.0), 1.0)

    def trailer(self) -> list[tuple[str, str]]:
        """How the limits stand that have least room, of requests and of tokens."""
        tightest: dict[str, tuple[int, int, int]] = {}
        for limit, standing, back in self._standings.values():
            name = NAMES.get(limit.unit)
            remaining = min(limit.capacity - standing.used + back, limit.capacity)
            if name and (name not in tightest or remaining < tightest[name][0]):
                tightest[name] = (remaining, limit.capacity, standing.reset)
        trailer = []
        for name, (remaining, capacity, reset) in tightest.items():
            trailer += [
                (f"x-ratelimit-limit-{name}", str(capacity)),
                (f"x-ratelimit-remaining-{name}", str(max(remaining, 0))),
                (f"x-ratelimit-reset-{name}", f"{reset / MICROS:.3f}"),
            ]
        return trailer

    async def _reserve(
        self, provider: str, scoped: Sequence[Scoped], amounts: Mapping[str, int], refusal: type[RateLimited]
    ) -> None:
        takes = [
            Take(each.key, each.limit, amount) for each in scoped if (amount := amounts.get(each.limit.unit, 0)) > 0
        ]
        if not takes:
            return
        self._rule_of.update((each.key, each.rule) for each in scoped)
        reservation, verdict = await self._limiter.reserve(takes)
        if not verdict.granted:
            for take, standing in zip(takes, verdict.standings, strict=True):
                self._standings[take.key] = (take.limit, standing, 0)
            subjects = {each.key: each.subject for each in scoped}
            raise _refused(takes, verdict.standings, subjects, refusal)
        self._held.append(Held(provider, reservation, verdict.standings))

    def _reserved(self, unit: str) -> int:
        return sum(held.amount(unit) for held in self._held if held.provider == ALL_PROVIDERS)

    def _settle(self, held: Held, used: Mapping[str, int]) -> None:
        amounts = []
        for (key, limit, taken), standing in zip(held.reservation.takes, held.standings, strict=True):
            amount = used.get(limit.unit, 0)
            amounts.append(amount)
            given_back = self._standings[key][2] if key in self._standings else 0
            self._standings[key] = (limit, standing, given_back + taken - amount)
        self._limiter.settle(held.reservation, amounts)


def _refused(
    takes: Sequence[Take], standings: Sequence[Standing], subjects: Mapping[str, str], refusal: type[RateLimited]
) -> RateLimited:
    """The refusal, with every limit that has no room."""
    without_room = [
        (ReachedLimit(take.limit.unit, subjects[take.key], _in_words(take)), standing.wait)
        for take, standing in zip(takes, standings, strict=True)
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
