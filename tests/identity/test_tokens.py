"""Tokens of identity providers: whom they stand for, and keys that change."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from headgate import v1 as pb

from headgate_server.config import Config
from headgate_server.identity.jwt import verification_keys
from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, eventually, failing
from tests.identity.callers import AUDIENCE, ISSUER, MOCK, IdentityProvider, bearer, who
from tests.vendor import Exchange, Vendor


@asynccontextmanager
async def taking(
    serve: Serve, provider: IdentityProvider, providers: Any = MOCK, **settings: Any
) -> AsyncIterator[Headgate]:
    """A server that takes this provider's tokens alone."""
    auth = {"anonymous": False, "jwt": [provider.settings(**settings)], "failures": {"limit": 0}}
    async with serve(providers=providers, auth=auth) as headgate:
        yield headgate


async def refusal(headgate: Headgate, token: str) -> str:
    return (await failing(who(headgate, bearer(token)))).reason


async def test_tenant_and_subject_come_from_claims(serve: Serve, logged: LogLines) -> None:
    """The subject is told apart by its issuer."""
    provider = IdentityProvider()
    async with provider.server, taking(serve, provider) as headgate:
        await who(headgate, bearer(provider.token(tenant="t-1", sub="bob")))
    (line,) = logged.calls
    assert (line["tenant"], line["key_id"]) == ("t-1", f"{ISSUER}#bob")


async def test_a_service_account_of_kubernetes_is_its_namespace(serve: Serve, logged: LogLines) -> None:
    """A claim is found by its path; the key set is asked for with the server's own token, read anew."""
    provider = IdentityProvider("https://kubernetes.default.svc.cluster.local")
    settings = {"tenant_claim": ["kubernetes.io", "namespace"]}
    claims: dict[str, Any] = {"kubernetes.io": {"namespace": "search", "serviceaccount": {"name": "indexer"}}}
    async with provider.server, taking(serve, provider, **settings) as headgate:
        token = provider.token(tenant=None, sub="system:serviceaccount:search:indexer", **claims)
        await who(headgate, bearer(token))
        assert await refusal(headgate, provider.token(tenant="search")) == "INVALID_CREDENTIALS"
    assert logged.calls[0]["tenant"] == "search"


async def test_the_key_set_is_asked_for_with_a_token_that_is_read_anew(serve: Serve, tmp_path: Path) -> None:
    """Kubernetes renews it."""
    file = tmp_path / "token"
    file.write_text("first\n")
    provider = IdentityProvider()
    settings = {"bearer_token_file": str(file), "jwks_refresh": 0.05}
    async with provider.server, taking(serve, provider, **settings) as headgate:
        await who(headgate, bearer(provider.token()))
        file.write_text("second")
        seen = len(provider.server.exchanges)
        await provider.server.exchange(seen + 2)
    shown = [exchange.headers["authorization"] for exchange in provider.server.exchanges]
    assert (shown[0], shown[-1]) == ("Bearer first", "Bearer second")


async def test_a_new_signing_key_is_fetched_when_a_token_names_it(serve: Serve, logged: LogLines) -> None:
    """Without waiting for the next refresh; the key that is no longer published ends, for known tokens too."""
    provider = IdentityProvider()
    async with provider.server, taking(serve, provider) as headgate:
        old = provider.token()
        await who(headgate, bearer(old))
        provider.rotate("second")
        await who(headgate, bearer(provider.token("second")))
        assert await refusal(headgate, old) == "INVALID_CREDENTIALS"
    assert [line["key_ids"] for line in logged.lines if line["event"] == "signing_keys_changed"] == [
        ["first"],
        ["second"],
    ]


async def test_made_up_key_ids_do_not_make_a_storm_of_fetches(serve: Serve) -> None:
    """Anybody can send them; one fetch in five seconds is all they get."""
    provider = IdentityProvider()
    async with provider.server, taking(serve, provider) as headgate:
        for number in range(30):
            forged = jwt.encode(provider.claims(), provider.keys["first"], "RS256", headers={"kid": f"x{number}"})
            assert await refusal(headgate, forged) == "INVALID_CREDENTIALS"
        assert 2 <= len(provider.server.exchanges) <= 4


