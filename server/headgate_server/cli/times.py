"""Times as they are written on the command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from headgate_server.cli.exits import USAGE, Failed

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(option: str, text: str) -> float:
    """Of 90d, 12h, 30m or 45s.

    Raises:
        Failed: it is none of these.
    """
    found = _duration(text)
    if found is None:
        raise Failed(USAGE, f"error: {option}: must be a time such as 90d, 12h, 30m or 45s")
    return found


def moment_of(option: str, text: str, now: float) -> float:
    """So long before now, or at a date or time, which is in UTC unless it says otherwise; seconds since the epoch.

    Raises:
        Failed: it is neither.
    """
    ago = _duration(text)
    if ago is not None:
        return now - ago
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Failed(USAGE, f"error: {option}: must be a time such as 24h, 2026-11-27 or 2026-11-27T12:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def shown_time(moment: float) -> str:
    """Such as 2026-11-27T12:00:00Z."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _duration(text: str) -> float | None:
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    return int(match[1]) * UNITS[match[2]] if match else None
