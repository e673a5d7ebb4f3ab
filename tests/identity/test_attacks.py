"""Attacks through the front door: each is refused, and told of in the log without the secret."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest
from headgate import v1 as pb

from headgate_server.identity.database import SqlKeyDatabase
from headgate_server.identity.keys import ApiKey, new_key
from headgate_server.identity.records import NewKey
from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, ask, failing, failure
from tests.identity.callers import (
    ISSUER,
    LATER,
    LONG_AGO,
    MOCK,
    PEPPER,
    IdentityProvider,
    Metadata,
    bearer,
    changed,
    hashed,
    signed_by_public_key,
    static_key,
    unsigned,
    who,
)

SHARED_SECRET = "a shared secret of at least thirty-two characters"
HS_ISSUER = "https://hs.example.com"


@dataclass(frozen=True, slots=True)
class Front:
    """A server that takes static keys, keys of a store, and tokens of two identity providers."""

    headgate: Headgate
    provider: IdentityProvider
    stranger: IdentityProvider
    good: ApiKey
    expired: ApiKey
    rotated: ApiKey
    revoked: ApiKey
    narrow: ApiKey


@pytest.fixture
async def front(serve: Serve, tmp_path: Path) -> AsyncIterator[Front]:
    """Everything that the attacks need, one of each."""
    url = f"sqlite:///{tmp_path}/keys.db"
    database = SqlKeyDatabase(url, migrates=True)
    await database.prepare()
    revoked = await database.create(NewKey("acme"), PEPPER.encode(), time.time(), "test")
    await database.revoke(revoked.id, time.time(), "test")
    await database.close()
    good, keys = static_key()
    expired, expired_keys = static_key(expires_at=LONG_AGO)
    rotated = new_key(good.id)
    keys[good.id] |= {"previous_hash": hashed(rotated), "previous_expires_at": LONG_AGO}
    narrow, narrow_keys = static_key(allowed_models=["demo/lorem"])
    provider, stranger = IdentityProvider(), IdentityProvider("https://stranger.example.com")
    shared = {"issuer": HS_ISSUER, "audiences": ["headgate"], "algorithms": ["HS256"], "secret": SHARED_SECRET}
    async with provider.server:
        auth = {
            "anonymous": False,
            "pepper": PEPPER,
            "keys": {**keys, **expired_keys, **narrow_keys},
            "store": {"url": url},
            "jwt": [provider.settings(allowed_models=["demo/echo"]), {**shared, "tenant": "fixed"}],
        }
        async with serve(providers=MOCK, auth=auth) as headgate:
            yield Front(headgate, provider, stranger, good, expired, rotated, revoked, narrow)


def hs_token(secret: str = SHARED_SECRET, **claims: Any) -> str:
    """A token of the provider with a shared secret."""
    said = {"iss": HS_ISSUER, "aud": "headgate", "sub": "bob", "exp": time.time() + 60, **claims}
    return jwt.encode(said, secret, "HS256")


UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
# What is presented, and what the log calls it. Callers hear the same of all.
ATTACKS: dict[str, tuple[Callable[[Front], Metadata], str]] = {
    "a wrong secret": (lambda f: bearer(changed(f.good)), "wrong_secret"),
    "a wrong secret by x-api-key": (lambda f: (("x-api-key", changed(f.good)),), "wrong_secret"),
    "an unknown key": (lambda _: bearer(new_key().text), "unknown_key"),
    "a truncated key": (lambda f: bearer(f.good.text[:-1]), "malformed"),
    "a mistyped key": (lambda f: bearer(f.good.text.swapcase().replace("HG_", "hg_")), "malformed"),
    "a key with something behind it": (lambda f: bearer(f.good.text + "x"), "malformed"),
    "a revoked key": (lambda f: bearer(f.revoked.text), "revoked"),
    "an expired key": (lambda f: bearer(f.expired.text), "expired"),
    "a secret from before the rotation": (lambda f: bearer(f.rotated.text), "rotated"),
    "the hash instead of the key": (lambda f: bearer(hashed(f.good)), "malformed"),
    "an empty token": (lambda _: (("authorization", "Bearer "),), "malformed"),
    "another scheme": (lambda _: (("authorization", "Basic YWxpY2U6c2VjcmV0LXdvcmQ="),), "unknown_scheme"),
    "no scheme": (lambda f: (("authorization", f.good.text),), "unknown_scheme"),
    "two that differ": (lambda f: (*bearer(f.good.text), ("x-api-key", f.narrow.text)), "contradictory"),
    "a good key behind another": (lambda f: (*bearer(f.narrow.text), *bearer(f.good.text)), "contradictory"),
    "a key twice": (lambda f: (("x-api-key", f.good.text), ("x-api-key", f.good.text)), "contradictory"),
    "a JWT with algorithm none": (lambda f: bearer(unsigned(f.provider)), "wrong_algorithm"),
    "a JWT without signature": (lambda f: bearer(f.provider.token().rpartition(".")[0] + "."), "wrong_signature"),
    "a JWT signed with the public key": (lambda f: bearer(signed_by_public_key(f.provider)), "wrong_algorithm"),
    "a JWT of an unpinned algorithm": (lambda f: bearer(f.provider.token(algorithm="RS512")), "wrong_algorithm"),
    "a JWT for somebody else": (lambda f: bearer(f.provider.token(aud="other")), "wrong_audience"),
    "a JWT without audience": (lambda f: bearer(f.provider.token(aud=None)), "claim_missing"),
    "an expired JWT": (lambda f: bearer(f.provider.token(exp=time.time() - 31)), "expired"),
    "a JWT that never expires": (lambda f: bearer(f.provider.token(exp=None)), "claim_missing"),
    "a JWT from the future": (lambda f: bearer(f.provider.token(nbf=time.time() + 60)), "not_yet_valid"),
    "a JWT of a foreign issuer": (lambda f: bearer(f.stranger.token()), "unknown_issuer"),
    "a JWT that a stranger signed": (lambda f: bearer(f.stranger.token(iss=ISSUER)), "wrong_signature"),
    "a JWT that another issuer signed": (lambda f: bearer(hs_token(iss=ISSUER)), "wrong_algorithm"),
    "a JWT with a guessed secret": (lambda _: bearer(hs_token("guess" * 10)), "wrong_signature"),
    "a JWT without tenant": (lambda f: bearer(f.provider.token(tenant=None)), "claim_missing"),
    "a JWT with a list for a tenant": (lambda f: bearer(f.provider.token(tenant=["a", "b"])), "claim_missing"),
    "a JWT with control characters": (lambda f: bearer(f.provider.token(tenant="a\x1b[2Jb")), "claim_missing"),
    "a changed payload": (lambda f: bearer(_with_payload(f.provider.token(), tenant="victim")), "wrong_signature"),
    "JSON that is too deep": (lambda _: bearer(f"e30.{'W' * 9000}.x"), "malformed"),
}


def _with_payload(token: str, **claims: Any) -> str:
    """The token with other claims under the same signature."""
    header, _, signature = token.split(".")
    said = {**jwt.decode(token, options={"verify_signature": False}), **claims}
    payload = jwt.utils.base64url_encode(json.dumps(said).encode()).decode()
    return f"{header}.{payload}.{signature}"


@pytest.mark.parametrize("attack", ATTACKS)
async def test_the_attack_is_refused_and_logged(front: Front, logged: LogLines, attack: str) -> None:
    """On every method, with one text that says nothing; the log says what was wrong, and not with which secret."""
    present, reason = ATTACKS[attack]
    metadata = present(front)
    stub = front.headgate.stub
    for call in (
        stub.Generate(ask("demo/echo"), metadata=metadata),
        stub.StreamGenerate(ask("demo/echo"), metadata=metadata),
        stub.Embed(pb.EmbedRequest(model="demo/embed"), metadata=metadata),
        stub.ListModels(pb.ListModelsRequest(), metadata=metadata),
        stub.Health(pb.HealthRequest(), metadata=metadata),
    ):
        failed = await failing(call)
        assert (failed.code, failed.reason) == (UNAUTHENTICATED, "INVALID_CREDENTIALS")
        assert failed.message == "the credentials are not valid"
    (event,) = [line for line in logged.lines if line["event"] == "login_failed"]
    assert (event["component"], event["reason"], event["address"]) == ("security", reason, "127.0.0.1")
    assert [line["reason"] for line in logged.calls] == ["INVALID_CREDENTIALS"] * 5
    for _, value in metadata:
        secret = value.removeprefix("Bearer ").removeprefix("Basic ")
        assert not secret or secret not in str(logged.lines)
    assert logged.errors == []


async def test_the_honest_are_let_in(front: Front) -> None:
    """By either header, by static key or by token: otherwise the table above would prove nothing."""
    for metadata in (
        bearer(front.good.text),
        (("authorization", f"bearer  {front.good.text}"),),
        (("x-api-key", front.good.text),),
        (*bearer(front.good.text), ("x-api-key", front.good.text)),
        bearer(front.provider.token()),
        bearer(front.provider.token(aud=["other", "headgate"], exp=time.time() - 10)),
        bearer(hs_token()),
    ):
        assert (await who(front.headgate, metadata)).candidates


async def test_no_credentials_are_missing_ones(front: Front, logged: LogLines) -> None:
    """Another reason, so that an honest caller knows what to do."""
    failed = await failing(front.headgate.stub.Generate(ask("demo/echo")))
    assert (failed.code, failed.reason) == (UNAUTHENTICATED, "MISSING_CREDENTIALS")
    assert [line["reason"] for line in logged.lines if line["event"] == "login_failed"] == ["missing"]


async def test_credentials_are_checked_before_the_body_is_parsed(front: Front) -> None:
    """A stranger's garbage is answered as a stranger's, and costs no parsing."""
    call: Any = front.headgate.channel.unary_unary("/headgate.v1.InferenceService/Generate")
    assert (await failing(call(b"\xff garbage"))).reason == "MISSING_CREDENTIALS"
    assert (await failing(call(b"\xff garbage", metadata=bearer(front.good.text)))).reason == "INVALID_REQUEST"


async def test_a_tenant_cannot_be_smuggled(front: Front, logged: LogLines) -> None:
    """Whom a caller stands for comes from its credentials alone, whatever else it claims."""
    claimed = (("x-tenant", "victim"), ("tenant", "victim"), ("x-headgate-tenant", "victim"), ("key_id", "victim"))
    request = ask("demo/echo", labels={"tenant": "victim"}, end_user_id="victim")
    await front.headgate.stub.Generate(request, metadata=(*bearer(front.good.text), *claimed))
    (line,) = logged.calls
    assert (line["tenant"], line["key_id"]) == ("acme", front.good.id)


@pytest.mark.parametrize("model", ["demo/echo", "demo/*", "demo/lorem/..", "DEMO/LOREM", "nobody/nothing", "lorem"])
async def test_a_model_outside_the_list_is_denied(front: Front, logged: LogLines, model: str) -> None:
    """Asked for or as a fallback, and whether or not it exists."""
    metadata = bearer(front.narrow.text)
    stub = front.headgate.stub
    behind = ask("demo/lorem", routing=pb.RoutingPolicy(fallbacks=[model]))
    embed = pb.EmbedRequest(model=model, inputs=[pb.EmbedInput(text="Hi")])
    for call in (
        stub.Generate(ask(model), metadata=metadata),
        stub.StreamGenerate(ask(model), metadata=metadata),
        stub.StreamGenerate(behind, metadata=metadata),
        stub.Embed(embed, metadata=metadata),
    ):
        failed = await failing(call)
        assert (failed.code, failed.reason) == (grpc.StatusCode.PERMISSION_DENIED, "MODEL_NOT_ALLOWED")
    assert {line["reason"] for line in logged.calls} == {"MODEL_NOT_ALLOWED"}
    assert (await who(front.headgate, metadata, "demo/lorem")).candidates


async def test_brute_force_is_slowed_down_and_fills_no_log(serve: Serve, logged: LogLines) -> None:
    """After the limit the answer is RATE_LIMITED with a time; guesses are one line each minute, not one each."""
    key, keys = static_key()
    auth = {"anonymous": False, "pepper": PEPPER, "keys": keys, "failures": {"limit": 10, "window": 3600}}
    async with serve(providers=MOCK, auth=auth) as headgate:
        answers = [
            await failing(headgate.stub.Health(pb.HealthRequest(), metadata=bearer(changed(key)))) for _ in range(60)
        ]
        assert [failed.reason for failed in answers[:10]] == ["INVALID_CREDENTIALS"] * 10
        for failed in answers[10:]:
            assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
            assert 0 < failed.details["RetryInfo"].retry_delay.ToSeconds() <= 360
        assert (await who(headgate, bearer(key.text))).candidates, "an honest neighbour is not locked out"
    told = [line for line in logged.lines if line["event"] == "login_failed"]
    assert [line.get("count", 1) for line in told] == [1, 59]


async def test_an_address_over_the_limit_has_few_signatures_verified(serve: Serve) -> None:
    """Tokens that were verified before go on; new ones get in slowly, for they may be honest and behind one proxy."""
    provider = IdentityProvider()
    async with provider.server:
        auth = {"anonymous": False, "jwt": [provider.settings()], "failures": {"limit": 1, "window": 3600}}
        async with serve(providers=MOCK, auth=auth) as headgate:
            known = bearer(provider.token())
            await who(headgate, known)
            await failing(who(headgate, bearer("nonsense")))
            for _ in range(30):
                assert (await failing(who(headgate, bearer("nonsense")))).reason == "RATE_LIMITED"
            assert (await who(headgate, bearer(provider.token(sub="bob")))).candidates
            new = [bearer(provider.token(sub=str(number))) for number in range(100)]
            answers = await asyncio.gather(*(who(headgate, token) for token in new), return_exceptions=True)
            refused = [failure(answer) for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
            assert 0 < len(refused) < len(new)
            assert {(one.reason, one.details["RetryInfo"].retry_delay.ToSeconds()) for one in refused} == {
                ("RATE_LIMITED", 1)
            }
            assert (await who(headgate, known)).candidates


async def test_bad_credentials_are_not_anonymous(serve: Serve) -> None:
    """Where anonymous callers are served, one who presents something must be good for it."""
    key, keys = static_key(expires_at=LATER)
    async with serve(providers=MOCK, auth={"anonymous": True, "pepper": PEPPER, "keys": keys}) as headgate:
        assert (await headgate.stub.Generate(ask("demo/echo"))).candidates
        assert (await who(headgate, bearer(key.text))).candidates
        assert (await failing(who(headgate, bearer(changed(key))))).reason == "INVALID_CREDENTIALS"
