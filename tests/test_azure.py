"""Azure OpenAI: where its requests go, and what the configuration says of it."""

from __future__ import annotations

from typing import Any

import pytest
from headgate import v1 as pb
from openai import AsyncAzureOpenAI, AsyncOpenAI

from headgate_server.config import Provider
from headgate_server.providers import UnresolvedProvider, azure_openai, resolve
from headgate_server.providers.azure_openai import responses as azure_openai_responses
from headgate_server.providers.base import Target
from tests.conftest import Serve
from tests.headgate_process import ask
from tests.vendor import Exchange, Vendor, answers_text

VERSION = "2024-10-21"
EMBEDDING = {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}
EMBEDDINGS = {"object": "list", "data": [EMBEDDING], "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def target(base_url: str = "https://inventio.openai.azure.com", api_version: str = "", model: str = "chat") -> Target:
    """A deployment at that address."""
    provider = Provider.model_validate({"base_url": base_url, "api_version": api_version})
    host, _ = resolve("azure", provider)
    return Target(provider="azure", model=model, host=host, issuer=host.issuer)


def embed() -> pb.EmbedRequest:
    """A request for one embedding."""
    return pb.EmbedRequest(model="azure/m", inputs=[pb.EmbedInput(text="Hi")])


@pytest.mark.parametrize(
    ("base_url", "version", "chat", "responses"),
    [
        ("https://a.openai.azure.com", "", "/openai/v1/chat/completions", "/openai/v1/responses"),
        (
            "https://a.openai.azure.com/",
            VERSION,
            f"/openai/deployments/chat/chat/completions?api-version={VERSION}",
            f"/openai/responses?api-version={VERSION}",
        ),
        ("https://a.openai.azure.com/openai/v1/", "", "/chat/completions", "/responses"),
        (
            "https://a.openai.azure.com/openai/v1",
            "preview",
            "/chat/completions?api-version=preview",
            "/responses?api-version=preview",
        ),
        (
            "https://a.services.ai.azure.com/models",
            "2024-05-01-preview",
            "/chat/completions?api-version=2024-05-01-preview",
            "/responses?api-version=2024-05-01-preview",
        ),
    ],
)
def test_the_path_is_that_of_the_api_version(base_url: str, version: str, chat: str, responses: str) -> None:
    """The deployment stands in the path of dated APIs, but not of Responses; without a date it is v1."""
    place = target(base_url, version)
    assert azure_openai.encode(ask("azure/chat"), place, stream=False).path == chat
    assert azure_openai_responses.encode(ask("azure/chat"), place, stream=False).path == responses


def test_a_deployment_s_name_is_quoted() -> None:
    """It cannot leave its place in the path."""
    place = target(api_version=VERSION, model="a/../b?c d")
    assert azure_openai.encode(ask("x"), place, stream=False).path.startswith(
        "/openai/deployments/a%2F..%2Fb%3Fc%20d/chat/completions?"
    )


def test_opaque_values_and_options_are_azure_openai_s() -> None:
    """The issuer is the row's, whatever the provider is called."""
    host, adapter = resolve("emea", Provider.model_validate({"host": "azure", "base_url": "https://a.example"}))
    assert host.issuer == "azure-openai"
    assert adapter is azure_openai


@pytest.mark.parametrize(
    ("name", "settings", "field"),
    [
        ("azure", {}, "base_url"),
        ("openai", {"api_key": "sk", "api_version": VERSION}, "api_version"),
    ],
)
def test_what_azure_needs_is_only_azure_s(name: str, settings: dict[str, Any], field: str) -> None:
    """A resource has an address of its own; a dated API is nobody else's."""
    with pytest.raises(UnresolvedProvider) as unresolved:
        resolve(name, Provider.model_validate(settings))
    assert unresolved.value.field == field


async def answers(exchange: Exchange) -> None:
    """Azure in good health."""
    if "embeddings" in exchange.path:
        await exchange.answer(200, EMBEDDINGS)
    else:
        await answers_text(exchange)


@pytest.mark.parametrize("version", [VERSION, ""])
async def test_requests_are_addressed_as_the_vendor_s_own_client_addresses_them(serve: Serve, version: str) -> None:
    """Same path, query and key for chat and embeddings, as OpenAI's package calls the dated and the v1 API."""
    async with Vendor(answers) as vendor:
        address = f"http://127.0.0.1:{vendor.port}"
        client: AsyncOpenAI
        if version:
            client = AsyncAzureOpenAI(azure_endpoint=address, api_version=version, api_key="secret", max_retries=0)
        else:
            client = AsyncOpenAI(base_url=f"{address}/openai/v1/", api_key="secret", max_retries=0)
        async with client:
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
            await client.embeddings.create(model="m", input=["Hi"])
        azure = {"base_url": address, "api_version": version, "api_key": "secret"}
        async with serve(providers={"azure": azure}) as headgate:
            await headgate.stub.Generate(ask("azure/m"))
            await headgate.stub.Embed(embed())
    theirs, ours = vendor.exchanges[:2], vendor.exchanges[2:]
    assert [e.path for e in ours] == [e.path for e in theirs]
    assert [e.json for e in ours] == [e.json for e in theirs]
    assert [e.headers["api-key"] for e in ours] == ["secret"] * 2
    if version:
        assert [e.headers["api-key"] for e in theirs] == ["secret"] * 2
