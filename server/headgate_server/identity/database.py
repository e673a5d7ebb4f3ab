"""The key store in SQLite or PostgreSQL. Needs the extra [sql] or [postgres]; imported where a store is configured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import Row, String, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from headgate_server.config import Budget, Limit
from headgate_server.identity.events import SecurityEvent
from headgate_server.identity.key_store import PAGE
from headgate_server.identity.keys import ApiKey, digest, new_key
from headgate_server.identity.migrations import MIGRATIONS
from headgate_server.identity.records import REVOKED, KeyRecord, NewKey, NoSuchKey
from headgate_server.identity.tables import keys, revisions, security_events
from headgate_server.principal import Principal
from headgate_server.printing import printable
from headgate_server.sql.engine import engine

MAX_LIMITS = 1_000

log = structlog.get_logger(component="identity")


class SqlKeyDatabase:
    """Keys and security events in two tables, with a counter of changes by which servers notice them."""

    def __init__(self, url: str, *, migrates: bool) -> None:
        self._engine = engine(url)
        self._migrates = migrates

    async def prepare(self) -> None:
        """Makes or migrates the tables, unless an operator does it by command."""
        if self._migrates:
            await self.migrate()

    async def migrate(self) -> None:
        """Makes or migrates the tables."""
        async with self._engine.begin() as connection:
            await connection.run_sync(MIGRATIONS.upgrade)

    async def close(self) -> None:
        """Closes every connection."""
        await self._engine.dispose()

    async def state(self) -> tuple[int, int]:
        """The number of changes ever made, and the number of keys."""
        async with self._engine.connect() as connection:
            revision, number = (await connection.execute(_STATE)).one()
            return revision, number

    async def changed(self, revision: int, after: str) -> Sequence[KeyRecord]:
        """The first PAGE keys that changed since a revision, of those whose name is behind `after`, by name."""
        statement = select(keys).where(keys.c.revision > revision, keys.c.id > after).order_by(keys.c.id).limit(PAGE)
        async with self._engine.connect() as connection:
            return [_record(row) for row in await connection.execute(statement)]

    async def names(self, after: str) -> Sequence[str]:
        """The first PAGE names of keys behind `after`, in order."""
        statement = select(keys.c.id).where(keys.c.id > after).order_by(keys.c.id).limit(PAGE)
        async with self._engine.connect() as connection:
            return (await connection.scalars(statement)).all()

    async def list(self) -> Sequence[Mapping[str, Any]]:
        """Every key, oldest first, as a mapping of columns without the digests."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(keys).order_by(keys.c.created_at, keys.c.id))
            return [_shown(row) for row in rows]

    async def create(self, key: NewKey, pepper: bytes, now: float, actor: str) -> ApiKey:
        """A new key; only its digest is kept."""
        made = new_key()
        values = {**asdict(key), "id": made.id, "digest": digest(pepper, made.text).hex(), "created_at": now}
        async with self._engine.begin() as connection:
            values |= {"previous_digest": "", "revision": await _next_revision(connection)}
            await connection.execute(insert(keys).values(values))
            await _append(connection, [_change("key_created", made.id, key.tenant, now, actor)])
        return made

    async def rotate(self, key_id: str, pepper: bytes, now: float, grace: float, actor: str) -> ApiKey:
        """A new secret for a key; the one before is good for `grace` seconds more.

        Raises:
            NoSuchKey: it is not there, or revoked.
        """
        made = new_key(key_id)
        async with self._engine.begin() as connection:
            revision = await _next_revision(connection)
            tenant = await self._change(
                connection,
                key_id,
                revision=revision,
                previous_digest=keys.c.digest,
                previous_expires_at=now + grace,
                digest=digest(pepper, made.text).hex(),
                rotated_at=now,
            )
            await _append(connection, [_change("key_rotated", key_id, tenant, now, actor)])
        return made

    async def revoke(self, key_id: str, now: float, actor: str) -> None:
        """Ends a key for good.

        Raises:
            NoSuchKey: it is not there, or already revoked.
        """
        async with self._engine.begin() as connection:
            revision = await _next_revision(connection)
            tenant = await self._change(connection, key_id, revision=revision, revoked_at=now)
            await _append(connection, [_change("key_revoked", key_id, tenant, now, actor)])

    async def append(self, events: Sequence[SecurityEvent]) -> None:
        """Adds security events."""
        async with self._engine.begin() as connection:
            await _append(connection, events)

    async def _change(self, connection: AsyncConnection, key_id: str, **values: Any) -> str:
        """Changes a key that is not revoked; its tenant."""
        statement = update(keys).where(keys.c.id == key_id, keys.c.revoked_at.is_(None)).values(values)
        tenant: str | None = (await connection.execute(statement.returning(keys.c.tenant))).scalar()
        if tenant is None:
            raise NoSuchKey(key_id)
        return tenant


_STATE = select(revisions.c.value, select(func.count()).select_from(keys).scalar_subquery())


async def _next_revision(connection: AsyncConnection) -> int:
    statement = update(revisions).values(value=revisions.c.value + 1).returning(revisions.c.value)
    return int((await connection.execute(statement)).scalar_one())


async def _append(connection: AsyncConnection, events: Sequence[SecurityEvent]) -> None:
    await connection.execute(insert(security_events), [_row(event) for event in events])


def _row(event: SecurityEvent) -> dict[str, Any]:
    """What was presented may be anything, and one row that does not fit would hold up all others."""
    row: dict[str, Any] = {**asdict(event), "detail": dict(event.detail)}
    for column in security_events.columns:
        if isinstance(column.type, String):
            row[column.name] = printable(row[column.name])[: column.type.length]
    return row


def _change(kind: str, key_id: str, tenant: str, now: float, actor: str) -> SecurityEvent:
    return SecurityEvent(kind, tenant=tenant, key_id=key_id, time=now, detail={"actor": actor})


def _record(row: Row[Any]) -> KeyRecord:
    """The key of a row. One that cannot be read, as of a later version, lets nobody in, and holds up no others."""
    ended = REVOKED if row.revoked_at is not None else ""
    limits: tuple[Limit, ...] = ()
    budgets: tuple[Budget, ...] = ()
    try:
        limits = _limits(json.dumps(row.limits)) if row.limits else ()
        budgets = _budgets(json.dumps(row.budgets)) if row.budgets else ()
    except ValidationError:
        log.error("key_limits_unreadable", key_id=row.id, tenant=row.tenant)
        ended = "unreadable"
    return KeyRecord(
        principal=Principal(
            tenant=row.tenant,
            key_id=row.id,
            roles=frozenset(row.roles),
            allowed_models=tuple(row.allowed_models),
            allowed_providers=tuple(row.allowed_providers),
            limits=limits,
            budgets=budgets,
        ),
        digest=bytes.fromhex(row.digest),
        previous_digest=bytes.fromhex(row.previous_digest),
        previous_expires_at=row.previous_expires_at,
        expires_at=row.expires_at,
        ended=ended,
    )


@lru_cache(MAX_LIMITS)
def _limits(text: str) -> tuple[Limit, ...]:
    """A key's own limits. Very many keys have the same, and to check them takes longer than all else of a key."""
    return tuple(Limit.model_validate(limit) for limit in json.loads(text))


@lru_cache(MAX_LIMITS)
def _budgets(text: str) -> tuple[Budget, ...]:
    return tuple(Budget.model_validate(budget) for budget in json.loads(text))


def _shown(row: Row[Any]) -> Mapping[str, Any]:
    return {name: value for name, value in row._mapping.items() if not name.endswith("digest") and name != "revision"}
