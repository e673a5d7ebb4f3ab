"""Tokens of vendors: fetched from a real token server, ahead of their expiry, never on a request's way."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from headgate_server.config import ConfigError, load
from headgate_server.credentials import GOOGLE_SCOPE, GoogleTokens, RefreshedToken, Token, refresh_delay, retry_delay
from headgate_server.errors import ProviderCredentialsRejected, ProviderError, ProviderUnreachable
from tests.headgate_process import ask, failing, running
from tests.vendor import Exchange, Vendor

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ANSWER = {
    "candidates": [{"content": {"parts": [{"text": "Hello"}], "role": "model"}, "finishReason": "STOP"}],
    "modelVersion": "gemini-9",
}


def key_file(folder: Path, token_uri: str) -> Path:
    """A service account's key as Google hands it out."""
    pem = KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "service-account.json"
    info = {
        "type": "service_account",
        "project_id": "inventio",
        "private_key_id": "key-1",
        "private_key": pem.decode(),
        "client_email": "gateway@inventio.example",
        "token_uri": token_uri,
    }
    file.write_text(json.dumps(info))
    return file


def claims(assertion: str) -> Any:
    """What a signed assertion claims; raises when the signature is not of KEY."""
    signed, _, signature = assertion.rpartition(".")
    KEY.public_key().verify(_decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return json.loads(_decoded(signed.partition(".")[2]))


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


async def issues_tokens(exchange: Exchange) -> None:
    """A token service in good health; it calls its only token after who asked."""
    assertion = parse_qs(exchange.body.decode())["assertion"][0]
    token = f"token-for-{claims(assertion)['iss']}"
    await exchange.answer(200, {"access_token": token, "expires_in": 3600, "token_type": "Bearer"})


async def refuses(exchange: Exchange) -> None:
    """A token service that does not know the account."""
    await exchange.answer(400, {"error": "invalid_grant", "error_description": "Invalid grant: account not found"})


async def answers(exchange: Exchange) -> None:
    """Vertex AI in good health."""
    await exchange.answer(200, ANSWER)


def vertex_at(vendor: Vendor, file: Path) -> dict[str, Any]:
    """A provider that is Vertex AI, with a token by that key."""
    return {"base_url": vendor.base_url, "credential": {"type": "google", "file": str(file)}}


async def test_a_call_of_vertex_bears_the_token_of_its_service_account(tmp_path: Path) -> None:
    """The token was fetched before the first call, with an assertion signed by the account's key."""
    async with Vendor(issues_tokens) as token_server, Vendor(answers) as vendor:
        file = key_file(tmp_path, f"{token_server.base_url}/token")
        async with running(providers={"vertex": vertex_at(vendor, file)}) as headgate:
            assert len(token_server.exchanges) == 1
            for _ in range(2):
                answer = await headgate.stub.Generate(ask("vertex/gemini-9"))
            assert answer.candidates[0].message.parts[0].text == "Hello"
    assert [e.headers["authorization"] for e in vendor.exchanges] == ["Bearer token-for-gateway@inventio.example"] * 2
    assert vendor.exchanges[0].path == "/v1/publishers/google/models/gemini-9:generateContent"
    assert len(token_server.exchanges) == 1
    asked = parse_qs(token_server.exchanges[0].body.decode())["assertion"][0]
    assert claims(asked)["scope"] == GOOGLE_SCOPE


async def test_a_provider_without_token_fails_and_the_gateway_serves_on(tmp_path: Path) -> None:
    """Google's refusal is our credentials' fault; nothing was sent to the vendor."""
    async with Vendor(refuses) as token_server, Vendor(answers) as vendor:
        file = key_file(tmp_path, f"{token_server.base_url}/token")
        async with running(providers={"vertex": vertex_at(vendor, file), "demo": {"adapter": "mock"}}) as headgate:
            refused = await failing(headgate.stub.Generate(ask("vertex/gemini-9")))
            await headgate.stub.Generate(ask("demo/echo"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PROVIDER_CREDENTIALS_REJECTED")
    assert "account not found" not in refused.message
    assert not vendor.exchanges


async def test_a_token_service_that_cannot_be_reached_is_told_from_one_that_refuses(tmp_path: Path) -> None:
    """Only the first may be better at the next try."""
    async with Vendor(refuses) as token_server:
        file = key_file(tmp_path, f"{token_server.base_url}/token")
        with pytest.raises(ProviderCredentialsRejected):
            await GoogleTokens(file).fetch()
    with pytest.raises(ProviderUnreachable):
        await GoogleTokens(file).fetch()


async def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    """An object of JSON is not yet a key."""
    file = tmp_path / "key.json"
    file.write_text('{"type": "service_account"}')
    with pytest.raises(ProviderCredentialsRejected):
        await GoogleTokens(file).fetch()


async def test_a_vertex_provider_with_a_key_needs_no_token() -> None:
    """Express mode takes an API key."""
    async with Vendor(answers) as vendor:
        provider = {"base_url": vendor.base_url, "api_key": "sesame"}
        async with running(providers={"vertex": provider}) as headgate:
            await headgate.stub.Generate(ask("vertex/gemini-9"))
    assert vendor.exchanges[0].headers["x-goog-api-key"] == "sesame"
    assert "authorization" not in vendor.exchanges[0].headers


@dataclass
class Script:
    """A TokenSource that gives what it was told, in order, and then waits for ever."""

    tokens: list[tuple[str, float] | ProviderError]
    fetched: asyncio.Event = field(default_factory=asyncio.Event)

    async def fetch(self) -> Token:
        if not self.tokens:
            self.fetched.set()
            await asyncio.Event().wait()
        step = self.tokens.pop(0)
        if isinstance(step, ProviderError):
            raise step
        word, lifetime = step
        return Token({"authorization": f"Bearer {word}"}, time.monotonic() + lifetime)

    async def close(self) -> None:
        """Nothing is open."""


@asynccontextmanager
async def kept_fresh(*tokens: tuple[str, float] | ProviderError) -> AsyncIterator[tuple[RefreshedToken, Script]]:
    """A token that is refreshed by the script."""
    script = Script(list(tokens))
    credential = RefreshedToken("vertex", script)
    credential.start()
    try:
        yield credential, script
    finally:
        await credential.close()


async def test_a_token_is_replaced_ahead_of_its_expiry() -> None:
    """Nobody has to ask for the second one, and the first is valid meanwhile."""
    async with kept_fresh(("first", 0.3), ("second", 3600)) as (credential, script):
        await credential.tried()
        assert credential.headers() == {"authorization": "Bearer first"}
        async with asyncio.timeout(2):
            while credential.headers() == {"authorization": "Bearer first"}:
                await asyncio.sleep(0.005)
        assert credential.headers() == {"authorization": "Bearer second"}
        assert not script.tokens


async def test_a_failed_refresh_leaves_the_token_as_long_as_it_is_valid() -> None:
    """After that the failure is told, each time as an error of its own."""
    failure = ProviderUnreachable("no connection", vendor_detail="refused")
    async with kept_fresh(("first", 0.2), failure) as (credential, script):
        await credential.tried()
        while script.tokens:
            await asyncio.sleep(0.005)
        assert credential.headers() == {"authorization": "Bearer first"}
        await asyncio.sleep(0.25)
        for _ in range(2):
            with pytest.raises(ProviderUnreachable) as raised:
                credential.headers()
            assert raised.value is not failure
            assert raised.value.vendor_detail == "refused"


def test_a_token_is_refreshed_five_minutes_ahead_or_at_half_time() -> None:
    """And never in a loop without pause."""
    assert refresh_delay(3600) == 3300
    assert refresh_delay(400) == 200
    assert refresh_delay(0) > 0
    assert [retry_delay(failures) for failures in (1, 2, 3, 20)] == [1, 2, 4, 60]


@pytest.mark.parametrize(
    ("provider", "key", "reason"),
    [
        ("credential: {type: google, file: none.json}", "credential.file", "No such file"),
        ("credential: {type: google, file: headgate.yaml}", "credential.file", "not JSON"),
        ("credential: {type: google}\n    api_key: sesame", "vertex", "instead of api_key"),
        ("credential: {type: gogle}", "credential.type", "google"),
    ],
)
def test_a_credential_that_cannot_be_used_is_named_before_anything_starts(
    tmp_path: Path, provider: str, key: str, reason: str
) -> None:
    """With the line of the file, as every problem of the configuration."""
    file = tmp_path / "headgate.yaml"
    file.write_text(f"providers:\n  vertex:\n    base_url: http://127.0.0.1:1\n    {provider}\n")
    with pytest.raises(ConfigError) as unusable:
        load(file, {})
    (problem,) = unusable.value.problems
    assert problem.key.endswith(key)
    assert reason in problem.reason


def test_without_google_s_package_the_start_fails_with_one_line_that_names_the_extra(tmp_path: Path) -> None:
    """Also when the host's row asks for the token, and the configuration says nothing of it."""
    file = tmp_path / "headgate.yaml"
    file.write_text("providers:\n  vertex: {base_url: 'http://127.0.0.1:1'}\n")
    program = (
        "import sys; sys.modules['google.auth'] = None\n"
        "from headgate_server.cli import main\n"
        f"sys.argv = ['headgate', 'serve', '--config', {str(file)!r}]\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("pip install 'headgate-server[google]'")
