"""Every recorded Chat Completions answer is read: whole, in any chunking, with its usage and its errors."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import pytest
from headgate import v1 as pb

from headgate_server.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    GatewayError,
    ProviderCredentialsRejected,
    ProviderError,
    ProviderModelMissing,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejectedRequest,
)
from headgate_server.providers import openai
from headgate_server.sse import Decoder
from tests.fold import canonical, check_invariants, fold
from tests.recordings.chat_chunks import accumulated, chunks
from tests.recordings.recorded import Recording, recordings

EMPTY = {
    "openai-3da4ff8d0e7e",
    "openai-9d003d7d67b6",
    "qwen-720bfcd00d37",
    "qwen-f8bf8d52e6a1",
}
ERRORS_INSIDE_200 = {
    "azure-0399f2a20766": ContentFiltered,
    "groq-9e866a6389da": ProviderRejectedRequest,
    "openrouter-d46e6c7cd709": ProviderRejectedRequest,
}
ERRORS_BY_STATUS: Mapping[int, type[GatewayError]] = {
    400: ProviderRejectedRequest,
    401: ProviderCredentialsRejected,
    404: ProviderModelMissing,
    429: ProviderRateLimited,
    500: ProviderError,
    501: ProviderError,
}
ERRORS_BY_CODE = {
    "llamacpp-677c573d4d10": ContextLengthExceeded,
    "perplexity-5f79f7112476": ContextLengthExceeded,
}
# These vendors count audio beside the prompt, and reasoning beside the completion.
BESIDE = {"mistral-f813ef578d2e", "xai-7f33eeee0727", "xai-a9e92c1ff9d8", "xai-b4fddc0aafcb", "xai-d9bd1b0ea385"}
FINISH = re.compile(rb'"finish_reason": ?"')


def answered(*, stream: bool) -> list[Recording]:
    """The recordings of answers that are no errors."""
    return [
        recording
        for recording in recordings("openai.chat")
        if recording.status == 200
        and recording.is_stream == stream
        and recording.id not in EMPTY
        and recording.id not in ERRORS_INSIDE_200
    ]


def streamed(recording: Recording, cuts: Iterator[int]) -> list[pb.StreamGenerateResponse]:
    """The events of a recorded stream, fed in chunks that end at `cuts`."""
    decoder, stream = Decoder(), openai.Stream(recording.target)
    events: list[pb.StreamGenerateResponse] = []
    start = 0
    for cut in (*cuts, len(recording.body)):
        if found := decoder.feed(recording.body[start:cut]):
            events += stream.feed(found)
        start = cut
    events += stream.feed(decoder.end())
    assert stream.complete == (b"[DONE]" in recording.body)
    return events + stream.end()


def read(recording: Recording) -> pb.GenerateResponse:
    """The answer of a recording, whichever way it came."""
    if recording.is_stream:
        return fold(streamed(recording, iter(())))
    return openai.decode(recording.body, recording.target)


def test_every_whole_answer_is_read() -> None:
    """All of the text, reasoning and tool calls of an answer are in its parts, none invented."""
    for recording in answered(stream=False):
        body = json.loads(recording.body)
        answer = openai.decode(recording.body, recording.target)
        assert len(answer.candidates) == len(body["choices"])
        assert answer.model == body["model"]
        for candidate, choice in zip(answer.candidates, body["choices"], strict=True):
            assert_said(recording, candidate, choice)


def test_a_stream_folds_to_the_answer_that_its_chunks_amount_to() -> None:
    """Fold(stream) equals the reading of the body that an independent accumulator builds from the chunks."""
    for recording in answered(stream=True):
        body = json.dumps(accumulated(chunks(recording.body))).encode()
        events = streamed(recording, iter(()))
        check_invariants(events)
        assert canonical(fold(events)) == canonical(openai.decode(body, recording.target)), recording.id


def test_a_stream_folds_alike_however_it_is_cut() -> None:
    """Byte by byte and at random cuts, the events keep the invariants and fold to the same."""
    for recording in answered(stream=True):
        whole = canonical(fold(streamed(recording, iter(()))))
        size = len(recording.body)
        random = Random(recording.id)
        cuttings = [range(1, size), sorted(random.sample(range(size), min(40, size // 2)))]
        for cuts in cuttings:
            events = streamed(recording, iter(cuts))
            check_invariants(events)
            assert canonical(fold(events)) == whole, recording.id


def test_a_stream_cut_short_is_never_taken_for_whole() -> None:
    """Without [DONE] and a finish reason the end is an error, and what was open is closed as incomplete."""
    for recording in answered(stream=True):
        stream = openai.Stream(recording.target)
        finish = FINISH.search(recording.body)
        half = recording.body[: (finish.start() if finish else len(recording.body)) // 2]
        events = stream.feed(Decoder().feed(half))
        with pytest.raises(ProviderProtocolError):
            stream.end()
        if events:
            events += stream.interrupt(pb.FINISH_REASON_ERROR)
            check_invariants(events, partial=True)
            assert all(candidate.finish.reason == pb.FINISH_REASON_ERROR for candidate in fold(events).candidates)


def test_usage_is_the_vendor_s_by_the_one_rule() -> None:
    """Totals are the vendor's, reasoning is in the output, and no class is larger than its whole."""
    for recording in (*answered(stream=False), *answered(stream=True)):
        answer = read(recording)
        body = accumulated(chunks(recording.body)) if recording.is_stream else json.loads(recording.body)
        reported = body.get("usage") or body.get("x_groq", {}).get("usage")
        assert answer.HasField("usage") == bool(reported), recording.id
        if not reported:
            continue
        usage = answer.usage
        assert json.loads(usage.provider_json) == reported
        assert usage.total_tokens == reported["total_tokens"] == usage.input_tokens + usage.output_tokens
        if recording.id not in BESIDE:
            assert usage.input_tokens == reported["prompt_tokens"]
            assert usage.output_tokens == reported["completion_tokens"]
        for part in ("cache_read_tokens", "cache_write_tokens", "audio_input_tokens", "image_input_tokens"):
            assert getattr(usage, part) <= usage.input_tokens
        for part in ("reasoning_tokens", "audio_output_tokens"):
            assert getattr(usage, part) <= usage.output_tokens
        if isinstance(reported.get("cost"), float | int):
            upstream = reported["cost_details"]["upstream_inference_cost"] if reported.get("is_byok") else 0
            assert answer.cost.total_nanos == round((reported["cost"] + upstream) * 1e9)
            assert answer.cost.source == pb.COST_SOURCE_PROVIDER


