"""Tokens by OAuth and of Entra ID: from a real token service, refreshed off the request path."""

from __future__ import annotations

import asyncio
import time
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import grpc
import pytest
import trustme

from headgate_server.config import Config, ConfigError, load
from headgate_server.credentials import BETWEEN_REJECTIONS_SECONDS, FOREVER_SECONDS, RefreshedToken
from headgate_server.errors import ProviderCredentialsRejected, ProviderUnreachable
from headgate_server.oauth import MAX_ANSWER_BYTES, OAuthTokens, client_credentials, managed_identity
from headgate_server.transports.aiohttp import AiohttpTransport
from tests.conftest import LogLines, Serve
from tests.headgate_process import ask, eventually, failing
from tests.transports import tls_of
from tests.vendor import Behaviour, Exchange, Vendor, answers_text

COGNITIVE = "https://cognitiveservices.azure.com"
PROXIES = {"HTTPS_PROXY": "http://proxy:3128", "HTTP_PROXY": "http://proxy:3128", "NO_PROXY": ".corp"}


def issuing(*lifetimes: float, **more: Any) -> Behaviour:
    """A token service that numbers its tokens; each lives as long as said, the last one's time for ever after."""
    issued = iter(range(1, 10_000))

    async def issues(exchange: Exchange) -> None:
        number = next(issued)
        lifetime = lifetimes[min(number, len(lifetimes)) - 1]
        await exchange.answer(200, {"access_token": f"token-{number}", "expires_in": lifetime, **more})

    return issues


def form(exchange: Exchange) -> dict[str, str]:
    """What was posted."""
    return dict(parse_qsl(exchange.body.decode(), strict_parsing=True))


def oauth(service: Vendor, **more: Any) -> dict[str, Any]:
    """A credential at that token service."""
    credential = {"type": "oauth", "token_url": f"{service.base_url}/token", "client_id": "gate", "client_secret": "s3"}
    return {**credential, **more}


def rack(vendor: Vendor, credential: dict[str, Any]) -> dict[str, Any]:
    """A self-hosted provider."""
    return {"adapter": "openai", "base_url": vendor.base_url, "credential": credential}


def borne(vendor: Vendor) -> list[str]:
    """The tokens that a vendor was shown."""
    return [exchange.headers["authorization"].removeprefix("Bearer ") for exchange in vendor.exchanges]


async def test_a_call_bears_a_token_that_was_fetched_before_it(serve: Serve) -> None:
    """By one form, with scope and audience; any number of calls need no second one."""
    async with Vendor(issuing(3600)) as service, Vendor(answers_text) as vendor:
        credential = oauth(service, scope="llm.read llm.write", audience="https://rack.example")
        async with serve(providers={"rack": rack(vendor, credential)}) as headgate:
            assert len(service.exchanges) == 1
            for _ in range(3):
                await headgate.stub.Generate(ask("rack/m"))
    assert borne(vendor) == ["token-1"] * 3
    (asked,) = service.exchanges
    assert (asked.method, asked.path) == ("POST", "/v1/token")
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
    assert form(asked) == {
        "grant_type": "client_credentials",
        "client_id": "gate",
        "client_secret": "s3",
        "scope": "llm.read llm.write",
        "audience": "https://rack.example",
    }


async def test_id_and_secret_may_stand_in_the_header(serve: Serve) -> None:
    """As RFC 6749 has it: each is encoded for a form before they are joined; the body then has neither."""
    async with Vendor(issuing(3600)) as service, Vendor(answers_text) as vendor:
        credential = oauth(service, auth_method="client_secret_basic", client_id="a:b", client_secret="p@ss w%rd")
        async with serve(providers={"rack": rack(vendor, credential)}) as headgate:
            await headgate.stub.Generate(ask("rack/m"))
    (asked,) = service.exchanges
    scheme, _, pair = asked.headers["authorization"].partition(" ")
    assert (scheme, b64decode(pair).decode()) == ("Basic", "a%3Ab:p%40ss+w%25rd")
    assert form(asked) == {"grant_type": "client_credentials"}


