"""Money in integer nanos: classes of tokens are subsets, tiers hold for the whole call, unknown is not free."""

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal
from typing import Any

import pytest
from headgate import v1 as pb
from hypothesis import given, strategies as st

from headgate_server.catalog import Card, Catalog, nanos_per_million
from headgate_server.prices import PriceList, Rates
from headgate_server.providers.base import Target
from headgate_server.providers.hosts import HOSTS
from tests.conftest import Serve
from tests.headgate_process import ask

USD = 10**9


def per_million(**dollars: str) -> Rates:
    """Rates from dollars for a million tokens."""
    return Rates(**{name: nanos_per_million(Decimal(amount)) for name, amount in dollars.items()})


SONNET = PriceList(
    rates=per_million(input="3", output="15", cache_read="0.3", cache_write="3.75", cache_write_1h="6"),
    tiers=(
        (
            200_000,
            per_million(input="6", output="22.5", cache_read="0.6", cache_write="7.5", cache_write_1h="12"),
        ),
    ),
    version="v1",
)


def cost(prices: PriceList, **tokens: Any) -> tuple[int, int, int, int, int]:
    """Input, cache read, cache write, output and total in nanos."""
    priced = prices.cost(pb.Usage(**tokens))
    assert priced is not None
    assert (priced.currency_code, priced.source, priced.price_version) == ("USD", pb.COST_SOURCE_ESTIMATE, "v1")
    return (
        priced.input_nanos,
        priced.cache_read_nanos,
        priced.cache_write_nanos,
        priced.output_nanos,
        priced.total_nanos,
    )


@pytest.mark.parametrize(
    ("tokens", "nanos"),
    [
        # 1,000 at $3 + 200 at $15 for a million
        ({"input_tokens": 1000, "output_tokens": 200}, (3_000_000, 0, 0, 3_000_000, 6_000_000)),
        # Of 10,000 input tokens 8,000 were read and 1,500 written, 500 of those for an hour: 500 at $3 are left
        (
            {
                "input_tokens": 10_000,
                "output_tokens": 100,
                "cache_read_tokens": 8000,
                "cache_write_tokens": 1500,
                "cache_write_1h_tokens": 500,
            },
            (1_500_000, 2_400_000, 6_750_000, 1_500_000, 12_150_000),
        ),
        # 200,000 input tokens are within the base tier, one more puts every token into the next
        ({"input_tokens": 200_000, "output_tokens": 1}, (600_000_000, 0, 0, 15_000, 600_015_000)),
        ({"input_tokens": 200_001, "output_tokens": 1}, (1_200_006_000, 0, 0, 22_500, 1_200_028_500)),
        # Reasoning without a price of its own is output like any other
        ({"input_tokens": 0, "output_tokens": 100, "reasoning_tokens": 90}, (0, 0, 0, 1_500_000, 1_500_000)),
    ],
)
def test_costs_are_exact_to_the_nano(tokens: dict[str, int], nanos: tuple[int, ...]) -> None:
    """Hand-computed costs: plain, cached, written for an hour, at the edge of a tier, reasoning."""
    assert cost(SONNET, **tokens) == nanos


def test_audio_is_a_subset_with_its_own_rate() -> None:
    """Audio tokens are taken out of input and output, never added to them."""
    prices = PriceList(per_million(input="2.5", output="10", audio_input="40", audio_output="80"), "v1")
    # 100 input of which 60 audio: 40 at 2,500 + 60 at 40,000; 50 output of which 30 audio: 20 at 10,000 + 30 at 80,000
    assert cost(prices, input_tokens=100, audio_input_tokens=60, output_tokens=50, audio_output_tokens=30) == (
        2_500_000,
        0,
        0,
        2_600_000,
        5_100_000,
    )


def test_fractions_of_a_nano_are_rounded_half_to_even() -> None:
    """37.5 nanos a token: one token costs 38, three cost 112."""
    prices = PriceList(per_million(input="0.0375", output="0"), "v1")
    assert [cost(prices, input_tokens=n)[4] for n in (1, 2, 3, 4)] == [38, 75, 112, 150]


def test_what_is_unknown_has_no_cost() -> None:
    """No token count, or output without a price, gives no cost instead of 0."""
    assert SONNET.cost(pb.Usage(output_tokens=5)) is None
    assert PriceList(per_million(input="0.02"), "v1").cost(pb.Usage(input_tokens=1, output_tokens=1)) is None
    embedding = PriceList(per_million(input="0.02"), "v1").cost(pb.Usage(input_tokens=1_000_000))
    assert embedding is not None
    assert embedding.total_nanos == 20_000_000


tokens = st.integers(0, 10**7)


@given(
    st.builds(
        dict,
        **{
            f"{name}_tokens": tokens
            for name in (
                "input",
                "output",
                "cache_read",
                "cache_write",
                "cache_write_1h",
                "audio_input",
                "image_input",
                "audio_output",
                "reasoning",
            )
        },
    )
)
def test_no_subset_makes_a_call_dearer_than_its_dearest_rate(counts: dict[str, Any]) -> None:
    """With every class at one rate the cost is that of input and output, whatever the subsets claim within them."""
    flat = PriceList(Rates(*(MILLION_NANOS for _ in fields(Rates))), "v1")
    consistent = counts["cache_read_tokens"] + counts["cache_write_tokens"] <= counts["input_tokens"]
    priced = flat.cost(pb.Usage(**counts))
    assert priced is not None
    assert priced.total_nanos >= 0
    if consistent:
        assert priced.total_nanos == (counts["input_tokens"] + counts["output_tokens"]) * 1000


