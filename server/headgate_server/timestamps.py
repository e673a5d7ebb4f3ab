"""Moments as text: logs and the ledger write some for every call, most of them of one second."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

_DIGITS = [f"{number:03}" for number in range(1000)]
"""Written once: leading zeros take longer to write than all the rest."""


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as 2026-11-27T13:39:02.737178Z."""
    return f"{sqlite_text(seconds).replace(' ', 'T')}Z"


def sqlite_text(seconds: float) -> str:
    """The same as 2026-11-27 13:39:02.737178, which is how SQLAlchemy keeps a moment in SQLite."""
    second, micros = divmod(round(seconds * 1e6), 1_000_000)
    return f"{_second(second)}.{_DIGITS[micros // 1000]}{_DIGITS[micros % 1000]}"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