async def test_a_token_is_refreshed_before_it_expires(serve: Serve) -> None:
    """While calls go on, which see no expired token and wait for none."""
    async with Vendor(issuing(3, 3600)) as service, Vendor(answers_text) as vendor:
        async with serve(providers={"rack": rack(vendor, oauth(service))}) as headgate:
            began = time.monotonic()
            async with asyncio.timeout(10):
                while "token-2" not in borne(vendor):
                    await headgate.stub.Generate(ask("rack/m"))
            assert time.monotonic() - began < 3
    assert set(borne(vendor)) == {"token-1", "token-2"}


async def test_a_refresh_that_fails_leaves_the_token_and_is_logged(serve: Serve, logged: LogLines) -> None:
    """The line says whose token and why, in the service's words, and holds no secret."""
    issue = issuing(0.6)
    broken = asyncio.Event()

    async def breaks(exchange: Exchange) -> None:
        if len(service.exchanges) == 1:
            await issue(exchange)
        else:
            broken.set()
            await exchange.answer(503, {"error": "temporarily_unavailable", "error_description": "later"})

    async with Vendor(breaks) as service, Vendor(answers_text) as vendor:
        async with serve(providers={"rack": rack(vendor, oauth(service))}) as headgate:
            await broken.wait()
            await headgate.stub.Generate(ask("rack/m"))
            await eventually(lambda: any(line["event"] == "token_not_fetched" for line in logged.lines))
            await asyncio.sleep(0.4)
            expired = await failing(headgate.stub.Generate(ask("rack/m")))
    assert borne(vendor) == ["token-1"]
    line = next(line for line in logged.lines if line["event"] == "token_not_fetched")
    assert (line["provider"], line["reason"]) == ("rack", "PROVIDER_UNREACHABLE")
    assert line["detail"] == "HTTP 503: temporarily_unavailable: later"
    assert "s3" not in str(logged.lines)
    assert (expired.code, expired.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNREACHABLE")
    assert "later" not in expired.message


async def test_a_token_that_the_vendor_rejects_is_fetched_anew_but_not_at_every_call(serve: Serve) -> None:
    """A revoked token costs one call; a vendor that rejects every token does not cause a storm of them."""

    async def accepts_the_second(exchange: Exchange) -> None:
        if exchange.headers["authorization"] == "Bearer token-2" and len(vendor.exchanges) == 2:
            await answers_text(exchange)
        else:
            await exchange.answer(401, {"error": {"message": "no", "code": "invalid_token"}})

    async with Vendor(issuing(3600)) as service, Vendor(accepts_the_second) as vendor:
        async with serve(providers={"rack": rack(vendor, oauth(service))}) as headgate:
            refused = await failing(headgate.stub.Generate(ask("rack/m")))
            await service.exchange(2)
            await asyncio.sleep(0.05)
            await headgate.stub.Generate(ask("rack/m"))
            for _ in range(5):
                await failing(headgate.stub.Generate(ask("rack/m")))
            await asyncio.sleep(0.05)
    assert refused.reason == "PROVIDER_CREDENTIALS_REJECTED"
    assert borne(vendor) == ["token-1"] + ["token-2"] * 6
    assert len(service.exchanges) == 2


async def test_a_rejected_token_is_fetched_anew_again_after_a_minute() -> None:
    """The time between is measured, not counted in calls."""
    async with Vendor(issuing(3600)) as service, tokens_of(service) as tokens:
        credential = RefreshedToken("rack", tokens)
        credential.start()
        await credential.tried()
        for number, now in enumerate((1000.0, 1000.0 + BETWEEN_REJECTIONS_SECONDS), start=2):
            credential.rejected(now)
            await service.exchange(number)
            await asyncio.sleep(0.05)
            credential.rejected(now + BETWEEN_REJECTIONS_SECONDS - 0.1)
            await asyncio.sleep(0.05)
            assert len(service.exchanges) == number
        await credential.close()


@asynccontextmanager
async def tokens_of(service: Vendor) -> AsyncIterator[OAuthTokens]:
    """Tokens of that service, whose connections are closed afterwards."""
    tokens = OAuthTokens(partial(client_credentials, f"{service.base_url}/token", "gate", "s3"), AiohttpTransport(1))
    try:
        yield tokens
    finally:
        await tokens.close()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"error": "invalid_client"}, ProviderCredentialsRejected),
        (401, b"<html>", ProviderCredentialsRejected),
        (403, {}, ProviderCredentialsRejected),
        (429, {}, ProviderUnreachable),
        (500, b"\xff", ProviderUnreachable),
        (302, b"", ProviderUnreachable),
        (200, b"[" * 100_000, ProviderUnreachable),
        (200, b" " * (MAX_ANSWER_BYTES + 9), ProviderUnreachable),
        (200, {"access_token": ""}, ProviderUnreachable),
        (200, {"access_token": "a\r\nx: y"}, ProviderUnreachable),
        (200, {"access_token": 7}, ProviderUnreachable),
        (200, ["token"], ProviderUnreachable),
        (200, {"access_token": "t", "expires_in": 0}, ProviderUnreachable),
        (200, {"access_token": "t", "expires_on": "1700000000"}, ProviderUnreachable),
    ],
)
async def test_an_answer_without_a_token_is_told_from_a_refusal(status: int, body: Any, error: type) -> None:
    """Only what the service says of the credentials is their fault."""

    async def says(exchange: Exchange) -> None:
        await exchange.answer(status, body)

    async with Vendor(says) as service, tokens_of(service) as tokens:
        with pytest.raises(error):
            await tokens.fetch()


