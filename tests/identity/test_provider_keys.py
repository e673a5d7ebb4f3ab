"""A caller's own vendor key: taken if the operator allows it, for the calls of that issuer, and the caller's affair."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from headgate import v1 as pb

from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, ask, failing, until_failure
from tests.identity.callers import PEPPER, bearer, static_key, who
from tests.vendor import Exchange, Vendor, answers_text

OWN = "sk-own-key-of-the-caller"
OPERATORS = "sk-key-of-the-operator"
REFUSAL = {"error": {"message": f"Incorrect API key provided: {OWN}", "type": "auth", "code": "invalid_api_key"}}


async def refuses(exchange: Exchange) -> None:
    """A vendor that repeats the key that it refuses."""
    await exchange.answer(401, REFUSAL)


@asynccontextmanager
async def allowing(serve: Serve, vendor: Vendor, **settings: Any) -> AsyncIterator[Headgate]:
    """A server that lets callers bring keys, with this vendor as `v` of issuer openai."""
    provider = {"host": "openai", "base_url": vendor.base_url, "api_key": OPERATORS, **settings}
    auth = {"anonymous": True, "caller_provider_keys": True}
    async with serve(providers={"v": provider}, auth=auth) as headgate:
        yield headgate


async def test_the_callers_key_goes_instead_of_the_operators(serve: Serve) -> None:
    """For that call alone; the next one without it is the operator's again."""
    async with Vendor(answers_text) as vendor, allowing(serve, vendor) as headgate:
        await who(headgate, (("x-provider-key-openai", OWN),), "v/m")
        async for _ in headgate.stub.StreamGenerate(ask("v/m"), metadata=(("x-provider-key-openai", OWN),)):
            pass
        await headgate.stub.Generate(ask("v/m"))
    sent = [exchange.headers["authorization"] for exchange in vendor.exchanges]
    assert sent == [f"Bearer {OWN}", f"Bearer {OWN}", f"Bearer {OPERATORS}"]
    assert OWN not in str([exchange.body for exchange in vendor.exchanges])


async def test_two_keys_for_one_issuer_are_refused(serve: Serve) -> None:
    """A proxy may have looked at the other one."""
    async with Vendor(answers_text) as vendor, allowing(serve, vendor) as headgate:
        twice = (("x-provider-key-openai", OWN), ("x-provider-key-openai", "sk-another"))
        assert (await failing(who(headgate, twice, "v/m"))).reason == "INVALID_REQUEST"
        others = (("x-provider-key-openai", OWN), ("x-other", "1"), ("x-other", "2"))
        await who(headgate, others, "v/m")
    assert len(vendor.exchanges) == 1


async def test_a_key_goes_to_its_issuer_alone(serve: Serve) -> None:
    """A provider of another issuer gets the operator's key, also as the fallback of the same call."""
    async with Vendor(refuses_with(500)) as one, Vendor(answers_text) as other:
        providers = {
            "one": {"host": "openai", "base_url": one.base_url, "api_key": OPERATORS},
            "other": {"adapter": "openai", "issuer": "Mine", "base_url": other.base_url, "api_key": OPERATORS},
        }
        auth = {"anonymous": True, "caller_provider_keys": True}
        async with serve(providers=providers, auth=auth) as headgate:
            request = ask("one/m", routing=pb.RoutingPolicy(fallbacks=["other/m"]))
            await headgate.stub.Generate(request, metadata=(("x-provider-key-openai", OWN),))
            await who(headgate, (("x-provider-key-mine", OWN),), "other/m")
    assert {exchange.headers["authorization"] for exchange in one.exchanges} == {f"Bearer {OWN}"}
    assert [exchange.headers["authorization"] for exchange in other.exchanges] == [
        f"Bearer {OPERATORS}",
        f"Bearer {OWN}",
    ]


def refuses_with(status: int) -> Any:
    """A vendor that answers this status."""

    async def behave(exchange: Exchange) -> None:
        await exchange.answer(status, {"error": {"message": "no", "type": "error"}})

    return behave


