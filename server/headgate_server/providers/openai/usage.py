"""Tokens and money as Chat Completions and Embeddings report them."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, text_of
from headgate_server.providers.reading import count, mapping, objects

NANOS = 10**9
MOST_DOLLARS = 10**9
XAI_TICK = Decimal("1e-10")


def find_usage(answer: JsonObject) -> JsonObject:
    """The usage object: on top, under x_groq, or in a choice; empty when there is none."""
    if found := mapping(answer.get("usage")):
        return found
    if found := mapping(mapping(answer.get("x_groq")).get("usage")):
        return found
    for choice in objects(answer.get("choices")):
        if found := mapping(choice.get("usage")):
            return found
    return {}


def usage(reported: JsonObject) -> pb.Usage:
    """Usage by the one rule: every class a subset of input or of output, and never larger than its whole."""
    prompt = mapping(reported.get("prompt_tokens_details"))
    completion = mapping(reported.get("completion_tokens_details"))
    input_tokens = count(reported.get("prompt_tokens"))
    output_tokens = count(reported.get("completion_tokens"))
    total_tokens = count(reported.get("total_tokens"))
    reasoning = count(completion.get("reasoning_tokens"))
    audio_input = _first(prompt.get("audio_tokens"), reported.get("audio_prompt_tokens"))
    if input_tokens is not None and output_tokens is not None and total_tokens:
        # The total shows what a vendor counts beside: xAI reasoning, Mistral audio.
        beside = total_tokens - input_tokens - output_tokens
        if beside and beside == reasoning:
            output_tokens += beside
        elif beside and beside == audio_input:
            input_tokens += beside
    cache_read = _first(
        prompt.get("cached_tokens"), reported.get("prompt_cache_hit_tokens"), reported.get("cached_tokens")
    )
    cache_write = _first(prompt.get("cache_write_tokens"), prompt.get("cache_creation_input_tokens"))
    return pb.Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total_tokens,
        cache_read_tokens=within(input_tokens, cache_read),
        cache_write_tokens=within(input_tokens, cache_write),
        audio_input_tokens=within(input_tokens, audio_input),
        image_input_tokens=within(input_tokens, count(prompt.get("image_tokens"))),
        reasoning_tokens=within(output_tokens, reasoning),
        audio_output_tokens=within(output_tokens, count(completion.get("audio_tokens"))),
        accepted_prediction_tokens=count(completion.get("accepted_prediction_tokens")),
        rejected_prediction_tokens=count(completion.get("rejected_prediction_tokens")),
        provider_json=text_of(reported),
    )


def within(whole: int | None, part: int | None) -> int | None:
    """A subset's count. Grok at Azure reports more cached tokens than it counts and bills as prompt."""
    return part if whole is None or part is None else min(whole, part)


def _first(*values: object) -> int | None:
    """The first count that is known."""
    return next((known for value in values if (known := count(value)) is not None), None)


def cost(reported: JsonObject) -> pb.Cost | None:
    """What the vendor says the call cost, rounded to a nano; None where it says nothing."""
    dollars = _dollars(reported)
    if dollars is None or not dollars.is_finite() or abs(dollars) > MOST_DOLLARS:
        return None
    nanos = int((dollars * NANOS).to_integral_value(ROUND_HALF_UP))
    return pb.Cost(total_nanos=nanos, currency_code="USD", source=pb.COST_SOURCE_PROVIDER)


def _dollars(reported: JsonObject) -> Decimal | None:
    match reported:
        case {"cost": {"total_cost": amount}}:  # Perplexity
            return _decimal(amount)
        case {"cost": amount, "is_byok": True, "cost_details": {"upstream_inference_cost": upstream}}:
            # OpenRouter's own fee, and what its upstream charges on the operator's key there.
            return (_decimal(amount) or Decimal(0)) + (_decimal(upstream) or Decimal(0))
        case {"cost": amount}:
            return _decimal(amount)
        case {"cost_in_usd_ticks": int(ticks)}:
            return ticks * XAI_TICK
        case _:
            return None


def _decimal(amount: object) -> Decimal | None:
    """The shortest form of a float is the decimal that the vendor wrote."""
    if isinstance(amount, int | float) and not isinstance(amount, bool):
        return Decimal(repr(amount))
    return None
