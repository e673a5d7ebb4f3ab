"""One configured provider, ready to call: its host, its adapter, its transport, its credential."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from headgate_server import providers
from headgate_server.catalog import Card, nanos_per_million
from headgate_server.config import (
    EntraCredential,
    GoogleCredential,
    ModelCard,
    OAuthCredential,
    Prices,
    Provider,
    TokenService,
    Treatment,
)
from headgate_server.credentials import Credential, GoogleTokens, RefreshedToken
from headgate_server.oauth import OAuthTokens, client_credentials, federated_credentials, managed_identity
from headgate_server.prices import PriceList, Rates
from headgate_server.providers.base import Adapter, Target
from headgate_server.providers.hosts import Host
from headgate_server.resilience.backoff import Backoff
from headgate_server.resilience.breaker import BreakerSettings
from headgate_server.resilience.clocks import Clocks
from headgate_server.resilience.target import TargetPolicy
from headgate_server.transports.aiohttp import AiohttpTransport
from headgate_server.transports.base import HttpRequest, Transport
from headgate_server.transports.connections import ClientCertificate
from headgate_server.transports.mock import MockTransport

if TYPE_CHECKING:
    from headgate_server.transports.httpx2 import Httpx2Transport

CONFIGURED_PRICES = "configuration"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One configured provider, ready to call. `headers` hold its key, `credential` the token it has instead of one."""

    name: str
    issuer: str
    host: Host
    adapter: Adapter
    transport: Transport
    base_url: str
    embed_concurrency: int
    headers: Mapping[str, str] = field(repr=False)
    credential: Credential | None = None

    @property
    def default_max_output_tokens(self) -> int | None:
        """The limit that the adapter sends where the caller has none, if it does."""
        default: int | None = getattr(self.adapter, "DEFAULT_MAX_OUTPUT_TOKENS", None)
        return default

    def authentication(self, caller_key: str = "") -> Mapping[str, str]:
        """The headers that authenticate a call: with the caller's own key, or as the configuration says.

        Raises:
            ProviderError: there is no valid token, and why the last one could not be had.
        """
        if caller_key:
            return {**self.headers, **self.adapter.headers(caller_key)}
        return {**self.headers, **self.credential.headers()} if self.credential else self.headers

    def target(self, model: str) -> Target:
        """The model of that name at this provider."""
        return Target(provider=self.name, model=model, host=self.host, issuer=self.issuer)

    async def close(self) -> None:
        """Closes every connection, to the vendor and to where its tokens come from."""
        await self.transport.close()
        if self.credential:
            await self.credential.close()


def endpoint(name: str, provider: Provider) -> Endpoint:
    """The endpoint of a configured provider.

    Raises:
        UnresolvedProvider: it has no host, adapter or address.
    """
    host, adapter = providers.resolve(name, provider)
    return Endpoint(
        name=name,
        issuer=host.issuer or host.name,
        host=host,
        adapter=adapter,
        transport=_transport(provider),
        base_url=host.base_url.rstrip("/"),
        embed_concurrency=provider.embed_concurrency,
        headers=_headers(provider, adapter),
        credential=_credential(name, provider, host),
    )


def _transport(provider: Provider) -> Transport:
    if provider.adapter == "mock":
        return MockTransport(provider.mock)
    kind: type[AiohttpTransport | Httpx2Transport] = AiohttpTransport
    if provider.transport == "httpx2":
        from headgate_server.transports.httpx2 import Httpx2Transport  # an extra

        kind = Httpx2Transport
    certificate = provider.client_certificate_file
    return kind(
        provider.max_connections,
        ca_file=provider.ca_file,
        client_certificate=ClientCertificate(certificate, provider.client_key_file) if certificate else None,
        proxy=provider.proxy or "",
    )


def _headers(provider: Provider, adapter: Adapter) -> dict[str, str]:
    credential = provider.api_key.get_secret_value() if provider.api_key else None
    return {**adapter.headers(credential), **provider.headers}


def _credential(name: str, provider: Provider, host: Host) -> Credential | None:
    match provider.credential:
        case EntraCredential() as entra:
            return RefreshedToken(name, OAuthTokens(_asking_entra(entra), _to_token_service(entra)))
        case OAuthCredential() as oauth:
            return RefreshedToken(name, OAuthTokens(_asking(oauth), _to_token_service(oauth)))
        case GoogleCredential(file=file):
            return RefreshedToken(name, GoogleTokens(file))
        case None if providers.token_type(provider, host) == "google":
            return RefreshedToken(name, GoogleTokens(None))
        case None:
            return None


def _asking_entra(entra: EntraCredential) -> Callable[[], HttpRequest]:
    if entra.client_secret:
        secret = entra.client_secret.get_secret_value()
        return partial(client_credentials, entra.token_url, entra.client_id, secret, scope=entra.scope)
    if file := entra.federated_token_file:
        return partial(federated_credentials, entra.token_url, entra.client_id, file, scope=entra.scope)
    return partial(
        managed_identity,
        entra.identity_endpoint,
        scope=entra.scope,
        client_id=entra.client_id,
        identity_header=entra.identity_header.get_secret_value() if entra.identity_header else "",
    )


def _asking(oauth: OAuthCredential) -> Callable[[], HttpRequest]:
    return partial(
        client_credentials,
        oauth.token_url,
        oauth.client_id,
        oauth.client_secret.get_secret_value(),
        scope=oauth.scope,
        audience=oauth.audience,
        basic=oauth.auth_method == "client_secret_basic",
    )


def _to_token_service(service: TokenService) -> Transport:
    """A connection of its own: neither a vendor's authorities and proxy nor its crowd stand in a token's way."""
    return AiohttpTransport(1, ca_file=service.ca_file, proxy=service.proxy or "")


def cards(name: str, provider: Provider) -> Iterator[tuple[tuple[str, str], Card]]:
    """What the configuration says of the provider's models, by (provider, model)."""
    for model, card in provider.catalog.items():
        yield (name, model), _card(card)


def _card(card: ModelCard) -> Card:
    return Card(
        display_name=card.display_name,
        context_window=card.context_window,
        max_output_tokens=card.max_output_tokens,
        prices=_price_list(card.prices) if card.prices else None,
    )


def _price_list(prices: Prices) -> PriceList:
    amounts = prices.model_dump(exclude={"currency"}, exclude_none=True)
    rates = Rates(**{name: nanos_per_million(amount) for name, amount in amounts.items()})
    return PriceList(rates, version=CONFIGURED_PRICES, currency=prices.currency)


def target_policy(treatment: Treatment) -> TargetPolicy:
    """How the configuration wants a target to be treated."""
    clocks, retry, breaker = treatment.clocks, treatment.retry, treatment.breaker
    return TargetPolicy(
        clocks=Clocks(clocks.connect, clocks.first_token, clocks.idle, clocks.total),
        backoff=Backoff(retry.base_delay, retry.max_delay, retry.max_retry_after),
        max_attempts=retry.max_attempts,
        budget_ratio=retry.budget_ratio,
        budget_reserve=retry.budget_reserve,
        breaker=BreakerSettings(
            window=breaker.window,
            min_calls=breaker.min_calls,
            error_rate=breaker.error_rate,
            consecutive_failures=breaker.consecutive_failures,
            open_for=breaker.open_for,
            longest_open=breaker.max_open_for,
        ),
        concurrency=treatment.concurrency.limit,
        queue=treatment.concurrency.queue,
    )
