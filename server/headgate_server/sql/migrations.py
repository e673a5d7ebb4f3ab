"""How tables come to be and go, step by step, by alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text


class Migrations:
    """The steps in `folder`, of which `version_table` remembers those that were taken.

    `lock` names PostgreSQL's advisory lock under which one of several servers that start together migrates.
    """

    def __init__(self, folder: Path, version_table: str, lock: int) -> None:
        self._config = Config()
        self._config.set_main_option("script_location", str(Path(__file__).parent))
        self._config.set_main_option("path_separator", "newline")
        self._config.set_main_option("version_locations", str(folder))
        self._version_table = version_table
        self._lock = lock

    def upgrade(self, connection: Connection) -> None:
        """Brings the tables to what this version needs, in the connection's transaction; nothing if they are there.

        Those of a later version are left as they are: migrations add, so that a server can be rolled back.
        """
        if not self.is_current(connection):
            command.upgrade(self._prepared(connection), "head")

    def is_current(self, connection: Connection) -> bool:
        """The tables are what this version needs, or those of a later one."""
        steps = ScriptDirectory.from_config(self._config)
        earlier = {None, *(step.revision for step in steps.walk_revisions())} - {steps.get_current_head()}
        return self._version(connection) not in earlier

    def downgrade(self, connection: Connection, revision: str = "base") -> None:
        """Takes steps back, to a revision or to no tables at all, in the connection's transaction."""
        command.downgrade(self._prepared(connection), revision)

    def _version(self, connection: Connection) -> str | None:
        return MigrationContext.configure(
            connection, opts={"version_table": self._version_table}
        ).get_current_revision()

    def _prepared(self, connection: Connection) -> Config:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": self._lock})
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        self._config.attributes.update(connection=connection, version_table=self._version_table)
        return self._config
