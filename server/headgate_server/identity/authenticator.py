"""Who a caller is, from what it presents."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Generic, Protocol, TypeVar

from headgate_server.call import Call
from headgate_server.errors import (
    GatewayError,
    GatewayOverloaded,
    InvalidCredentials,
    MissingCredentials,
    TooManyFailures,
)
from headgate_server.identity.credentials import presented_token
from headgate_server.identity.events import SecurityEvent, SecurityEvents
from headgate_server.identity.failures import FailedAttempts, peer_address
from headgate_server.identity.jwt import Issuer, Verified, stated
from headgate_server.identity.keys import PREFIX, claimed_id, digest, is_whole
from headgate_server.identity.mtls import CertificateRule, certified
from headgate_server.identity.records import KeyRecord, Refused
from headgate_server.principal import ANONYMOUS, Principal

T = TypeVar("T")

MAX_REMEMBERED = 10_000
RETRY_AFTER_SECONDS = 1.0
NOT_VERIFIED = "too_many_failures"

# One text for all, so that a caller learns nothing of what was wrong.
INVALID = "the credentials are not valid"
MISSING = "credentials are required: authorization: Bearer, or x-api-key"
TOO_MANY = "too many failed attempts from this address"


class KeySource(Protocol):
    """Where keys are kept. `is_known` is False until it could be read for the first time."""

    @property
    def is_known(self) -> bool: ...

    def get(self, key_id: str) -> KeyRecord | None: ...


class Remembered(Generic[T]):
    """What was found out of tokens that were good. They are known by a keyed hash alone; of very many, the oldest is
    forgotten."""

    def __init__(self) -> None:
        self._begun = blake2b(key=secrets.token_bytes(32), digest_size=16)
        self._found: OrderedDict[bytes, T] = OrderedDict()

    def get(self, token: str) -> T | None:
        """What was remembered of it."""
        return self._found.get(self._name(token))

    def put(self, token: str, found: T) -> None:
        """Remembers it."""
        self._found[self._name(token)] = found
        if len(self._found) > MAX_REMEMBERED:
            self._found.popitem(last=False)

    def _name(self, token: str) -> bytes:
        hashing = self._begun.copy()
        hashing.update(token.encode())
        return hashing.digest()


class VerifiedTokens:
    """Tokens that were verified, so that a signature is checked once."""

    def __init__(self) -> None:
        self._found: Remembered[tuple[Verified, Issuer, int]] = Remembered()

    def get(self, token: str, issuers: Mapping[str, Issuer], now: float) -> Principal | None:
        """Whom the token stands for, while it holds and nothing has changed of its issuer and its keys."""
        found = self._found.get(token)
        if found is None:
            return None
        verified, issuer, generation = found
        if now >= verified.expires_at or issuers.get(issuer.name) is not issuer or generation != issuer.keys.generation:
            return None
        return verified.principal

    def put(self, token: str, verified: Verified, issuer: Issuer) -> None:
        """Remembers a token."""
        self._found.put(token, (verified, issuer, issuer.keys.generation))


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Takes API keys, tokens of identity providers, and certificates, whichever are configured.

    What a caller presents must be good: nobody is let in as anonymous with credentials that fail.
    """

    anonymous: bool
    pepper: bytes = field(repr=False)
    keys: Sequence[KeySource]
    issuers: Mapping[str, Issuer]
    certificates: Sequence[CertificateRule]
    failures: FailedAttempts
    events: SecurityEvents
    verified: VerifiedTokens
    hashed: Remembered[tuple[str, bytes]] = field(default_factory=Remembered)
    """Name and hash under this pepper of API keys that were good: to hash one takes as long as all else about it."""

    @property
    def takes_credentials(self) -> bool:
        """Anything but anonymous callers is configured."""
        return bool(self.keys or self.issuers or self.certificates)

    def authenticate(self, call: Call) -> Principal | Awaitable[Principal]:
        """Who calls, or what to await to know it: verifying a signature can take long.

        Raises, here or when awaited:
            MissingCredentials: nobody says.
            InvalidCredentials: what is presented is not good; the log says why.
            TooManyFailures: that happened too often at this address.
            GatewayOverloaded: the key store could not be read yet.
        """
        if not self.takes_credentials:
            return ANONYMOUS
        try:
            token = presented_token(call.metadata, call.repeated)
            if token is None:
                return self._without_token(call)
            if token.startswith(PREFIX):
                return self._of_api_key(token, time.time())
        except Refused as refused:
            raise self._refusal(refused, call) from None
        return self.verified.get(token, self.issuers, time.time()) or self._of_jwt(token, call)

    def _without_token(self, call: Call) -> Principal:
        if self.certificates and (principal := certified(self.certificates, call.context.auth_context() or {})):
            return principal
        if self.anonymous:
            return ANONYMOUS
        self.events.failed(_failure(Refused("missing"), peer_address(call.peer)))
        raise MissingCredentials(MISSING)

    def _of_api_key(self, token: str, now: float) -> Principal:
        if known := self.hashed.get(token):
            name, hashed = known
            return self._record(name).admit(hashed, now)
        claimed = claimed_id(token)
        if claimed is None:
            raise Refused("malformed")
        hashed = digest(self.pepper, token)
        try:
            principal = self._record(claimed).admit(hashed, now)
        except (Refused, GatewayOverloaded):
            if is_whole(token):  # which a good key need not be asked
                raise
            raise Refused("malformed") from None
        self.hashed.put(token, (claimed, hashed))
        return principal

    def _record(self, name: str) -> KeyRecord:
        for source in self.keys:
            if record := source.get(name):
                return record
        if not all(source.is_known for source in self.keys):
            raise GatewayOverloaded("the key store cannot be read yet", retry_after=RETRY_AFTER_SECONDS)
        raise Refused("unknown_key", key_id=name)

    async def _of_jwt(self, token: str, call: Call) -> Principal:
        try:
            verified, issuer = await self._verify(token, call)
        except Refused as refused:
            raise self._refusal(refused, call) from None
        self.verified.put(token, verified, issuer)
        return verified.principal

    async def _verify(self, token: str, call: Call) -> tuple[Verified, Issuer]:
        claimed = stated(token) if self.issuers and token.count(".") == 2 else None
        if claimed is None:
            raise Refused("malformed")
        issuer = self.issuers.get(claimed[0])
        if issuer is None:
            raise Refused("unknown_issuer")
        if not self.failures.may_verify(peer_address(call.peer), time.monotonic()):
            raise Refused(NOT_VERIFIED)  # a signature costs more to verify than a call to refuse
        return await issuer.verify(token, claimed[1]), issuer

    def _refusal(self, refused: Refused, call: Call) -> GatewayError:
        """The error for the caller; the reason goes into the log alone."""
        address, now = peer_address(call.peer), time.monotonic()
        wait = self.failures.wait(address, now)
        self.events.failed(_failure(refused, address))
        if refused.reason == NOT_VERIFIED:
            return TooManyFailures(TOO_MANY, retry_after=RETRY_AFTER_SECONDS)
        if wait:
            return TooManyFailures(TOO_MANY, retry_after=wait)
        self.failures.record(address, now)
        return InvalidCredentials(INVALID)


def _failure(refused: Refused, address: str) -> SecurityEvent:
    return SecurityEvent(
        "login_failed", reason=refused.reason, tenant=refused.tenant, key_id=refused.key_id, address=address
    )
