"""PostgreSQL stops, freezes, is slow or full, and so is the local disk: calls go on, and their rows arrive once."""

from __future__ import annotations

import asyncio
import json
import resource
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from headgate import v1 as pb
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError

from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, ask
from tests.identity.databases import Line, Postgresql
from tests.ledger.statements import entered, execute
from tests.redis_server import SlowPath
from tests.tools import headgate_serve

MOCK = {"demo": {"adapter": "mock"}}
AT_ONCE = 16
BEFORE, MEANWHILE = 40, 200
ARRIVAL_SECONDS = 20.0
TINY_FILE = 4096
WAL_FILE = 2**24
"""So large a file of PostgreSQL's write-ahead log must be able to get."""


def shipping(url: str, folder: Path) -> dict[str, Any]:
    """A ledger in PostgreSQL, impatient."""
    return {"url": url, "spool": folder / "spool.db", "ship_interval": 0.05, "timeout": 0.5}


async def traffic(stub: pb.InferenceServiceAsyncStub, calls: int) -> None:
    """So many calls, which must all be answered."""
    numbers = iter(range(calls))

    async def caller() -> None:
        for _ in numbers:
            await stub.Generate(ask("demo/echo"), timeout=10)

    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))


async def state(stub: pb.InferenceServiceAsyncStub) -> tuple[pb.ServingState.ValueType, str]:
    """What the server says of itself, and what it says of its ledger."""
    call = stub.Health(pb.HealthRequest())
    said = await call
    trailer: dict[str, Any] = dict(await call.trailing_metadata())
    return said.state, trailer.get("x-ledger-state", "")


async def becomes(condition: Callable[[], Awaitable[bool]]) -> bool:
    """Whether it comes true in time."""
    async with asyncio.timeout(ARRIVAL_SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)
    return True


async def check_everything_arrives(headgate: Headgate, url: str, calls: int) -> None:
    """Asserts that PostgreSQL has each call once, with its attempt, and that the server says that all is well."""

    async def arrived() -> bool:
        with suppress(ProgrammingError):  # there are no tables yet
            return (await entered(url))[0] >= calls
        return False

    async def is_well() -> bool:
        return (await state(headgate.stub))[0] == pb.SERVING_STATE_SERVING

    assert await becomes(arrived)
    assert await becomes(is_well)
    assert await entered(url) == (calls, calls, calls)


@pytest.mark.parametrize("trouble", ["stopped", "frozen"])
async def test_calls_go_on_without_postgresql_and_arrive_when_it_is_back(
    serve: Serve, logged: LogLines, empty: Postgresql, tmp_path: Path, trouble: str
) -> None:
    """Its processes end, or hang with their connections open."""
    begin, end = {"stopped": (empty.stop, empty.start), "frozen": (empty.freeze, empty.thaw)}[trouble]

    async def is_degraded() -> bool:
        return (await state(headgate.stub))[0] == pb.SERVING_STATE_DEGRADED

    async with serve(providers=MOCK, ledger=shipping(empty.url, tmp_path)) as headgate:
        await traffic(headgate.stub, BEFORE)
        await check_everything_arrives(headgate, empty.url, BEFORE)
        begin()
        try:
            await traffic(headgate.stub, MEANWHILE)
            assert await becomes(is_degraded)
            assert "do not get to PostgreSQL" in (await state(headgate.stub))[1]
        finally:
            end()
        await check_everything_arrives(headgate, empty.url, BEFORE + MEANWHILE)
    told = [line for line in logged.lines if line.get("component") == "ledger"]
    assert [line["event"] for line in told] == ["ledger_not_shipped", "ledger_shipped_again"], told


