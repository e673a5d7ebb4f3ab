"""Callers of the tests of identity: API keys, an identity provider with a real key server, and what they present."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from headgate import v1 as pb

from headgate_server.identity.keys import ApiKey, digest, new_key
from tests.headgate_process import Headgate, ask
from tests.vendor import Exchange, Vendor

PEPPER = "a pepper of thirty-two characters"
MOCK = {"demo": {"adapter": "mock"}}
AUDIENCE = "headgate"
ISSUER = "https://id.example.com"
LATER = "2999-01-01T00:00:00Z"
LONG_AGO = "2001-01-01T00:00:00Z"

Metadata = tuple[tuple[str, str], ...]


def bearer(token: str) -> Metadata:
    """The token as `authorization` metadata."""
    return (("authorization", f"Bearer {token}"),)


def hashed(key: ApiKey) -> str:
    """What the configuration holds of a key."""
    return digest(PEPPER.encode(), key.text).hex()


def static_key(tenant: str = "acme", **fields: Any) -> tuple[ApiKey, dict[str, Any]]:
    """A key, and `auth.keys` that lets it in."""
    key = new_key()
    return key, {key.id: {"tenant": tenant, "hash": hashed(key), **fields}}


def changed(key: ApiKey) -> str:
    """Another secret for a key, with the right checksum."""
    return new_key(key.id).text


async def who(headgate: Headgate, metadata: Metadata, model: str = "demo/echo") -> pb.GenerateResponse:
    """A call that must be let in."""
    return await headgate.stub.Generate(ask(model), metadata=metadata)


class IdentityProvider:
    """Signs tokens with RSA keys, of which it publishes the current ones as a JSON Web Key Set over real HTTP."""

    def __init__(self, issuer: str = ISSUER) -> None:
        self.issuer = issuer
        self.keys: dict[str, rsa.RSAPrivateKey] = {}
        self.published: list[dict[str, Any]] = []
        self.server = Vendor(self._answer)
        self.rotate("first")

    @property
    def jwks_url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/keys"

    def rotate(self, key_id: str, *, keep: bool = False) -> None:
        """Publishes a new key instead of all others, or beside them."""
        self.keys[key_id] = rsa.generate_private_key(65537, 2048)
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self.keys[key_id].public_key(), as_dict=True)
        self.published = [*(self.published if keep else []), {**public, "kid": key_id, "use": "sig"}]

    def public_pem(self, key_id: str = "first") -> str:
        """A public key as anybody can have it."""
        pem = (
            self.keys[key_id]
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return pem.decode()

    def claims(self, **claims: Any) -> dict[str, Any]:
        """What a good token says; a claim of None is left out."""
        now = time.time()
        said = {"iss": self.issuer, "aud": AUDIENCE, "sub": "alice", "tenant": "acme", "exp": now + 600, "iat": now}
        return {name: value for name, value in {**said, **claims}.items() if value is not None}

    def token(self, key_id: str = "first", algorithm: str = "RS256", **claims: Any) -> str:
        """A signed token, good but for what the claims say."""
        return jwt.encode(self.claims(**claims), self.keys[key_id], algorithm, headers={"kid": key_id})

    def settings(self, **settings: Any) -> dict[str, Any]:
        """Its entry in `auth.jwt`."""
        known = {"issuer": self.issuer, "audiences": [AUDIENCE], "algorithms": ["RS256"], "jwks_url": self.jwks_url}
        return {**known, "tenant_claim": "tenant", **settings}

    async def _answer(self, exchange: Exchange) -> None:
        await exchange.answer(200, {"keys": self.published})


def signed_by_public_key(provider: IdentityProvider) -> str:
    """HS256 with the public key as the secret: what a verifier that believes the token's own algorithm would take."""
    return _by_hand({"alg": "HS256", "kid": "first"}, provider.claims(), provider.public_pem().encode())


def unsigned(provider: IdentityProvider) -> str:
    """Algorithm none, in a spelling that simple filters miss."""
    return _by_hand({"alg": "nOnE", "kid": "first"}, provider.claims(), None)


def _by_hand(header: dict[str, Any], claims: dict[str, Any], secret: bytes | None) -> str:
    body = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
    signature = hmac.digest(secret, body.encode(), hashlib.sha256) if secret else b""
    return f"{body}.{_encoded(signature)}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
