"""`headgate ledger`: the tables of the ledger."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from headgate_server.cli.exits import FAILED, OK, USAGE, Failed

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from headgate_server.config import Ledger

Config = Annotated[Path | None, Parameter(help="Configuration file; by default the one that HEADGATE_CONFIG names.")]

ledger = App(name="ledger", help="Make and migrate the tables of the ledger.")


@ledger.command
def migrate(*, config: Config = None) -> int:
    """Make the ledger's tables or bring them to what this version needs; in PostgreSQL the coming months, too."""
    settings = _settings(config)
    if settings.ships:
        _run(_prepare(settings))
    else:
        from headgate_server.ledger.migrations import MIGRATIONS

        _run(_change(settings, MIGRATIONS.upgrade))
    print("the tables are current")
    return OK


@ledger.command
def downgrade(revision: str, *, config: Config = None) -> int:
    """Take the tables back to what an earlier version needs, with no server running.

    Parameters
    ----------
    revision
        Which one, such as 0001; `base` drops every table with all that it holds.
    """
    from headgate_server.ledger.migrations import MIGRATIONS

    settings = _settings(config)
    _run(_change(settings, lambda connection: MIGRATIONS.downgrade(connection, revision)))
    print(f"the tables are those of {revision}")
    return OK


def _settings(config: Path | None) -> Ledger:
    from headgate_server.config import ConfigError, load

    try:
        settings = load(config, os.environ).ledger
    except ConfigError as error:
        raise Failed(USAGE, str(error)) from error
    if settings is None:
        raise Failed(USAGE, "error: the configuration has no ledger")
    return settings


async def _prepare(settings: Ledger) -> None:
    from headgate_server.ledger.postgresql import PostgresqlLedger

    database = PostgresqlLedger(settings)
    try:
        await database.prepare()
    finally:
        await database.close()


async def _change(settings: Ledger, step: Callable[[Connection], None]) -> None:
    from headgate_server.sql.engine import engine

    connections = engine(settings.url.get_secret_value())
    try:
        async with connections.begin() as connection:
            await connection.run_sync(step)
    finally:
        await connections.dispose()


def _run(work: Coroutine[None, None, None]) -> None:
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from headgate_server.printing import printable

    try:
        asyncio.run(work)
    except (CommandError, OSError, SQLAlchemyError) as error:
        # Not the library's own text, which repeats the statement and its values.
        raise Failed(FAILED, printable(f"error: the ledger: {getattr(error, 'orig', error)}")) from error
