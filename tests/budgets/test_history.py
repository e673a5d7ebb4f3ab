"""Budgets after a restart: what was spent is in the ledger, in SQLite or PostgreSQL."""

from __future__ import annotations

import asyncio
import random
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc.aio
import pytest
from headgate import v1 as pb

from headgate_server.identity.database import SqlKeyDatabase
from headgate_server.identity.records import NewKey
from headgate_server.ledger.reading import reading
from headgate_server.ledger.totals import spending, totals
from tests.budgets.priced import NANOS, USUAL, answers, budget, dollars, estimate, priced, small
from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, eventually, failing
from tests.identity.callers import PEPPER, bearer, static_key
from tests.identity.databases import Line
from tests.ledger.reconciliation import rows_of
from tests.vendor import (
    Exchange,
    Vendor,
    answers_text,
    completion,
    stalls_before_headers,
    stalls_in_the_stream,
)

SPENT = 3 * USUAL


@pytest.mark.parametrize(
    "per", ["", "tenant", "key", "model", "provider", "target", "label:team", "tenant label:team model"]
)
async def test_a_restart_forgets_nothing_and_counts_nothing_twice(
    serve: Serve, ledger: dict[str, str], per: str
) -> None:
    """Who spent before has exactly so much less; who did not has all. What a budget is not for is not counted."""
    (spender, entry), (other, other_entry) = static_key("acme"), static_key("other")
    auth = {"pepper": PEPPER, "keys": {**entry, **other_entry}}
    run = secrets.token_hex(4)
    request = small("v/m", labels={"team": "red", "run": run})

    async with Vendor(answers_text) as vendor:
        providers = {"v": priced(vendor), "w": priced(vendor)}

        def server(amount: int) -> Any:
            limits = budget(amount, per=per.split(), only={"label:run": [run], "tenant": ["*"]})
            return serve(providers=providers, limits=limits, auth=auth, ledger=ledger)

        async with server(estimate(request) * 10) as before:
            for _ in range(3):
                await before.stub.Generate(request, metadata=bearer(spender.text))
            elsewhere = small("v/m", labels={"team": "red", "run": "another"})
            await before.stub.Generate(elsewhere, metadata=bearer(spender.text))
        async with server(estimate(request) + SPENT - 1) as after:
            refused = await failing(after.stub.Generate(request, metadata=bearer(spender.text)))
            assert refused.reason == "BUDGET_EXCEEDED"
            if per:
                different = small("w/m", labels={"team": "blue", "run": run})
                await after.stub.Generate(different, metadata=bearer(other.text))
        async with server(estimate(request) + SPENT) as again:
            await again.stub.Generate(request, metadata=bearer(spender.text))


@pytest.mark.parametrize("kept", ["configuration", "store"])
async def test_a_restart_remembers_budgets_of_callers_own(
    serve: Serve, ledger: dict[str, str], tmp_path: Path, kept: str
) -> None:
    """Each key for itself, wherever it is kept."""
    request = small()
    own = [{"amount": dollars(estimate(request) + SPENT - 1), "period": "month"}]
    auth: dict[str, Any] = {"pepper": PEPPER}
    if kept == "configuration":
        (spender, entry), (other, other_entry) = static_key(budgets=own), static_key(budgets=own)
        auth["keys"] = {**entry, **other_entry}
    else:
        auth["store"] = {"url": f"sqlite:///{tmp_path}/keys.db"}
        database = SqlKeyDatabase(auth["store"]["url"], migrates=True)
        await database.prepare()
        spender, other = [await database.create(NewKey("acme", budgets=own), PEPPER.encode(), 0.0, "") for _ in "12"]
        await database.close()
    async with Vendor(answers_text) as vendor:
        settings: Any = {"providers": {"v": priced(vendor)}, "auth": auth, "ledger": ledger}
        async with serve(**settings) as before:
            for _ in range(3):
                await before.stub.Generate(request, metadata=bearer(spender.text))
        async with serve(**settings) as after:
            refused = await failing(after.stub.Generate(request, metadata=bearer(spender.text)))
            assert refused.details["QuotaFailure"].violations[0].subject == f"key:{spender.id}"
            await after.stub.Generate(request, metadata=bearer(other.text))


async def test_without_its_ledger_a_server_starts_and_learns_later(
    serve: Serve, postgresql_url: str, tmp_path: Path, logged: LogLines
) -> None:
    """PostgreSQL is not there at the start: calls go on, the log tells, and what was spent counts when it is back."""
    request = small(labels={"run": secrets.token_hex(4)})
    limits = budget(estimate(request) + 4 * USUAL - 1, per=["label:run"])
    address = urlsplit(postgresql_url)

    def events() -> list[str]:
        return [entry["event"] for entry in logged.lines]

    socket = Path(parse_qs(address.query)["host"][0]) / ".s.PGSQL.5432"
    async with Vendor(answers_text) as vendor, Line(socket) as line:
        by_line = f"postgresql://{address.username}:@127.0.0.1:{line.port}{address.path}"
        settings: Any = {"providers": {"v": priced(vendor)}, "limits": limits}
        ledger = {"url": postgresql_url, "spool": f"{tmp_path}/spool.db"}
        async with serve(**settings, ledger=ledger) as before:
            for _ in range(3):
                await before.stub.Generate(request)
        line.cut()
        async with serve(**settings, ledger={**ledger, "url": by_line}) as after:
            known = events()
            assert "budgets_not_restored" in known
            assert after.application.runtime.limits.is_history_unread
            await after.stub.Generate(request)
            await line.mend()
            assert await eventually(lambda: "budgets_restored" in events()[len(known) :], seconds=10)
            assert not after.application.runtime.limits.is_history_unread
            assert (await failing(after.stub.Generate(request))).reason == "BUDGET_EXCEEDED"