@pytest.mark.parametrize(
    ("answer", "lifetime"),
    [
        ({"expires_in": 120}, 120),
        ({"expires_in": "3599"}, 3599),
        ({"expires_on": lambda: str(int(time.time()) + 900)}, 900),
        ({}, FOREVER_SECONDS),
        ({"expires_in": "soon"}, FOREVER_SECONDS),
        ({"expires_in": "nan"}, FOREVER_SECONDS),
        ({"expires_in": 10**400}, FOREVER_SECONDS),
    ],
)
async def test_a_lifetime_is_read_in_each_of_its_forms(answer: dict[str, Any], lifetime: float) -> None:
    """In seconds, as text, as a moment; a service that says nothing is asked again after an hour."""

    async def says(exchange: Exchange) -> None:
        given = {name: value() if callable(value) else value for name, value in answer.items()}
        await exchange.answer(200, {"access_token": "t", **given})

    async with Vendor(says) as service, tokens_of(service) as tokens:
        token = await tokens.fetch()
    assert token.headers == {"authorization": "Bearer t"}
    assert token.expires_at - time.monotonic() == pytest.approx(lifetime, abs=2)


async def test_the_token_service_has_authorities_of_its_own(serve: Serve, tmp_path: Path) -> None:
    """A private authority of the service's needs no trust for the vendor, nor the other way round."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with Vendor(issuing(3600), tls=tls_of(authority, "127.0.0.1")) as service, Vendor(answers_text) as vendor:
        trusted = oauth(service, ca_file=tmp_path / "ca.pem")
        providers = {"rack": rack(vendor, trusted), "stranger": rack(vendor, oauth(service))}
        async with serve(providers=providers) as headgate:
            await headgate.stub.Generate(ask("rack/m"))
            failed = await failing(headgate.stub.Generate(ask("stranger/m")))
    assert failed.reason == "PROVIDER_UNREACHABLE"
    assert borne(vendor) == ["token-1"]


# Entra ID


def azure(vendor: Vendor, **credential: Any) -> dict[str, Any]:
    """A provider that is Azure OpenAI, with a token of Entra ID."""
    return {"base_url": f"http://127.0.0.1:{vendor.port}", "credential": {"type": "entra", **credential}}


async def test_an_application_of_entra_has_a_secret(serve: Serve) -> None:
    """Azure gets its token as a bearer's, and no key."""
    async with Vendor(issuing(3600)) as service, Vendor(answers_text) as vendor:
        entra = {"authority": service.base_url, "tenant_id": "tenant-1", "client_id": "app-1", "client_secret": "s3"}
        async with serve(providers={"azure": azure(vendor, **entra)}) as headgate:
            await headgate.stub.Generate(ask("azure/chat"))
    assert borne(vendor) == ["token-1"]
    assert "api-key" not in vendor.exchanges[0].headers
    (asked,) = service.exchanges
    assert asked.path == "/v1/tenant-1/oauth2/v2.0/token"
    assert form(asked) == {
        "grant_type": "client_credentials",
        "client_id": "app-1",
        "client_secret": "s3",
        "scope": f"{COGNITIVE}/.default",
    }


