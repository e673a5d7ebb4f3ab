"""What tests of the ledger share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.identity.databases import postgresql


@pytest.fixture(scope="module")
def postgresql_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL for this module."""
    with postgresql(tmp_path_factory.mktemp("postgresql")) as url:
        yield url
