"""What `headgate usage` and `headgate budgets` read in the ledger, and how they show it."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from headgate_server.cli.exits import FAILED, OK, USAGE, Failed
from headgate_server.cli.terminal import table
from headgate_server.cli.times import moment_of, shown_time
from headgate_server.config import Config, ConfigError, load
from headgate_server.config.values import LABEL, DatabaseUrl
from headgate_server.limits.history import Spent, spent
from headgate_server.limits.periods import period_of
from headgate_server.limits.quota import NANOS, dollars
from headgate_server.limits.scopes import budget_of, own, whose
from headgate_server.principal import Principal
from headgate_server.printing import printable

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from headgate_server.ledger.totals import Total

T = TypeVar("T")
_URL = TypeAdapter(DatabaseUrl)
DOLLARS = "USD"
COUNTS = ("calls", "attempts", "estimated", "unpriced")
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""What spreadsheets take for the beginning of a formula."""
TOKENS_SHOWN = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


def usage(url: str, by: str, since: str, until: str, only: Mapping[str, str], *, as_json: bool, as_csv: bool) -> int:
    """Prints the sums of the attempts of a time, by groups."""
    if as_json and as_csv:
        raise Failed(USAGE, "error: --json and --csv: one of them")
    groups, now = _groups(by), time.time()
    first = moment_of("--since", since, now) if since else None
    last = moment_of("--until", until, now) if until else None

    async def read(connection: AsyncConnection) -> tuple[Sequence[Total], Sequence[Total]]:
        from headgate_server.ledger.totals import totals

        return (
            await totals(connection, groups, first, last, only),
            await totals(connection, (), first, last, only),
        )

    rows, whole = _in_ledger(url, read)
    currencies = sorted({currency for row in rows for currency in row.cost}) or [DOLLARS]
    if as_json:
        times = {"since": first and shown_time(first), "until": shown_time(now if last is None else last)}
        print(json.dumps({**times, "rows": [*map(_figures, rows)], "total": _figures(whole[0]) if whole else None}))
    elif as_csv:
        _write_csv(groups, currencies, rows)
    else:
        header = ("CALLS", "ATTEMPTS", "INPUT", "CACHE READ", "CACHE WRITE", "OUTPUT", "REASONING")
        cells = [[*row.group.values(), *_cells(row, currencies)] for row in rows]
        if groups and len(rows) > 1:
            cells += [["total", *[""] * (len(groups) - 1), *_cells(row, currencies)] for row in whole]
        print(table([*map(str.upper, groups), *header, *(f"COST {name}" for name in currencies), "NOTES"], cells))
    return OK


def budgets(config: Path | None, url: str, *, as_json: bool) -> int:
    """Prints every budget of the configuration: what is spent, what is left, and when it begins anew."""
    settings, now = _config(config), time.time()
    found = _in_ledger(
        ledger_url(config, url) if url else _url_of(settings), lambda connection: _counters(connection, settings, now)
    )
    if as_json:
        print(json.dumps({"budgets": [_budget(each) for each in found]}))
    else:
        print(
            table(
                ("BUDGET", "WHOSE", "PERIOD", "AMOUNT USD", "SPENT", "LEFT", "USED", "RESETS"),
                [_budget_cells(each) for each in found],
            )
        )
    return OK


def labels(given: Sequence[str]) -> dict[str, str]:
    """What NAME=VALUE chooses.

    Raises:
        Failed: it is not of that form.
    """
    chosen = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise Failed(USAGE, f"error: --label: {printable(text)}: must be NAME=VALUE")
        chosen[f"{LABEL}{name}"] = value
    return chosen


def ledger_url(config: Path | None, given: str) -> str:
    """The ledger's URL that is given, or else what the configuration says.

    Raises:
        Failed: it cannot be used, or there is none.
    """
    if not given:
        return _url_of(_config(config))
    try:
        return _URL.validate_python(given).get_secret_value()
    except ValidationError as error:
        message = error.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")
        raise Failed(USAGE, f"error: --url: {message}") from error


