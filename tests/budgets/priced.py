"""A vendor whose tokens have round prices, and what tests of budgets ask of it."""

from __future__ import annotations

from typing import Any

from headgate import v1 as pb

from tests.headgate_process import ask
from tests.vendor import Exchange, Vendor, at, completion, finish_chunk, text_chunk, usage_chunk

NANOS = 10**9
INPUT, OUTPUT = 1_000, 10_000
"""Nanos of a token: a dollar for a million tokens of input, ten for a million of output."""
PRICES = {"input": "1", "output": "10"}
USUAL = 5 * INPUT + 3 * OUTPUT
"""What an answer of tests/vendor.py costs."""


def priced(vendor: Vendor, *models: str, **settings: Any) -> dict[str, Any]:
    """A provider at this vendor, whose models (by default m) have those prices."""
    return at(vendor, catalog={model: {"prices": PRICES} for model in models or ("m",)}, **settings)


def budget(amount: int, period: str = "month", **settings: Any) -> dict[str, Any]:
    """A limits section of one budget of so many nanos."""
    return {"budgets": [{"amount": dollars(amount), "period": period, **settings}]}


def dollars(nanos: int) -> str:
    """The amount as a configuration has it."""
    return f"{nanos // NANOS}.{nanos % NANOS:09}"


def small(model: str = "v/m", most: int = 100, **fields: Any) -> pb.GenerateRequest:
    """A request of a few bytes with this much output at most."""
    return ask(model, config=pb.GenerationConfig(max_output_tokens=most), **fields)


def estimate(request: pb.GenerateRequest) -> int:
    """What is reserved for it: a token for each byte, and the output; and the rounding of four components."""
    return request.ByteSize() * INPUT + request.config.max_output_tokens * OUTPUT + 4


def answers(input_tokens: int, output_tokens: int) -> Any:
    """A vendor that counts so many tokens, plain or streamed as asked."""
    usage = usage_chunk(input_tokens, output_tokens)

    async def behave(exchange: Exchange) -> None:
        if exchange.json.get("stream"):
            await exchange.stream([text_chunk("Hello"), finish_chunk(), usage])
        else:
            await exchange.answer(200, {**completion(), "usage": usage["usage"]})

    return behave