MILLION_NANOS = 1000 * 10**6

RATE = st.integers(0, 200 * MILLION_NANOS)
RATES = st.builds(
    Rates,
    input=RATE,
    output=RATE,
    **{f.name: st.none() | RATE for f in fields(Rates) if f.name not in ("input", "output")},
)
TIERS = st.lists(st.tuples(st.integers(0, 2000), RATES), max_size=2, unique_by=lambda tier: tier[0]).map(sorted)


@given(data=st.data(), rates=RATES, media=st.booleans())
def test_no_call_costs_more_than_the_most_that_was_reserved(data: st.DataObject, rates: Rates, media: bool) -> None:
    """Whatever the rates and tiers, and however the tokens, no more than were estimated, fall into classes."""
    prices = PriceList(rates, "v1", tiers=tuple(data.draw(TIERS)))
    most_input, most_output = data.draw(st.integers(0, 3000)), data.draw(st.integers(0, 3000))
    sent, written = data.draw(st.integers(0, most_input)), data.draw(st.integers(0, most_output))
    cached = data.draw(st.integers(0, sent))
    usage = pb.Usage(
        input_tokens=sent,
        output_tokens=written,
        cache_read_tokens=data.draw(st.integers(0, cached)),
        reasoning_tokens=data.draw(st.integers(0, written)),
    )
    usage.cache_write_tokens = cached - usage.cache_read_tokens
    usage.cache_write_1h_tokens = data.draw(st.integers(0, usage.cache_write_tokens))
    if media:
        usage.audio_input_tokens = data.draw(st.integers(0, sent))
        usage.image_input_tokens = data.draw(st.integers(0, sent - usage.audio_input_tokens))
        usage.audio_output_tokens = data.draw(st.integers(0, written - usage.reasoning_tokens))
    priced, most = prices.cost(usage), prices.most(most_input, most_output, media=media)
    assert priced is not None
    assert most is not None
    assert priced.total_nanos <= most


def target(host: str, model: str) -> Target:
    return Target(provider=host, model=model, host=HOSTS[host], issuer=host)


def test_the_public_list_knows_vendors_by_their_address() -> None:
    """A vendor's model has price, window and version; a server of one's own has none, whatever its model is called."""
    catalog = Catalog({}, {"openai": "https://api.openai.com/v1", "llamacpp": "http://127.0.0.1:8080/v1"})
    card = catalog.card(target("openai", "gpt-4o"))
    assert card.prices is not None
    assert card.prices.version.startswith("genai-prices-")
    assert card.context_window == 128_000
    assert card.prices.rates.input == 2_500_000_000
    assert catalog.card(target("llamacpp", "gpt-4o")) == Card()
    assert catalog.prices(target("openai", "no-such-model")) is None


def test_the_operators_word_wins() -> None:
    """A configured price replaces the public one; facts that it does not state are kept."""
    own = PriceList(per_million(input="1", output="1"), "configuration")
    catalog = Catalog({("openai", "gpt-4o"): Card(prices=own)}, {"openai": "https://api.openai.com/v1"})
    card = catalog.card(target("openai", "gpt-4o"))
    assert card.prices is own
    assert card.context_window == 128_000


PRICED = {
    "adapter": "mock",
    "mock": {"usage": {"prompt_tokens": 1000, "completion_tokens": 500, "cached_tokens": 400}},
    "catalog": {"echo": {"context_window": 4096, "prices": {"input": "3", "output": "15", "cache_read": "0.3"}}},
}


async def test_every_answer_has_its_cost(serve: Serve) -> None:
    """Plain and streamed answers, and embeddings, cost the same exact nanos; ListModels shows the prices."""
    async with serve(providers={"demo": PRICED}) as headgate:
        answer = await headgate.stub.Generate(ask("demo/echo"))
        events = [event async for event in headgate.stub.StreamGenerate(ask("demo/echo"))]
        unknown = await headgate.stub.Generate(ask("demo/lorem"), timeout=60)
        (listed,) = (await headgate.stub.ListModels(pb.ListModelsRequest())).models
    # 600 at $3, 400 at $0.30, 500 at $15 a million
    for priced in (answer.cost, events[-1].generation_end.cost):
        assert (priced.input_nanos, priced.cache_read_nanos, priced.output_nanos) == (1_800_000, 120_000, 7_500_000)
        assert (priced.total_nanos, priced.currency_code, priced.price_version) == (9_420_000, "USD", "configuration")
    assert not unknown.HasField("cost")
    assert [warning.code for warning in unknown.warnings] == ["price-unknown"]
    assert (listed.name, listed.context_window) == ("demo/echo", 4096)
    assert {price.kind: price.nanos_per_million for price in listed.prices} == {
        "input": 3 * USD,
        "output": 15 * USD,
        "cache-read": USD * 3 // 10,
    }
