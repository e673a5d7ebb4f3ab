"""The ledger's tables: what the migrations make, they also take away, in SQLite and in PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Connection, inspect

from headgate_server.ledger.migrations import MIGRATIONS
from headgate_server.ledger.tables import metadata
from headgate_server.sql.engine import engine
from tests.identity.databases import DATABASES
from tests.ledger.statements import EMPTY, execute


def columns(connection: Connection) -> dict[str, set[str]]:
    """The names of the columns of each of Headgate's tables."""
    inspector = inspect(connection)
    names = [name for name in inspector.get_table_names() if name.startswith("headgate_")]
    return {name: {column["name"] for column in inspector.get_columns(name)} for name in names}


DECLARED = {name: set(table.columns.keys()) for name, table in metadata.tables.items()}
VERSION = {"headgate_ledger_version": {"version_num"}}


@pytest.mark.parametrize("database", DATABASES)
async def test_the_migrations_make_what_is_declared_and_take_it_away_again(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Up, up once more, down, and up again."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    if database == "postgresql":
        url = request.getfixturevalue("postgresql").url
        await execute(url, *EMPTY)
    connections = engine(url)
    try:
        for step, expected in (
            (MIGRATIONS.upgrade, DECLARED | VERSION),
            (MIGRATIONS.upgrade, DECLARED | VERSION),
            (MIGRATIONS.downgrade, VERSION),
            (MIGRATIONS.upgrade, DECLARED | VERSION),
        ):
            async with connections.begin() as connection:
                await connection.run_sync(step)
            async with connections.connect() as connection:
                assert await connection.run_sync(columns) == expected
    finally:
        await connections.dispose()