async def _counters(connection: AsyncConnection, settings: Config, now: float) -> Sequence[Spent]:
    """The counters of each configured budget that were used in its period, dearest first, and those of static keys."""
    found: list[Spent] = []
    for rule in settings.limits.budgets:
        used = [each async for each in spent(connection, (rule,), (), now)]
        period = period_of(rule.period, rule.time_zone, now)
        nobody = whose(rule, dict.fromkeys(rule.per, ""))._replace(subject="nobody yet" if rule.per else "all callers")
        found += sorted(used, key=lambda each: -each.nanos) or [Spent(budget_of(rule, nobody, period), period, 0)]
    for key_id, key in settings.auth.keys.items():
        for terms in key.budgets:
            period = period_of(terms.period, terms.time_zone, now)
            counter = budget_of(terms, own(Principal(tenant=key.tenant, key_id=key_id)), period)
            known = {each.counter.key: each.nanos async for each in spent(connection, (), (terms,), now)}
            found.append(Spent(counter, period, known.get(counter.key, 0)))
    return found


def _budget(each: Spent) -> dict[str, Any]:
    amount = each.counter.limit.amount
    return {
        "budget": each.counter.rule,
        "whose": each.counter.subject,
        "period": each.period.name,
        "amount_usd": dollars(amount),
        "spent_usd": dollars(each.nanos),
        "left_usd": dollars(max(amount - each.nanos, 0)),
        "resets": each.period.ends and shown_time(each.period.ends),
    }


def _budget_cells(each: Spent) -> Sequence[str]:
    *cells, resets = _budget(each).values()
    return (*cells, f"{each.nanos / each.counter.limit.amount:.1%}", resets or "never")


def _figures(total: Total) -> dict[str, Any]:
    """Every figure of a row, exactly."""
    counts = {name: getattr(total, name) for name in COUNTS}
    cost = {currency: dollars(nanos) for currency, nanos in total.cost.items()}
    return {**total.group, **counts, **total.tokens, "cost": cost}


def _cells(total: Total, currencies: Sequence[str]) -> Sequence[str]:
    notes = {"estimated": total.estimated, "of unknown price": total.unpriced}
    return [
        str(total.calls),
        str(total.attempts),
        *(str(total.tokens[name]) for name in TOKENS_SHOWN),
        *(f"{total.cost.get(currency, 0) / NANOS:.6f}" for currency in currencies),
        ", ".join(f"{number} {note}" for note, number in notes.items() if number),
    ]


def _write_csv(groups: Sequence[str], currencies: Sequence[str], rows: Sequence[Total]) -> None:
    """Each currency's cost has a column of its own."""
    from headgate_server.ledger.totals import TOKENS

    costs = {currency: f"cost_{currency.lower()}" for currency in currencies}
    writer = csv.DictWriter(sys.stdout, [*groups, *COUNTS, *TOKENS, *costs.values()], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        figures = _figures(row)
        cost = figures.pop("cost")
        safe = {name: _cell(str(value)) for name, value in figures.items()}
        writer.writerow(safe | {column: cost.get(currency, "0.00") for currency, column in costs.items()})


def _cell(text: str) -> str:
    """Text as a spreadsheet shows it: what callers chose must not be taken for a formula."""
    return printable(f"'{text}" if text.startswith(FORMULAS) else text)


def _groups(by: str) -> Sequence[str]:
    from headgate_server.ledger.totals import GROUPS

    groups = list(dict.fromkeys(name.strip() for name in by.split(",") if name.strip()))
    for name in groups:
        if name not in GROUPS and not (name.startswith(LABEL) and name != LABEL):
            raise Failed(USAGE, f"error: --by: {printable(name)}: must be one of {', '.join(GROUPS)}, or {LABEL}NAME")
    return groups


def _config(path: Path | None) -> Config:
    try:
        return load(path, os.environ)
    except ConfigError as error:
        raise Failed(USAGE, str(error)) from error


def _url_of(settings: Config) -> str:
    if settings.ledger is None:
        raise Failed(USAGE, "error: the configuration has no ledger; --url names one")
    return settings.ledger.url.get_secret_value()


def _in_ledger(url: str, read: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Reads in the ledger there.

    Raises:
        Failed: it is not there, or does not answer.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from headgate_server.ledger.reading import reading

    async def connect_and_read() -> T:
        async with reading(url) as connection:
            return await read(connection)

    try:
        return asyncio.run(connect_and_read())
    except FileNotFoundError as error:
        raise Failed(FAILED, printable(f"error: {error}")) from error
    except (OSError, SQLAlchemyError) as error:
        # Not the library's own text, which repeats the statement and its values.
        raise Failed(FAILED, printable(f"error: the ledger: {getattr(error, 'orig', error)}")) from error