async def test_a_federated_token_stands_for_the_secret_and_is_read_each_time(serve: Serve, tmp_path: Path) -> None:
    """Kubernetes renews the file."""
    file = tmp_path / "token"
    file.write_text("assertion-1\n")
    async with Vendor(issuing(0.3, 3600)) as service, Vendor(answers_text) as vendor:
        entra = {"authority": service.base_url, "tenant_id": "t", "client_id": "app", "federated_token_file": file}
        async with serve(providers={"azure": azure(vendor, **entra)}) as headgate:
            file.write_text("assertion-2")
            await service.exchange(2)
            await headgate.stub.Generate(ask("azure/chat"))
    assert [form(asked)["client_assertion"] for asked in service.exchanges] == ["assertion-1", "assertion-2"]
    assert form(service.exchanges[0])["client_assertion_type"].endswith(":jwt-bearer")
    assert "client_secret" not in form(service.exchanges[0])


async def test_a_federated_token_that_is_gone_fails_its_provider_alone(serve: Serve, tmp_path: Path) -> None:
    """And nothing else, whatever stands in the file's place."""
    for place in (tmp_path / "gone", tmp_path):
        async with Vendor(issuing(3600)) as service, Vendor(answers_text) as vendor:
            entra = {"authority": service.base_url, "tenant_id": "t", "client_id": "a", "federated_token_file": place}
            providers = {"azure": azure(vendor, **entra), "demo": {"adapter": "mock"}}
            async with serve(providers=providers) as headgate:
                failed = await failing(headgate.stub.Generate(ask("azure/chat")))
                await headgate.stub.Generate(ask("demo/echo"))
        assert failed.reason == "PROVIDER_CREDENTIALS_REJECTED"
        assert str(tmp_path) not in failed.message


@pytest.mark.parametrize(
    ("settings", "headers", "query"),
    [
        ({}, {"metadata": "true"}, {"api-version": "2018-02-01", "resource": COGNITIVE}),
        (
            {"client_id": "mine", "scope": "https://ai.azure.com/.default"},
            {"metadata": "true"},
            {"api-version": "2018-02-01", "resource": "https://ai.azure.com", "client_id": "mine"},
        ),
        (
            {"identity_header": "h3ader"},
            {"x-identity-header": "h3ader"},
            {"api-version": "2019-08-01", "resource": COGNITIVE},
        ),
    ],
    ids=["system-assigned", "user-assigned", "app-service"],
)
async def test_a_managed_identity_is_asked_of_the_machine(
    serve: Serve, settings: dict[str, str], headers: dict[str, str], query: dict[str, str]
) -> None:
    """Of a virtual machine's metadata service, or of App Service's, which wants a header."""
    async with Vendor(issuing(3600)) as service, Vendor(answers_text) as vendor:
        endpoint = f"{service.base_url}/identity"
        async with serve(providers={"azure": azure(vendor, identity_endpoint=endpoint, **settings)}) as headgate:
            await headgate.stub.Generate(ask("azure/chat"))
    assert borne(vendor) == ["token-1"]
    (asked,) = service.exchanges
    assert asked.method == "GET"
    assert headers.items() <= asked.headers.items()
    assert urlsplit(asked.path).path == "/v1/identity"
    assert dict(parse_qsl(urlsplit(asked.path).query)) == query


def test_a_virtual_machine_s_metadata_service_is_asked_by_default(tmp_path: Path) -> None:
    """At its link-local address, without any proxy."""
    credential = loaded(tmp_path, "{type: entra}", PROXIES).providers["rack"].credential
    assert credential is not None
    assert credential.type == "entra"
    assert credential.proxy is None
    request = managed_identity(credential.identity_endpoint, scope=credential.scope)
    assert request.url.startswith("http://169.254.169.254/metadata/identity/oauth2/token?")


