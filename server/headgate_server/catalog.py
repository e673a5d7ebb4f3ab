"""What is known about models: context windows and prices, the operator's own word first, then a public price list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from typing import TYPE_CHECKING

from headgate_server.prices import PriceList, Rates
from headgate_server.providers.base import Target

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

NANOS = 10**9
PRICE_KEYS = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "audio_input": "input_audio_mtok",
    "image_input": "input_image_mtok",
    "audio_output": "output_audio_mtok",
    "reasoning": "output_reasoning_mtok",
}


@dataclass(frozen=True, slots=True)
class Card:
    """One model's facts; None is unknown, never 0."""

    display_name: str = ""
    context_window: int | None = None
    max_output_tokens: int | None = None
    prices: PriceList | None = None


class Catalog:
    """Looks models up once and remembers them.

    `configured` maps (provider, model) to what the operator says, `base_urls` a provider to the address by which the
    public price list knows the vendor. Servers of one's own have no public price.
    """

    def __init__(self, configured: Mapping[tuple[str, str], Card], base_urls: Mapping[str, str]) -> None:
        self._configured = configured
        self._vendors = {name: _vendor(url) for name, url in base_urls.items() if url.startswith("https:")}
        self._listed: dict[tuple[str, str], ModelInfo | None] = {}
        self._price_lists: dict[int, PriceList | None] = {}

    def card(self, target: Target) -> Card:
        """The facts as of now: some vendors' prices depend on the time of day."""
        key = (target.provider, target.model)
        configured = self._configured.get(key, Card())
        listed = self._listed_model(key)
        if listed is None:
            return configured
        return replace(
            configured,
            display_name=configured.display_name or listed.name or "",
            context_window=configured.context_window or listed.context_window,
            prices=configured.prices or self._public_prices(listed),
        )

    def prices(self, target: Target) -> PriceList | None:
        """The prices as of now; None when unknown."""
        key = (target.provider, target.model)
        configured = self._configured.get(key)
        if configured is not None and configured.prices is not None:
            return configured.prices
        listed = self._listed_model(key)
        return None if listed is None else self._public_prices(listed)

    def _listed_model(self, key: tuple[str, str]) -> ModelInfo | None:
        if key not in self._listed:
            provider, model = key
            vendor = self._vendors.get(provider)
            self._listed[key] = _listed_model(vendor, model) if vendor else None
        return self._listed[key]

    def _public_prices(self, model: ModelInfo) -> PriceList | None:
        price = model.get_prices(datetime.now(UTC))
        if id(price) not in self._price_lists:
            self._price_lists[id(price)] = _price_list(price)
        return self._price_lists[id(price)]


def _vendor(base_url: str) -> Provider | None:
    from genai_prices.data_snapshot import get_snapshot

    try:
        return get_snapshot().find_provider(None, None, base_url)
    except LookupError:
        return None


def _listed_model(vendor: Provider, model: str) -> ModelInfo | None:
    from genai_prices.data_snapshot import get_snapshot

    return vendor.find_model(model, all_providers=get_snapshot().providers)


def _price_list(price: ModelPrice) -> PriceList | None:
    """The public list's prices in our terms; None where tokens have no price."""
    if price.input_mtok is None:
        return None
    from genai_prices.types import TieredPrices

    amounts = {name: getattr(price, key) for name, key in PRICE_KEYS.items()}
    thresholds = sorted(
        {tier.start for amount in amounts.values() if isinstance(amount, TieredPrices) for tier in amount.tiers}
    )
    return PriceList(
        rates=_rates(amounts, 0),
        tiers=tuple((threshold, _rates(amounts, threshold + 1)) for threshold in thresholds),
        version=f"genai-prices-{version('genai-prices')}",
    )


def _rates(amounts: Mapping[str, object], input_tokens: int) -> Rates:
    """The rates that hold for a call with so many input tokens."""
    from genai_prices.types import TieredPrices

    rates: dict[str, int] = {}
    for name, amount in amounts.items():
        if isinstance(amount, TieredPrices):
            passed = [tier.price for tier in amount.tiers if input_tokens > tier.start]
            amount = passed[-1] if passed else amount.base
        if isinstance(amount, Decimal):
            rates[name] = nanos_per_million(amount)
    return Rates(**rates)


def nanos_per_million(amount: Decimal) -> int:
    """A price of a million tokens in currency units, as nanos."""
    return int((amount * NANOS).to_integral_value())
