"""What recorded answers cost, computed by hand."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from headgate_server.catalog import nanos_per_million
from headgate_server.prices import PriceList, Rates
from headgate_server.providers import anthropic, gemini, openai, openai_responses
from headgate_server.providers.base import Target
from headgate_server.providers.hosts import Host
from tests.recordings.recorded import recordings

ADAPTERS: dict[str, Any] = {
    "openai.chat": openai,
    "openai.responses": openai_responses,
    "anthropic.messages": anthropic,
    "gemini.generate": gemini,
}
TARGET = Target("vendor", "model", Host("vendor", "openai", ""), "vendor")


def per_million(**dollars: str) -> PriceList:
    """Prices in dollars for a million tokens."""
    return PriceList(Rates(**{name: nanos_per_million(Decimal(price)) for name, price in dollars.items()}), "by hand")


@pytest.mark.parametrize(
    ("api", "recording", "prices", "nanos"),
    [
        # 118 fresh at $2.50, 3584 cached at $1.25, 257 out at $10
        (
            "openai.chat",
            "openai-0cb13496b51a",
            per_million(input="2.5", cache_read="1.25", output="10"),
            (295_000, 4_480_000, 0, 2_570_000, 7_345_000),
        ),
        # 89 fresh at 15 cents, 1408 cached at 7.5 cents, 1037 out at 60 cents
        (
            "openai.chat",
            "openai-14d984dde6a0",
            per_million(input="0.15", cache_read="0.075", output="0.6"),
            (13_350, 105_600, 0, 622_200, 741_150),
        ),
        # 175 fresh, 320 cached, 144 out of which 118 thought, at DeepSeek's prices
        (
            "openai.chat",
            "deepseek-6d303e365fd8",
            per_million(input="0.28", cache_read="0.028", output="0.42"),
            (49_000, 8_960, 0, 60_480, 118_440),
        ),
        # 1127 fresh, 8576 cached, 638 out of which 576 thought
        (
            "openai.responses",
            "openai-00fb27b4a9eb",
            per_million(input="1.25", cache_read="0.125", output="10"),
            (1_408_750, 1_072_000, 0, 6_380_000, 8_860_750),
        ),
        # Anthropic states 6 input tokens beside 1069 read and 85 written: 6 at $3, then 30 cents and $3.75, 110 out
        (
            "anthropic.messages",
            "anthropic-54ee17690145",
            per_million(input="3", cache_read="0.3", cache_write="3.75", cache_write_1h="6", output="15"),
            (18_000, 320_700, 318_750, 1_650_000, 2_307_450),
        ),
        # 373 sent of which 204 cached; 89 said and 167 thought, which Gemini counts apart
        (
            "gemini.generate",
            "gemini-93c7c5fc6829",
            per_million(input="0.3", cache_read="0.03", output="2.5"),
            (50_700, 6_120, 0, 640_000, 696_820),
        ),
        # 17713 sent of which 17379 cached: 334 fresh, 36 of them audio at $1; 68 said and 821 thought
        (
            "gemini.generate",
            "gemini-572801bc51c0",
            per_million(input="0.3", audio_input="1", cache_read="0.03", output="2.5"),
            (125_400, 521_370, 0, 2_222_500, 2_869_270),
        ),
    ],
)
def test_recorded_answers_cost_what_they_cost_by_hand(
    api: str, recording: str, prices: PriceList, nanos: tuple[int, ...]
) -> None:
    """Cached, written and thought tokens are priced once each, exact to the nano."""
    (found,) = (one for one in recordings(api) if one.id == recording)
    cost = prices.cost(ADAPTERS[api].decode(found.body, TARGET).usage)
    assert cost is not None
    assert (
        cost.input_nanos,
        cost.cache_read_nanos,
        cost.cache_write_nanos,
        cost.output_nanos,
        cost.total_nanos,
    ) == nanos
