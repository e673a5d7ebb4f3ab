"""What tests of budgets share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.identity.databases import DATABASES, postgresql


@pytest.fixture(scope="module")
def postgresql_url() -> Iterator[str]:
    """A PostgreSQL for this module."""
    with postgresql() as url:
        yield url


@pytest.fixture(params=DATABASES)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """A ledger section in each database in turn."""
    if request.param == "sqlite":
        return {"url": f"sqlite:///{tmp_path}/ledger.db"}
    return {"url": request.getfixturevalue("postgresql_url"), "spool": f"{tmp_path}/spool.db"}
