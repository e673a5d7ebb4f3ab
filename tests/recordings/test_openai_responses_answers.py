"""Every recorded Responses answer is read: whole, in any chunking, with its usage and its errors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import pytest
from headgate import v1 as pb

from headgate_server.errors import (
    ContextLengthExceeded,
    GatewayError,
    ProviderCredentialsRejected,
    ProviderModelMissing,
    ProviderProtocolError,
    ProviderQuotaExhausted,
    ProviderRejectedRequest,
    ProviderResourceNotFound,
)
from headgate_server.providers import openai_responses
from headgate_server.sse import Decoder
from tests.fold import canonical, check_invariants, fold
from tests.recordings.chat_chunks import chunks
from tests.recordings.recorded import Recording, recordings
from tests.recordings.responses_events import accumulated

Json = dict[str, Any]

NOT_READ = {"azure-1577589b1331": "a Chat Completions answer"}
# The vendor said of two items only in its last event that they were done.
LATE_ITEMS = {"openai-9fd9b70b217f"}
ERRORS_INSIDE_200 = {"openai-d9347beed9e0": ProviderQuotaExhausted}
ERRORS_BY_STATUS: Mapping[int, type[GatewayError]] = {
    400: ProviderRejectedRequest,
    401: ProviderCredentialsRejected,
    404: ProviderResourceNotFound,
}
ERRORS_BY_CODE: Mapping[str, type[GatewayError]] = {
    "context_length_exceeded": ContextLengthExceeded,
    "model_not_found": ProviderModelMissing,
}
FINISH = {
    "completed": {pb.FINISH_REASON_STOP, pb.FINISH_REASON_TOOL_CALLS, pb.FINISH_REASON_REFUSAL},
    "max_output_tokens": {pb.FINISH_REASON_MAX_TOKENS},
    "": {pb.FINISH_REASON_UNSPECIFIED},
}


def answered(*, stream: bool) -> list[Recording]:
    """The recordings of answers that are no errors."""
    return [
        recording
        for recording in recordings("openai.responses")
        if recording.status == 200
        and recording.is_stream == stream
        and recording.id not in NOT_READ
        and recording.id not in ERRORS_INSIDE_200
    ]


def streamed(recording: Recording, cuts: Iterator[int]) -> list[pb.StreamGenerateResponse]:
    """The events of a recorded stream, fed in chunks that end at `cuts`."""
    decoder, stream = Decoder(), openai_responses.Stream(recording.target)
    events: list[pb.StreamGenerateResponse] = []
    start = 0
    for cut in (*cuts, len(recording.body)):
        if found := decoder.feed(recording.body[start:cut]):
            events += stream.feed(found)
        start = cut
    events += stream.feed(decoder.end())
    assert stream.complete
    return events + stream.end()


def whole(recording: Recording) -> Json:
    """The whole answer that a recording is or amounts to."""
    if recording.is_stream:
        return accumulated(chunks(recording.body))
    answer: Json = json.loads(recording.body)
    return answer


def read(recording: Recording) -> pb.GenerateResponse:
    """The answer of a recording, whichever way it came."""
    if recording.is_stream:
        return fold(streamed(recording, iter(())))
    return openai_responses.decode(recording.body, recording.target)


def test_every_answer_is_read() -> None:
    """All that an answer holds is in its parts, in its order, and the parts write the items anew."""
    for recording in (*answered(stream=False), *answered(stream=True)):
        if recording.id in LATE_ITEMS:
            continue
        answer, body = read(recording), whole(recording)
        (candidate,) = answer.candidates
        assert answer.model == body["model"]
        assert answer.provider_response_id == body["id"]
        reason = (body.get("incomplete_details") or {}).get("reason") or body.get("status") or ""
        assert candidate.finish.provider_reason == reason
        assert candidate.finish.reason in FINISH[reason], recording.id
        assert said_again(candidate.message, recording) == [comparable(item) for item in body["output"]], recording.id


def test_a_stream_folds_to_the_answer_that_its_events_amount_to() -> None:
    """Fold(stream) equals the reading of the body that an independent accumulator builds from the events."""
    for recording in answered(stream=True):
        events = streamed(recording, iter(()))
        check_invariants(events)
        if recording.id not in LATE_ITEMS:
            body = json.dumps(whole(recording)).encode()
            unary = openai_responses.decode(body, recording.target)
            assert canonical(fold(events)) == canonical(unary), recording.id


def test_a_stream_folds_alike_however_it_is_cut() -> None:
    """Byte by byte and at random cuts, the events keep the invariants and fold to the same."""
    for recording in answered(stream=True):
        at_once = what_was_said(recording, streamed(recording, iter(())))
        size = len(recording.body)
        random = Random(recording.id)
        cuttings = [range(1, size), sorted(random.sample(range(size), min(40, size // 2)))]
        for cuts in cuttings:
            events = streamed(recording, iter(cuts))
            check_invariants(events)
            assert what_was_said(recording, events) == at_once, recording.id


def test_a_stream_cut_short_is_never_taken_for_whole() -> None:
    """Without its last event the end is an error, and what was open is closed as incomplete."""
    for recording in answered(stream=True):
        stream = openai_responses.Stream(recording.target)
        half = recording.body[: recording.body.rindex(b"data:")]
        events = stream.feed(Decoder().feed(half))
        with pytest.raises(ProviderProtocolError):
            stream.end()
        events += stream.interrupt(pb.FINISH_REASON_ERROR)
        check_invariants(events, partial=True)
        assert fold(events).candidates[0].finish.reason == pb.FINISH_REASON_ERROR


def test_usage_is_the_vendor_s_by_the_one_rule() -> None:
    """Totals are the vendor's, reasoning is in the output, and no class is larger than its whole."""
    for recording in (*answered(stream=False), *answered(stream=True)):
        answer, reported = read(recording), whole(recording).get("usage")
        assert answer.HasField("usage") == bool(reported), recording.id
        if not reported:
            continue
        usage = answer.usage
        assert json.loads(usage.provider_json) == reported
        assert (usage.input_tokens, usage.output_tokens) == (reported["input_tokens"], reported["output_tokens"])
        assert usage.total_tokens == reported["total_tokens"] == usage.input_tokens + usage.output_tokens, recording.id
        sent, made = reported.get("input_tokens_details", {}), reported.get("output_tokens_details", {})
        assert usage.cache_read_tokens == sent.get("cached_tokens", 0) <= usage.input_tokens
        assert usage.cache_write_tokens == sent.get("cache_write_tokens", 0) <= usage.input_tokens
        assert usage.reasoning_tokens == made.get("reasoning_tokens", 0) <= usage.output_tokens
        if "cost" in reported:
            assert answer.cost.total_nanos == round(reported["cost"] * 1e9)
        if "cost_in_usd_ticks" in reported:
            assert answer.cost.total_nanos == round(reported["cost_in_usd_ticks"] / 10)


