"""Reading the ledger, in SQLite or PostgreSQL, while servers write to it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from headgate_server.sql.engine import engine


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[AsyncConnection]:
    """A connection to query the tables of ledger/tables.py by: all queries see the same moment.

    Rows of attempts in flight (OPEN) are only in the local file of their server, never in PostgreSQL.

    Raises:
        FileNotFoundError: there is no such file of SQLite.
        SQLAlchemyError: the database cannot be reached.
    """
    address = make_url(url)
    is_file = address.get_backend_name() == "sqlite"
    if is_file and not os.path.isfile(address.database or ""):  # noqa: ASYNC240  # once, of a command or a start
        raise FileNotFoundError(f"there is no ledger at {address.database}")
    connections = engine(url)
    try:
        async with connections.connect() as connection:
            if not is_file:
                await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            yield connection
    finally:
        await connections.dispose()
