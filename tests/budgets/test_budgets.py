"""Budgets counted in memory, through the front door: what is refused, what a caller is told, what is counted."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio
import pytest
from headgate import v1 as pb

from tests.budgets.priced import INPUT, NANOS, OUTPUT, PRICES, USUAL, answers, budget, dollars, estimate, priced, small
from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, ask, eventually, failing, failure
from tests.identity.callers import PEPPER, bearer, static_key
from tests.vendor import Exchange, Vendor, answers_text, at, completion, sse, text_chunk


async def spent(headgate: Headgate, name: str = "month") -> int:
    """Nanos that are settled in the budget of that name, by its metric."""
    await headgate.idle()
    return headgate.application.runtime.limits.limiter.watch.spent[name]


@pytest.mark.parametrize("period", ["day", "month", "total"])
async def test_a_call_that_there_is_no_money_for_is_refused_with_which_and_when(serve: Serve, period: str) -> None:
    """BUDGET_EXCEEDED with QuotaFailure, and RetryInfo for the moment when the period ends; the vendor hears nothing of
    it, and nobody should send it again by himself."""
    request = small()
    limits = budget(estimate(request) + 2 * USUAL, period, name="everybody's")
    async with Vendor(answers_text) as vendor, serve(providers={"v": priced(vendor)}, limits=limits) as headgate:
        for _ in range(3):
            await headgate.stub.Generate(request)
        refused = await failing(headgate.stub.Generate(request))
        streamed = await failing(headgate.stub.StreamGenerate(request))
        assert await spent(headgate, "everybody's") == 3 * USUAL
    assert len(vendor.exchanges) == 3
    for each in (refused, streamed):
        assert (each.code, each.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUDGET_EXCEEDED")
        (violation,) = each.details["QuotaFailure"].violations
        assert (violation.subject, violation.quota_metric) == ("all callers", "cost")
        assert 'the budget "everybody\'s" allows' in violation.description
        left = estimate(request) - USUAL
        assert f"{left / NANOS:.9f}".rstrip("0") + " are left, and the call may cost" in violation.description
        assert each.trailer["grpc-retry-pushback-ms"] == "-1"
        if period == "total":
            assert "RetryInfo" not in each.details
        else:
            resets = time.time() + each.details["RetryInfo"].retry_delay.ToMilliseconds() / 1000
            moment = datetime.fromtimestamp(resets + 1, UTC)
            assert (moment.hour, moment.minute) == (0, 0)
            assert period == "day" or moment.day == 1


async def test_a_call_that_costs_more_than_the_whole_budget_is_refused_for_good(serve: Serve, logged: LogLines) -> None:
    """No moment comes at which it fits; and that says nothing of how much is left."""
    limits = budget(estimate(small(most=10)))
    async with Vendor(answers_text) as vendor, serve(providers={"v": priced(vendor)}, limits=limits) as headgate:
        refused = await failing(headgate.stub.Generate(small(most=11)))
        await headgate.stub.Generate(small(most=10))
    assert refused.reason == "BUDGET_EXCEEDED"
    assert "RetryInfo" not in refused.details
    assert "budget_exceeded" not in {line["event"] for line in logged.lines}


async def test_what_was_not_spent_is_given_back(serve: Serve) -> None:
    """The estimate is reserved while a call is in flight, and the vendor's own count is what remains of it."""
    request = small(most=600)
    limits = budget(estimate(request) + 9 * USUAL)
    async with Vendor(answers_text) as vendor, serve(providers={"v": priced(vendor)}, limits=limits) as headgate:
        for _ in range(5):
            await headgate.stub.Generate(request)
            async for _ in headgate.stub.StreamGenerate(request):
                pass
        assert (await failing(headgate.stub.Generate(request))).reason == "BUDGET_EXCEEDED"
    assert len(vendor.exchanges) == 10


