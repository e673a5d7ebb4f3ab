"""Whether Redis and the database can be reached, and are what this version needs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from headgate_server.config import Config
from headgate_server.doctor.finding import Finding, State, skew

CONNECT_SECONDS = 5
OLDEST_REDIS = 7
SQLITE = "sqlite:///"


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


async def key_store(config: Config) -> Sequence[Finding]:
    """The database of keys, and whether its tables are migrated. Nothing is made or changed."""
    store = config.auth.store
    if store is None:
        return []
    from sqlalchemy.exc import SQLAlchemyError

    from headgate_server.identity.identity import database

    url = store.url.get_secret_value()
    wanted = "run `headgate keys migrate`" if not store.migrate else ""
    if _is_missing_file(url):
        return [_tables("there is no database yet", wanted)]
    keys = database(store)
    try:
        current = await keys.is_current()
    except (SQLAlchemyError, OSError) as error:
        detail = str(getattr(error, "orig", error)).strip().partition("\n")[0]
        advice = "check auth.store.url, password and network: keys that are not known cannot be let in"
        return [Finding("database", "auth.store", State.FAILED, detail, advice)]
    finally:
        await keys.close()
    if current:
        return [Finding("database", "auth.store", State.OK, "answers, and its tables are current")]
    return [_tables("its tables are not those of this version", wanted)]


def _is_missing_file(url: str) -> bool:
    """To look into it would make it."""
    return url.startswith(SQLITE) and not Path(url.removeprefix(SQLITE)).exists()


def _tables(detail: str, advice: str) -> Finding:
    """What is missing is made at the start, unless an operator is to do it."""
    if advice:
        return Finding("database", "auth.store", State.FAILED, detail, advice)
    return Finding("database", "auth.store", State.OK, f"{detail}; the start makes them")
