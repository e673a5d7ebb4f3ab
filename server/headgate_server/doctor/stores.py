"""Whether Redis and the databases can be reached, and are what this version needs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headgate_server.config import Config
from headgate_server.config.values import SQLITE
from headgate_server.doctor.finding import Finding, State, skew

if TYPE_CHECKING:
    from headgate_server.sql.migrations import Migrations

CONNECT_SECONDS = 5
OLDEST_REDIS = 7


async def redis(config: Config) -> Sequence[Finding]:
    """The store of limits, where several servers share one."""
    if config.limits.store.url is None:
        return []
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    store = config.limits.store
    url = store.url.get_secret_value() if store.url else ""
    client = Redis.from_url(url, socket_timeout=CONNECT_SECONDS, socket_connect_timeout=CONNECT_SECONDS)
    try:
        began = time.perf_counter()
        seconds, micros = await client.time()
        taken = time.perf_counter() - began
        version = str((await client.info("server"))["redis_version"])
    except (RedisError, OSError) as error:
        done = "counts by itself" if store.on_failure == "open" else "refuses calls"
        advice = f"check limits.store.url, password and network: without Redis each server {done}"
        return [Finding("redis", "limits.store", State.FAILED, str(error) or "no answer in time", advice)]
    finally:
        await client.aclose()
    return [_judged(version, taken, store.timeout), skew("redis", time.time() - seconds - micros / 1e6)]


def _judged(version: str, taken: float, budget: float) -> Finding:
    detail = f"version {version}, answers in {taken * 1000:.1f} ms"
    if int(version.partition(".")[0]) < OLDEST_REDIS:
        advice = f"run Redis {OLDEST_REDIS} or Valkey: the counting script needs it"
        return Finding("redis", "limits.store", State.FAILED, detail, advice)
    if taken > budget:
        advice = f"bring it nearer, or raise limits.store.timeout ({budget:g} s): calls would not wait so long for it"
        return Finding("redis", "limits.store", State.WARNING, detail, advice)
    return Finding("redis", "limits.store", State.OK, detail)


async def databases(config: Config) -> Sequence[Finding]:
    """Those of keys and of the ledger, and whether their tables are migrated. Nothing is made or changed."""
    found = []
    if store := config.auth.store:
        from headgate_server.identity.migrations import MIGRATIONS as KEYS

        url = store.url.get_secret_value()
        found.append(await _database("auth.store", url, KEYS, "keys" if not store.migrate else ""))
    if ledger := config.ledger:
        from headgate_server.ledger.migrations import MIGRATIONS as LEDGER

        url = ledger.url.get_secret_value()
        found.append(await _database("ledger", url, LEDGER, "ledger" if ledger.ships and not ledger.migrate else ""))
    return found


async def _database(subject: str, url: str, migrations: Migrations, operator_migrates: str) -> Finding:
    """`operator_migrates` is the command group that does, where the start of a server does not."""
    from sqlalchemy.exc import SQLAlchemyError

    from headgate_server.sql.engine import engine

    if _is_missing_file(url):
        return _tables(subject, "there is no database yet", operator_migrates)
    database = engine(url)
    try:
        async with database.connect() as connection:
            current = await connection.run_sync(migrations.is_current)
    except (SQLAlchemyError, OSError) as error:
        detail = str(getattr(error, "orig", error)).strip().partition("\n")[0]
        return Finding("database", subject, State.FAILED, detail, f"check {subject}.url, password and network")
    finally:
        await database.dispose()
    if current:
        return Finding("database", subject, State.OK, "answers, and its tables are current")
    return _tables(subject, "its tables are not those of this version", operator_migrates)


def _is_missing_file(url: str) -> bool:
    """To look into it would make it."""
    return url.startswith(SQLITE) and not Path(url.removeprefix(SQLITE)).exists()


def _tables(subject: str, detail: str, operator_migrates: str) -> Finding:
    """What is missing is made at the start, unless an operator is to do it."""
    if operator_migrates:
        return Finding("database", subject, State.FAILED, detail, f"run `headgate {operator_migrates} migrate`")
    return Finding("database", subject, State.OK, f"{detail}; the start makes them")