@pytest.mark.parametrize(
    "answer",
    [
        (500, {}),
        (200, b"<html>"),
        (200, b"[" * 100_000),
        (200, {"keys": []}),
        (200, {"keys": [{"kty": "oct", "k": "AA"}]}),
    ],
    ids=["error", "nonsense", "too deep", "empty", "secret"],
)
async def test_the_last_keys_go_on_while_the_provider_is_gone(serve: Serve, logged: LogLines, answer: Any) -> None:
    """Errors, nonsense and empty sets do not take keys away, and are told."""
    provider = IdentityProvider()

    async def failing_later(exchange: Exchange) -> None:
        first = len(provider.server.exchanges) == 1
        await exchange.answer(*((200, {"keys": provider.published}) if first else answer))

    provider.server.behave = failing_later
    async with provider.server, taking(serve, provider, jwks_refresh=0.02) as headgate:
        await provider.server.exchange(2)
        await eventually(lambda: any(line["event"] == "signing_keys_not_fetched" for line in logged.lines))
        assert (await who(headgate, bearer(provider.token()))).candidates
        assert (await who(headgate, bearer(provider.token(sub="bob")))).candidates


async def test_a_provider_that_is_down_at_the_start_stops_nobody_else(serve: Serve) -> None:
    """Its tokens are refused meanwhile, and those of another are taken."""
    down, up = IdentityProvider("https://down.example.com"), IdentityProvider()

    async def fails(exchange: Exchange) -> None:
        await exchange.answer(503, {})

    down.server.behave = fails
    async with down.server, up.server:
        auth = {"anonymous": False, "jwt": [down.settings(), up.settings()]}
        async with serve(providers=MOCK, auth=auth) as headgate:
            assert await refusal(headgate, down.token()) == "INVALID_CREDENTIALS"
            assert (await who(headgate, bearer(up.token()))).candidates


async def test_an_odd_key_does_not_end_the_fetching_of_keys(serve: Serve) -> None:
    """It is passed over, and the others of its set are taken."""
    provider = IdentityProvider()
    async with provider.server, taking(serve, provider, jwks_refresh=0.02) as headgate:
        provider.published.append({"kty": "RSA", "alg": "none"})
        await provider.server.exchange(len(provider.server.exchanges) + 2)
        provider.rotate("second")
        assert (await who(headgate, bearer(provider.token("second")))).candidates


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
async def test_a_fixed_public_key_verifies(serve: Serve, algorithm: str) -> None:
    """Of every family, in PEM."""
    provider = IdentityProvider()
    keys: dict[str, Any] = {
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }
    key = keys.get(algorithm, provider.keys["first"])
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    settings = {"jwks_url": "", "public_key": pem.decode(), "algorithms": [algorithm]}
    async with taking(serve, provider, **settings) as headgate:
        assert (await who(headgate, bearer(jwt.encode(provider.claims(), key, algorithm)))).candidates
        assert await refusal(headgate, IdentityProvider().token()) == "INVALID_CREDENTIALS"


async def test_a_verified_token_is_not_verified_again_and_ends_all_the_same(serve: Serve) -> None:
    """It is remembered until it expires, or its issuer changes."""
    provider = IdentityProvider()
    async with provider.server, taking(serve, provider, leeway=0) as headgate:
        token = provider.token(exp=time.time() + 1.5)
        assert (await who(headgate, bearer(token))).candidates
        verified = headgate.application.runtime.identity.authenticator.verified
        issuers = headgate.application.runtime.identity.issuers
        assert verified.get(token, issuers, time.time()) is not None
        assert verified.get(token, issuers, time.time() + 2) is None
        other = provider.settings(audiences=["elsewhere"])
        auth = {"anonymous": False, "jwt": [other]}
        server = {"listen": "127.0.0.1:0"}
        long = provider.token()
        assert (await who(headgate, bearer(long))).candidates
        await headgate.application.reload(Config.model_validate({"server": server, "providers": MOCK, "auth": auth}))
        assert await refusal(headgate, long) == "INVALID_CREDENTIALS"


