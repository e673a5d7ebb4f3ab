"""Whole answers, usage, cost, matrices and errors of Chat Completions hosts, where recordings do not reach."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
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
    ProviderOverloaded,
    ProviderProtocolError,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejectedRequest,
    ProviderResourceNotFound,
    ProviderTimeout,
)
from headgate_server.providers import openai
from tests.test_openai_request import call
from tests.test_openai_stream import target

Json = dict[str, Any]


def decoded(message: Json, finish: str | None = "stop", host: str = "openai", **more: Any) -> pb.GenerateResponse:
    """The reading of an answer with this message."""
    body = {"choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}
    return openai.decode(json.dumps(body).encode(), target(host))


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", pb.FINISH_REASON_STOP),
        ("eos", pb.FINISH_REASON_STOP),
        ("length", pb.FINISH_REASON_MAX_TOKENS),
        ("tool_calls", pb.FINISH_REASON_TOOL_CALLS),
        ("function_call", pb.FINISH_REASON_TOOL_CALLS),
        ("content_filter", pb.FINISH_REASON_CONTENT_FILTER),
        ("model_length", pb.FINISH_REASON_CONTEXT_LENGTH),
        ("insufficient_system_resource", pb.FINISH_REASON_ERROR),
        ("something new", pb.FINISH_REASON_OTHER),
        (None, pb.FINISH_REASON_UNSPECIFIED),
    ],
)
def test_finish_reasons(word: str | None, reason: pb.FinishReason.ValueType) -> None:
    """Our word for it, and the vendor's own beside."""
    assert decoded({"content": "Hi"}, word).candidates[0].finish == pb.Finish(reason=reason, provider_reason=word or "")


def test_stop_is_refined_by_what_was_said() -> None:
    """Vendors say stop also of refusals and of forced tool calls; length stays length."""
    call = {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}
    assert decoded({"refusal": "No."}).candidates[0].finish.reason == pb.FINISH_REASON_REFUSAL
    assert decoded(call).candidates[0].finish.reason == pb.FINISH_REASON_TOOL_CALLS
    assert decoded(call, "length").candidates[0].finish.reason == pb.FINISH_REASON_MAX_TOKENS


def test_an_answer_in_full() -> None:
    """Every part in the order in which models produce them, extras where they belong."""
    answer = decoded(
        {
            "role": "assistant",
            "content": "See 𝄞 here.",
            "reasoning_content": "Hm",
            "annotations": [
                {
                    "type": "url_citation",
                    "url_citation": {"url": "u", "title": "t", "start_index": 4, "end_index": 5, "rank": 1},
                }
            ],
            "audio": {"id": "audio_1", "data": "AAEC", "transcript": "See", "expires_at": 9},
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":  1}'}, "extra": 1},
                {"id": "b", "type": "custom", "custom": {"name": "g", "input": "4+4"}},
                {"id": "c", "type": "function", "function": {"name": "h", "arguments": None}},
                {"id": "d", "type": "function", "function": {"name": "i", "arguments": '{"cut'}},
            ],
            "new_field": {"a": 1},
        },
        id="chatcmpl-1",
        model="inventio-1-2026",
        created=1800000000,
        system_fingerprint="fp",
        service_tier="flex",
        extra_field=2,
    )
    (candidate,) = answer.candidates
    assert list(candidate.message.parts) == [
        pb.Part(reasoning=pb.Reasoning(text="Hm", kind=pb.REASONING_KIND_FULL)),
        pb.Part(
            text="See 𝄞 here.",
            citations=[pb.Citation(start_offset=4, end_offset=5, uri="u", title="t", provider_json='{"rank":1}')],
        ),
        pb.Part(
            media=pb.Media(kind=pb.MEDIA_KIND_AUDIO, data=b"\x00\x01\x02", transcript="See"),
            item_id="audio_1",
            issuer="openai",
            provider_metadata={"openai": '{"expires_at":9}'},
        ),
        pb.Part(
            tool_call=pb.ToolCall(id="a", name="f", arguments='{"x":  1}', kind=pb.TOOL_CALL_KIND_FUNCTION),
            provider_metadata={"openai": '{"extra":1}'},
        ),
        pb.Part(tool_call=pb.ToolCall(id="b", name="g", arguments="4+4", kind=pb.TOOL_CALL_KIND_FREE_TEXT)),
        pb.Part(tool_call=pb.ToolCall(id="c", name="h", arguments="{}", kind=pb.TOOL_CALL_KIND_FUNCTION)),
        pb.Part(
            tool_call=pb.ToolCall(id="d", name="i", arguments='{"cut', kind=pb.TOOL_CALL_KIND_FUNCTION),
            incomplete=True,
        ),
    ]
    assert dict(candidate.provider_metadata) == {"openai": '{"new_field":{"a":1}}'}
    assert dict(answer.provider_metadata) == {"openai": '{"extra_field":2}'}
    assert (answer.provider_response_id, answer.model) == ("chatcmpl-1", "inventio-1-2026")
    assert (answer.system_fingerprint, answer.service_tier) == ("fp", "flex")
    assert answer.create_time.seconds == 1800000000


