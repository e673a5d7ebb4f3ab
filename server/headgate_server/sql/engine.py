"""Connections to SQLite and PostgreSQL, by URL."""

from __future__ import annotations

from contextlib import suppress
from sqlite3 import OperationalError
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

CONNECT_SECONDS = 5
DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def engine(address: str, **postgresql: Any) -> AsyncEngine:
    """An engine for sqlite:///FILE or postgresql://…, with more arguments for PostgreSQL's connections."""
    url = make_url(address)
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    if url.get_backend_name() != "sqlite":
        arguments = {"connect_timeout": CONNECT_SECONDS, **postgresql}
        return create_async_engine(url, pool_size=2, max_overflow=2, pool_recycle=1800, connect_args=arguments)
    made = create_async_engine(url, connect_args={"timeout": CONNECT_SECONDS})

    @event.listens_for(made.sync_engine, "connect")
    def set_up(connection: Any, _record: Any) -> None:
        with suppress(OperationalError):  # another server is just doing it, and the file remembers
            connection.execute("PRAGMA journal_mode=WAL")  # a reader then never waits for a writer

    return made