def test_errors_are_classified_as_the_table_says() -> None:
    """By status first, by code second; the vendor's words stay out of the public text."""
    for recording in recordings("openai.chat"):
        if recording.status == 200:
            continue
        error = openai.error(recording.status, recording.headers, recording.body, recording.target)
        expected = ERRORS_BY_CODE.get(recording.id) or ERRORS_BY_STATUS[recording.status]
        assert type(error) is expected, recording.id
        assert error.facts["http_status"] == str(recording.status)
        assert error.vendor_detail
        assert error.vendor_detail not in error.message
        if "retry-after" in recording.headers:
            assert error.retry_after is not None


def test_an_error_inside_a_200_answer_is_an_error() -> None:
    """Azure's filter, and failures that Groq and OpenRouter report in the middle of a stream."""
    found = [r for r in recordings("openai.chat") if r.id in ERRORS_INSIDE_200]
    assert len(found) == len(ERRORS_INSIDE_200)
    for recording in found:
        with pytest.raises(ERRORS_INSIDE_200[recording.id]) as raised:
            read(recording)
        assert type(raised.value) is ERRORS_INSIDE_200[recording.id]


def test_an_empty_200_answer_is_a_protocol_error() -> None:
    """Nothing is not an answer."""
    for recording in recordings("openai.chat"):
        if recording.id in EMPTY:
            with pytest.raises(ProviderProtocolError):
                openai.decode(recording.body, recording.target)


def test_every_recording_is_read_in_one_of_four_ways() -> None:
    """Counts them by vendor; pytest -s shows the table."""
    kinds = ("answers", "streams", "errors", "errors in 200")
    counts: Counter[tuple[str, str]] = Counter()
    for recording in recordings("openai.chat"):
        if recording.status != 200:
            kind = "errors"
        elif recording.id in EMPTY or recording.id in ERRORS_INSIDE_200:
            kind = "errors in 200"
        else:
            kind = "streams" if recording.is_stream else "answers"
        counts[recording.vendor, kind] += 1
    print(f"\n{'vendor':12}", *(f"{kind:>13}" for kind in kinds))
    for vendor in sorted({vendor for vendor, _ in counts}):
        print(f"{vendor:12}", *(f"{counts[vendor, kind]:13}" for kind in kinds))
    assert counts.total() == len(recordings("openai.chat"))
    assert len(EMPTY) + len(ERRORS_INSIDE_200) == sum(counts[key] for key in counts if key[1] == "errors in 200")


def assert_said(recording: Recording, candidate: pb.Candidate, choice: Mapping[str, Any]) -> None:
    """Asserts that a candidate says what the recorded choice says."""
    message = choice["message"]
    said: dict[str, str] = {"text": "", "reasoning": "", "refusal": ""}
    for part in candidate.message.parts:
        match part.WhichOneof("content"):
            case "text":
                said["text"] += part.text
            case "reasoning":
                said["reasoning"] += part.reasoning.text
            case "refusal":
                said["refusal"] += part.refusal
    content, thinking = message.get("content") or "", message.get("reasoning_content") or message.get("reasoning")
    if isinstance(content, list):
        thinking = "".join(t["text"] for i in content if i["type"] == "thinking" for t in i["thinking"])
        content = "".join(item["text"] for item in content if item["type"] == "text")
    if recording.target.host.quirks.think_tags and "</think>" in content:
        thought, _, content = content.partition("</think>")
        thinking, content = thought.removeprefix("<think>"), content.lstrip("\n")
    if "reasoning_details" in message and thinking is None:
        thinking = "".join(detail.get("text") or "" for detail in message["reasoning_details"])
    assert said["text"] == content, recording.id
    assert said["reasoning"] == (thinking or ""), recording.id
    assert said["refusal"] == (message.get("refusal") or "")
    calls = [part.tool_call for part in candidate.message.parts if part.HasField("tool_call")]
    recorded = message.get("tool_calls") or []
    functions = [call.get(call.get("type") or "function") for call in recorded]
    if (legacy := message.get("function_call")) and legacy["name"]:
        functions.append(legacy)
    assert [call.name for call in calls] == [function["name"] for function in functions]
    assert [call.arguments for call in calls] == [
        (function["arguments"] if "arguments" in function else function["input"]) or "{}" for function in functions
    ]
    assert [call.id for call in calls[: len(recorded)]] == [call["id"] for call in recorded]
    assert candidate.finish.provider_reason == (choice["finish_reason"] or "")
