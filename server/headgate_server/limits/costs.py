"""What attempts cost the operator, as budgets count it: nanos of US dollars."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from headgate_server.ledger.estimate import account_of
from headgate_server.limits.estimate import DOLLARS, Request, in_dollars
from headgate_server.prices import PriceList
from headgate_server.providers.base import Target

if TYPE_CHECKING:
    from headgate_server.attempt import Attempt


class Costs:
    """By the prices of targets, and a policy for those whose price is not known."""

    def __init__(self, prices: Callable[[Target], PriceList | None], *, refuse_unpriced: bool) -> None:
        self._prices = prices
        self._refuse_unpriced = refuse_unpriced

    def refuses(self, target: Target) -> bool:
        """Whether nothing may go to this target that is not on a caller's own key."""
        return self._refuse_unpriced and in_dollars(self._prices(target)) is None

    def of(self, attempt: Attempt, request: Request) -> int:
        """What an attempt has cost that has ended; nothing on the caller's own key, or where nobody knows the price."""
        if attempt.caller_key:
            return 0
        _, cost = account_of(attempt, request)
        return cost.total_nanos if cost and cost.currency_code == DOLLARS else 0
