"""Days and months of the calendar, for budgets. Pure; moments are seconds since the epoch."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

PeriodKind = Literal["day", "month", "total"]


class Period(NamedTuple):
    """From `starts` until just before `ends`; all time without either."""

    name: str
    starts: float | None
    ends: float | None

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Both."""
        return self.starts, self.ends


ALL_TIME = Period("total", None, None)


def period_of(kind: PeriodKind, time_zone: str, moment: float) -> Period:
    """The day or month that the moment is in, as the clocks of that zone have it."""
    if kind == "total":
        return ALL_TIME
    today = datetime.fromtimestamp(moment, ZoneInfo(time_zone)).date()
    return _period(kind, today if kind == "day" else today.replace(day=1), time_zone)


@lru_cache(64)
def _period(kind: PeriodKind, first: date, time_zone: str) -> Period:
    if kind == "day":
        return Period(first.isoformat(), _begins(first, time_zone), _begins(first + timedelta(days=1), time_zone))
    next_month = (first + timedelta(days=31)).replace(day=1)
    return Period(first.isoformat()[:7], _begins(first, time_zone), _begins(next_month, time_zone))


def _begins(day: date, time_zone: str) -> float:
    """Its midnight. Where the clocks skip that it is when they do; where they show it twice, the first time."""
    return datetime.combine(day, time(), ZoneInfo(time_zone)).astimezone(UTC).timestamp()
