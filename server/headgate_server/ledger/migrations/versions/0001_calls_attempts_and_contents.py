"""Calls, their upstream attempts, and what was said. In PostgreSQL all three are partitioned by month."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = ("headgate_calls", "headgate_attempts", "headgate_contents")
TOKENS = (
    *("input", "output", "total", "cache_read", "cache_write", "cache_write_1h", "audio_input", "image_input"),
    *("reasoning", "audio_output", "accepted_prediction", "rejected_prediction", "tool_input"),
)
COSTS = ("cost_nanos", "input_nanos", "cache_read_nanos", "cache_write_nanos", "output_nanos")


def upgrade() -> None:
    """Makes the tables."""
    _create(
        "headgate_calls",
        ("id",),
        sa.Column("id", sa.Uuid, nullable=False),
        _time(),
        *_text("method", "request_id", "tenant", "key_id", "end_user_id"),
        _labels(),
        *_text("model", "routed_to", "arm", "provider", "provider_model"),
        sa.Column("attempts", sa.Integer, nullable=False),
        *_text("outcome", "reason"),
        *_measured(),
        sa.Column("cost_nanos", sa.BigInteger),
        *_text("currency"),
    )
    _create(
        "headgate_attempts",
        ("call_id", "number"),
        sa.Column("call_id", sa.Uuid, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        _time(),
        *_text("tenant", "key_id"),
        _labels(),
        *_text("model", "provider", "provider_model", "cause", "outcome", "reason"),
        sa.Column("http_status", sa.SmallInteger),
        *_text("provider_request_id"),
        sa.Column("caller_key", sa.Boolean, nullable=False),
        *_measured(),
        *(sa.Column(name, sa.BigInteger) for name in COSTS),
        *_text("currency", "cost_source", "price_version"),
    )
    _create(
        "headgate_contents",
        ("call_id",),
        sa.Column("call_id", sa.Uuid, nullable=False),
        _time(),
        *_text("prompt", "answer"),
    )
    for name, key in (("headgate_calls", "id"), ("headgate_attempts", "call_id")):
        is_open = sa.text("outcome = 'OPEN'")
        op.create_index(f"ix_{name}_open", name, [key], sqlite_where=is_open, postgresql_where=is_open)


def downgrade() -> None:
    """Drops the tables, with all that they hold."""
    for name in TABLES:
        op.drop_table(name)


def _create(name: str, key: tuple[str, ...], *columns: sa.Column[Any]) -> None:
    """PostgreSQL wants the time by which it partitions in every unique key."""
    partitioned = op.get_bind().dialect.name == "postgresql"
    primary_key = sa.PrimaryKeyConstraint(*key, *(("time",) if partitioned else ()))
    op.create_table(name, *columns, primary_key, postgresql_partition_by="RANGE (time)")
    op.create_index(f"ix_{name}_time", name, ["time"])


def _time() -> sa.Column[Any]:
    return sa.Column("time", sa.DateTime(timezone=True), nullable=False)


def _labels() -> sa.Column[Any]:
    return sa.Column("labels", sa.JSON().with_variant(sa.dialects.postgresql.JSONB(), "postgresql"), nullable=False)


def _text(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _measured() -> list[sa.Column[Any]]:
    names = ("latency_micros", "first_token_micros", *(f"{name}_tokens" for name in TOKENS))
    return [*(sa.Column(name, sa.BigInteger) for name in names), sa.Column("estimated", sa.Boolean, nullable=False)]