@pytest.mark.parametrize("method", ["Generate", "StreamGenerate"])
async def test_a_callers_key_that_the_vendor_refuses_is_the_callers_affair(
    serve: Serve, logged: LogLines, method: str
) -> None:
    """PERMISSION_DENIED, nothing bad of the provider's health, and the key in no log."""
    async with Vendor(refuses) as vendor, allowing(serve, vendor) as headgate:
        call = getattr(headgate.stub, method)
        for _ in range(30):
            failed = await failing(call(ask("v/m"), metadata=(("x-provider-key-openai", OWN),)))
            assert (failed.code, failed.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_CREDENTIALS_REJECTED")
            assert (failed.facts["provider"], failed.facts["http_status"]) == ("v", "401")
        (health,) = (await headgate.stub.Health(pb.HealthRequest())).providers
        assert health.state not in (pb.SERVING_STATE_DEGRADED, pb.SERVING_STATE_NOT_SERVING)
        assert health.circuit == pb.CIRCUIT_STATE_CLOSED
        assert (await failing(call(ask("v/m")))).reason == "PROVIDER_CREDENTIALS_REJECTED"
    assert OWN not in str(logged.lines)


async def test_a_callers_own_limit_at_the_vendor_is_not_the_targets(serve: Serve) -> None:
    """Its 429 does not make others wait."""

    async def limits(exchange: Exchange) -> None:
        if exchange.headers["authorization"] == f"Bearer {OWN}":
            error = {"error": {"message": "slow down", "type": "rate"}}
            await exchange.answer(429, error, {"retry-after": "600"})
        else:
            await answers_text(exchange)

    async with Vendor(limits) as vendor, allowing(serve, vendor) as headgate:
        failed = await failing(who(headgate, (("x-provider-key-openai", OWN),), "v/m"))
        assert failed.reason == "PROVIDER_RATE_LIMITED"
        assert (await headgate.stub.Generate(ask("v/m"))).candidates


async def test_a_key_that_is_not_allowed_is_refused_and_not_ignored(serve: Serve, logged: LogLines) -> None:
    """Ignored, the call would go out on the operator's bill."""
    async with Vendor(answers_text) as vendor:
        provider = {"host": "openai", "base_url": vendor.base_url, "api_key": OPERATORS}
        async with serve(providers={"v": provider}) as headgate:
            failed = await failing(who(headgate, (("x-provider-key-openai", OWN),), "v/m"))
            assert (failed.code, failed.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_CREDENTIALS_REJECTED")
    assert vendor.exchanges == []
    assert OWN not in str(logged.lines)


@pytest.mark.parametrize(
    ("name", "value"), [("x-provider-key-opnai", OWN), ("x-provider-key-", OWN), ("x-provider-key-openai", "  ")]
)
async def test_a_key_that_cannot_be_used_is_an_invalid_request(serve: Serve, name: str, value: str) -> None:
    """Of an issuer that nobody here is, or empty; the error names the metadata."""
    async with Vendor(answers_text) as vendor, allowing(serve, vendor) as headgate:
        failed = await failing(who(headgate, ((name, value),), "v/m"))
    assert (failed.reason, failed.fields) == ("INVALID_REQUEST", [name])
    assert vendor.exchanges == []


async def test_a_key_for_a_vendor_lets_nobody_in(serve: Serve) -> None:
    """It is checked after who calls."""
    key, keys = static_key()
    async with Vendor(answers_text) as vendor:
        provider = {"host": "openai", "base_url": vendor.base_url, "api_key": OPERATORS}
        auth = {"anonymous": False, "caller_provider_keys": True, "pepper": PEPPER, "keys": keys}
        async with serve(providers={"v": provider}, auth=auth) as headgate:
            own = ("x-provider-key-openai", OWN)
            assert (await failing(who(headgate, (own,), "v/m"))).reason == "MISSING_CREDENTIALS"
            await who(headgate, (*bearer(key.text), own), "v/m")
    assert len(vendor.exchanges) == 1
    assert key.text not in str(vendor.exchanges[0].headers)


async def test_the_wrong_key_within_a_stream_is_told_alike(serve: Serve) -> None:
    """Some answer 200 and say it in the first event."""

    async def says_so(exchange: Exchange) -> None:
        await exchange.stream([{"error": {"message": "no", "type": "auth", "code": "invalid_api_key"}}])

    async with Vendor(says_so) as vendor, allowing(serve, vendor) as headgate:
        events, failed = await until_failure(
            headgate.stub.StreamGenerate(ask("v/m"), metadata=(("x-provider-key-openai", OWN),))
        )
    assert (events, failed.reason) == ([], "CALLER_CREDENTIALS_REJECTED")
