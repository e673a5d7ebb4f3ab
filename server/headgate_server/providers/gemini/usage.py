"""Tokens as Gemini's usageMetadata reports them: https://ai.google.dev/api/generate-content#UsageMetadata"""

from __future__ import annotations

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, text_of
from headgate_server.providers.reading import count, objects


def usage(reported: JsonObject) -> pb.Usage:
    """Usage by the one rule: the vendor counts hosted tools' prompts beside the input, thoughts beside the output."""
    prompt = count(reported.get("promptTokenCount"))
    tools = count(reported.get("toolUsePromptTokenCount"))
    thoughts = count(reported.get("thoughtsTokenCount"))
    total = count(reported.get("totalTokenCount"))
    input_tokens = _sum(prompt, tools)
    output_tokens = _sum(count(reported.get("candidatesTokenCount")), thoughts)
    if output_tokens is None and input_tokens is not None and total is not None:
        output_tokens = max(0, total - input_tokens)  # counts that are 0 are left out
    inputs = objects(reported.get("promptTokensDetails")) + objects(reported.get("toolUsePromptTokensDetails"))
    outputs = objects(reported.get("candidatesTokensDetails"))
    return pb.Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total,
        cache_read_tokens=_within(input_tokens, count(reported.get("cachedContentTokenCount"))),
        audio_input_tokens=_within(input_tokens, _of_modality(inputs, "AUDIO")),
        image_input_tokens=_within(input_tokens, _of_modality(inputs, "IMAGE")),
        reasoning_tokens=_within(output_tokens, thoughts),
        audio_output_tokens=_within(output_tokens, _of_modality(outputs, "AUDIO")),
        tool_input_tokens=_within(input_tokens, tools),
        provider_json=text_of(reported),
    )


def _of_modality(details: list[JsonObject], modality: str) -> int | None:
    return _sum(*(count(detail.get("tokenCount")) for detail in details if detail.get("modality") == modality))


def _sum(*counts: int | None) -> int | None:
    """The sum of what is known; None when nothing is."""
    known = [number for number in counts if number is not None]
    return count(sum(known)) if known else None


def _within(whole: int | None, part: int | None) -> int | None:
    """A subset is never larger than its whole."""
    return part if whole is None or part is None else min(whole, part)
