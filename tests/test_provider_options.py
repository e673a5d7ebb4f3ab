"""What a caller's provider_options can never change: which model answers, and whether in a stream."""

from __future__ import annotations

import pytest
from headgate import v1 as pb

from tests.conftest import Serve
from tests.headgate_process import ask, failing
from tests.identity.callers import PEPPER, bearer, static_key
from tests.vendor import Vendor, answers_text

GENERATING = ["openai", "openai-responses", "anthropic", "cohere", "gemini"]
EMBEDDING = ["openai", "cohere", "gemini"]


@pytest.mark.parametrize("adapter", GENERATING)
@pytest.mark.parametrize("member", ["model", "Model", "models", "stream", "stream_options", "route"])
async def test_what_the_gateway_owns_is_refused_by_its_path(serve: Serve, adapter: str, member: str) -> None:
    """Permissions, limits, prices and the log go by the request's own fields; the vendor hears nothing of it."""
    async with Vendor(answers_text) as vendor:
        async with serve(providers={"v": {"adapter": adapter, "base_url": vendor.base_url}}) as headgate:
            for value in ('"other"', "null"):
                request = ask("v/m", provider_options={"v": f'{{"{member}": {value}}}'})
                for call in (headgate.stub.Generate(request), headgate.stub.StreamGenerate(request)):
                    failure = await failing(call)
                    assert failure.reason == "INVALID_REQUEST"
                    assert failure.fields == [f'provider_options["v"].{member}']
    assert vendor.exchanges == []


@pytest.mark.parametrize("adapter", EMBEDDING)
async def test_embeddings_keep_their_model_too(serve: Serve, adapter: str) -> None:
    """The options of an embedding are held to the same."""
    async with Vendor(answers_text) as vendor:
        async with serve(providers={"v": {"adapter": adapter, "base_url": vendor.base_url}}) as headgate:
            inputs = [pb.EmbedInput(text="a")]
            request = pb.EmbedRequest(model="v/m", inputs=inputs, provider_options={"v": '{"model": "other"}'})
            assert (await failing(headgate.stub.Embed(request))).fields == ['provider_options["v"].model']
    assert vendor.exchanges == []


async def test_a_key_for_one_model_reaches_no_other_by_options(serve: Serve) -> None:
    """The vendor is asked for the allowed model, or for none."""
    key, keys = static_key(allowed_models=["v/cheap"])
    async with Vendor(answers_text) as vendor:
        providers = {"v": {"adapter": "openai", "base_url": vendor.base_url}}
        auth = {"anonymous": False, "pepper": PEPPER, "keys": keys}
        async with serve(providers=providers, auth=auth) as headgate:
            request = ask("v/cheap", provider_options={"v": '{"model": "dear", "user": "u"}'})
            await failing(headgate.stub.Generate(request, metadata=bearer(key.text)))
            request.provider_options["v"] = '{"user": "u"}'
            await headgate.stub.Generate(request, metadata=bearer(key.text))
    assert [(exchange.json["model"], exchange.json["user"]) for exchange in vendor.exchanges] == [("cheap", "u")]
