"""The months of PostgreSQL's tables: made before their time, dropped when they are too old."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from headgate_server.ledger.columns import TABLES

LOCK = 0x6C65_6467_6D6F_6E74
LOCK_SECONDS = 5
"""So long readers may hold up a change of months: it is tried again later, and nobody waits behind it."""


def month_of(day: date) -> str:
    """The month as it is named: 2026-11."""
    return f"{day:%Y-%m}"


def months_from(day: date, ahead: int) -> list[str]:
    """The day's month and so many that follow it."""
    months = [month_of(day)]
    for _ in range(ahead):
        months.append(month_of(_end(months[-1])))
    return months


async def make_months(connection: AsyncConnection, months: Iterable[str]) -> None:
    """Makes those that are missing, in the connection's transaction."""
    await _lock(connection)
    for month in months:
        for table in TABLES:
            await connection.execute(
                text(
                    f"CREATE TABLE IF NOT EXISTS {table}_{month.replace('-', '_')} PARTITION OF {table} "
                    f"FOR VALUES FROM ('{month}-01 00:00:00+00') TO ('{_end(month)} 00:00:00+00')"
                )
            )


async def drop_months(connection: AsyncConnection, now: datetime, retention_days: int) -> list[str]:
    """Drops months that have ended more than so many days ago; their names."""
    await _lock(connection)
    oldest = (now - timedelta(days=retention_days)).date()
    dropped = []
    for table in TABLES:
        query = text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = CAST(:table AS regclass)")
        for name in (await connection.scalars(query, {"table": table})).all():
            month = name.removeprefix(f"{table}_").replace("_", "-")
            if _is_month(month) and _end(month) <= oldest:
                await connection.execute(text(f"DROP TABLE {name}"))
                dropped.append(name)
    return dropped


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