def test_what_came_with_a_message_goes_back_with_it() -> None:
    """OpenRouter's reasoning_details return verbatim; extras of the choice stay out of the message."""
    details = [{"type": "reasoning.encrypted", "data": "AA", "id": "r", "index": 0}]
    body = {
        "choices": [
            {
                "message": {"content": "Yes", "reasoning": "Hm", "reasoning_details": details},
                "finish_reason": "stop",
                "native_finish_reason": "end_turn",
            }
        ]
    }
    answer = openai.decode(json.dumps(body).encode(), target("openrouter"))
    assert json.loads(answer.provider_metadata["openrouter"]) == {
        "choices": [{"index": 0, "native_finish_reason": "end_turn"}]
    }
    history = answer.candidates[0].message
    history.provider_metadata.update(answer.candidates[0].provider_metadata)
    (sent,) = json.loads(call("openrouter", messages=[history]).body)["messages"]
    assert sent == {"role": "assistant", "reasoning": "Hm", "content": "Yes", "reasoning_details": details}


def test_null_choices_and_empty_messages_are_read() -> None:
    """Null stands for absent everywhere; an answer without parts is an answer."""
    answer = decoded({"content": None, "tool_calls": None, "annotations": None, "audio": None}, usage=None, id=None)
    assert not answer.candidates[0].message.parts
    assert not answer.HasField("usage")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"choices": []}', b"[" * 100000, b'{"choices": 1}'])
def test_what_is_no_answer_is_a_protocol_error(body: bytes) -> None:
    """The next target may answer."""
    with pytest.raises(ProviderProtocolError) as raised:
        openai.decode(body, target())
    assert raised.value.other_target


def test_lone_surrogates_and_nan_are_survived() -> None:
    """Bodies that msgspec rejects are read by json; what is no character becomes U+FFFD, in keys too."""
    body = b'{"choices":[{"message":{"content":"a\\ud800b","\\udc00":1},"logprobs":{"content":[{"token":"a",'
    body += b'"logprob":NaN}]},"finish_reason":"stop"}]}'
    answer = openai.decode(body, target())
    assert answer.candidates[0].message.parts[0].text == "a\ufffdb"
    assert json.loads(answer.candidates[0].provider_metadata["openai"]) == {"\ufffd": 1}


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}, (5, 2, 7)),
        # xAI: reasoning beside the completion.
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 2,
                "total_tokens": 17,
                "completion_tokens_details": {"reasoning_tokens": 10},
            },
            (5, 12, 17),
        ),
        # Mistral: audio beside the prompt.
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 2,
                "total_tokens": 17,
                "prompt_tokens_details": {"audio_tokens": 10},
            },
            (5 + 10, 2, 17),
        ),
        ({"prompt_tokens": 2**40, "completion_tokens": -1, "total_tokens": 7.0}, (0, 0, 7)),
    ],
)
def test_totals(reported: Json, expected: tuple[int, int, int]) -> None:
    """Everything sent, everything generated; what is no count is unknown."""
    usage = decoded({"content": "Hi"}, usage=reported).usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == expected
    assert json.loads(usage.provider_json) == reported