@pytest.mark.parametrize(
    ("per", "same", "other"),
    [
        ("tenant", {}, {"tenant": "other"}),
        ("key", {}, {"key": "other"}),
        ("model", {"labels": {"team": "x"}}, {"model": "v/n"}),
        ("label:team", {"model": "v/n"}, {"labels": {"team": "blue"}}),
        ("provider", {"model": "v/n"}, {"model": "w/m"}),
        ("target", {"model": "alias"}, {"model": "v/n"}),
    ],
)
async def test_each_scope_has_budgets_of_its_own(
    serve: Serve, per: str, same: dict[str, Any], other: dict[str, Any]
) -> None:
    """Who is the same in the scope of the budget shares it, and nobody else does."""
    keys = {name: static_key(tenant) for name, tenant in (("acme", "acme"), ("key", "acme"), ("other", "other"))}
    auth = {"pepper": PEPPER, "keys": {key: entry for _, made in keys.values() for key, entry in made.items()}}

    async def refusal(model: str = "v/m", key: str = "", tenant: str = "", **fields: Any) -> str:
        """Who has no money left, if the call is refused."""
        own, _ = keys["key" if key else tenant or "acme"]
        request = small(model, **{"labels": {"team": "red"}, **fields})
        try:
            await headgate.stub.Generate(request, metadata=bearer(own.text))
        except grpc.aio.AioRpcError as error:
            refused = failure(error)
            assert refused.reason == "BUDGET_EXCEEDED"
            return str(refused.details["QuotaFailure"].violations[0].subject)
        return ""

    async with Vendor(answers(5, 100)) as vendor:
        providers = {"v": priced(vendor, "m", "n"), "w": priced(vendor)}
        models = {"alias": {"targets": [{"provider": "v", "model": "m"}]}}
        limits = budget(estimate(small("alias", labels={"team": "blue"})), per=[per])
        async with serve(providers=providers, models=models, limits=limits, auth=auth) as headgate:
            assert not await refusal()
            assert (await refusal(**same)).startswith(f"{per}:")
            assert not await refusal(**other)


async def test_a_budget_is_for_those_alone_whom_its_patterns_say(serve: Serve) -> None:
    """What others spend is not counted."""
    limits = budget(estimate(small("v/n")), only={"model": ["v/n*"]})
    async with Vendor(answers_text) as vendor:
        async with serve(providers={"v": priced(vendor, "m", "n")}, limits=limits) as headgate:
            for _ in range(3):
                await headgate.stub.Generate(small())
            await headgate.stub.Generate(small("v/n"))
            assert (await failing(headgate.stub.Generate(small("v/n")))).reason == "BUDGET_EXCEEDED"
            await headgate.stub.Generate(small())


async def test_callers_have_budgets_of_their_own(serve: Serve) -> None:
    """Beside the configured ones, each key for itself."""
    poor, poor_entry = static_key(budgets=[{"amount": dollars(estimate(small())), "period": "day"}])
    rich, rich_entry = static_key()
    auth = {"pepper": PEPPER, "keys": {**poor_entry, **rich_entry}}
    async with Vendor(answers_text) as vendor, serve(providers={"v": priced(vendor)}, auth=auth) as headgate:
        await headgate.stub.Generate(small(), metadata=bearer(poor.text))
        refused = await failing(headgate.stub.Generate(small(), metadata=bearer(poor.text)))
        for _ in range(3):
            await headgate.stub.Generate(small(), metadata=bearer(rich.text))
    (violation,) = refused.details["QuotaFailure"].violations
    assert violation.subject == f"key:{poor.id}"


async def test_a_soft_budget_refuses_nobody_and_tells_once(serve: Serve, logged: LogLines) -> None:
    """Each threshold is told when it is passed, once for each counter in a period; so are amounts above the whole."""
    limits = budget(4 * USUAL, hard=False, soft=[0.5, 1, 1.5], per=["label:team"])
    async with Vendor(answers_text) as vendor, serve(providers={"v": priced(vendor)}, limits=limits) as headgate:
        for team in ("red", "blue"):
            for _ in range(8):
                await headgate.stub.Generate(small(labels={"team": team}))
        assert await spent(headgate, "month per label:team") == 16 * USUAL
    told = [line for line in logged.lines if line["event"] == "budget_threshold_passed"]
    assert [(line["subject"], line["share"]) for line in told] == [
        (f"label:team:{team}", share) for team in ("red", "blue") for share in ("0.5", "1", "1.5")
    ]
    assert [line["spent_usd"] for line in told[:3]] == ["0.00007", "0.00014", "0.00021"]
    assert {line["amount_usd"] for line in told} == {"0.00014"}


async def test_a_budget_that_is_used_up_is_told_once(serve: Serve, logged: LogLines) -> None:
    """Of however many calls are refused."""
    async with Vendor(answers_text) as vendor:
        async with serve(providers={"v": priced(vendor)}, limits=budget(estimate(small()))) as headgate:
            await headgate.stub.Generate(small())
            for _ in range(5):
                await failing(headgate.stub.Generate(small()))
    told = [line for line in logged.lines if line["event"] == "budget_exceeded"]
    assert [(line["budget"], line["subject"], line["log_level"]) for line in told] == [
        ("month", "all callers", "warning")
    ]


