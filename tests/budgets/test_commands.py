"""`headgate usage` and `headgate budgets`, against a ledger whose sums are known, in SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from headgate_server.cli import main
from headgate_server.ledger.migrations import MIGRATIONS
from headgate_server.ledger.partitions import make_month
from headgate_server.ledger.tables import attempts
from headgate_server.sql.engine import engine
from tests.identity.databases import DATABASES
from tests.tools import Finished

MARCH = "2026-03-30T23:59:59+00:00"
APRIL = "2026-04-01T00:00:00+00:00"
LATER = "2026-04-01T12:00:00+00:00"
BY_TEAM = {"red": {"team": "red"}, "blue": {"team": "blue", "note": 'a "quoted", word'}, "": {}}


def attempt(
    time: str, tenant: str, model: str, team: str, tokens: tuple[int, int, int], nanos: int | None, **more: Any
) -> dict[str, Any]:
    """A row of the ledger; tokens are input, output, and what of the input was cached."""
    sent, out, cached = tokens
    texts = ("reason", "provider_request_id", "cost_source", "price_version")
    return {
        **dict.fromkeys(texts, ""),
        "call_id": str(uuid.uuid4()),
        "number": 1,
        "time": datetime.fromisoformat(time).timestamp(),
        "tenant": tenant,
        "key_id": f"key-of-{tenant}",
        "labels": BY_TEAM[team],
        "model": model,
        "provider": "v",
        "provider_model": f"{model}-1",
        "cause": "first",
        "outcome": "OK",
        "caller_key": False,
        "input_tokens": sent,
        "output_tokens": out,
        "cache_read_tokens": cached,
        "estimated": False,
        "cost_nanos": nanos,
        "currency": "" if nanos is None else "USD",
        **more,
    }


CALL = str(uuid.uuid4())
NOW = datetime.now(UTC).isoformat()
BOOKS = [
    attempt(MARCH, "acme", "fast", "red", (1000, 100, 0), 1_000_000_000),
    attempt(APRIL, "acme", "fast", "red", (2000, 200, 500), 2_000_000_000, call_id=CALL),
    attempt(APRIL, "acme", "fast", "red", (7, 3, 0), 5_000_000, call_id=CALL, number=2, estimated=True, cause="retry"),
    attempt(APRIL, "acme", "smart", "blue", (10, 20, 0), 250_000_000),
    attempt(LATER, "other", "fast", "", (100, 0, 0), None),
    attempt(LATER, "other", "fast", "blue", (5, 5, 0), 40_000_000, currency="EUR"),
    attempt(LATER, "other", "smart", "red", (0, 0, 0), None, outcome="FAILED"),
    attempt(LATER, "other", "smart", "red", (999, 999, 0), 999, outcome="OPEN"),
    attempt(NOW, "acme", "fast", "red", (1, 1, 0), 1_500_000_000),
    attempt(NOW, "other", "fast", "red", (1, 1, 0), 10_000_000_001),
    attempt(NOW, "other", "fast", "red", (1, 1, 0), 77_000_000_000, caller_key=True),
]


@pytest.fixture(scope="module", params=DATABASES)
async def books(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a ledger with these rows, in each database in turn."""
    is_file = request.param == "sqlite"
    folder = tmp_path_factory.mktemp("ledger")
    url: str = f"sqlite:///{folder}/ledger.db" if is_file else request.getfixturevalue("postgresql_url")
    await write(url, BOOKS, [] if is_file else ["2026-03", "2026-04", f"{datetime.now(UTC):%Y-%m}"])
    return url


async def write(url: str, rows: Sequence[dict[str, Any]], months: Sequence[str] = ()) -> None:
    """Makes a ledger of these rows; PostgreSQL needs their months."""
    connections = engine(url)
    async with connections.begin() as connection:
        await connection.run_sync(MIGRATIONS.upgrade)
        for month in months:
            await make_month(connection, attempts.name, month)
        await connection.execute(insert(attempts), rows)
    await connections.dispose()


Headgate = Callable[..., Awaitable[Finished]]


