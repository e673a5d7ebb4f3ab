"""Run by alembic: migrates within the transaction that upgrade() is given."""

from __future__ import annotations

from alembic import context

from headgate_server.identity.migrations import VERSION_TABLE
from headgate_server.identity.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
