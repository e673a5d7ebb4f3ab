"""Tokens that an identity provider signs: JSON Web Tokens, and whom they stand for.

https://datatracker.ietf.org/doc/html/rfc8725 is followed: algorithms are pinned by the configuration and never taken
from the token, each issuer has keys of its own, issuer, audience and expiry are required.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from headgate_server.identity.records import Refused
from headgate_server.principal import Principal

if TYPE_CHECKING:
    from jwt.types import Options

MAX_NAME = 256

REASONS = {
    "ExpiredSignatureError": "expired",
    "ImmatureSignatureError": "not_yet_valid",
    "InvalidAlgorithmError": "wrong_algorithm",
    "InvalidAudienceError": "wrong_audience",
    "InvalidIssuerError": "wrong_issuer",
    "InvalidSignatureError": "wrong_signature",
    "MissingRequiredClaimError": "claim_missing",
}


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A key that verifies signatures; `algorithm` is what its publisher says it is for, if it says so."""

    key: Any
    algorithm: str = ""


class VerificationKeys(Protocol):
    """Where the keys of one issuer come from. `generation` changes whenever they do."""

    @property
    def generation(self) -> int: ...

    async def find(self, key_id: str) -> VerificationKey | None:
        """The key of that name, or the only one; None if there is none."""
        ...

    def start(self) -> None:
        """Begins to keep them current; once is enough."""
        ...

    async def tried(self) -> None:
        """Waits until they were had for the first time, or could not be."""
        ...

    async def close(self) -> None:
        """Ends that."""
        ...


@dataclass(frozen=True, slots=True)
class Claims:
    """Which claims say what. A claim is a path into the token; without `tenant` the grant's tenant counts."""

    tenant: tuple[str, ...]
    roles: tuple[str, ...]
    subject: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """A token that holds until `expires_at`, in seconds since the epoch."""

    principal: Principal
    expires_at: float


@dataclass(frozen=True, slots=True)
class Issuer:
    """One identity provider, and what its tokens entitle to."""

    name: str
    audiences: Sequence[str]
    algorithms: Sequence[str]
    leeway: float
    keys: VerificationKeys
    claims: Claims
    grant: Principal

    async def verify(self, token: str, key_id: str) -> Verified:
        """Whom a token of this issuer stands for.

        Raises:
            Refused: it is not good, or does not say enough.
        """
        import jwt

        found = await self.keys.find(key_id)
        if found is None:
            raise Refused("unknown_signing_key")
        algorithms = [name for name in self.algorithms if found.algorithm in ("", name)]
        options: Options = {"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True}
        try:
            claims = jwt.decode(
                token,
                found.key,
                algorithms=algorithms,
                options=options,
                audience=self.audiences,
                issuer=self.name,
                leeway=self.leeway,
            )
        except (jwt.PyJWTError, ArithmeticError, TypeError, ValueError) as error:  # such as a key of another kind
            raise Refused(REASONS.get(type(error).__name__, "invalid_token")) from error
        return Verified(self._principal(claims), float(claims["exp"]) + self.leeway)

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        subject = _name(claims, self.claims.subject)
        tenant = _name(claims, self.claims.tenant) if self.claims.tenant else self.grant.tenant
        return Principal(
            tenant=tenant,
            key_id=f"{self.name}#{subject}",
            roles=self.grant.roles | _roles(_at(claims, self.claims.roles)),
            allowed_models=self.grant.allowed_models,
            allowed_providers=self.grant.allowed_providers,
            limits=self.grant.limits,
            budgets=self.grant.budgets,
        )


def stated(token: str) -> tuple[str, str] | None:
    """Issuer and key id that a token claims for itself, unverified, to know who must verify it; None if it is none."""
    import jwt

    try:
        unverified = jwt.api_jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    issuer, key_id = unverified["payload"].get("iss"), unverified["header"].get("kid", "")
    return (issuer, key_id) if isinstance(issuer, str) and isinstance(key_id, str) else None


def verification_keys(jwks: bytes, algorithms: Sequence[str]) -> dict[str, VerificationKey]:
    """The signature keys of a JSON Web Key Set, by key id. Secret keys, which none should publish, are left out.

    Raises:
        ValueError: it is no key set.
    """
    from jwt import PyJWK

    document = msgspec.json.decode(jwks)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("is not a JSON Web Key Set")
    keys: dict[str, VerificationKey] = {}
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("kty") == "oct" or entry.get("use", "sig") != "sig":
            continue
        algorithm = str(entry.get("alg") or "")
        try:
            key = PyJWK(entry, algorithm or _first_fitting(entry, algorithms))
        except Exception:  # of a kind that nobody here pinned, or no key: the library raises anything
            continue
        keys[str(entry.get("kid") or "")] = VerificationKey(key.key, algorithm)
    return keys


def _first_fitting(entry: Mapping[str, Any], algorithms: Sequence[str]) -> str | None:
    """An algorithm by which the library reads a key that names none: any of its family does."""
    family = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("Ed",)}.get(str(entry.get("kty")), ())
    return next((name for name in algorithms if name.startswith(family)), None) if family else None


def _at(claims: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = claims
    for step in path:
        found = found.get(step) if isinstance(found, dict) else None
    return found


def _name(claims: Mapping[str, Any], path: Sequence[str]) -> str:
    found = _at(claims, path)
    if not isinstance(found, str) or not found or not found.isprintable() or len(found) > MAX_NAME:
        raise Refused("claim_missing")
    return found


def _roles(found: Any) -> frozenset[str]:
    """Roles are a list, or as in OAuth scopes one text with spaces."""
    if isinstance(found, str):
        found = found.split()
    return frozenset(role for role in found if isinstance(role, str)) if isinstance(found, list) else frozenset()