async def test_the_dearest_target_is_reserved_for(serve: Serve) -> None:
    """Of all that may answer, fallbacks included; and the dearest of its prices, such as that of writing a cache."""
    dear = {"m": {"prices": {**PRICES, "cache_write": "1.25", "cache_write_1h": "2"}}}
    request = small("fast")
    most = request.ByteSize() * 2 * INPUT + 100 * OUTPUT + 4
    models = {"fast": {"targets": [{"provider": name, "model": "m"} for name in ("cheap", "dear")]}}
    async with Vendor(answers_text) as vendor:
        providers = {
            "cheap": at(vendor, catalog={"m": {"prices": {"input": 0, "output": 0}}}),
            "dear": at(vendor, catalog=dear),
        }
        for amount, reason in ((most - 1, "BUDGET_EXCEEDED"), (most, "")):
            async with serve(providers=providers, models=models, limits=budget(amount)) as headgate:
                if reason:
                    assert (await failing(headgate.stub.Generate(request))).reason == reason
                else:
                    await headgate.stub.Generate(request)
                    assert await spent(headgate) == 0, "the cheap one answered"


async def test_what_costs_nothing_needs_no_money(serve: Serve) -> None:
    """A price of 0 is a known price."""
    async with Vendor(answers_text) as vendor:
        free = at(vendor, catalog={"m": {"prices": {"input": 0, "output": 0}}})
        async with serve(providers={"v": priced(vendor), "free": free}, limits=budget(estimate(small()))) as headgate:
            await headgate.stub.Generate(small())
            assert (await failing(headgate.stub.Generate(small()))).reason == "BUDGET_EXCEEDED"
            await headgate.stub.Generate(small("free/m"))


@pytest.mark.parametrize("currency", ["", "EUR"])
async def test_a_target_of_unknown_price_is_let_through_uncounted_or_passed_over(serve: Serve, currency: str) -> None:
    """By policy; prices in another currency are not known here."""
    euros = {"m": {"prices": {**PRICES, "currency": "EUR"}}} if currency else {}
    models = {"fast": {"targets": [{"provider": name, "model": "m"} for name in ("unknown", "v")]}}
    async with Vendor(answers_text) as vendor:
        providers = {"unknown": at(vendor, catalog=euros), "v": priced(vendor)}
        async with serve(providers=providers, models=models, limits=budget(NANOS)) as headgate:
            answer = await headgate.stub.Generate(small("fast"))
            assert answer.provider == "unknown"
            assert [warning.code for warning in answer.warnings if warning.field == "cost"] == (
                [] if currency else ["price-unknown"]
            )
            assert await spent(headgate) == 0
        strict = {**budget(NANOS), "unpriced": "refuse"}
        async with serve(providers=providers, models=models, limits=strict) as headgate:
            assert (await headgate.stub.Generate(small("fast"))).provider == "v"
            refused = await failing(headgate.stub.Generate(small("unknown/m")))
            assert refused.reason == "NO_ELIGIBLE_PROVIDER"
            assert "the price of unknown/m is not known" in refused.message
            assert await spent(headgate) == USUAL


async def test_a_vendor_s_own_word_on_cost_counts(serve: Serve) -> None:
    """Before all prices, and where none is known."""

    async def states(exchange: Exchange) -> None:
        await exchange.answer(200, {**completion(), "usage": {**completion()["usage"], "cost": 0.25}})

    async with Vendor(states) as vendor:
        router = {"host": "openrouter", "base_url": vendor.base_url, "api_key": "k"}
        async with serve(providers={"router": router}, limits=budget(NANOS)) as headgate:
            answer = await headgate.stub.Generate(small("router/x"))
            assert answer.cost.source == pb.COST_SOURCE_PROVIDER
            assert await spent(headgate) == 250_000_000


async def test_callers_own_vendor_keys_spend_no_money_of_ours(serve: Serve) -> None:
    """Nothing is reserved, and nothing counted."""
    auth = {"anonymous": True, "caller_provider_keys": True}
    async with Vendor(answers_text) as vendor:
        providers = {"v": priced(vendor, issuer="acme")}
        async with serve(providers=providers, limits=budget(1), auth=auth) as headgate:
            assert (await failing(headgate.stub.Generate(small()))).reason == "BUDGET_EXCEEDED"
            await headgate.stub.Generate(small(), metadata=(("x-provider-key-acme", "sk-own"),))
            assert await spent(headgate) == 0


async def test_a_provider_whose_budget_is_used_up_is_passed_over(serve: Serve) -> None:
    """The next target answers; the last one's refusal goes to the caller."""
    models = {"fast": {"targets": [{"provider": name, "model": "m"} for name in ("a", "b")]}}
    limits = budget(estimate(small("fast")), per=["provider"])
    async with Vendor(answers_text) as vendor:
        providers = {"a": priced(vendor), "b": priced(vendor)}
        async with serve(providers=providers, models=models, limits=limits) as headgate:
            assert [(await headgate.stub.Generate(small("fast"))).provider for _ in range(2)] == ["a", "b"]
            refused = await failing(headgate.stub.Generate(small("fast")))
    assert (refused.reason, refused.trailer["grpc-retry-pushback-ms"]) == ("BUDGET_EXCEEDED", "-1")


