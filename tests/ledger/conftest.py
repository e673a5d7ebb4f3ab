"""What tests of the ledger share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.identity.databases import Postgresql, postgresql_server
from tests.ledger.statements import EMPTY, execute


@pytest.fixture(scope="package")
def postgresql() -> Iterator[Postgresql]:
    """A PostgreSQL for all of these tests."""
    with postgresql_server() as server:
        yield server


@pytest.fixture
async def empty(postgresql: Postgresql) -> Postgresql:
    """The same, without any table."""
    await execute(postgresql.url, *EMPTY)
    return postgresql