# Configuration


def loaded(folder: Path, credential: str, environment: dict[str, str] | None = None) -> Config:
    """The configuration of one provider `rack` with that credential."""
    file = folder / "headgate.yaml"
    provider = "{adapter: openai, base_url: 'http://127.0.0.1:1/v1', credential: " + credential + "}"
    file.write_text(f"providers:\n  rack: {provider}\n")
    return load(file, environment or {})


OAUTH = "{type: oauth, token_url: 'https://id.example/token', client_id: gate"


def test_a_secret_is_read_from_its_file_and_never_prints(tmp_path: Path) -> None:
    """Relative to the configuration; white space around it is not of it."""
    (tmp_path / "secret").write_text("\ns3cret-word\n")
    config = loaded(tmp_path, OAUTH + ", client_secret_file: secret}")
    credential = config.providers["rack"].credential
    assert credential is not None
    assert credential.type == "oauth"
    assert credential.client_secret.get_secret_value() == "s3cret-word"
    assert "s3cret-word" not in repr(config) + config.model_dump_json()


@pytest.mark.parametrize(
    ("address", "proxy"),
    [("https://id.example/token", "http://proxy:3128"), ("https://id.corp/t", None), ("http://127.0.0.1:1/t", None)],
)
def test_the_way_to_the_token_service_takes_its_own_proxy(tmp_path: Path, address: str, proxy: str | None) -> None:
    """Though the provider, on this machine, is reached without one."""
    config = loaded(tmp_path, f"{{type: oauth, token_url: '{address}', client_id: a, client_secret: b}}", PROXIES)
    provider = config.providers["rack"]
    assert provider.proxy is None
    assert provider.credential is not None
    assert provider.credential.type == "oauth"
    assert provider.credential.proxy == proxy


@pytest.mark.parametrize(
    ("credential", "key", "reason"),
    [
        ("{client_id: a}", "credential.type", "must be one of 'google', 'entra', 'oauth'"),
        ("{type: azure}", "credential.type", "must be one of 'google', 'entra', 'oauth'"),
        (OAUTH + "}", "credential.client_secret", "is required"),
        (OAUTH + ", client_secret: x, scpe: y}", "credential.scpe", "is not a known key; did you mean scope?"),
        (OAUTH + ", client_secret: x, client_secret_file: y}", "credential.client_secret_file", "one place"),
        (OAUTH + ", client_secret_file: none}", "credential.client_secret_file", "No such file"),
        (OAUTH + ", client_secret: x, ca_file: none}", "credential.ca_file", "No such file"),
        ("{type: oauth, token_url: id.example, client_id: a, client_secret: b}", "credential.token_url", "URL"),
        ("{type: entra, client_secret: x}", "credential", "needs tenant_id and client_id"),
        (
            "{type: entra, tenant_id: t, client_id: a, federated_token_file: none}",
            "credential.federated_token_file",
            "No such file",
        ),
        ("{type: entra, tenant_id: a/b}", "credential.tenant_id", "match pattern"),
    ],
)
def test_a_credential_that_cannot_be_used_is_named(tmp_path: Path, credential: str, key: str, reason: str) -> None:
    """By the key in the file, in one line."""
    with pytest.raises(ConfigError) as unusable:
        loaded(tmp_path, credential)
    (problem,) = unusable.value.problems
    assert problem.key == f"providers.rack.{key}"
    assert reason in problem.reason
    assert problem.line == 2


def test_a_provider_may_be_called_credential(tmp_path: Path) -> None:
    """What is wrong with it is named by its own keys."""
    file = tmp_path / "headgate.yaml"
    file.write_text("providers:\n  credential: {adapter: openai, base_url: nowhere}\n")
    with pytest.raises(ConfigError) as unusable:
        load(file, {})
    assert [problem.key for problem in unusable.value.problems] == ["providers.credential.base_url"]