def test_token_classes_are_subsets() -> None:
    """Cache by each vendor's name, and never more than its whole; unknown is not 0."""
    details = {"cached_tokens": 4, "cache_write_tokens": 3, "image_tokens": 2}
    usage = decoded({}, usage={"prompt_tokens": 9, "prompt_tokens_details": details}).usage
    assert (usage.cache_read_tokens, usage.cache_write_tokens, usage.image_input_tokens) == (4, 3, 2)
    assert not usage.HasField("reasoning_tokens")
    assert decoded({}, usage={"prompt_tokens": 9, "prompt_cache_hit_tokens": 4}).usage.cache_read_tokens == 4
    assert decoded({}, usage={"prompt_tokens": 9, "cached_tokens": 4}).usage.cache_read_tokens == 4
    assert decoded({}, usage={"prompt_tokens": 3, "cached_tokens": 4}).usage.cache_read_tokens == 3


@pytest.mark.parametrize(
    ("reported", "nanos"),
    [
        ({"cost": 0.0000123}, 12300),
        ({"cost": 1.4e-7}, 140),
        ({"cost": 0.1 + 0.2}, 300000000),
        ({"cost": 2}, 2 * 10**9),
        ({"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, 21000000),
        ({"cost": {"total_cost": 0.00528}}, 5280000),
        ({"cost_in_usd_ticks": 1176500}, 117650),
    ],
)
def test_cost_is_exact(reported: Json, nanos: int) -> None:
    """The decimal that the vendor wrote, in nanos."""
    assert decoded({}, usage=reported).cost == pb.Cost(
        total_nanos=nanos, currency_code="USD", source=pb.COST_SOURCE_PROVIDER
    )


@pytest.mark.parametrize("cost", [None, "1", True, 1e300, {"total_cost": None}])
def test_a_cost_that_is_none_is_left_out(cost: object) -> None:
    """No cost is better than a wrong one."""
    assert not decoded({}, usage={"prompt_tokens": 1, "cost": cost}).HasField("cost")


def matrix(*rows: object, count: int = 2, host: str = "openai") -> pb.EmbedResponse:
    """The reading of an embeddings answer with these data."""
    body = {"data": list(rows), "model": "m", "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    return openai.decode_embed(json.dumps(body).encode(), count, target(host))


def test_embeddings_are_ordered_by_index_and_packed() -> None:
    """Base64 and floats alike, little-endian float32."""
    packed = struct.pack("<2f", 1.5, -2.0)
    answer = matrix(
        {"index": 1, "embedding": [1.5, -2]}, {"index": 0, "embedding": b64encode(struct.pack("<2f", 3, 4)).decode()}
    )
    assert answer.data == struct.pack("<2f", 3, 4) + packed
    assert (answer.rows, answer.dimensions, answer.model) == (2, 2, "m")
    assert (answer.usage.input_tokens, answer.usage.total_tokens) == (3, 3)


def test_perplexity_embeds_in_signed_bytes() -> None:
    """Each byte is a number."""
    answer = matrix({"index": 0, "embedding": b64encode(b"\x01\xff\x7f").decode()}, count=1, host="perplexity")
    assert answer.data == struct.pack("<3f", 1, -1, 127)


@pytest.mark.parametrize(
    "rows",
    [
        [{"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 2, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
        [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}],
        [{"index": 0, "embedding": "AAA="}, {"index": 1, "embedding": "AAA="}],
        [{"index": 0, "embedding": "!"}, {"index": 1, "embedding": None}],
        [{"index": 0, "embedding": ["a"]}, {"index": 1, "embedding": [1.0]}],
        [{"index": n, "embedding": [1.0]} for n in range(3)],
    ],
)
def test_a_matrix_with_missing_or_odd_rows_is_a_protocol_error(rows: list[Json]) -> None:
    """All or nothing."""
    with pytest.raises(ProviderProtocolError):
        matrix(*rows)


def failure(status: int, body: object = None, headers: dict[str, str] | None = None) -> GatewayError:
    """The error of an answer with this status."""
    return openai.error(status, headers or {}, json.dumps(body).encode(), target())


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, None, ProviderRejectedRequest),
        (400, "context_length_exceeded", ContextLengthExceeded),
        (400, "content_filter", ContentFiltered),
        (400, "invalid_api_key", ProviderCredentialsRejected),
        (400, "rate_limit_exceeded", ProviderRejectedRequest),
        (401, "invalid_api_key", ProviderCredentialsRejected),
        (402, None, ProviderQuotaExhausted),
        (403, "model_not_found", ProviderModelMissing),
        (404, None, ProviderModelMissing),
        (404, "file_not_found", ProviderResourceNotFound),
        (408, None, ProviderTimeout),
        (409, None, ProviderError),
        (413, None, ProviderRejectedRequest),
        (413, "context_length_exceeded", ContextLengthExceeded),
        (422, None, ProviderRejectedRequest),
        (429, None, ProviderRateLimited),
        (429, "insufficient_quota", ProviderQuotaExhausted),
        (500, None, ProviderError),
        (500, "context_length_exceeded", ProviderError),
        (502, None, ProviderError),
        (503, None, ProviderOverloaded),
        (504, None, ProviderTimeout),
        (529, None, ProviderOverloaded),
    ],
)
def test_errors_are_classified_by_status_first_and_code_second(
    status: int, code: str | None, expected: type[GatewayError]
) -> None:
    """The text of the error decides nothing."""
    error = failure(status, {"error": {"message": "insufficient_quota context_length_exceeded", "code": code}})
    assert type(error) is expected
    assert error.facts.get("provider_code") == code
    assert error.vendor_detail == "insufficient_quota context_length_exceeded"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "0", "retry-after": "1"}, 1.0),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT", "date": "Sat, 21 Nov 2026 10:00:00 GMT"}, 30),
        ({"retry-after": "Sat, 21 Nov 2026 09:00:00 GMT", "date": "Sat, 21 Nov 2026 10:00:00 GMT"}, 0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m2.5s"}, 62.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "120ms"}, 0.12),
        ({"x-ratelimit-remaining-tokens": "9", "x-ratelimit-reset-tokens": "6m0s"}, None),
        (
            {
                "x-ratelimit-remaining": "0",
                "x-ratelimit-reset": "1795255230000",
                "date": "Sat, 21 Nov 2026 10:00:00 GMT",
            },
            30,
        ),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_how_long_to_wait_is_read_from_whichever_header_says_it(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds, dates against the answer's own Date, and rate-limit resets."""
    assert failure(429, headers=headers).retry_after == pytest.approx(seconds)


def test_facts_of_an_error() -> None:
    """Status, the vendor's code, and its request id; the vendor's words are clipped and never public."""
    error = failure(400, {"error": {"message": "x" * 9999, "type": "invalid"}}, {"x-request-id": "req_1"})
    assert error.facts == {"http_status": "400", "provider_code": "invalid", "provider_request_id": "req_1"}
    assert len(error.vendor_detail) == 2048
    assert "x" * 9 not in error.message


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"error": "plain words"}, "plain words"),
        ({"detail": "Invalid API Key"}, "Invalid API Key"),
        ({"message": "No", "code": "c"}, "No"),
        ([{"error": {"message": "in a list", "code": 401}}], "in a list"),
        ("<html>", '"<html>"'),
    ],
)
def test_errors_of_odd_shapes_are_read(body: object, detail: str) -> None:
    """Whatever a proxy in between answers."""
    assert failure(401, body).vendor_detail == detail
