"""How the ledger starts, stops and is kept: locks, drains, months, retention, and what it says of itself."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import ProgrammingError

from headgate_server.config import ConfigError, Ledger, load
from headgate_server.ledger.columns import ATTEMPTS, CALLS
from headgate_server.ledger.entry import NULL, Rows
from headgate_server.ledger.partitions import months_from
from headgate_server.ledger.postgresql import PostgresqlLedger
from headgate_server.ledger.reading import reading
from headgate_server.ledger.spool import Spool
from headgate_server.ledger.tables import attempts
from headgate_server.ledger.writer import Writer
from headgate_server.timestamps import sqlite_text
from tests.conftest import LogLines, Serve
from tests.headgate_process import ask, eventually, failing
from tests.identity.databases import Postgresql
from tests.ledger.reconciliation import rows_of
from tests.ledger.statements import entered, execute
from tests.ledger.test_outages import MOCK, shipping, traffic
from tests.test_admin import get
from tests.tools import headgate_serve, run
from tests.vendor import Exchange, Vendor, at, sse, text_chunk

NOW = 1_790_000_000.0
CALL = dict.fromkeys(CALLS, "") | {"labels": "{}", "attempts": 1, "estimated": 0, "outcome": "OK"}
ATTEMPT = dict.fromkeys(ATTEMPTS, "") | {"labels": "{}", "number": 1, "estimated": 0, "outcome": "OK"}
NUMBERS = [name for name in (*CALLS, *ATTEMPTS) if name.endswith(("_tokens", "_micros", "_nanos", "status"))]
BLANK = dict.fromkeys(NUMBERS, NULL)


def rows(number: int, time: float = NOW, **changed: Any) -> Rows:
    """A call with one attempt, of that number."""
    name = f"{number:032x}"
    changed["time"] = sqlite_text(time)
    call = {**CALL, **{k: v for k, v in BLANK.items() if k in CALL}, "id": name, **changed}
    attempt = {**ATTEMPT, **{k: v for k, v in BLANK.items() if k in ATTEMPT}, "call_id": name, "caller_key": 0}
    attempt |= {key: value for key, value in changed.items() if key in ATTEMPT}
    return Rows(tuple(call[name] for name in CALLS), [tuple(attempt[name] for name in ATTEMPTS)], None)


def ids(file: Path) -> list[int]:
    """The numbers of the calls in a file."""
    return sorted(int(row["id"], 16) for row in rows_of(file, "headgate_calls"))


async def test_two_servers_never_share_a_file(serve: Serve, tmp_path: Path) -> None:
    """The second does not start, and says why in one line; after the first has ended, it does."""
    url = {"url": f"sqlite:///{tmp_path}/ledger.db"}
    config = tmp_path / "headgate.yaml"
    config.write_text(json.dumps({"auth": {"anonymous": True}, "providers": MOCK, "ledger": url}))
    command = ("-m", "headgate_server", "serve", "--config", str(config))
    async with serve(providers=MOCK, ledger=url):
        second = await run(sys.executable, *command)
    assert second.code == 2
    assert (
        second.stderr == f"error: the ledger cannot be opened: {tmp_path}/ledger.db is written by another server: "
        "each needs a file of its own\n"
    )
    async with headgate_serve("--config", str(config)) as third:
        assert (await third.stop()).code == 0


async def test_a_file_that_cannot_be_used_ends_the_start_with_one_line(tmp_path: Path) -> None:
    """No folder, or no file of SQLite."""

    (tmp_path / "text.db").write_text("this is no database, and long enough to be seen as none")
    for file, problem in (("none/ledger.db", "No such file or directory"), ("text.db", "file is not a database")):
        config = tmp_path / "headgate.yaml"
        ledger = {"url": f"sqlite:///{file}"}
        config.write_text(json.dumps({"auth": {"anonymous": True}, "providers": MOCK, "ledger": ledger}))
        ended = await run(sys.executable, "-m", "headgate_server", "serve", "--config", str(config))
        assert ended.code == 2
        assert ended.stderr.startswith("error: the ledger cannot be opened: ")
        assert problem in ended.stderr
        assert ended.stderr.count("\n") == 1


async def test_a_drain_ships_what_it_can_also_of_calls_that_were_cut(
    serve: Serve, empty: Postgresql, tmp_path: Path
) -> None:
    """A stream that the stop ends is in PostgreSQL when the stop returns, with all the others."""

    async def speaks_and_stalls(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("Hello")))
        await exchange.caller_closed.wait()

    slowly = {**shipping(empty.url, tmp_path), "ship_interval": 60}
    async with Vendor(speaks_and_stalls) as vendor:
        async with serve(providers={**MOCK, "v": at(vendor)}, ledger=slowly) as headgate:
            await traffic(headgate.stub, 20)
            cut = asyncio.create_task(failing(headgate.stub.StreamGenerate(ask("v/m"))))
            await eventually(lambda: len(vendor.exchanges) == 1)
            await asyncio.sleep(0.1)
            await headgate.application.stop(delay=0, grace=0)
            await cut
            assert await entered(empty.url) == (21, 21, 21)
            found = await execute(empty.url, "SELECT outcome, reason FROM headgate_calls WHERE outcome <> 'OK'")
            assert found == [("ABORTED", "STREAM_INTERRUPTED")]


async def test_what_a_stop_cannot_ship_stays_on_disk_for_the_next_start(
    serve: Serve, logged: LogLines, empty: Postgresql, tmp_path: Path
) -> None:
    """The log says how much; another server with the same file ships it."""
    nowhere = shipping("postgresql://nobody@127.0.0.1:1/nothing", tmp_path)
    async with serve(providers=MOCK, ledger=nowhere) as headgate:
        await traffic(headgate.stub, 20)
        await eventually(lambda: any(line["event"] == "ledger_not_shipped" for line in logged.lines))
    assert [line["calls"] for line in logged.lines if line["event"] == "ledger_calls_left_in_spool"] == [20]
    async with serve(providers=MOCK, ledger=shipping(empty.url, tmp_path)):
        pass
    assert await entered(empty.url) == (20, 20, 20)
    assert ids(tmp_path / "spool.db") == []


async def test_a_row_that_was_shipped_and_not_forgotten_is_not_doubled(empty: Postgresql, tmp_path: Path) -> None:
    """The server died between the two: the same batch comes again."""
    database = PostgresqlLedger(Ledger.model_validate(shipping(empty.url, tmp_path)))
    spool = Spool(tmp_path / "spool.db", "checkpoint")
    spool.write([rows(number, request_id=str(number), labels='{"team":"x"}') for number in range(10)])
    try:
        await database.prepare()
        batch = spool.oldest(100)
        await database.insert(batch)
        spool.write([rows(10, request_id="10")])
        await database.insert(spool.oldest(100))
        assert await entered(empty.url) == (11, 11, 11)
        spool.forget(batch.ids)
        assert list(spool.oldest(100).ids) == [f"{10:032x}"]
        assert await execute(empty.url, "SELECT count(*) FROM headgate_attempts WHERE labels->>'team' = 'x'") == [(10,)]
    finally:
        spool.close()
        await database.close()


async def test_months_are_made_ahead_and_dropped_when_they_are_too_old(empty: Postgresql, tmp_path: Path) -> None:
    """Rows of a month that is not there yet make it; retention drops whole months, in every table."""

    async def months() -> list[str]:
        query = (
            "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' AND relname LIKE 'headgate_calls_%'"
        )
        return sorted(name.removeprefix("headgate_calls_") for (name,) in await execute(empty.url, query))

    now = datetime.now(UTC)
    old = now - timedelta(days=100)
    settings = {**shipping(empty.url, tmp_path), "months_ahead": 1}
    ahead = [month.replace("-", "_") for month in months_from(now.date(), 1)]
    keeping = PostgresqlLedger(Ledger.model_validate(settings))
    dropping = PostgresqlLedger(Ledger.model_validate({**settings, "retention_days": 30}))
    spool = Spool(tmp_path / "spool.db", "checkpoint")
    spool.write([rows(1, time=old.timestamp()), rows(2, time=now.timestamp())])
    try:
        await keeping.prepare()
        assert await months() == ahead
        await keeping.insert(spool.oldest(10))
        assert await months() == [f"{old:%Y_%m}", *ahead]
        await dropping.look_after_months()
        assert await months() == ahead
        assert await execute(empty.url, "SELECT count(*) FROM headgate_attempts") == [(1,)]
    finally:
        spool.close()
        await keeping.close()
        await dropping.close()


def test_months_follow_each_other_over_the_end_of_a_year() -> None:
    """The month of a day, and those after it."""
    assert months_from(date(2026, 11, 30), 3) == ["2026-11", "2026-12", "2027-01", "2027-02"]


async def test_sqlite_forgets_what_is_too_old(tmp_path: Path) -> None:
    """A little each second, without a word from anybody."""
    file = tmp_path / "ledger.db"
    spool = Spool(file, "checkpoint")
    now = datetime.now(UTC).timestamp()
    spool.write([rows(1, time=now - 11 * 86_400), rows(2, time=now - 9 * 86_400)])
    writer = Writer(spool, flush_interval=0.001, most_queued=1000, retention_days=10)
    await eventually(lambda: ids(file) == [2])
    await writer.close(5)
    assert len(rows_of(file, "headgate_attempts")) == 1


@pytest.mark.parametrize("days", [500_000, 10_000_000])
async def test_rows_can_be_kept_for_longer_than_there_were_years(tmp_path: Path, days: int) -> None:
    """Of whatever time they are, and the writer goes on."""
    file = tmp_path / "ledger.db"
    spool = Spool(file, "checkpoint")
    spool.write([rows(1)])
    writer = Writer(spool, flush_interval=0.001, most_queued=1000, retention_days=days)
    await asyncio.sleep(1.2)
    writer.put(rows(2))
    await eventually(lambda: ids(file) == [1, 2])
    await writer.close(5)


async def test_one_row_that_the_file_does_not_take_holds_up_no_others(tmp_path: Path, logged: LogLines) -> None:
    """It is told of and counted; the rows around it are written."""
    file = tmp_path / "ledger.db"
    writer = Writer(Spool(file, "checkpoint"), flush_interval=0.05, most_queued=1000, retention_days=None)
    spoilt: dict[int, dict[str, Any]] = {2: {"input_tokens": 2**64}, 3: {"tenant": "\ud800"}, 5: {"tenant": None}}
    for number in range(7):
        writer.put(rows(number, **spoilt.get(number, {})))
    await writer.close(5)
    assert ids(file) == [0, 1, 4, 6]
    assert (writer.figures.written, writer.figures.refused, writer.queued) == (4, 3, 0)
    assert [line["event"] for line in logged.lines] == ["ledger_rows_refused"] * 3


async def test_a_call_that_the_queue_has_no_room_for_is_lost_once(tmp_path: Path) -> None:
    """What is known of it while it is in flight is no call of its own."""
    spool = Spool(tmp_path / "ledger.db", "checkpoint")
    writer = Writer(spool, flush_interval=1.0, most_queued=2, retention_days=None)
    writer.put(rows(1))
    writer.put(rows(2, outcome="OPEN"))
    assert writer.figures.dropped == 0
    writer.put(rows(2))
    assert writer.figures.dropped == 1
    await writer.close(5)
    assert len(ids(tmp_path / "ledger.db")) == 1


async def test_calls_that_a_dead_server_left_in_flight_are_lost(tmp_path: Path) -> None:
    """At the next start their rows say so; those that had ended stay as they are."""
    file = tmp_path / "ledger.db"
    spool = Spool(file, "checkpoint")
    spool.write([rows(1, outcome="OPEN"), rows(2)])
    spool.close()
    spool = Spool(file, "checkpoint")
    assert spool.close_open() == 1
    spool.close()
    assert [row["outcome"] for row in rows_of(file, "headgate_calls")] == ["LOST", "OK"]
    assert [row["outcome"] for row in rows_of(file, "headgate_attempts")] == ["LOST", "OK"]


async def test_readers_see_the_ledger_while_it_is_written(serve: Serve, empty: Postgresql, tmp_path: Path) -> None:
    """The same statement over SQLite and PostgreSQL; a file that is not there is not made."""
    local = f"sqlite:///{tmp_path}/ledger.db"
    ledgers: tuple[dict[str, Any], ...]
    ledgers = ({"url": local, "flush_interval": 0.001}, shipping(empty.url, tmp_path))
    for ledger in ledgers:
        async with serve(providers=MOCK, ledger=ledger) as headgate:
            await traffic(headgate.stub, 5)
            found: list[Any] = []
            while len(found) < 5:
                try:
                    async with reading(ledger["url"]) as connection:
                        found = list(await connection.execute(attempts.select().order_by(attempts.c.time)))
                except ProgrammingError:  # there are no tables yet
                    await asyncio.sleep(0.05)
        assert {(row.provider, row.input_tokens, row.outcome, row.estimated) for row in found} == {
            ("demo", 1, "OK", False)
        }
        assert abs(found[0].time - datetime.now(UTC).timestamp()) < 60
        assert found[0].labels == {}
    with pytest.raises(FileNotFoundError):
        async with reading(f"sqlite:///{tmp_path}/none.db"):
            pass
    assert not (tmp_path / "none.db").exists()


async def test_the_ledger_tells_of_itself(serve: Serve, tmp_path: Path) -> None:
    """Metrics count calls written; the status page says that it is well."""
    ledger = {"url": f"sqlite:///{tmp_path}/ledger.db", "flush_interval": 0.001}
    async with serve(providers=MOCK, ledger=ledger) as headgate:
        await traffic(headgate.stub, 7)
        await eventually(lambda: len(ids(tmp_path / "ledger.db")) == 7)
        await asyncio.sleep(0.05)
        _, text, _ = await get(headgate, "/metrics")
    assert 'headgate_ledger_calls_total{event="written"} 7.0' in text
    assert 'headgate_ledger_calls_total{event="dropped"} 0.0' in text
    assert 'headgate_ledger_failures_total{to="file"} 0.0' in text
    assert "headgate_ledger_queue_rows 0.0" in text
    assert "headgate_ledger_degraded 0.0" in text


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_an_operator_makes_and_takes_back_the_tables_by_command(
    empty: Postgresql, tmp_path: Path, database: str
) -> None:
    """With `migrate: false` the server waits for them, with its rows on disk, and says what is missing."""
    url = empty.url if database == "postgresql" else f"sqlite:///{tmp_path}/ledger.db"
    config = tmp_path / "headgate.yaml"
    ledger = {"url": url, "migrate": False}
    config.write_text(json.dumps({"auth": {"anonymous": True}, "providers": MOCK, "ledger": ledger}))

    async def command(*words: str) -> Any:
        return await run(sys.executable, "-m", "headgate_server", "ledger", *words, "--config", str(config))

    made = await command("migrate")
    assert (made.code, made.stdout, made.stderr) == (0, "the tables are current\n", "")
    assert await execute(url, "SELECT count(*) FROM headgate_calls") == [(0,)]
    taken_back = await command("downgrade", "base")
    assert (taken_back.code, taken_back.stdout) == (0, "the tables are those of base\n")
    unknown = await command("downgrade", "9999")
    assert (unknown.code, unknown.stderr) == (1, "error: the ledger: Can't locate revision identified by '9999'\n")
    config.write_text(json.dumps({"auth": {"anonymous": True}, "providers": MOCK}))
    assert (await command("migrate")).stderr == "error: the configuration has no ledger\n"


@pytest.mark.parametrize(
    ("ledger", "problem"),
    [
        ({}, "ledger.url: is required"),
        ({"url": "mysql://h/d"}, "ledger.url: must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"),
        ({"url": "sqlite:///"}, "ledger.url: must name a file, such as sqlite:///ledger.db"),
        ({"url_file": "none"}, "ledger.url_file: cannot be read: No such file or directory"),
        ({"url": "sqlite:///l.db", "fsync": "always"}, "ledger.fsync: must be 'commit', 'checkpoint' or 'never'"),
        ({"url": "sqlite:///l.db", "queue": 1}, "ledger.queue: must be greater than or equal to 100"),
        ({"url": "sqlite:///l.db", "retention": 3}, "ledger.retention: is not a known key"),
    ],
)
def test_a_ledger_that_cannot_be_is_refused_with_its_place(
    tmp_path: Path, ledger: dict[str, Any], problem: str
) -> None:
    """Each mistake has one line."""
    config = tmp_path / "headgate.yaml"
    config.write_text(json.dumps({"auth": {"anonymous": True}, "providers": MOCK, "ledger": ledger}))
    with pytest.raises(ConfigError) as refused:
        load(config, {})
    (line,) = str(refused.value).splitlines()
    assert problem in line


def test_files_of_the_ledger_count_from_the_configuration_and_its_url_can_be_a_secret(tmp_path: Path) -> None:
    """The spool has a place by default; the URL never prints."""
    (tmp_path / "url").write_text("postgresql://me:hush@db/ledger\n")
    config = tmp_path / "headgate.yaml"
    config.write_text(json.dumps({"auth": {"anonymous": True}, "providers": MOCK, "ledger": {"url_file": "url"}}))
    ledger = load(config, {}).ledger
    assert ledger is not None
    assert ledger.file == tmp_path / "headgate-spool.db"
    assert "hush" not in repr(ledger)
    config.write_text(json.dumps({"auth": {"anonymous": True}, "providers": MOCK, "ledger": {"url": "sqlite:///l.db"}}))
    ledger = load(config, {}).ledger
    assert ledger is not None
    assert ledger.file == tmp_path / "l.db"