async def test_what_a_call_in_flight_has_spent_is_not_restored_too(serve: Serve, tmp_path: Path) -> None:
    """An attempt that is over is on disk before the call's budgets are settled: they would count it twice."""
    proceed = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await proceed.wait()
        await answers_text(exchange)

    file = tmp_path / "ledger.db"
    url = f"sqlite:///{file}"
    ledger = {"url": url, "flush_interval": 0.001}

    async def restorable() -> int:
        async with reading(url) as connection:
            return sum(nanos for _, nanos in await spending(connection, (), None, None))

    models = {"both": {"targets": [{"provider": name, "model": "m"} for name in ("v", "w")]}}
    async with Vendor(writes_nonsense) as one, Vendor(waits) as other:
        providers = {"v": priced(one), "w": priced(other)}
        async with serve(providers=providers, models=models, limits=budget(NANOS), ledger=ledger) as headgate:
            call = asyncio.ensure_future(headgate.stub.Generate(small("both")))
            await eventually(
                lambda: {row["outcome"] for row in rows_of(file, "headgate_attempts")} == {"FAILED", "OPEN"}
            )
            assert await restorable() == 0
            proceed.set()
            await call
            await eventually(lambda: [row["outcome"] for row in rows_of(file, "headgate_calls")] == ["OK"])
            assert await restorable() > USUAL


async def test_budgets_without_a_ledger_are_warned_of(serve: Serve, logged: LogLines) -> None:
    """They begin at zero whenever the server does."""
    async with Vendor(answers_text) as vendor, serve(providers={"v": priced(vendor)}, limits=budget(USUAL)):
        pass
    assert "budgets_without_ledger" in {entry["event"] for entry in logged.lines}


async def test_a_budget_says_what_the_ledger_says(serve: Serve, tmp_path: Path) -> None:
    """To the nano, whatever becomes of calls: streams that are left, vendors that fail, answer nonsense or stall,
    retries, fallbacks, hedges and embeddings."""
    dice = random.Random(12)

    async def all_sorts(exchange: Exchange) -> None:
        if "input" in exchange.json:
            data = [{"index": n, "embedding": [0.5]} for n in range(len(exchange.json["input"]))]
            await exchange.answer(200, {"data": data, "model": "m", "usage": {"prompt_tokens": 3, "total_tokens": 3}})
            return
        behaviours = [answers_text, answers(9, 40), stalls_in_the_stream, fails, writes_nonsense, stalls_before_headers]
        await dice.choice(behaviours)(exchange)

    async def leave(headgate: Headgate, request: pb.GenerateRequest) -> None:
        call = headgate.stub.StreamGenerate(request, timeout=dice.uniform(0.5, 2))
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            async for _ in call:
                if dice.random() < 0.3:
                    call.cancel()

    async def ask_for(headgate: Headgate, request: pb.GenerateRequest) -> None:
        with suppress(grpc.aio.AioRpcError):
            await headgate.stub.Generate(request, timeout=dice.uniform(0.5, 2))

    targets = [{"provider": name, "model": "m"} for name in ("v", "w")]
    models = {"both": {"targets": targets}, "hedged": {"targets": targets, "hedge_delay": 0.05}}
    routing = {"retry": {"max_attempts": 2, "base_delay": 0.01}, "breaker": {"consecutive_failures": 0}}
    ledger = {"url": f"sqlite:///{tmp_path}/ledger.db"}
    async with Vendor(all_sorts) as vendor:
        settings: Any = {"providers": {"v": priced(vendor), "w": priced(vendor)}, "models": models, "routing": routing}
        async with serve(**settings, limits=budget(1000 * NANOS, name="all"), ledger=ledger) as headgate:
            calls: list[Any] = []
            for number in range(150):
                request = small(("both", "hedged", "v/m")[number % 3], labels={"n": "x" * dice.randint(0, 50)})
                calls.append((leave if number % 2 else ask_for)(headgate, request))
            calls += [
                headgate.stub.Embed(pb.EmbedRequest(model="both", inputs=[pb.EmbedInput(text="x")])) for _ in "123"
            ]
            await asyncio.gather(*calls)
            assert await headgate.idle()
            spent = headgate.application.runtime.limits.limiter.watch.spent["all"]
    async with reading(ledger["url"]) as connection:
        ((_, entered),) = await spending(connection, (), None, None)
        (total,) = await totals(connection)
    assert spent == entered == total.cost["USD"]
    assert total.estimated > 3


async def fails(exchange: Exchange) -> None:
    """An error of the vendor's, which costs nothing."""
    await exchange.answer(500, {"error": {"message": "no"}})


async def writes_nonsense(exchange: Exchange) -> None:
    """An answer that nobody can read, and that is paid for."""
    await exchange.answer(200, {**completion(), "choices": 7})