def test_errors_are_classified_as_the_table_says() -> None:
    """By status first, by code second; the vendor's words stay out of the public text."""
    for recording in recordings("openai.responses"):
        if recording.status == 200:
            continue
        error = openai_responses.error(recording.status, recording.headers, recording.body, recording.target)
        reported = json.loads(recording.body)["error"]
        code = (reported["code"] if isinstance(reported, dict) else None) or ""
        assert type(error) is ERRORS_BY_CODE.get(code, ERRORS_BY_STATUS[recording.status]), recording.id
        assert error.facts["http_status"] == str(recording.status)
        assert error.vendor_detail
        assert error.vendor_detail not in error.message


def test_an_error_inside_a_200_answer_is_an_error() -> None:
    """A stream that the vendor ends with `error` and `response.failed`."""
    found = [r for r in recordings("openai.responses") if r.id in ERRORS_INSIDE_200]
    assert len(found) == len(ERRORS_INSIDE_200)
    for recording in found:
        with pytest.raises(ERRORS_INSIDE_200[recording.id]) as raised:
            read(recording)
        assert type(raised.value) is ERRORS_INSIDE_200[recording.id]


def test_what_is_no_answer_of_this_wire_is_a_protocol_error() -> None:
    """An answer of another API that the source had filed under this one."""
    for recording in recordings("openai.responses"):
        if recording.id in NOT_READ:
            with pytest.raises(ProviderProtocolError):
                openai_responses.decode(recording.body, recording.target)


def test_report_what_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the counts by vendor; every exchange is read as one of four kinds."""
    counts: Counter[tuple[str, str]] = Counter()
    for recording in recordings("openai.responses"):
        if recording.status != 200:
            kind = "errors"
        elif recording.id in ERRORS_INSIDE_200:
            kind = "errors in 200"
        elif recording.id in NOT_READ:
            kind = "not read"
        else:
            kind = "streams" if recording.is_stream else "answers"
        counts[recording.vendor, kind] += 1
    with capsys.disabled():
        for vendor in sorted({vendor for vendor, _ in counts}):
            kinds = {kind: count for (name, kind), count in sorted(counts.items()) if name == vendor}
            print(f"\n  {vendor:12} {kinds}", end="")
    assert counts.total() == len(recordings("openai.responses"))


def what_was_said(recording: Recording, events: list[pb.StreamGenerateResponse]) -> pb.GenerateResponse:
    """The fold, without what llama.cpp tells only in its last event, when generation_start may be gone."""
    answer = canonical(fold(events))
    if recording.vendor == "llamacpp":
        answer.model = ""
        answer.ClearField("create_time")
    return answer


def said_again(message: pb.Message, recording: Recording) -> list[Json]:
    """The items that go back when the answer becomes history, to be compared."""
    request = pb.GenerateRequest(model=f"{recording.vendor}/m", messages=[message])
    call = openai_responses.encode(request, recording.target, stream=False)
    assert not call.warnings, (recording.id, call.warnings)
    return [comparable(item) for item in json.loads(call.body).get("input", [])]


def comparable(item: Json) -> Json:
    """The item without what is not sent back: log probabilities, empty members, a state that is not the caller's."""
    found = {key: value for key, value in item.items() if value not in (None, [], {})}
    if item["type"] in ("message", "function_call") and found.get("status") != "incomplete":
        found["status"] = "completed"
    if item["type"] == "reasoning":
        found.pop("status", None)
    if item["type"] == "function_call":
        found["arguments"] = found["arguments"] or "{}"
    if item["type"] in ("message", "reasoning") and "content" in found:
        found["content"] = [
            {key: value for key, value in piece.items() if key != "logprobs" and value != []}
            for piece in item["content"]
        ]
    return found
