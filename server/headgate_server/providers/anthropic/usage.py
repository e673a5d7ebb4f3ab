"""Tokens as Messages report them. https://platform.claude.com/docs/en/build-with-claude/prompt-caching"""

from __future__ import annotations

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, text_of
from headgate_server.providers.reading import count, mapping


def usage(reported: JsonObject) -> pb.Usage:
    """Usage by the one rule: their input leaves out what was read from and written to the cache, ours counts it."""
    cache_read = count(reported.get("cache_read_input_tokens"))
    cache_write = count(reported.get("cache_creation_input_tokens"))
    one_hour = count(mapping(reported.get("cache_creation")).get("ephemeral_1h_input_tokens"))
    thinking = count(mapping(reported.get("output_tokens_details")).get("thinking_tokens"))
    input_tokens = _sum(count(reported.get("input_tokens")), cache_read or 0, cache_write or 0)
    output_tokens = count(reported.get("output_tokens"))
    return pb.Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=_sum(input_tokens, output_tokens),
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        cache_write_1h_tokens=_within(cache_write, one_hour),
        reasoning_tokens=_within(output_tokens, thinking),
        provider_json=text_of(reported),
    )


def _sum(*counts: int | None) -> int | None:
    """Together; unknown if one of them is."""
    return None if None in counts else count(sum(filter(None, counts)))


def _within(whole: int | None, part: int | None) -> int | None:
    """A subset's count, which the vendor gives as an estimate."""
    return part if whole is None or part is None else min(whole, part)