@pytest.fixture
def headgate(capsys: pytest.CaptureFixture[str]) -> Headgate:
    """Runs the command to its end, without the second that a process of its own takes to begin."""

    async def run(*arguments: str) -> Finished:
        code = await asyncio.to_thread(main, arguments)
        printed = capsys.readouterr()
        return Finished(code, printed.out, printed.err)

    return run


@pytest.fixture
def usage(headgate: Headgate, books: str) -> Callable[..., Awaitable[str]]:
    """What `headgate usage` prints of these books."""

    async def run(*arguments: str) -> str:
        finished = await headgate("usage", "--url", books, *arguments)
        assert (finished.code, finished.stderr) == (0, "")
        return finished.stdout

    return run


Usage = Callable[..., Awaitable[str]]


def words(table: str) -> list[str]:
    """The lines of a table, however wide its columns are."""
    return [" ".join(line.split()) for line in table.splitlines()]


IN_SPRING = ("--since", "2026-03-01", "--until", "2026-05-01")


async def test_usage_sums_up_by_what_is_asked(usage: Usage) -> None:
    """Every attempt that has ended counts, whatever became of it; a call of two attempts is one call."""
    shown = json.loads(await usage(*IN_SPRING, "--by", "tenant", "--json"))
    assert (shown["since"], shown["until"]) == ("2026-03-01T00:00:00Z", "2026-05-01T00:00:00Z")
    acme, other = shown["rows"]
    assert acme == {
        "tenant": "acme",
        "calls": 3,
        "attempts": 4,
        "estimated": 1,
        "unpriced": 0,
        "input_tokens": 3017,
        "output_tokens": 323,
        "cache_read_tokens": 500,
        "cache_write_tokens": 0,
        "reasoning_tokens": 0,
        "cost": {"USD": "3.255"},
    }
    assert (other["calls"], other["attempts"], other["unpriced"], other["cost"]) == (3, 3, 1, {"EUR": "0.04"})
    assert (shown["total"]["calls"], shown["total"]["cost"]) == (6, {"EUR": "0.04", "USD": "3.255"})


async def test_usage_is_a_table_for_people(usage: Usage) -> None:
    """Dearest first, with what is guessed or not known beside it."""
    printed = await usage(*IN_SPRING, "--by", "model,target", "--tenant", "acme")
    assert words(printed) == [
        "MODEL TARGET CALLS ATTEMPTS INPUT CACHE READ CACHE WRITE OUTPUT REASONING COST USD NOTES",
        "fast v/fast-1 2 3 3007 500 0 303 0 3.005000 1 estimated",
        "smart v/smart-1 1 1 10 0 0 20 0 0.250000",
        "total 3 4 3017 500 0 323 0 3.255000 1 estimated",
    ]


async def test_usage_is_csv_for_programs(usage: Usage) -> None:
    """By day in UTC and by a label, whatever its values; each currency has a column."""
    printed = await usage(*IN_SPRING, "--by", "day,label:note", "--csv")
    header, *rows = printed.splitlines()
    assert header == (
        "day,label:note,calls,attempts,estimated,unpriced,input_tokens,output_tokens,cache_read_tokens,"
        "cache_write_tokens,reasoning_tokens,cost_eur,cost_usd"
    )
    assert rows == [
        "2026-04-01,,3,4,1,1,2107,203,500,0,0,0.00,2.005",
        "2026-03-30,,1,1,0,0,1000,100,0,0,0,0.00,1.00",
        '2026-04-01,"a ""quoted"", word",2,2,0,0,15,25,0,0,0,0.04,0.25',
    ]


