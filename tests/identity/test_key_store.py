"""API keys in a database: shared by servers, current within seconds, and in memory when the database is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from headgate_server.config import Config
from headgate_server.identity.database import SqlKeyDatabase
from headgate_server.identity.events import SecurityEvent
from headgate_server.identity.key_store import PAGE, KeyStore
from headgate_server.identity.keys import ApiKey, digest, new_key
from headgate_server.identity.records import NewKey, NoSuchKey
from headgate_server.identity.tables import keys as key_table
from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, ask, eventually, failing, failure
from tests.identity.callers import MOCK, PEPPER, bearer, changed, who
from tests.identity.databases import DATABASES, Line, postgresql

KEY_PEPPER = PEPPER.encode()
EFFECTIVE_SECONDS = 5.0
PUT_BACK = ("headgate_keys", "headgate_key_revision")
COLUMNS = key_table.columns.keys()


@pytest.fixture(scope="module")
def postgresql_url() -> Iterator[str]:
    """A PostgreSQL for this module."""
    with postgresql() as url:
        yield url


@pytest.fixture(params=DATABASES)
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/keys.db"
        return
    server: str = request.getfixturevalue("postgresql_url")
    await execute(server, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    yield server


@pytest.fixture
async def database(url: str) -> AsyncIterator[SqlKeyDatabase]:
    """The database with its tables."""
    made = SqlKeyDatabase(url, migrates=True)
    await made.prepare()
    yield made
    await made.close()


async def execute(url: str, *statements: str) -> list[Any]:
    """Runs statements as an operator would at the database's own prompt; the rows of the last."""
    driver = url.replace("sqlite://", "sqlite+aiosqlite://").replace("postgresql://", "postgresql+psycopg://")
    engine = create_async_engine(driver)
    try:
        async with engine.begin() as connection:
            for statement in statements:
                result = await connection.execute(text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        await engine.dispose()


async def create(database: SqlKeyDatabase, tenant: str = "acme", **fields: Any) -> ApiKey:
    return await database.create(NewKey(tenant, **fields), KEY_PEPPER, time.time(), "test")


def stored(url: str, **settings: Any) -> dict[str, Any]:
    """The section `auth` of a server with this store."""
    return {"anonymous": False, "pepper": PEPPER, "store": {"url": url}, **settings}


async def is_let_in(headgate: Headgate, key: ApiKey) -> bool:
    """Whether a call with this key is answered; it is INVALID_CREDENTIALS otherwise."""
    try:
        await who(headgate, bearer(key.text))
    except grpc.aio.AioRpcError as error:
        refused = failure(error)
    else:
        return True
    assert refused.reason == "INVALID_CREDENTIALS"
    return False


async def becomes(headgate: Headgate, key: ApiKey, *, let_in: bool) -> float:
    """Seconds until the server lets the key in, or no longer does."""
    began = time.monotonic()
    async with asyncio.timeout(EFFECTIVE_SECONDS):
        while await is_let_in(headgate, key) is not let_in:
            await asyncio.sleep(0.02)
    return time.monotonic() - began


async def test_keys_take_effect_on_every_server_within_seconds(
    serve: Serve, url: str, database: SqlKeyDatabase
) -> None:
    """Made, rotated and revoked: two servers that share the store follow, and neither is told."""
    auth = stored(url, failures={"limit": 0})
    async with serve(providers=MOCK, auth=auth) as one, serve(providers=MOCK, auth=auth) as two:
        servers = (one, two)
        key = await create(database)
        for server in servers:
            assert await becomes(server, key, let_in=True) < EFFECTIVE_SECONDS
        rotated = await database.rotate(key.id, KEY_PEPPER, time.time(), 60, "test")
        for server in servers:
            assert await becomes(server, rotated, let_in=True) < EFFECTIVE_SECONDS
            assert await is_let_in(server, key), "the grace period has begun"
        await database.revoke(key.id, time.time(), "test")
        for server in servers:
            assert await becomes(server, rotated, let_in=False) < EFFECTIVE_SECONDS
            assert not await is_let_in(server, key)


async def test_the_secret_before_a_rotation_ends_with_its_grace(
    serve: Serve, url: str, database: SqlKeyDatabase
) -> None:
    """By the clock, and at once without one; a second rotation ends the first secret."""
    key = await create(database)
    again = await database.rotate(key.id, KEY_PEPPER, time.time(), 0, "test")
    last = await database.rotate(key.id, KEY_PEPPER, time.time(), 60, "test")
    async with serve(providers=MOCK, auth=stored(url)) as headgate:
        assert [await is_let_in(headgate, one) for one in (key, again, last)] == [False, True, True]


async def test_what_a_key_entitles_to_comes_from_the_store(
    serve: Serve, url: str, database: SqlKeyDatabase, logged: LogLines
) -> None:
    """Tenant, models and expiry."""
    key = await create(database, "tenant-7", allowed_models=("demo/l*",), expires_at=time.time() + 3600)
    expired = await create(database, expires_at=time.time() - 1)
    async with serve(providers=MOCK, auth=stored(url)) as headgate:
        await who(headgate, bearer(key.text), "demo/lorem")
        assert (await failing(who(headgate, bearer(key.text)))).reason == "MODEL_NOT_ALLOWED"
        assert not await is_let_in(headgate, expired)
    assert (logged.calls[0]["tenant"], logged.calls[0]["key_id"]) == ("tenant-7", key.id)


async def test_a_keys_own_limits_hold_for_it_alone(serve: Serve, url: str, database: SqlKeyDatabase) -> None:
    """Beside the configured ones; what cannot be read of them lets nobody in, and holds up no other key."""
    one_call = {"unit": "requests", "limit": 1, "window": 3600}
    limited, other = await create(database, limits=[one_call]), await create(database)
    strange = await create(database, limits=[{"unit": "of a later version"}])
    async with serve(providers=MOCK, auth=stored(url)) as headgate:
        assert await is_let_in(headgate, limited)
        refused = await failing(who(headgate, bearer(limited.text)))
        assert (refused.reason, "QuotaFailure" in refused.details) == ("RATE_LIMITED", True)
        assert await is_let_in(headgate, other)
        assert not await is_let_in(headgate, strange)


async def test_a_row_that_vanished_is_no_key_any_more(serve: Serve, url: str, database: SqlKeyDatabase) -> None:
    """An operator's DELETE, or a backup that was put back, counts like a revocation."""
    key = await create(database)
    other = await create(database)
    async with serve(providers=MOCK, auth=stored(url, failures={"limit": 0})) as headgate:
        assert await is_let_in(headgate, key)
        await execute(url, f"DELETE FROM headgate_keys WHERE id = '{key.id}'")
        await becomes(headgate, key, let_in=False)
        assert await is_let_in(headgate, other)


async def test_changes_of_keys_are_told_by_each_server(
    serve: Serve, url: str, database: SqlKeyDatabase, logged: LogLines
) -> None:
    """Once each, without a secret; keys that were there before the server are no news."""
    first = await create(database)
    async with serve(providers=MOCK, auth=stored(url)):
        key = await create(database)
        await eventually(lambda: told(logged, "key_created"), EFFECTIVE_SECONDS)
        rotated = await database.rotate(key.id, KEY_PEPPER, time.time(), 60, "test")
        await eventually(lambda: told(logged, "key_rotated"), EFFECTIVE_SECONDS)
        await database.revoke(key.id, time.time(), "test")
        await eventually(lambda: told(logged, "key_revoked"), EFFECTIVE_SECONDS)
        await execute(url, "DELETE FROM headgate_keys")
        await eventually(lambda: len(told(logged, "key_revoked")) == 2, EFFECTIVE_SECONDS)
    lines = [line for line in logged.lines if line["event"].startswith("key_") and line["component"] == "security"]
    assert [(line["event"], line["tenant"], line["key_id"], line.get("reason")) for line in lines] == [
        ("key_created", "acme", key.id, None),
        ("key_rotated", "acme", key.id, None),
        ("key_revoked", "acme", key.id, None),
        ("key_revoked", "acme", first.id, "vanished"),
    ]
    assert not any(secret in str(lines) for secret in (key.text, rotated.text))


async def test_servers_that_start_together_make_the_tables_once(url: str) -> None:
    """Each may be the first."""
    databases = [SqlKeyDatabase(url, migrates=True) for _ in range(4)]
    await asyncio.gather(*(database.prepare() for database in databases))
    assert await databases[0].list() == []
    for database in databases:
        await database.close()


async def test_a_server_that_is_rolled_back_leaves_later_tables_as_they_are(url: str, database: SqlKeyDatabase) -> None:
    """Migrations add, so that the version before finds what it knows; keys go on."""
    key = await create(database)
    await execute(url, "UPDATE headgate_keys_version SET version_num = '9999'")
    older = SqlKeyDatabase(url, migrates=True)
    await older.prepare()
    assert key.id in await older.names("")
    await older.close()


async def test_what_is_kept_of_a_key_is_not_the_key(url: str, database: SqlKeyDatabase) -> None:
    """Neither it nor its secret stands in any row."""
    key = await create(database)
    rotated = await database.rotate(key.id, KEY_PEPPER, time.time(), 60, "test")
    for table in ("headgate_keys", "headgate_security_events", "headgate_key_revision"):
        rows = str(await execute(url, f"SELECT * FROM {table}"))
        for secret in (key.text, rotated.text, key.text[16:], rotated.text[16:], PEPPER):
            assert secret not in rows


async def test_a_key_ends_once(database: SqlKeyDatabase) -> None:
    """A revoked key is neither revoked nor rotated again, and an unknown one never was."""
    key = await create(database)
    await database.revoke(key.id, time.time(), "test")
    for name in (key.id, new_key().id):
        with pytest.raises(NoSuchKey):
            await database.revoke(name, time.time(), "test")
        with pytest.raises(NoSuchKey):
            await database.rotate(name, KEY_PEPPER, time.time(), 60, "test")


async def test_security_events_are_appended_and_never_changed(serve: Serve, url: str, database: SqlKeyDatabase) -> None:
    """Failed logins and changes of keys are rows; the database itself refuses to alter or remove one."""
    key = await create(database)
    await database.rotate(key.id, KEY_PEPPER, time.time(), 60, "test")
    async with serve(providers=MOCK, auth=stored(url)) as headgate:
        for _ in range(5):
            assert not await is_let_in(headgate, ApiKey(key.id, changed(key)))
    await database.revoke(key.id, time.time(), "test")
    columns = "kind, reason, tenant, key_id, address, count"
    rows = await execute(url, f"SELECT {columns} FROM headgate_security_events ORDER BY id")
    assert rows == [
        ("key_created", "", "acme", key.id, "", 1),
        ("key_rotated", "", "acme", key.id, "", 1),
        ("login_failed", "wrong_secret", "acme", key.id, "127.0.0.1", 1),
        ("login_failed", "wrong_secret", "acme", key.id, "127.0.0.1", 4),
        ("key_revoked", "", "acme", key.id, "", 1),
    ]
    for change in ("UPDATE headgate_security_events SET reason = 'none'", "DELETE FROM headgate_security_events"):
        with pytest.raises(DBAPIError, match="append-only"):
            await execute(url, change)


async def test_a_row_holds_whatever_was_presented(url: str, database: SqlKeyDatabase) -> None:
    """Controls, NUL and texts longer than a column are made to fit: one such row would hold up all others."""
    odd = SecurityEvent("login_failed", reason="r" * 99, tenant="a\x00\x1b[2J", key_id="k" * 9999, address="\x9b")
    await database.append([odd])
    (row,) = await execute(url, "SELECT reason, tenant, key_id, address FROM headgate_security_events")
    assert row == ("r" * 64, "a\\x00\\x1b[2J", "k" * 512, "\\x9b")


@pytest.mark.parametrize("how", ["cut", "freeze"])
async def test_known_keys_go_on_while_postgresql_is_gone(
    serve: Serve, postgresql_url: str, logged: LogLines, how: str
) -> None:
    """Calls are answered from memory; the log says once that the store is gone, and once that it is back."""
    await execute(postgresql_url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    database = SqlKeyDatabase(postgresql_url, migrates=True)
    await database.prepare()
    key = await create(database)
    socket = Path(postgresql_url.partition("host=")[2]) / ".s.PGSQL.5432"
    async with Line(socket) as line:
        url = f"postgresql://postgres@127.0.0.1:{line.port}/postgres"
        async with serve(providers=MOCK, auth=stored(url, failures={"limit": 0})) as headgate:
            assert await is_let_in(headgate, key)
            getattr(line, how)()
            await eventually(lambda: told(logged, "key_store_unreachable"), 25)
            assert await is_let_in(headgate, key)
            assert not await is_let_in(headgate, new_key())
            late = await create(database)
            await line.mend()
            async with asyncio.timeout(20):
                while not await is_let_in(headgate, late):
                    await asyncio.sleep(0.05)
            assert len(told(logged, "key_store_unreachable")) == 1
            assert len(told(logged, "key_store_reachable_again")) == 1
    await database.close()


def told(logged: LogLines, event: str) -> list[dict[str, Any]]:
    return [line for line in logged.lines if line["event"] == event]


async def test_a_server_starts_without_its_store_and_takes_keys_when_it_comes(serve: Serve, tmp_path: Path) -> None:
    """Until then a key is neither good nor bad: the caller may try again."""
    folder = tmp_path / "later"
    url = f"sqlite:///{folder}/keys.db"
    async with serve(providers=MOCK, auth=stored(url)) as headgate:
        unknown = await failing(who(headgate, bearer(new_key().text)))
        assert (unknown.reason, "RetryInfo" in unknown.details) == ("GATEWAY_OVERLOADED", True)
        folder.mkdir()
        database = SqlKeyDatabase(url, migrates=True)
        await database.prepare()
        key = await create(database)
        async with asyncio.timeout(EFFECTIVE_SECONDS):
            while not headgate.application.runtime.identity.authenticator.keys[0].get(key.id):
                await asyncio.sleep(0.02)
        assert await is_let_in(headgate, key)
        await database.close()


async def test_a_store_that_is_put_back_to_an_older_state_is_read_anew(url: str, database: SqlKeyDatabase) -> None:
    """Its revision is then lower than the one last seen."""
    key = await create(database)
    await execute(url, *(f"CREATE TABLE {name}_backup AS SELECT * FROM {name}" for name in PUT_BACK))
    await database.rotate(key.id, KEY_PEPPER, time.time(), 60, "test")
    store = KeyStore(database, 0.02)
    store.start()
    await store.tried()
    assert secret_of(store, key) != digest(KEY_PEPPER, key.text)
    for name in PUT_BACK:
        await execute(url, f"DELETE FROM {name}", f"INSERT INTO {name} SELECT * FROM {name}_backup")
    await eventually(lambda: secret_of(store, key) == digest(KEY_PEPPER, key.text))
    await store.close()


def secret_of(store: KeyStore, key: ApiKey) -> bytes:
    record = store.get(key.id)
    return record.digest if record else b""


async def test_a_store_of_many_keys_is_read_while_calls_go_on(url: str, database: SqlKeyDatabase) -> None:
    """A page at a time; so is what changed of them, what vanished, and what somebody put in by hand."""
    made = await create(database)
    copied = ", ".join(column for column in COLUMNS if column != "id")
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)"
    name = "'k' || substr(CAST(100000 + i AS text), 2)"
    await execute(
        url, f"INSERT INTO headgate_keys (id, {copied}) {numbers} SELECT {name}, {copied} FROM n, headgate_keys"
    )
    store = KeyStore(database, 0.02)
    store.start()
    await store.tried()
    assert all(store.get(name) for name in (made.id, "k00001", "k02500", "k04000"))
    assert [len(page) for page in (await database.changed(-1, ""), await database.names(""))] == [PAGE, PAGE]
    await execute(url, "DELETE FROM headgate_keys WHERE id = 'k02500'")
    await eventually(lambda: store.get("k02500") is None)
    assert all(store.get(name) for name in (made.id, "k00001", "k04000"))
    await execute(
        url,
        "DELETE FROM headgate_keys WHERE id = 'k04000'",
        f"INSERT INTO headgate_keys (id, {copied}) SELECT 'by-hand', {copied} FROM headgate_keys WHERE id = 'k00001'",
        f"INSERT INTO headgate_keys (id, {copied}) SELECT 'too', {copied} FROM headgate_keys WHERE id = 'k00001'",
    )
    await eventually(lambda: store.get("by-hand") is not None)
    assert store.get("k04000") is None
    await store.close()


async def test_a_reload_keeps_the_store_that_did_not_change(serve: Serve, tmp_path: Path) -> None:
    """And takes another one, whose keys are good from the next call on."""
    keys = {}
    for name in ("one", "two"):
        database = SqlKeyDatabase(f"sqlite:///{tmp_path}/{name}.db", migrates=True)
        await database.prepare()
        keys[name] = await create(database)
        await database.close()

    def configured(store: str, **server: Any) -> Config:
        auth = stored(f"sqlite:///{tmp_path}/{store}.db", failures={"limit": 0})
        return Config.model_validate({"providers": MOCK, "auth": auth, "server": {"listen": "127.0.0.1:0", **server}})

    async with serve(providers=MOCK, auth=stored(f"sqlite:///{tmp_path}/one.db", failures={"limit": 0})) as headgate:
        store = headgate.application.runtime.identity.store
        assert isinstance(store, KeyStore)
        await headgate.application.reload(configured("one", drain_delay=1))
        assert headgate.application.runtime.identity.store is store
        assert await is_let_in(headgate, keys["one"])
        await headgate.application.reload(configured("two"))
        assert [await is_let_in(headgate, keys[name]) for name in ("one", "two")] == [False, True]
    rows = await execute(f"sqlite:///{tmp_path}/two.db", "SELECT kind, detail FROM headgate_security_events")
    assert ("configuration_changed", '{"roots": "server, auth"}') in rows


async def test_the_last_state_is_read_by_a_stream_in_flight_too(serve: Serve, tmp_path: Path) -> None:
    """A revoked key starts nothing new; what it began goes on to its end."""
    database = SqlKeyDatabase(f"sqlite:///{tmp_path}/keys.db", migrates=True)
    await database.prepare()
    key = await create(database)
    slow = {"demo": {"adapter": "mock", "mock": {"tokens_per_second": 20, "words": 40}}}
    auth = stored(f"sqlite:///{tmp_path}/keys.db", failures={"limit": 0})
    async with serve(providers=slow, auth=auth) as headgate:
        stream = aiter(headgate.stub.StreamGenerate(ask("demo/lorem"), metadata=bearer(key.text)))
        await anext(stream)
        await database.revoke(key.id, time.time(), "test")
        await becomes(headgate, key, let_in=False)
        rest = [event async for event in stream]
        assert not rest[-1].generation_end.partial
    await database.close()
