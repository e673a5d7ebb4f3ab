"""Whom limits are for, through the front door: targets by whatever name, labels, roles; and what is sent in parts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from headgate import v1 as pb

from tests.conftest import Serve
from tests.headgate_process import ask, eventually, failing
from tests.identity.callers import PEPPER, bearer, static_key
from tests.vendor import Exchange, Vendor, answers_text, at

MINUTE = 60


def limits(**rule: Any) -> dict[str, Any]:
    """A limits section of one rule."""
    return {"rules": [{"window": MINUTE, **rule}]}


@pytest.mark.parametrize("by", ["per", "only"])
async def test_a_target_s_limit_holds_by_whatever_name_it_is_asked(serve: Serve, by: str) -> None:
    """By an alias, by provider/model, as a fallback: it is one model of the vendor's; others are not touched."""
    scope = {"per": ["target"]} if by == "per" else {"only": {"target": ["v/m"]}}
    models = {"alias": {"targets": [{"provider": "v", "model": "m"}]}}
    async with Vendor(answers_text) as vendor:
        providers = {"v": at(vendor), "w": at(vendor)}
        limited = limits(unit="requests", limit=3, **scope)
        async with serve(providers=providers, models=models, limits=limited) as headgate:
            fallback = pb.RoutingPolicy(fallbacks=["v/m"], denied_providers=["w"])
            for request in (ask("alias"), ask("v/m"), ask("w/m", routing=fallback)):
                await headgate.stub.Generate(request)
            for name in ("alias", "v/m"):
                refused = await failing(headgate.stub.Generate(ask(name)))
                assert refused.reason == "RATE_LIMITED"
            await headgate.stub.Generate(ask("v/other"))
            await headgate.stub.Generate(ask("w/m"))


async def test_a_label_s_values_have_limits_of_their_own(serve: Serve) -> None:
    """And calls without the label one together."""
    async with Vendor(answers_text) as vendor:
        limited = limits(unit="requests", limit=1, per=["label:team"])
        async with serve(providers={"v": at(vendor)}, limits=limited) as headgate:
            for labels in ({"team": "red"}, {"team": "blue", "other": "x"}, {}):
                await headgate.stub.Generate(ask("v/m", labels=labels))
                refused = await failing(headgate.stub.Generate(ask("v/m", labels=labels)))
                (violation,) = refused.details["QuotaFailure"].violations
                assert violation.subject == f"label:team:{labels.get('team', 'none')}"


async def test_a_limit_may_be_for_certain_roles(serve: Serve) -> None:
    """Whoever has one of them is limited; who has others, or none, is not."""
    trial, trial_entry = static_key(roles=["user", "trial-2026"])
    paying, paying_entry = static_key(roles=["user"])
    auth = {"pepper": PEPPER, "keys": {**trial_entry, **paying_entry}}
    async with Vendor(answers_text) as vendor:
        limited = limits(unit="requests", limit=1, per=["key"], only={"role": ["trial-*"]})
        async with serve(providers={"v": at(vendor)}, limits=limited, auth=auth) as headgate:
            await headgate.stub.Generate(ask("v/m"), metadata=bearer(trial.text))
            assert (
                await failing(headgate.stub.Generate(ask("v/m"), metadata=bearer(trial.text)))
            ).reason == "RATE_LIMITED"
            for _ in range(3):
                await headgate.stub.Generate(ask("v/m"), metadata=bearer(paying.text))


async def test_all_batches_of_an_embedding_are_reserved_at_once(serve: Serve) -> None:
    """A provider's limit of requests is not passed by one call that is sent in several."""

    async def embeds(exchange: Exchange) -> None:
        data = [{"index": n, "embedding": [0.5]} for n in range(len(exchange.json["input"]))]
        await exchange.answer(200, {"data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}})

    async with Vendor(embeds) as vendor:
        providers = {"v": at(vendor, quirks={"embed_batch": 2})}
        limited = limits(unit="requests", limit=5, per=["provider"])
        async with serve(providers=providers, limits=limited) as headgate:
            await headgate.stub.Embed(pb.EmbedRequest(model="v/m", inputs=[pb.EmbedInput(text="x")] * 5))
            refused = await failing(
                headgate.stub.Embed(pb.EmbedRequest(model="v/m", inputs=[pb.EmbedInput(text="x")] * 5))
            )
            await headgate.stub.Embed(pb.EmbedRequest(model="v/m", inputs=[pb.EmbedInput(text="x")] * 4))
    assert "5 requests are allowed in 60 s, and the call may take 3" in refused.message
    assert len(vendor.exchanges) == 5


async def test_a_hedge_beside_a_call_that_waits_for_its_place_needs_room(serve: Serve) -> None:
    """The first has sent nothing yet, and may still use all that is reserved."""
    proceed = {"a": asyncio.Event(), "b": asyncio.Event()}

    def waits(name: str) -> Any:
        async def behave(exchange: Exchange) -> None:
            await proceed[name].wait()
            await answers_text(exchange)

        return behave

    async with Vendor(waits("a")) as a, Vendor(waits("b")) as b:
        one_place = {"concurrency": {"limit": 1}}
        targets = [{"provider": name, "model": "x"} for name in ("a", "b")]
        async with serve(
            providers={"a": at(a, **one_place), "b": at(b, **one_place)},
            models={"m": {"targets": targets, "hedge_delay": 0.3}},
            limits=limits(unit="output_tokens", limit=150, only={"model": ["m"]}),
        ) as headgate:
            blockers = [asyncio.ensure_future(headgate.stub.Generate(ask(name))) for name in ("a/x", "b/x")]
            await a.exchange()
            await b.exchange()
            request = ask("m", config=pb.GenerationConfig(max_output_tokens=100))
            hedged = asyncio.ensure_future(headgate.stub.Generate(request))
            states = headgate.application.runtime.providers["a"].states
            assert await eventually(lambda: states.of("x").places.waiting == 1)
            proceed["b"].set()
            await blockers[1]
            await asyncio.sleep(0.5)
            proceed["a"].set()
            answer = await hedged
            await blockers[0]
    assert answer.provider == "a"
    assert (len(a.exchanges), len(b.exchanges)) == (2, 1), "there was no room for a second"
