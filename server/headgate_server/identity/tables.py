"""The tables of the key store. The migrations make them; a change here needs one."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Integer, MetaData, String, Table

from headgate_server.sql.types import Moment

metadata = MetaData()

# One row: the number of changes ever made. Whoever changes a key counts it up in the same transaction, and so holds its
# lock until the commit: revisions become visible in order, and none can be missed by who reads them.
revisions = Table(
    "headgate_key_revision",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
)

keys = Table(
    "headgate_keys",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("name", String(256), nullable=False),
    Column("tenant", String(256), nullable=False, index=True),
    Column("digest", String(64), nullable=False),
    Column("previous_digest", String(64), nullable=False),
    Column("previous_expires_at", Moment),
    Column("roles", JSON, nullable=False),
    Column("allowed_models", JSON, nullable=False),
    Column("allowed_providers", JSON, nullable=False),
    Column("limits", JSON, nullable=False),
    Column("budgets", JSON, nullable=False, server_default="[]"),
    Column("created_at", Moment, nullable=False),
    Column("rotated_at", Moment),
    Column("expires_at", Moment),
    Column("revoked_at", Moment),
    Column("revision", BigInteger, nullable=False, index=True),
)

security_events = Table(
    "headgate_security_events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("time", Moment, nullable=False, index=True),
    Column("kind", String(64), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("tenant", String(256), nullable=False),
    Column("key_id", String(512), nullable=False),
    Column("address", String(64), nullable=False),
    Column("count", Integer, nullable=False),
    Column("detail", JSON, nullable=False),
)
