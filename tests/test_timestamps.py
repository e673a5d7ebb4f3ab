"""Moments as text, against datetime."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, strategies as st

from headgate_server.timestamps import rfc3339, sqlite_text


@given(st.integers(0, 4_000_000_000_000_000))
def test_a_moment_is_told_to_the_microsecond(micros: int) -> None:
    """Floats of today's seconds are exact to a quarter of one."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    assert rfc3339(micros / 1e6) == moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert sqlite_text(micros / 1e6) == moment.strftime("%Y-%m-%d %H:%M:%S.%f")
