"""How the tables of the key store came to be, step by step, by alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

VERSION_TABLE = "headgate_keys_version"
LOCK = 0x6865_6164_6761_7465
"""Names PostgreSQL's advisory lock under which one of several servers that start together migrates."""


def upgrade(connection: Connection) -> None:
    """Brings the tables to what this version needs, in the connection's transaction; nothing if they are there.

    Those of a later version are left as they are: migrations add, so that a server can be rolled back.
    """
    if is_current(connection):
        return
    _lock(connection)
    command.upgrade(_config(connection), "head")


def is_current(connection: Connection) -> bool:
    """The tables are what this version needs, or those of a later one."""
    script = ScriptDirectory.from_config(_config(connection))
    earlier = {None, *(step.revision for step in script.walk_revisions())} - {script.get_current_head()}
    return _version(connection) not in earlier


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