async def test_every_attempt_is_paid_for(serve: Serve) -> None:
    """What failed after it had generated, and the answer; a vendor's error costs nothing."""
    failures = iter([500, 200, 0])

    async def sometimes(exchange: Exchange) -> None:
        match next(failures):
            case 500:
                await exchange.answer(500, {"error": {"message": "no"}})
            case 200:
                await exchange.answer(200, {**completion(), "choices": "unreadable"})
            case _:
                await answers_text(exchange)

    models = {"fast": {"targets": [{"provider": name, "model": "m"} for name in ("a", "b", "c")]}}
    async with Vendor(sometimes) as vendor:
        providers = {name: priced(vendor) for name in ("a", "b", "c")}
        async with serve(providers=providers, models=models, limits=budget(NANOS)) as headgate:
            request = small("fast")
            await headgate.stub.Generate(request)
            total = await spent(headgate)
    unreadable = total - USUAL
    assert 0 < unreadable < estimate(request), "by a guess of its input: nobody knows what it wrote"


async def test_a_stream_that_was_left_costs_what_had_come(serve: Serve) -> None:
    """A token for four bytes, as the ledger has it, and not the whole of what it might have cost."""

    async def stalls(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("x" * 400)))
        await exchange.caller_closed.wait()

    async with Vendor(stalls) as vendor:
        async with serve(providers={"v": priced(vendor)}, limits=budget(10 * NANOS)) as headgate:
            call = headgate.stub.StreamGenerate(small(most=100_000))
            await anext(aiter(call))
            call.cancel()
            total = await spent(headgate)
    assert 100 * OUTPUT <= total < 100 * OUTPUT + small().ByteSize() * INPUT


async def test_hundreds_of_calls_at_once_never_spend_more_than_there_is(serve: Serve) -> None:
    """Exactly as many are let through as the budget has estimates."""
    proceed = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await proceed.wait()
        await answers(5, 100)(exchange)

    request = small()
    async with Vendor(waits) as vendor:
        limits = budget(estimate(request) * 40 + estimate(request) // 2)
        async with serve(providers={"v": priced(vendor, max_connections=500)}, limits=limits) as headgate:
            calls = [asyncio.ensure_future(headgate.stub.Generate(request).code()) for _ in range(300)]
            assert await eventually(lambda: sum(call.done() for call in calls) == 260, seconds=30)
            proceed.set()
            codes = await asyncio.gather(*calls)
            assert codes.count(grpc.StatusCode.OK) == 40 == len(vendor.exchanges)
            assert await spent(headgate) == 40 * (5 * INPUT + 100 * OUTPUT)


async def test_a_reload_keeps_what_was_spent(serve: Serve) -> None:
    """Amount and thresholds may change; the counter goes on."""
    async with Vendor(answers_text) as vendor:
        providers = {"v": priced(vendor)}
        async with serve(providers=providers, limits=budget(NANOS)) as headgate:
            await headgate.stub.Generate(small())
            config = headgate.application.runtime.config
            lower = type(config).model_validate(
                {**config.model_dump(), "limits": budget(estimate(small()) + USUAL - 1)}
            )
            await headgate.application.reload(lower)
            assert (await failing(headgate.stub.Generate(small()))).reason == "BUDGET_EXCEEDED"
            await headgate.stub.Generate(small(most=99))


async def test_embeddings_are_paid_for(serve: Serve) -> None:
    """Batch by batch."""

    async def embeds(exchange: Exchange) -> None:
        count = len(exchange.json["input"])
        data = [{"index": n, "embedding": [0.5, 0.5]} for n in range(count)]
        await exchange.answer(
            200, {"data": data, "model": "m", "usage": {"prompt_tokens": count, "total_tokens": count}}
        )

    request = pb.EmbedRequest(model="v/m", inputs=[pb.EmbedInput(text="x")] * 10)
    async with Vendor(embeds) as vendor:
        provider = priced(vendor, quirks={"embed_batch": 4})
        async with serve(providers={"v": provider}, limits=budget(request.ByteSize() * INPUT + 4)) as headgate:
            await headgate.stub.Embed(request)
            assert await spent(headgate) == 10 * INPUT
            assert (await failing(headgate.stub.Embed(request))).reason == "BUDGET_EXCEEDED"
    assert len(vendor.exchanges) == 3


async def test_without_budgets_no_price_matters(serve: Serve) -> None:
    """The policy for unknown prices is for calls that a budget applies to."""
    async with Vendor(answers_text) as vendor:
        limits = {"unpriced": "refuse", **budget(NANOS, only={"tenant": ["somebody"]})}
        async with serve(providers={"v": at(vendor)}, limits=limits) as headgate:
            assert (await headgate.stub.Generate(ask("v/m"))).candidates
