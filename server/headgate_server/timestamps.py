"""Moments as text: logs and the ledger write some for every call, most of them of one second."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as 2026-11-27T13:39:02.737178Z."""
    second, micros = divmod(round(seconds * 1e6), 1_000_000)
    return f"{_second(second, 'T')}.{micros:06d}Z"


def sqlite_text(seconds: float) -> str:
    """The same as 2026-11-27 13:39:02.737178, which is how SQLAlchemy keeps a moment in SQLite."""
    second, micros = divmod(round(seconds * 1e6), 1_000_000)
    return f"{_second(second, ' ')}.{micros:06d}"


@lru_cache(maxsize=16)
def _second(seconds: int, separator: str) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%d}{separator}{moment:%H:%M:%S}"
