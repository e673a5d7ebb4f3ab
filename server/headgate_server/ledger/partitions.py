"""The months of PostgreSQL's tables: made before their time, dropped when they are too old."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

LOCK = 0x6C65_6467_6D6F_6E74
LOCK_SECONDS = 5
"""So long readers may hold up a change of months: it is tried again later, and nobody waits behind it."""

log = structlog.get_logger(component="ledger")


def month_of(day: date) -> str:
    """The month as it is named: 2026-11."""
    return f"{day:%Y-%m}"


def months_from(day: date, ahead: int) -> list[str]:
    """The day's month and so many that follow it."""
    months = [month_of(day)]
    for _ in range(ahead):
        months.append(month_of(_end(months[-1])))
    return months


async def make_month(connection: AsyncConnection, table: str, month: str) -> None:
    """Makes one month of one table, if it is missing. In a transaction of its own: it locks the whole table, and a
    reader who has one table and wants the next must not meet a server that goes the other way round."""
    await _lock(connection)
    name = f"{table}_{month.replace('-', '_')}"
    if await connection.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is None:
        await connection.execute(
            text(
                f"CREATE TABLE {name} PARTITION OF {table} "
                f"FOR VALUES FROM ('{month}-01 00:00:00+00') TO ('{_end(month)} 00:00:00+00')"
            )
        )


async def drop_months(connection: AsyncConnection, table: str, now: datetime, retention_days: int) -> None:
    """Drops those of one table that have ended more than so many days ago, likewise."""
    await _lock(connection)
    oldest = (now - timedelta(days=retention_days)).date()
    query = text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = CAST(:table AS regclass)")
    for name in (await connection.scalars(query, {"table": table})).all():
        month = name.removeprefix(f"{table}_").replace("_", "-")
        if _is_month(month) and _end(month) <= oldest:
            await connection.execute(text(f"DROP TABLE {name}"))
            log.info("ledger_month_dropped", table=name)


async def _lock(connection: AsyncConnection) -> None:
    """One server at a time."""
    await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})


def _end(month: str) -> date:
    """The first day of the next month."""
    return (date.fromisoformat(f"{month}-01") + timedelta(days=31)).replace(day=1)


def _is_month(text_: str) -> bool:
    try:
        date.fromisoformat(f"{text_}-01")
    except ValueError:
        return False
    return True
