"""Tokens as Cohere reports them. https://docs.cohere.com/reference/chat"""

from __future__ import annotations

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, text_of
from headgate_server.providers.reading import count, mapping


def usage(reported: JsonObject) -> pb.Usage:
    """Usage by the one rule: their input leaves out images, ours counts them. What is billed is only kept beside it."""
    return _counted(mapping(reported.get("tokens")), reported)


def embed_usage(meta: JsonObject) -> pb.Usage:
    """Usage of an embed call, which may state only what is billed: there that is all of the input."""
    return _counted(mapping(meta.get("tokens")) or mapping(meta.get("billed_units")), meta)


def _counted(tokens: JsonObject, reported: JsonObject) -> pb.Usage:
    text_tokens, image_tokens = count(tokens.get("input_tokens")), count(tokens.get("image_tokens"))
    known = [number for number in (text_tokens, image_tokens) if number is not None]
    input_tokens = count(sum(known)) if known else None
    output_tokens = count(tokens.get("output_tokens"))
    is_known = input_tokens is not None and output_tokens is not None
    return pb.Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=count((input_tokens or 0) + (output_tokens or 0)) if is_known else None,
        cache_read_tokens=count(reported.get("cached_tokens")),
        image_input_tokens=image_tokens,
        reasoning_tokens=count(tokens.get("reasoning_tokens")),
        provider_json=text_of(reported),
    )
