"""Identity as one configuration wants it: what authenticates, what keeps it current, and where events go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from headgate_server.config import Auth
from headgate_server.config.budgets import Budget
from headgate_server.config.identity import CertificateIdentity, Grant, JwtIssuer, KeyStore as StoreConfig, StaticKey
from headgate_server.identity.authenticator import Authenticator, KeySource, VerifiedTokens
from headgate_server.identity.events import SecurityEvents
from headgate_server.identity.failures import FailedAttempts
from headgate_server.identity.jwks import FetchedKeys, FixedKey
from headgate_server.identity.jwt import Claims, Issuer
from headgate_server.identity.key_store import KeyStore, StaticKeys
from headgate_server.identity.mtls import SPIFFE_ID, SUBJECT, CertificateRule, spiffe_pattern, subject_pattern
from headgate_server.identity.records import KeyRecord
from headgate_server.principal import Principal
from headgate_server.transports.aiohttp import AiohttpTransport

if TYPE_CHECKING:
    from headgate_server.identity.database import SqlKeyDatabase


class KeptCurrent(Protocol):
    """What is read again and again in the background."""

    def start(self) -> None:
        """Begins; once is enough."""
        ...

    async def tried(self) -> None:
        """Waits until it was read for the first time, or could not be."""
        ...


class Identity:
    """Takes over from `previous` what its settings leave unchanged: the key store, fetched keys, what is counted.

    Raises:
        OSError: a file of authorities cannot be read any more.
    """

    def __init__(self, auth: Auth, previous: Identity | None = None) -> None:
        self._authorities = {config.issuer: config.ca_file and config.ca_file.read_bytes() for config in auth.jwt}
        self.auth = auth
        self.events: SecurityEvents = previous.events if previous else SecurityEvents()
        self.store = _store(auth, previous)
        self.issuers: dict[str, Issuer] = {
            config.issuer: previous.issuers[config.issuer]
            if previous and self._keeps(config, previous)
            else _issuer(config)
            for config in auth.jwt
        }
        static = {name: _static_record(name, key) for name, key in auth.keys.items()}
        static_keys: list[KeySource] = [StaticKeys(static)] if static else []
        self.authenticator: Authenticator = Authenticator(
            anonymous=auth.anonymous,
            pepper=pepper(auth),
            keys=[*static_keys, self.store] if self.store else static_keys,
            issuers=self.issuers,
            certificates=[_certificate_rule(rule) for rule in auth.mtls],
            failures=_failures(auth, previous),
            events=self.events,
            verified=previous.authenticator.verified if previous else VerifiedTokens(),
        )

    async def start(self, patience: float) -> None:
        """Reads the first keys, and waits at most `patience` seconds: what cannot be read now is read later."""
        sources: list[KeptCurrent] = [issuer.keys for issuer in self.issuers.values()]
        if self.store:
            sources.append(self.store)
        for source in sources:
            source.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await asyncio.gather(*(source.tried() for source in sources))
        self.keep_events()
        self.events.start()

    def own_budgets(self) -> Iterator[Budget]:
        """The budgets that callers may have of their own, as far as their keys are known."""
        for grant in (*self.auth.keys.values(), *self.auth.jwt, *self.auth.mtls):
            yield from grant.budgets
        if self.store:
            yield from self.store.budgets()

    def keep_events(self) -> None:
        """Security events go to this configuration's store from now on."""
        self.events.sink = self.store

    def _keeps(self, config: JwtIssuer, previous: Identity) -> bool:
        """Nothing of the issuer changed, nor what its file of authorities holds."""
        name = config.issuer
        return config in previous.auth.jwt and self._authorities[name] == previous._authorities[name]

    async def close(self, successor: Identity | None = None) -> None:
        """Closes what the successor did not take over."""
        if successor is None:
            await self.events.close()
        for name, issuer in self.issuers.items():
            if successor is None or successor.issuers.get(name) is not issuer:
                await issuer.keys.close()
        if self.store and (successor is None or successor.store is not self.store):
            await self.store.close()


def pepper(auth: Auth) -> bytes:
    """The secret under which keys are hashed."""
    return auth.pepper.get_secret_value().encode() if auth.pepper else b""


def database(store: StoreConfig) -> SqlKeyDatabase:
    """The database of a key store."""
    from headgate_server.identity.database import SqlKeyDatabase  # an extra, and 0.7 seconds

    return SqlKeyDatabase(store.url.get_secret_value(), migrates=store.migrate)


def _store(auth: Auth, previous: Identity | None) -> KeyStore | None:
    if auth.store is None:
        return None
    if previous and previous.auth.store == auth.store:
        return previous.store
    return KeyStore(database(auth.store), auth.store.poll_interval)


def _failures(auth: Auth, previous: Identity | None) -> FailedAttempts:
    if previous and previous.auth.failures == auth.failures:
        return previous.authenticator.failures
    return FailedAttempts(auth.failures.limit, auth.failures.window)


def _issuer(config: JwtIssuer) -> Issuer:
    return Issuer(
        name=config.issuer,
        audiences=config.audiences,
        algorithms=config.algorithms,
        leeway=config.leeway,
        keys=_signing_keys(config),
        claims=Claims(tenant=config.tenant_claim, roles=config.roles_claim, subject=config.subject_claim),
        grant=_principal(config, tenant=config.tenant),
    )


def _signing_keys(config: JwtIssuer) -> FixedKey | FetchedKeys:
    if config.jwks_url:
        transport = AiohttpTransport(1, ca_file=config.ca_file, proxy=config.proxy or "")
        token_file = config.bearer_token_file
        return FetchedKeys(config.jwks_url, config.algorithms, transport, config.jwks_refresh, token_file)
    return FixedKey(config.secret.get_secret_value() if config.secret else config.public_key)


def _static_record(name: str, key: StaticKey) -> KeyRecord:
    return KeyRecord(
        principal=_principal(key, tenant=key.tenant, key_id=name),
        digest=bytes.fromhex(key.hash),
        previous_digest=bytes.fromhex(key.previous_hash or ""),
        previous_expires_at=key.previous_expires_at.timestamp() if key.previous_expires_at else None,
        expires_at=key.expires_at.timestamp() if key.expires_at else None,
    )


def _certificate_rule(rule: CertificateIdentity) -> CertificateRule:
    principal = _principal(rule, tenant=rule.tenant)
    if rule.spiffe_id:
        return CertificateRule(SPIFFE_ID, spiffe_pattern(rule.spiffe_id), principal)
    return CertificateRule(SUBJECT, subject_pattern(rule.subject), principal)


def _principal(grant: Grant, *, tenant: str, key_id: str = "") -> Principal:
    return Principal(
        tenant=tenant,
        key_id=key_id,
        roles=frozenset(grant.roles),
        allowed_models=grant.allowed_models,
        allowed_providers=grant.allowed_providers,
        limits=grant.limits,
        budgets=grant.budgets,
    )
