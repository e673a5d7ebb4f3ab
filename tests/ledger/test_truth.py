"""The ledger against what vendors saw, and against what kills left on disk. `make reconcile` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.identity.databases import Postgresql
from tests.ledger.kills import survive
from tests.ledger.reconciliation import reconcile


async def test_every_request_at_a_vendor_has_one_row_with_its_tokens(tmp_path: Path) -> None:
    """Answers, streams, batches, faults, cancels, deadlines, retries, hedges, fallbacks: the books agree."""
    report = await reconcile(tmp_path / "ledger.db", calls=300, seed=3)
    assert report.problems == []
    assert report.tokens_entered == report.tokens_told
    assert report.exact > 150
    assert {"OK", "FAILED", "TIMED_OUT", "CANCELLED", "SUPERSEDED"} <= report.outcomes.keys()
    assert {"first", "retry", "fallback", "hedge"} <= report.causes.keys()


@pytest.mark.timeout(400)  # three servers start one after another, each in seconds of CPU time
async def test_what_is_on_disk_when_the_server_is_killed_arrives_once(empty: Postgresql, tmp_path: Path) -> None:
    """Killed amid load, twice: nothing answered is missing, what was in flight is LOST, and nothing is there twice."""
    report = await survive(tmp_path, empty.url, kills=2, seed=1)
    assert report.problems == []
    assert report.answered
    assert report.lost
