"""No secret in any log, error or row, whoever presents, configures or refuses it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from headgate import v1 as pb

from headgate_server.identity.database import SqlKeyDatabase
from headgate_server.identity.keys import new_key
from headgate_server.identity.records import NewKey
from headgate_server.redaction import MASK, redacted
from tests.headgate_process import ask, failing
from tests.identity.callers import PEPPER, IdentityProvider, Metadata, bearer, static_key, unsigned
from tests.tools import headgate_serve
from tests.vendor import Exchange, Vendor

VENDOR_KEY = "plainly-the-vendors-key-0123456789"
EXTRA_HEADER = "team-secret-0123456789"
OWN_KEY = "own-vendor-key-of-the-caller-0123"
SHARED = "a shared secret of at least thirty-two characters"
PROMPT = "the prompt that nobody may read"


async def repeats_everything(exchange: Exchange) -> None:
    """A vendor that writes all it was sent into its error."""
    said = json.dumps({"headers": exchange.headers, "body": exchange.body.decode()})
    await exchange.answer(
        401, {"error": {"message": said, "type": said, "code": said}}, {"x-request-id": "id \x9b" + said}
    )


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_no_secret_is_in_log_errors_or_rows(tmp_path: Path, log_format: str) -> None:
    """At level debug, from a server in its own process that everything was done to."""
    provider = IdentityProvider()
    static, keys = static_key()
    async with Vendor(repeats_everything) as vendor, provider.server:
        config = tmp_path / "headgate.yaml"
        auth = {
            "pepper": PEPPER,
            "keys": keys,
            "store": {"url": "sqlite:///keys.db"},
            "jwt": [
                provider.settings(),
                {
                    "issuer": "hs",
                    "audiences": ["headgate"],
                    "algorithms": ["HS256"],
                    "secret": SHARED,
                    "tenant": "t",
                },
            ],
            "caller_provider_keys": True,
        }
        settings = {
            "host": "openai",
            "base_url": vendor.base_url,
            "api_key": VENDOR_KEY,
            "headers": {"x-team": EXTRA_HEADER},
        }
        config.write_text(json.dumps({"auth": auth, "providers": {"v": settings}, "telemetry": {"log_level": "debug"}}))
        database = SqlKeyDatabase(f"sqlite:///{tmp_path}/keys.db", migrates=True)
        await database.prepare()
        made = await database.create(NewKey("acme"), PEPPER.encode(), time.time(), "test")
        rotated = await database.rotate(made.id, PEPPER.encode(), time.time(), 60, "test")
        tokens = [provider.token(), provider.token(exp=1), unsigned(provider)]
        presented: list[Metadata] = [
            bearer(static.text),
            bearer(made.text),
            bearer(rotated.text),
            bearer(static.text[:-1]),
            bearer(new_key(static.id).text),
            (("x-api-key", static.text), ("authorization", "Basic dXNlcjpwYXNzd29yZC1vZi1iYXNpYw==")),
            *(bearer(token) for token in tokens),
            (*bearer(static.text), ("x-provider-key-openai", OWN_KEY)),
            (*bearer(static.text), ("x-provider-key-nobody", OWN_KEY)),
        ]
        async with headgate_serve("--config", str(config), env={"LOG_FORMAT": log_format}) as headgate:
            errors = await everything_refused(headgate.address, presented)
            await database.revoke(made.id, time.time(), "test")
            await revoked_there(headgate.address, made.text)
            errors += await everything_refused(headgate.address, presented[1:3])
            finished = await headgate.stop()
        await database.close()
    log = finished.stderr
    assert finished.code == 0
    for event in ("login_failed", "vendor_detail", "wrong_secret", "revoked"):
        assert event in log
    secrets = [VENDOR_KEY, EXTRA_HEADER, OWN_KEY, SHARED, PEPPER, PROMPT, "dXNlcjpwYXNzd29yZC1vZi1iYXNpYw=="]
    secrets += [key[16:-6] for key in (static.text, made.text, rotated.text)]
    secrets += [part for token in tokens for part in token.split(".")[1:] if part]
    with closing(sqlite3.connect(tmp_path / "keys.db")) as file:
        rows = "\n".join(file.iterdump())
    assert "login_failed" in rows
    for place, text in (("log", log), ("errors", "\n".join(errors)), ("rows", rows), ("output", finished.stdout)):
        for secret in secrets:
            if (place, secret) == ("log", PROMPT):
                continue  # at level debug the vendor's words, which may repeat it, are what was asked for
            assert secret not in text, f"{secret} is in the {place}"


async def revoked_there(address: str, key: str) -> None:
    """Waits until the server knows that the key is revoked."""
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(5):
        stub = pb.InferenceServiceStub(channel)
        while (await failing(stub.Generate(ask("v/m"), metadata=bearer(key)))).reason != "INVALID_CREDENTIALS":
            await asyncio.sleep(0.05)


async def everything_refused(address: str, presented: list[Metadata]) -> list[str]:
    """Calls with each, all of which fail at the vendor at the latest; whatever a caller gets to see of them."""
    seen = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb.InferenceServiceStub(channel)
        for metadata in presented:
            for method in (stub.Generate, stub.StreamGenerate):
                call: Any = method(ask("v/m", PROMPT), metadata=metadata)
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await (call if method is stub.Generate else call.read())
                error = failed.value
                seen.append(f"{error.details()} {error.trailing_metadata()} {error.initial_metadata()}")
    return seen


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-proj-abc*****wxyz.",
        "key AIzaSyA1234567890abcdefghijk is not valid",
        "Authorization: Bearer abcdefghijkl",
        "gsk_abcdefghijklmnop",
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.",
        f"hg_{'a' * 12}_{'b' * 49}",
    ],
)
def test_what_looks_like_a_key_is_masked(text: str) -> None:
    """Though nobody knows whose it is."""
    shown = redacted(text)
    assert MASK in shown
    assert not any(word in shown for word in ("abc", "AIza", "eyJzdWI", "bbbb"))


@pytest.mark.parametrize("text", ["the task-force asked", "bearer of bad news", "a key: value", "risk-averse"])
def test_plain_words_stay(text: str) -> None:
    """A log that masks everything helps nobody."""
    assert redacted(text) == text