async def test_calls_go_on_while_postgresql_is_slow_and_while_the_line_to_it_breaks(
    serve: Serve, empty: Postgresql, tmp_path: Path
) -> None:
    """Every answer takes its time, then connections are cut in the middle, then nothing passes."""
    address = make_url(empty.url)
    socket = Path(str(address.query["host"])) / ".s.PGSQL.5432"
    async with Line(socket) as line, SlowPath(line.port, delay=0.02) as slow:
        url = address.set(host="127.0.0.1", port=slow.port, query={}).render_as_string(hide_password=False)
        async with serve(providers=MOCK, ledger={**shipping(url, tmp_path), "timeout": 2}) as headgate:
            await traffic(headgate.stub, BEFORE)
            line.cut()
            await traffic(headgate.stub, BEFORE)
            await line.mend()
            await traffic(headgate.stub, BEFORE)
            line.freeze()
            await traffic(headgate.stub, BEFORE)
            await asyncio.sleep(2.5)
            await line.mend()
            await check_everything_arrives(headgate, empty.url, 4 * BEFORE)


async def test_calls_go_on_while_the_disk_of_postgresql_is_full(
    serve: Serve, empty: Postgresql, tmp_path: Path
) -> None:
    """The file of a table can grow no more; what is in the way is set aside, and the rows arrive."""

    async def is_full() -> bool:
        return "File too large" in (await state(headgate.stub))[1]

    async with serve(providers=MOCK, ledger=shipping(empty.url, tmp_path)) as headgate:
        await traffic(headgate.stub, BEFORE)
        await check_everything_arrives(headgate, empty.url, BEFORE)
        await execute(empty.url, FILLER)
        empty.limit_files(WAL_FILE)
        try:
            await traffic(headgate.stub, MEANWHILE)
            assert await becomes(is_full)
        finally:
            empty.limit_files(None)
        await execute(empty.url, "DELETE FROM headgate_calls WHERE method = 'filler'")
        await check_everything_arrives(headgate, empty.url, BEFORE + MEANWHILE)


FILLER = """
INSERT INTO headgate_calls (id, time, method, request_id, tenant, key_id, end_user_id, labels, model, routed_to, arm,
    provider, provider_model, attempts, outcome, reason, estimated, currency)
SELECT gen_random_uuid(), now(), 'filler', n::text, '', '', repeat('filler ', 30), '{}', '', '', '',
    '', '', 0, '', '', false, '' FROM generate_series(1, 60000) AS n
"""


async def test_calls_go_on_while_the_local_disk_is_full_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    """Rows wait in a bounded queue; those beyond it are counted and told of, and the rest is written in the end."""
    config = {
        "auth": {"anonymous": True},
        "providers": MOCK,
        "server": {"drain_delay": 0},
        "telemetry": {"log_levels": {"access": "error"}},
        "ledger": {"url": "sqlite:///ledger.db", "queue": 100},
    }
    file = tmp_path / "headgate.yaml"
    file.write_text(json.dumps(config))
    async with headgate_serve("--config", str(file)) as headgate:
        pid = headgate.process.pid
        async with grpc.aio.insecure_channel(headgate.address) as channel:
            stub: pb.InferenceServiceAsyncStub = pb.InferenceServiceStub(channel)
            await traffic(stub, BEFORE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (TINY_FILE, resource.RLIM_INFINITY))
            await traffic(stub, MEANWHILE)

            async def is_degraded() -> bool:
                return (await state(stub))[0] == pb.SERVING_STATE_DEGRADED

            assert await becomes(is_degraded)
            assert "cannot be written" in (await state(stub))[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

            async def is_well() -> bool:
                return (await state(stub))[0] == pb.SERVING_STATE_SERVING

            assert await becomes(is_well)
            await traffic(stub, BEFORE)
        finished = await headgate.stop()
    lines = {line["event"]: line for line in map(json.loads, finished.stderr.splitlines())}
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        ((written,),) = connection.execute("SELECT count(*) FROM headgate_calls").fetchall()
    assert {"ledger_not_written", "ledger_queue_full", "ledger_written_again"} <= lines.keys()
    assert written + lines["ledger_written_again"]["dropped"] == 2 * BEFORE + MEANWHILE
    assert finished.code == 0
