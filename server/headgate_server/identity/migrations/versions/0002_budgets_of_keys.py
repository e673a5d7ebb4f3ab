"""Keys have budgets of their own. Servers of an earlier version go on: they write none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column."""
    op.add_column("headgate_keys", sa.Column("budgets", sa.JSON, nullable=False, server_default=sa.text("'[]'")))


def downgrade() -> None:
    """Drops it, with all budgets of keys."""
    op.drop_column("headgate_keys", "budgets")
