"""What `limits.budgets` may say, one test for each reason to refuse it, and how periods of the calendar turn."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, strategies as st

from headgate_server.config import BudgetRule, Config, ConfigError, load
from headgate_server.limits.periods import PeriodKind, period_of
from headgate_server.limits.rules import OF_CALL, OF_PROVIDER, OF_TARGET, Rules
from headgate_server.principal import Principal

BEFORE = "providers: {demo: {adapter: mock}}\nlimits:\n"
ZONES = ("UTC", "Europe/Berlin", "Africa/Cairo", "America/Sao_Paulo", "Asia/Kathmandu", "Pacific/Apia")


def read(folder: Path, budgets: str) -> Config:
    """The configuration of a file with these budgets in line 3."""
    path = folder / "headgate.yaml"
    path.write_text(f"{BEFORE}  budgets: {budgets}\n", "utf-8")
    return load(path, {})


def test_budgets_arrive_in_the_tree(tmp_path: Path) -> None:
    """Every key, exactly, and what is usual where nothing is said."""
    config = read(
        tmp_path,
        """
    - {amount: 500, period: month}
    - {amount: "0.000000001", period: day, time_zone: Asia/Tokyo, soft: [0.5, 1.25], hard: false, name: trial,
       per: [tenant, "label:team"], only: {"label:team": ["r*"], target: [openai/gpt-5]}}""",
    )
    usual, full = config.limits.budgets
    assert (usual.amount, usual.time_zone, usual.soft, usual.hard) == (Decimal(500), "UTC", (Decimal("0.8"),), True)
    assert (full.amount, full.soft, full.hard) == (Decimal("1e-9"), (Decimal("0.5"), Decimal("1.25")), False)
    assert (full.per, full.only["label:team"]) == (("tenant", "label:team"), ("r*",))


REFUSED = {
    "[{amount: 0, period: day}]": "limits.budgets[0].amount: must be greater than 0",
    "[{amount: 9000001, period: day}]": "limits.budgets[0].amount: must be less than or equal to 9000000",
    '[{amount: "0.0000000001", period: day}]': "limits.budgets[0].amount: Decimal input should have no more than 9",
    "[{amount: 5}]": "limits.budgets[0].period: is required",
    "[{amount: 5, period: week}]": "limits.budgets[0].period: must be 'day', 'month' or 'total'",
    "[{amount: 5, period: day, time_zone: Berlin}]": "limits.budgets[0].time_zone: must be a time zone such as",
    "[{amount: 5, period: day, time_zone: ../x}]": "limits.budgets[0].time_zone: must be a time zone such as",
    "[{amount: 5, period: day, soft: [0]}]": "limits.budgets[0].soft[0]: must be greater than 0",
    "[{amount: 5, period: day, per: [team]}]": "limits.budgets[0].per[0]: must be key, tenant, model, provider,",
    "[{amount: 5, period: day, per: ['label:']}]": "limits.budgets[0].per[0]: must be key, tenant, model, provider,",
    "[{amount: 5, period: day, only: {role: [x]}}]": "limits.budgets[0].only.role: must be key, tenant, model,",
    "[{amount: 5, period: day}, {amount: 6, period: day, hard: false}]": (
        "limits.budgets[1]: counts the same as limits.budgets[0]"
    ),
    "[{amount: 5, period: total}, {amount: 6, period: total, time_zone: Asia/Tokyo}]": (
        "limits.budgets[1]: counts the same as limits.budgets[0]"
    ),
    "[{amount: 5, period: day, name: x}, {amount: 6, period: month, name: x}]": (
        "limits.budgets[1].name: is the name of limits.budgets[0]"
    ),
}


@pytest.mark.parametrize("budgets", REFUSED)
def test_what_cannot_be_is_refused_with_its_line(tmp_path: Path, budgets: str) -> None:
    """Before anything is served."""
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, budgets)
    (problem,) = str(refused.value).splitlines()
    assert f"headgate.yaml:3: {REFUSED[budgets]}" in problem


@given(
    kind=st.sampled_from(["day", "month"]),
    zone=st.sampled_from(ZONES),
    moment=st.integers(0, 4_000_000_000),
)
def test_periods_follow_each_other_without_a_gap(kind: PeriodKind, zone: str, moment: int) -> None:
    """Every moment is in one period, whose neighbours begin and end where it does, and which the clocks there name."""
    period = period_of(kind, zone, moment)
    assert period.starts is not None
    assert period.ends is not None
    assert period.starts <= moment < period.ends
    assert period_of(kind, zone, period.ends - 0.001) == period == period_of(kind, zone, period.starts)
    assert period_of(kind, zone, period.ends).starts == period.ends
    assert datetime.fromtimestamp(moment, ZoneInfo(zone)).isoformat().startswith(period.name)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("UTC", "2026-03-29T12:00", 24),
        ("Europe/Berlin", "2026-03-29T12:00", 23),
        ("Europe/Berlin", "2026-10-25T12:00", 25),
        ("Africa/Cairo", "2026-04-24T12:00", 23),
    ],
)
def test_days_are_as_long_as_clocks_make_them(zone: str, day: str, hours: int) -> None:
    """Where summer time begins a day is short; in Cairo it has no midnight then."""
    period = period_of("day", zone, datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
    assert period.starts is not None
    assert period.ends is not None
    assert period.ends - period.starts == hours * 3600


def test_a_new_period_has_counters_of_its_own() -> None:
    """From the first moment on, and each time zone for itself; a total goes on for ever."""
    moment = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp()
    terms = [("day", "UTC"), ("month", "UTC"), ("month", "Asia/Tokyo"), ("total", "UTC")]
    rules = Rules(
        [],
        [BudgetRule(amount=Decimal(5), period=period, time_zone=zone) for period, zone in terms],
        clock=lambda: moment,
    )
    before = rules.of_call(Principal(), "m")
    assert before is rules.of_call(Principal(), "m"), "found once"
    moment += 1
    after = rules.of_call(Principal(), "m")
    changed = [old.key != new.key for old, new in zip(before, after, strict=True)]
    assert changed == [True, True, False, False]
    assert [scoped.limit.budget.period for scoped in after if scoped.limit.budget] == [
        "2026-12-01",
        "2026-12",
        "2026-12",
        "total",
    ]
    moment -= 2
    assert [scoped.key for scoped in rules.of_call(Principal(), "m")] == [scoped.key for scoped in before]


def test_a_budget_goes_by_what_it_speaks_of() -> None:
    """Providers and targets are known when one is chosen; all else from the beginning."""
    scopes: list[tuple[str, ...]] = [("tenant",), ("tenant", "provider"), ("label:x", "target")]
    rules = Rules([], [BudgetRule(amount=Decimal(5), period="day", per=per) for per in scopes])
    assert rules.of_attempts == (OF_PROVIDER, OF_TARGET)
    assert OF_CALL not in rules.of_attempts
    assert len(rules.of_call(Principal(), "m")) == 1
