"""What recorded answers cost, computed by hand from what their vendors counted."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from headgate import v1 as pb

from headgate_server.catalog import nanos_per_million
from headgate_server.prices import PriceList, Rates
from headgate_server.providers import anthropic, cohere, gemini, openai, openai_responses
from headgate_server.sse import Decoder
from tests.recordings.recorded import Recording, recordings

ADAPTERS: dict[str, Any] = {
    "openai.chat": openai,
    "openai.responses": openai_responses,
    "anthropic.messages": anthropic,
    "gemini.generate": gemini,
    "cohere.chat": cohere,
}


class ByHand(NamedTuple):
    """Dollars for a million tokens, and what the answer costs: tokens times nanos of a token (a dollar for a million is
    1,000 nanos for one)."""

    recording: str
    prices: dict[str, str]
    input: int
    output: int
    read: int = 0
    write: int = 0


SONNET = {"input": "3", "cache_read": "0.3", "cache_write": "3.75", "cache_write_1h": "6", "output": "15"}
GPT_5 = {"input": "1.25", "cache_read": "0.125", "output": "10"}
AUDIO = {"input": "2.5", "output": "10", "audio_input": "40", "audio_output": "80"}
DEEPSEEK = {"input": "0.28", "cache_read": "0.028", "output": "0.42"}
FLASH = {"input": "0.3", "cache_read": "0.03", "output": "2.5", "audio_input": "1"}
GROK_MINI = {"input": "0.3", "cache_read": "0.075", "output": "0.5"}

TABLE = {
    "openai.chat": [
        # 3702 sent, 3584 of them cached
        ByHand(
            "openai-0cb13496b51a",
            {"input": "2.5", "cache_read": "1.25", "output": "10"},
            118 * 2500,
            257 * 10_000,
            read=3584 * 1250,
        ),
        # 1497 sent, 1408 of them cached
        ByHand(
            "openai-14d984dde6a0",
            {"input": "0.15", "cache_read": "0.075", "output": "0.6"},
            89 * 150,
            1037 * 600,
            read=1408 * 75,
        ),
        # 1220 sent, 1217 of them written; 100 out are all thought
        ByHand("openai-7af9077da7e0", {**GPT_5, "cache_write": "1.5"}, 3 * 1250, 100 * 10_000, write=1217 * 1500),
        # a stream: 1420 sent, 1280 of them cached
        ByHand("openai-777317ccc7af", GPT_5, 140 * 1250, 100 * 10_000, read=1280 * 125),
        # a stream: 77 out, 64 of them thought, at a price of their own
        ByHand("openai-1c273bf83af1", {**GPT_5, "reasoning": "12"}, 33 * 1250, 13 * 10_000 + 64 * 12_000),
        # 18 out: 12 spoken and 6 written
        ByHand("openai-20ff24396c79", AUDIO, 22 * 2500, 12 * 80_000 + 6 * 10_000),
        # a stream: 16 out, 11 spoken and 5 written
        ByHand("openai-65ff2a0cfbdf", AUDIO, 18 * 2500, 11 * 80_000 + 5 * 10_000),
        # 495 sent, 320 of them cached; 144 out, 118 of them thought
        ByHand("deepseek-6d303e365fd8", DEEPSEEK, 175 * 280, 144 * 420, read=320 * 28),
        # a stream: 495 sent, 384 of them cached
        ByHand("deepseek-194fa1b87e15", DEEPSEEK, 111 * 280, 65 * 420, read=384 * 28),
        # 336 sent, 256 of them cached; 96 out, 59 of them thought
        ByHand(
            "groq-dc6df9dbd20a",
            {"input": "1", "cache_read": "0.5", "output": "3"},
            80 * 1000,
            96 * 3000,
            read=256 * 500,
        ),
        # a stream: 352 sent, 320 of them cached
        ByHand(
            "mistral-093880d28024",
            {"input": "0.4", "cache_read": "0.04", "output": "2"},
            32 * 400,
            42 * 2000,
            read=320 * 40,
        ),
        # 9 written and 375 heard, which Mistral counts apart
        ByHand(
            "mistral-f813ef578d2e",
            {"input": "0.1", "audio_input": "0.2", "output": "0.3"},
            9 * 100 + 375 * 200,
            248 * 300,
        ),
        # 180 sent, 64 of them cached
        ByHand(
            "qwen-1073cb668856",
            {"input": "0.4", "cache_read": "0.08", "output": "1.2"},
            116 * 400,
            31 * 1200,
            read=64 * 80,
        ),
        # 12 sent, 2 of them cached; 1 said and 228 thought, which xAI counts apart. It says: 0.00011765 dollars
        ByHand("xai-7f33eeee0727", GROK_MINI, 10 * 300, 229 * 500, read=2 * 75),
    ],
    "openai.responses": [
        # 9703 sent, 8576 of them cached; 638 out, 576 of them thought
        ByHand("openai-00fb27b4a9eb", GPT_5, 1127 * 1250, 638 * 10_000, read=8576 * 125),
        # a stream: 3748 sent, 2304 of them cached; 543 out, 448 of them thought
        ByHand("openai-29ec9ea58f48", GPT_5, 1444 * 1250, 543 * 10_000, read=2304 * 125),
        # 4020 sent, 4012 of them written
        ByHand("openai-bc6e9cd18e04", {**GPT_5, "cache_write": "1.5"}, 8 * 1250, 5 * 10_000, write=4012 * 1500),
        # 3700 sent, 2560 of them cached; 741 out, 640 of them thought
        ByHand("azure-fd66b771c829", GPT_5, 1140 * 1250, 741 * 10_000, read=2560 * 125),
        # 29386 sent, 15872 of them cached; 1450 out, 733 of them thought
        ByHand("deepseek-21cada8a5139", DEEPSEEK, 13_514 * 280, 1450 * 420, read=15_872 * 28),
    ],
    "anthropic.messages": [
        # 6 sent, beside 1069 read and 85 written, which Anthropic counts apart
        ByHand("anthropic-54ee17690145", SONNET, 6 * 3000, 110 * 15_000, read=1069 * 300, write=85 * 3750),
        # 13 sent, 1 read, 2 written
        ByHand("anthropic-023d65f26644", SONNET, 13 * 3000, 32 * 15_000, read=1 * 300, write=2 * 3750),
        # 12 sent, 4167 read
        ByHand("anthropic-16e8fca5bf7b", SONNET, 12 * 3000, 350 * 15_000, read=4167 * 300),
        # 17 sent, 2056 written for an hour
        ByHand("anthropic-aef8f319d9e7", SONNET, 17 * 3000, 100 * 15_000, write=2056 * 6000),
        # a stream: 11 sent, 1031 read, the output at its end
        ByHand("anthropic-8fc8f41887db", SONNET, 11 * 3000, 100 * 15_000, read=1031 * 300),
        # a stream with a search, after which the input is counted anew: 2250 sent, 11913 written
        ByHand("anthropic-2ee176dc182e", SONNET, 2250 * 3000, 104 * 15_000, write=11_913 * 3750),
    ],
    "gemini.generate": [
        # 373 sent, 204 of them cached; 89 said and 167 thought, which Gemini counts apart
        ByHand("gemini-93c7c5fc6829", FLASH, 169 * 300, 256 * 2500, read=204 * 30),
        # 17713 sent, 17379 of them cached: of 334 fresh ones 36 are heard; 68 said and 821 thought
        ByHand("gemini-572801bc51c0", FLASH, 298 * 300 + 36 * 1000, 889 * 2500, read=17_379 * 30),
        # 7 written and 84 heard; 8 said and 354 thought
        ByHand("gemini-256626d78ac5", FLASH, 7 * 300 + 84 * 1000, 362 * 2500),
        # a stream: 69 sent and 163 by its tools; 129 said and 579 thought
        ByHand("gemini-06c993752b89", FLASH, 232 * 300, 708 * 2500),
        # 9613 sent, 9602 of them cached; 33 said and 39 thought
        ByHand("vertex-8e327a41065d", FLASH, 11 * 300, 72 * 2500, read=9602 * 30),
        # 13 written and 100 heard; 10 said and 22 thought
        ByHand("vertex-175a7005c8cb", FLASH, 13 * 300 + 100 * 1000, 32 * 2500),
    ],
    "cohere.chat": [
        # 267 sent, 144 of them cached; 91 out, 58 of them thought
        ByHand(
            "cohere-1df16929c8cd",
            {"input": "2.5", "cache_read": "1", "output": "10"},
            123 * 2500,
            91 * 10_000,
            read=144 * 1000,
        ),
    ],
}


@pytest.mark.parametrize(
    ("api", "row"), [pytest.param(api, row, id=row.recording) for api, rows in TABLE.items() for row in rows]
)
def test_recorded_answers_cost_what_they_cost_by_hand(api: str, row: ByHand) -> None:
    """Cached, written, heard, spoken and thought tokens are priced once each, exact to the nano."""
    cost = price_list(row.prices).cost(usage(found(api, row.recording)))
    assert cost is not None
    by_hand = (row.input, row.read, row.write, row.output)
    assert (cost.input_nanos, cost.cache_read_nanos, cost.cache_write_nanos, cost.output_nanos) == by_hand
    assert cost.total_nanos == sum(by_hand)


STATED = {
    # 2572 sent, 2240 of them read and 329 written, 100 out: 3 x 3 + 2240 x 0.3 + 329 x 3.75 + 100 x 15 millionths
    ("openai.chat", "openrouter-2a705bfef45b"): (SONNET, "0.00341475"),
    # 2572 sent, 2569 of them written, 63 out
    ("openai.chat", "openrouter-7ad3c8f21e9a"): (SONNET, "0.01058775"),
    # 43 sent, 51 out, 47 of them thought
    ("openai.chat", "openrouter-327dd9407b51"): (SONNET, "0.000894"),
    # a stream: 307 sent, 306 of them cached; 26 said and 227 thought. xAI says it in ticks of a ten-billionth
    ("openai.chat", "xai-b4fddc0aafcb"): (GROK_MINI, "0.00014975"),
    ("openai.chat", "xai-7f33eeee0727"): (GROK_MINI, "0.00011765"),
}


@pytest.mark.parametrize(("api", "recording"), STATED)
def test_recorded_answers_cost_what_their_vendors_say(api: str, recording: str) -> None:
    """At the vendor's prices our arithmetic comes to the vendor's own statement, to the last digit."""
    prices, stated = STATED[api, recording]
    cost = price_list(prices).cost(usage(found(api, recording)))
    assert cost is not None
    assert cost.total_nanos == Decimal(stated) * 10**9


def price_list(dollars: dict[str, str]) -> PriceList:
    """Prices in dollars for a million tokens."""
    return PriceList(Rates(**{name: nanos_per_million(Decimal(price)) for name, price in dollars.items()}), "by hand")


def found(api: str, recording: str) -> Recording:
    """The recording of that id."""
    (one,) = (one for one in recordings(api) if one.id == recording)
    return one


def usage(recording: Recording) -> pb.Usage:
    """What the adapter reads in the answer, plain or streamed."""
    adapter = ADAPTERS[recording.api]
    if not recording.is_stream:
        answer: pb.GenerateResponse = adapter.decode(recording.body, recording.target)
        return answer.usage
    stream, decoder = adapter.Stream(recording.target), Decoder()
    told = [*stream.feed([*decoder.feed(recording.body), *decoder.end()]), *stream.end()]
    end: pb.GenerationEnd = told[-1].generation_end
    return end.usage
