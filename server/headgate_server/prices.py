"""What tokens cost: integers of 1e-9 currency units, from token classes that are subsets. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields

from headgate import v1 as pb

MILLION = 1_000_000
MOST_NANOS = 2**63 - 1
COMPONENTS = 4
"""Of a cost, each of which is rounded by less than a nano."""

Account = pb.GenerateResponse | pb.EmbedResponse | pb.GenerationEnd


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices of a million tokens in nanos, by class of token; None where the class has no price of its own.

    `cache_write` is for writes with the vendor's default TTL.
    """

    input: int
    output: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None
    audio_input: int | None = None
    image_input: int | None = None
    audio_output: int | None = None
    reasoning: int | None = None

    @property
    def has_media(self) -> bool:
        """Audio or images have rates of their own."""
        return not (self.audio_input is self.image_input is self.audio_output is None)

    def dearest(self, *, media: bool) -> tuple[int, int | None]:
        """The highest rate of any input and of any output; `media` says that not all of it is text."""
        inputs = [self.input, self.cache_read, self.cache_write, self.cache_write_1h]
        outputs = [self.output, self.reasoning]
        if media:
            inputs += [self.audio_input, self.image_input]
            outputs.append(self.audio_output)
        known = [rate for rate in outputs if rate is not None]
        return max(rate for rate in inputs if rate is not None), max(known) if self.output is not None else None


@dataclass(frozen=True, slots=True)
class PriceList:
    """The rates of one model. `tiers` hold for all tokens of a call whose input exceeds their threshold.

    `tiers` are (threshold in input tokens, rates), ascending.
    """

    rates: Rates
    version: str
    currency: str = "USD"
    tiers: tuple[tuple[int, Rates], ...] = ()

    def cost(self, usage: pb.Usage) -> pb.Cost | None:
        """The cost of one call, each component rounded half to even; None where tokens or their price are unknown."""
        rates = self.rates
        if not usage.HasField("input_tokens") or (usage.output_tokens and rates.output is None):
            return None
        for threshold, tier in self.tiers:
            if usage.input_tokens > threshold:
                rates = tier
        components = {
            "input_nanos": _nanos(_input(usage, rates)),
            "cache_read_nanos": _nanos(usage.cache_read_tokens * _or(rates.cache_read, rates.input)),
            "cache_write_nanos": _nanos(_cache_write(usage, rates)),
            "output_nanos": _nanos(_output(usage, rates)),
        }
        total = sum(components.values())
        if total > MOST_NANOS:
            return None
        return pb.Cost(
            total_nanos=total,
            currency_code=self.currency,
            source=pb.COST_SOURCE_ESTIMATE,
            price_version=self.version,
            **components,
        )

    @property
    def tells_media_apart(self) -> bool:
        """Audio or images have prices of their own."""
        return any(rates.has_media for rates in (self.rates, *(rates for _, rates in self.tiers)))

    def most(self, input_tokens: int, output_tokens: int, *, media: bool) -> int | None:
        """The most nanos that a call can cost which uses no more than that; None where a price is not known."""
        reached = [self.rates, *(rates for threshold, rates in self.tiers if input_tokens > threshold)]
        costs = []
        for rates in reached:
            input_rate, output_rate = rates.dearest(media=media)
            if output_rate is None and output_tokens:
                return None
            costs.append(input_tokens * input_rate + output_tokens * (output_rate or 0))
        return max(costs) // MILLION + COMPONENTS

    def model_prices(self) -> list[pb.ModelPrice]:
        """The rates as ListModels shows them, those of long contexts with their threshold."""
        shown = [("", self.rates)]
        shown += [(f"-above-{threshold}", rates) for threshold, rates in self.tiers]
        return [
            pb.ModelPrice(
                kind=field.name.replace("_", "-") + suffix,
                nanos_per_million=rate,
                currency_code=self.currency,
                price_version=self.version,
            )
            for suffix, rates in shown
            for field in fields(rates)
            if (rate := getattr(rates, field.name)) is not None
        ]


def add_cost(account: Account, prices: PriceList | None) -> None:
    """Sets the cost of what was used, unless the vendor stated it; a warning says why there is none."""
    if account.HasField("cost"):
        return
    cost = prices.cost(account.usage) if prices and account.HasField("usage") else None
    if cost is not None:
        account.cost.CopyFrom(cost)
    elif prices is None:
        account.warnings.add(code="price-unknown", field="cost", message="no price of this model is known")
    else:
        account.warnings.add(code="usage-unknown", field="cost", message="the tokens to price are not known")


def _input(usage: pb.Usage, rates: Rates) -> int:
    """Input that was neither read from nor written to a cache; media at their own rate where there is one.

    Which of the media came from the cache is not counted: as large a share as of all input.
    """
    fresh = max(usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens, 0)
    audio = _share(usage.audio_input_tokens, fresh, usage.input_tokens) if rates.audio_input is not None else 0
    image = _share(usage.image_input_tokens, fresh, usage.input_tokens) if rates.image_input is not None else 0
    image = min(image, fresh - audio)
    return (fresh - audio - image) * rates.input + audio * _or(rates.audio_input, 0) + image * _or(rates.image_input, 0)


def _cache_write(usage: pb.Usage, rates: Rates) -> int:
    hour = min(usage.cache_write_1h_tokens, usage.cache_write_tokens)
    short_rate = _or(rates.cache_write, rates.input)
    return (usage.cache_write_tokens - hour) * short_rate + hour * _or(rates.cache_write_1h, short_rate)


def _output(usage: pb.Usage, rates: Rates) -> int:
    total = usage.output_tokens
    audio = min(usage.audio_output_tokens, total) if rates.audio_output is not None else 0
    reasoning = min(usage.reasoning_tokens, total - audio) if rates.reasoning is not None else 0
    text = total - audio - reasoning
    return text * _or(rates.output, 0) + audio * _or(rates.audio_output, 0) + reasoning * _or(rates.reasoning, 0)


def _share(part: int, fresh: int, whole: int) -> int:
    return min(part * fresh // whole, fresh) if whole else 0


def _or(rate: int | None, default: int) -> int:
    return default if rate is None else rate


def _nanos(token_nanos: int) -> int:
    """Tokens times nanos for a million tokens, as nanos; half rounds to even."""
    whole, rest = divmod(token_nanos, MILLION)
    if rest * 2 > MILLION or (rest * 2 == MILLION and whole % 2):
        whole += 1
    return whole
