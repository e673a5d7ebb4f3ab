"""What a caller is told whose limits or budgets have no room. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from headgate_server.errors import (
    BudgetExceeded,
    GatewayError,
    LargerThanLimit,
    LargerThanProviderLimit,
    ProviderBudgetExceeded,
    ProviderLimitReached,
    RateLimited,
    ReachedLimit,
)
from headgate_server.limits.quota import MICROS, MOST, NEVER, Limit, Take, Unit, dollars

COST: Unit = "cost"
FOR_GOOD: dict[type[RateLimited], type[RateLimited]] = {
    RateLimited: LargerThanLimit,
    ProviderLimitReached: LargerThanProviderLimit,
}
OF_MONEY: dict[type[RateLimited], type[BudgetExceeded]] = {
    RateLimited: BudgetExceeded,
    ProviderLimitReached: ProviderBudgetExceeded,
}


def refused(takes: Sequence[Take], refusal: type[RateLimited]) -> GatewayError:
    """The refusal of this kind, or what stands for it, with every limit that has no room."""
    without_room = [
        (ReachedLimit(take.limit.unit, take.counter.subject, _in_words(take)), take.wait) for take in takes if take.wait
    ]
    reached = [limit for limit, _ in without_room]
    never = [limit for limit, wait in without_room if wait == NEVER]
    retry_after = None if never else max(wait for _, wait in without_room) / MICROS
    if of_money := [limit for limit in (*never, *reached) if limit.unit == COST]:
        return OF_MONEY[refusal](str(of_money[0]), reached_limits=reached, retry_after=retry_after)
    if never:
        return FOR_GOOD[refusal](str(never[0]), reached_limits=reached)
    return refusal(str(reached[0]), reached_limits=reached, retry_after=retry_after)


def _in_words(take: Take) -> str:
    if take.limit.budget:
        left = dollars(max(take.limit.amount - take.used, 0))
        return f"{_allowed(take.limit)}, {left} are left, and the call may cost {dollars(take.amount)}"
    return f"{_allowed(take.limit)}, and the call may take {take.amount}"


def _allowed(limit: Limit) -> str:
    if limit.budget:
        when = "in all" if limit.gain == MOST else f"in the {limit.budget.kind} {limit.budget.period}"
        return f'the budget "{limit.budget.name}" allows {dollars(limit.amount)} USD {when}'
    if limit.algorithm == "concurrency":
        return f"{limit.amount} calls are allowed at a time"
    if limit.algorithm == "sliding_window":
        return f"{limit.amount} {_noun(limit)} are allowed in {limit.window / MICROS:g} s"
    return f"{limit.capacity} {_noun(limit)} are allowed at once, {limit.amount} in {limit.window / MICROS:g} s"


def _noun(limit: Limit) -> str:
    return limit.unit.replace("_", " ")
