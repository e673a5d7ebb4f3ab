"""A short soak, the same each time; `make soak` is the long one, with calls and faults of its own."""

from __future__ import annotations

from tests.soak.run import Options, soak


async def test_whatever_vendors_and_callers_do_every_call_is_accounted_for_and_nothing_is_left() -> None:
    """One outcome for each call, told alike to caller and log; nothing in flight, no task, no connection, no growth."""
    options = Options(calls=600, seed=5)
    report = await soak(options)
    assert report.problems == []
    assert report.outcomes.total() == options.calls
    assert report.outcomes["OK"] > options.calls / 3
    assert report.faults > report.requests / 10
    assert {"OK", "FAILED", "TIMED_OUT", "CANCELLED", "SUPERSEDED"} <= set(report.attempts)