async def test_an_issuer_is_made_anew_when_its_file_of_authorities_changed(serve: Serve, tmp_path: Path) -> None:
    """The file's name in the configuration is the same as before; an issuer with nothing changed is kept."""
    authorities = [trustme.CA(), trustme.CA()]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authorities[1].issue_cert("127.0.0.1").configure_cert(context)
    provider, other = IdentityProvider(), IdentityProvider("https://other.example.com")
    file = tmp_path / "ca.pem"
    authorities[0].cert_pem.write_to_path(file)

    async def publish(exchange: Exchange) -> None:
        await exchange.answer(200, {"keys": provider.published})

    async with other.server, Vendor(publish, tls=context) as server:
        issuers = [provider.settings(jwks_url=server.base_url, ca_file=str(file)), other.settings()]
        auth = {"anonymous": False, "jwt": issuers, "failures": {"limit": 0}}
        config = Config.model_validate({"providers": MOCK, "auth": auth, "server": {"listen": "127.0.0.1:0"}})
        async with serve(providers=MOCK, auth=auth) as headgate:
            kept = headgate.application.runtime.identity.issuers[other.issuer]
            assert await refusal(headgate, provider.token()) == "INVALID_CREDENTIALS"
            authorities[1].cert_pem.write_to_path(file)
            await headgate.application.reload(config)
            assert (await who(headgate, bearer(provider.token()))).candidates
            assert headgate.application.runtime.identity.issuers[other.issuer] is kept


async def test_what_tokens_entitle_to_is_the_issuers(serve: Serve) -> None:
    """ListModels shows what may be used, and nothing else."""
    provider = IdentityProvider()
    providers = {
        "demo": {"adapter": "mock", "models": ["echo", "lorem"]},
        "other": {"adapter": "mock", "models": ["echo"]},
    }
    settings: dict[str, Any] = {"allowed_models": ["demo/*", "other/*"], "allowed_providers": ["d*"]}
    async with provider.server, taking(serve, provider, providers, **settings) as headgate:
        listed = await headgate.stub.ListModels(pb.ListModelsRequest(), metadata=bearer(provider.token()))
    assert [model.name for model in listed.models] == ["demo/echo", "demo/lorem"]


async def test_pages_of_models_are_of_those_that_may_be_used(serve: Serve) -> None:
    """No page is empty, and none is missed."""
    provider = IdentityProvider()
    providers = {"demo": {"adapter": "mock", "models": [f"m{number}" for number in range(9)]}}
    async with provider.server, taking(serve, provider, providers, allowed_models=["demo/m[2468]"]) as headgate:
        names, token = [], ""
        while True:
            request = pb.ListModelsRequest(page_size=3, page_token=token)
            page = await headgate.stub.ListModels(request, metadata=bearer(provider.token()))
            names.append([model.name for model in page.models])
            if not (token := page.next_page_token):
                break
    assert names == [["demo/m2", "demo/m4", "demo/m6"], ["demo/m8"]]


def test_a_key_set_yields_no_secret_and_no_key_for_encryption() -> None:
    """A shared secret that somebody published would let everybody sign."""
    provider = IdentityProvider()
    (key,) = provider.published
    document = {
        "keys": [
            key,
            {**key, "kid": "enc", "use": "enc"},
            {"kty": "oct", "kid": "shared", "k": "c2VjcmV0", "alg": "HS256"},
            {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
            {"kty": "unheard-of", "kid": "new"},
            {"kty": "RSA", "kid": "none", "alg": "none"},
            {"kty": "RSA", "kid": "number", "n": 5, "e": "AQAB"},
            {"kty": ["RSA"], "kid": "list", "alg": ["RS256"]},
            {"kty": "EC", "kid": "point", "crv": "P-256", "x": 1, "y": 2, "alg": "ES256"},
            "nonsense",
        ]
    }
    assert list(verification_keys(json.dumps(document).encode(), ["RS256"])) == ["first"]
    for nonsense in (b"", b"[]", b"{}", b'{"keys": 1}', b"\xff"):
        with pytest.raises(ValueError, match=r".+"):
            verification_keys(nonsense, ["RS256"])


async def test_a_key_set_is_bounded(serve: Serve, logged: LogLines) -> None:
    """Neither a large nor a redirected one is taken."""
    answers: list[tuple[Any, ...]] = [
        (200, {"keys": ["x" * 600_000]}, {}),
        (302, {}, {"location": "http://127.0.0.1:1/"}),
    ]
    for answer in answers:

        async def behave(exchange: Exchange, answer: Any = answer) -> None:
            await exchange.answer(*answer)

        async with Vendor(behave) as server:
            settings = {
                "issuer": ISSUER,
                "audiences": [AUDIENCE],
                "algorithms": ["RS256"],
                "jwks_url": server.base_url,
                "tenant": "t",
            }
            async with serve(providers=MOCK, auth={"anonymous": False, "jwt": [settings]}):
                pass
    details = [line["detail"] for line in logged.lines if line["event"] == "signing_keys_not_fetched"]
    assert details == ["is larger than 524288 bytes", "was answered with HTTP status 302"]
