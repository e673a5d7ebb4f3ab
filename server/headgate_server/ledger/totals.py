"""What the ledger adds up to: tokens and money, by whom they were used, for what, and on which day.

Sums are of attempts, whose cost is what vendors charge: also of those in vain, and not of those in flight. Needs the
extra [sql] or [postgres].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, case, distinct, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import String

from headgate_server.config.values import LABEL
from headgate_server.ledger.columns import OPEN
from headgate_server.ledger.tables import attempts, calls

GROUPS = ("tenant", "key", "model", "provider", "target", "day")
"""What to sum by, beside label:NAME: model as callers name it, target as the vendor does, day in UTC."""
TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")


class Total(NamedTuple):
    """The sums of one group. `cost` is in nanos by currency; `unpriced` attempts used tokens of unknown price."""

    group: Mapping[str, str]
    calls: int
    attempts: int
    estimated: int
    unpriced: int
    tokens: Mapping[str, int]
    cost: Mapping[str, int]


async def totals(
    connection: AsyncConnection,
    by: Sequence[str] = (),
    since: float | None = None,
    until: float | None = None,
    only: Mapping[str, str] | None = None,
) -> Sequence[Total]:
    """Sums of the attempts that began in a time, dearest first, of those alone that have certain values."""
    chosen = [attempts.c.outcome != OPEN, *_within(since, until)]
    chosen += [_value(group) == value for group, value in (only or {}).items()]
    of_money = select(attempts.c.currency).distinct().where(attempts.c.cost_nanos.is_not(None), *chosen)
    currencies = sorted((await connection.scalars(of_money)).all())
    used = func.coalesce(attempts.c.input_tokens, 0) + func.coalesce(attempts.c.output_tokens, 0) > 0
    sums: list[ColumnElement[Any]] = [
        func.count(distinct(attempts.c.call_id)),
        func.count(),
        func.count(case((attempts.c.estimated, 1))),
        func.count(case((attempts.c.cost_nanos.is_(None) & used, 1))),
        *(func.coalesce(func.sum(attempts.c[name]), 0) for name in TOKENS),
        *(func.sum(case((attempts.c.currency == currency, attempts.c.cost_nanos), else_=0)) for currency in currencies),
    ]
    rows = await connection.execute(_grouped(by, sums).where(*chosen))
    found = [_total(by, currencies, row) for row in rows]
    return sorted(
        (total for total in found if total.attempts),
        key=lambda total: (-sum(total.cost.values()), *total.group.values()),
    )


async def spending(
    connection: AsyncConnection, by: Sequence[str], since: float | None, until: float | None
) -> Sequence[tuple[Mapping[str, str], int]]:
    """Nanos of US dollars that the operator's own accounts were charged, by groups; for calls that have ended."""
    statement = _grouped(by, [func.sum(attempts.c.cost_nanos)]).where(
        attempts.c.currency == "USD", ~attempts.c.caller_key, attempts.c.outcome != OPEN, *_within(since, until)
    )
    if connection.dialect.name == "sqlite":  # PostgreSQL has no others
        in_flight = select(calls.c.id).where(calls.c.outcome == OPEN)
        statement = statement.where(attempts.c.call_id.not_in(in_flight))
    rows = await connection.execute(statement)
    return [(dict(zip(by, values, strict=True)), int(nanos)) for *values, nanos in rows if nanos]


def _grouped(by: Sequence[str], sums: Sequence[ColumnElement[Any]]) -> Select[Any]:
    groups = [_value(group).label(f"group_{n}") for n, group in enumerate(by)]
    chosen: list[ColumnElement[Any]] = [*groups, *sums]
    return select(*chosen).group_by(*groups)


def _within(since: float | None, until: float | None) -> Iterator[ColumnElement[bool]]:
    if since is not None:
        yield attempts.c.time >= since
    if until is not None:
        yield attempts.c.time < until


def _value(group: str) -> ColumnElement[str]:
    if group.startswith(LABEL):
        return func.coalesce(attempts.c.labels[group.removeprefix(LABEL)].as_string(), "")
    match group:
        case "key":
            return attempts.c.key_id
        case "target":
            return attempts.c.provider + "/" + attempts.c.provider_model
        case "day":
            return _UtcDay(attempts.c.time)
        case _:
            return attempts.c[group]


class _UtcDay(FunctionElement[str]):
    """A moment's day as 2026-11-27."""

    type = String()
    inherit_cache = True
    name = "utc_day"


@compiles(_UtcDay, "sqlite")
def _day_in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return f"substr({compiler.process(element.clauses, **options)}, 1, 10)"


@compiles(_UtcDay, "postgresql")
def _day_in_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return f"to_char({compiler.process(element.clauses, **options)} AT TIME ZONE 'UTC', 'YYYY-MM-DD')"


def _total(by: Sequence[str], currencies: Sequence[str], row: Any) -> Total:
    values = row[: len(by)]
    calls, number, estimated, unpriced, *sums = map(int, row[len(by) :])
    tokens = dict(zip(TOKENS, sums, strict=False))
    cost = {name: nanos for name, nanos in zip(currencies, sums[len(TOKENS) :], strict=True) if nanos}
    return Total(dict(zip(by, values, strict=True)), calls, number, estimated, unpriced, tokens, cost)
