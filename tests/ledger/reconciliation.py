"""Thousands of mixed calls, and then the ledger against the books of the vendors."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.headgate_process import running
from tests.ledger.books import Account, Books
from tests.soak.callers import call, plans
from tests.soak.vendors import sections

Row = dict[str, Any]
AT_ONCE = 64
NANOS_PER_INPUT, NANOS_PER_CACHED, NANOS_PER_OUTPUT = 3_000, 300, 15_000
PRICES = {"input": "3", "cache_read": "0.3", "output": "15"}
CLOCKS = {"first_token": 1.0, "idle": 1.0, "total": 4.0}
"""Long enough that a busy machine seldom takes one who is slow for one who stalls."""
IDLE_SECONDS = 60.0
CUT_SHORT = ("CANCELLED", "SUPERSEDED")
"""Attempts in which the vendor's last word may have been on its way when Headgate closed."""


@dataclass(slots=True)
class Report:
    """What was found. `problems` should be empty."""

    calls: int = 0
    attempts: int = 0
    accounts: int = 0
    exact: int = 0
    unheard: int = 0
    """Requests whose usage was sent, but not before Headgate had closed: estimated, and marked so."""
    tokens_told: Counter[str] = field(default_factory=Counter)
    tokens_entered: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


async def reconcile(file: Path, calls: int, seed: int) -> Report:
    """Makes the calls, a third of them in trouble, and compares."""
    books = Books(seed, faulty_share=0.3)
    async with books.listening():
        configured = sections(books.running)
        configured["routing"]["clocks"] = CLOCKS
        for provider in configured["providers"].values():
            provider["catalog"] = {"x": {"prices": PRICES}}
        async with running(**configured, ledger={"url": f"sqlite:///{file}"}) as headgate:
            made = plans(seed, calls, leaving_share=0.25)

            async def caller() -> None:
                for plan in made:
                    await call(headgate, plan)

            await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
            async with asyncio.timeout(IDLE_SECONDS):
                while not await headgate.idle():
                    pass
    return _compare(file, books)


def rows_of(file: Path, table: str) -> list[Row]:
    """Every row of a table of SQLite."""
    with closing(sqlite3.connect(file)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]


def _compare(file: Path, books: Books) -> Report:
    calls, attempts = rows_of(file, "headgate_calls"), rows_of(file, "headgate_attempts")
    report = Report(len(calls), len(attempts), len(books.accounts))
    report.outcomes.update(row["outcome"] for row in attempts)
    report.causes.update(row["cause"] for row in attempts)
    numbers = {row["id"]: int(row["request_id"].removeprefix("call-")) for row in calls}
    problems = report.problems
    if len(numbers) != len(set(numbers.values())):
        problems.append("a call has two rows")
    problems += _unmatched(numbers, attempts, books.accounts)
    by_vendor_id = {row["provider_request_id"]: row for row in attempts if row["provider_request_id"]}
    for account in books.accounts:
        problems += _misjudged(account, by_vendor_id.get(account.vendor_id), report)
    for row in attempts:
        problems += _incoherent(row)
    return report


def _unmatched(numbers: dict[str, int], attempts: list[Row], accounts: list[Account]) -> Iterator[str]:
    """Requests at a vendor that are not as many rows. There are more rows where attempts came to nothing on their way,
    and fewer where a kept connection was reset without an answer and the request sent again within the attempt."""
    rows: defaultdict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in attempts:
        if row["call_id"] not in numbers:
            yield f"an attempt without a call: {row}"
            continue
        rows[numbers[row["call_id"]], row["provider"]].append(row)
    reached = Counter((account.call, account.provider) for account in accounts)
    resets = Counter((account.call, account.provider) for account in accounts if account.kind == "resets")
    for key in reached.keys() | rows.keys():
        on_the_way = sum(row["http_status"] is None for row in rows[key])
        if not -resets[key] <= len(rows[key]) - reached[key] <= on_the_way:
            yield f"{key}: {reached[key]} requests, {len(rows[key])} rows, {on_the_way} of them without an answer"
    vendor_ids = Counter(row["provider_request_id"] for row in attempts if row["provider_request_id"])
    yield from (f"{vendor_id} has {times} rows" for vendor_id, times in vendor_ids.items() if times > 1)


def _misjudged(account: Account, row: Row | None, report: Report) -> Iterator[str]:
    """An account whose usage the row does not have to the token, though the vendor told it in time."""
    if account.usage is None:
        if row and row["http_status"] == 200 and not row["estimated"]:
            yield f"{account}: nobody counted, and {row} is not marked as estimated"
        return
    told = dict(zip(("input_tokens", "output_tokens", "cache_read_tokens"), account.usage, strict=True))
    too_busy = row is not None and row["outcome"] == "TIMED_OUT" and account.kind == "answers"
    if row is None or (row["estimated"] and (too_busy or row["outcome"] in CUT_SHORT)):
        report.unheard += 1
        return
    entered = {name: row[name] or 0 for name in told}
    report.exact += 1
    report.tokens_told.update(told)
    report.tokens_entered.update(entered)
    if entered != told or row["estimated"]:
        yield f"{account}: {row}"


def _incoherent(row: Row) -> Iterator[str]:
    """A row that contradicts itself."""
    if row["outcome"] in ("OPEN", "LOST"):
        yield f"left open: {row}"
    if row["http_status"] and row["http_status"] >= 300 and (row["input_tokens"] or row["output_tokens"]):
        yield f"an error that cost something: {row}"
    cached = row["cache_read_tokens"] or 0
    cost = (row["input_tokens"] - cached) * NANOS_PER_INPUT + cached * NANOS_PER_CACHED
    cost += (row["output_tokens"] or 0) * NANOS_PER_OUTPUT
    if row["cost_nanos"] != cost:
        yield f"costs {cost}: {row}"