async def test_what_callers_chose_is_no_formula_in_a_spreadsheet(headgate: Headgate, tmp_path: Path) -> None:
    """Tenants, models and labels that begin like one are text there."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    models = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "plain=1")
    await write(url, [attempt(NOW, "acme", model, "red", (1, 1, 0), 1) for model in models])
    finished = await headgate("usage", "--url", url, "--by", "model", "--csv")
    begins = {line.partition(",")[0] for line in finished.stdout.splitlines()[1:]}
    assert begins == {"'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "plain=1"}


async def test_usage_chooses_by_label_and_time(usage: Usage) -> None:
    """Labels, provider, model and key; the end of a time is not in it."""
    choice = ("--label", "team=red", "--provider", "v", "--model", "fast", "--api-key", "key-of-acme", "--by", "")
    shown = json.loads(await usage("--since", "2026-03-30", "--until", APRIL, *choice, "--json"))
    assert [row["cost"] for row in shown["rows"]] == [{"USD": "1.00"}]
    shown = json.loads(await usage("--since", "1h", "--by", "tenant", "--label", "team=red", "--json"))
    assert [(row["tenant"], row["cost"]["USD"]) for row in shown["rows"]] == [
        ("other", "87.000000001"),
        ("acme", "1.50"),
    ]
    assert json.loads(await usage("--since", "2026-01-01", "--until", "2026-01-02", "--json"))["rows"] == []


async def test_budgets_show_what_is_left_of_each(headgate: Headgate, books: str, tmp_path: Path) -> None:
    """Of every counter that was used, and of those that were not; callers' own vendor keys cost nothing."""
    config = tmp_path / "headgate.yaml"
    budgets = [
        {"amount": 20, "period": "month", "per": ["tenant"], "name": "tenants"},
        {"amount": 10, "period": "total"},
        {"amount": 5, "period": "day", "only": {"tenant": ["nobody"]}, "per": ["label:team"]},
    ]
    sections = {"providers": {"demo": {"adapter": "mock"}}, "limits": {"budgets": budgets}, "ledger": {"url": books}}
    config.write_text(json.dumps(sections), "utf-8")
    finished = await headgate("budgets", "--config", str(config), "--json")
    assert (finished.code, finished.stderr) == (0, "")
    other, acme, total, nobody = json.loads(finished.stdout)["budgets"]
    assert (other["budget"], other["whose"], other["amount_usd"]) == ("tenants", "tenant:other", "20.00")
    assert (other["spent_usd"], other["left_usd"]) == ("10.000000001", "9.999999999")
    assert (acme["whose"], acme["spent_usd"], acme["left_usd"]) == ("tenant:acme", "1.50", "18.50")
    assert acme["resets"].endswith("-01T00:00:00Z")
    assert (total["whose"], total["spent_usd"], total["left_usd"], total["resets"]) == (
        "all callers",
        "14.755000001",
        "0.00",
        None,
    )
    assert (nobody["whose"], nobody["spent_usd"]) == ("nobody yet", "0.00")
    table = (await headgate("budgets", "--config", str(config))).stdout
    assert words(table)[0] == "BUDGET WHOSE PERIOD AMOUNT USD SPENT LEFT USED RESETS"
    assert "147.6%" in words(table)[3]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("usage", "--url", "sqlite:////nowhere/ledger.db"), 1, "there is no ledger at /nowhere/ledger.db"),
        (("usage", "--url", "postgresql://me:secret@127.0.0.1:1/x"), 1, "error: the ledger: connection failed"),
        (("usage", "--url", "mysql://x"), 2, "error: --url: must be sqlite:///FILE or postgresql://"),
        (("usage", "--url", "sqlite:////x", "--by", "color"), 2, "error: --by: color: must be one of tenant, key,"),
        (("usage", "--url", "sqlite:////x", "--since", "soon"), 2, "error: --since: must be a time such as 24h,"),
        (("usage", "--url", "sqlite:////x", "--label", "team"), 2, "error: --label: team: must be NAME=VALUE"),
        (("usage", "--url", "sqlite:////x", "--csv", "--json"), 2, "error: --json and --csv: one of them"),
        (("budgets",), 2, "error: the configuration has no ledger; --url names one"),
    ],
)
async def test_what_cannot_be_read_is_said_with_an_exit_code(
    headgate: Headgate, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """In one line, without a password."""
    finished = await headgate(*arguments)
    assert (finished.code, finished.stdout) == (code, "")
    assert said in finished.stderr
    assert "secret" not in finished.stderr
    assert "Traceback" not in finished.stderr
