"""One configured provider, ready to call: its host, its adapter, its transport, its credential."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from headgate_server import providers
from headgate_server.catalog import Card, nanos_per_million
from headgate_server.config import ModelCard, Prices, Provider
from headgate_server.credentials import Credential, GoogleTokens, RefreshedToken
from headgate_server.prices import PriceList, Rates
from headgate_server.providers.base import Adapter, Target
from headgate_server.providers.hosts import Host
from headgate_server.resilience.clocks import Clocks
from headgate_server.transports.aiohttp import AiohttpTransport
from headgate_server.transports.base import Transport
from headgate_server.transports.mock import MockTransport

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
    clocks: Clocks
    embed_concurrency: int
    headers: Mapping[str, str] = field(repr=False)
    credential: Credential | None = None

    def target(self, model: str) -> Target:
        """The model of that name at this provider."""
        return Target(provider=self.name, model=model, host=self.host, issuer=self.issuer)


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
        clocks=Clocks(
            connect=provider.clocks.connect,
            first_token=provider.clocks.first_token,
            idle=provider.clocks.idle,
            total=provider.clocks.total,
        ),
        embed_concurrency=provider.embed_concurrency,
        headers=_headers(provider, adapter),
        credential=_credential(name, provider, host),
    )


def _transport(provider: Provider) -> Transport:
    if provider.adapter == "mock":
        return MockTransport(provider.mock)
    if provider.transport == "httpx2":
        from headgate_server.transports.httpx2 import Httpx2Transport  # an extra

        return Httpx2Transport(provider.max_connections, ca_file=provider.ca_file, proxy=provider.proxy or "")
    return AiohttpTransport(provider.max_connections, ca_file=provider.ca_file, proxy=provider.proxy or "")


def _headers(provider: Provider, adapter: Adapter) -> dict[str, str]:
    credential = provider.api_key.get_secret_value() if provider.api_key else None
    return {**adapter.headers(credential), **provider.headers}


def _credential(name: str, provider: Provider, host: Host) -> Credential | None:
    if not providers.takes_token(provider, host):
        return None
    return RefreshedToken(name, GoogleTokens(provider.credential.file if provider.credential else None))


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
