"""How much money callers may spend: what of it can be configured."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field

from headgate_server.config.section import Section
from headgate_server.config.values import Scope

MOST_DOLLARS = 9_000_000
"""Counters hold 2^53 nanos: Redis counts in doubles."""


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("must be a time zone such as Europe/Berlin, and known to this machine") from error
    return name


Dollars = Annotated[Decimal, Field(gt=0, le=MOST_DOLLARS, allow_inf_nan=False, decimal_places=9)]
Share = Annotated[Decimal, Field(gt=0, le=10, allow_inf_nan=False, decimal_places=4)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]


class Budget(Section):
    """So much money in a period of the calendar; a caller's own budgets look like this, too."""

    amount: Dollars
    """How much, in US dollars; at most nine million."""
    period: Literal["day", "month", "total"]
    """A day or a month of the calendar, or for good: as far back as the ledger goes, when it is asked."""
    time_zone: TimeZone = "UTC"
    """Where days and months begin."""
    soft: tuple[Share, ...] = (Decimal("0.8"),)
    """Shares of the amount; when so much is spent the log and a metric tell it, once in a period."""
    hard: bool = True
    """Refuse what there is no money for; otherwise it is only counted and told."""


class BudgetRule(Budget):
    """A budget, and whom it is for."""

    name: Annotated[str, Field(max_length=64)] = ""
    """What errors, metrics and commands call it; by default its period and whom it is for."""
    per: tuple[Scope, ...] = ()
    """Each has the amount for itself: key, tenant, model (as callers name it), provider, target (provider/model),
    label:NAME, or a combination; without any, all callers share it."""
    only: dict[Scope, Annotated[tuple[str, ...], Field(min_length=1)]] = {}
    """Patterns such as gpt-*, one of which must match, for any of those; what others spend is not counted."""
