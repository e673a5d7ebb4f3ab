"""The attempt loop through the front door: which target answers, what commits, what a caller is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from headgate import v1 as pb

from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, ask, failing, until_failure, user
from tests.vendor import Exchange, Vendor, answers_text, at, completion, finish_chunk, sse, text_chunk, usage_chunk

Provider = dict[str, Any]


def alias(*providers: str) -> dict[str, Any]:
    """One alias whose targets are model `m` at each provider."""
    return {"targets": [{"provider": provider, "model": "m"} for provider in providers]}


async def answers_500(exchange: Exchange) -> None:
    await exchange.answer(500, {"error": {"message": "the secret cause", "type": "server_error"}})


async def breaks_after_text(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.chunk(sse(text_chunk("Hello")))
    await asyncio.sleep(0.02)
    exchange.reset()


async def test_the_first_target_answers_and_the_others_are_left_alone(serve: Serve) -> None:
    """Targets are tried in order; one that answers ends the search."""
    async with Vendor(answers_text) as first, Vendor(answers_text) as second:
        async with serve(providers={"a": at(first), "b": at(second)}, models={"fast": alias("a", "b")}) as headgate:
            answer = await headgate.stub.Generate(ask("fast"))
    assert answer.provider == "a"
    assert answer.model == "vendor-model-1"
    assert [attempt.outcome for attempt in answer.attempts] == [pb.ATTEMPT_OUTCOME_OK]
    assert answer.attempts[0].provider_request_id == "req-vendor-1"
    assert second.exchanges == []


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_failing_target_is_followed_by_the_next_before_the_commit_point(serve: Serve, streamed: bool) -> None:
    """A 500 and an unreachable vendor cost an attempt each; the third target answers, all three are on record."""
    async with Vendor(answers_500) as broken, Vendor(answers_text) as healthy:
        providers = {
            "broken": at(broken),
            "gone": {"adapter": "openai", "base_url": "http://127.0.0.1:1/v1"},
            "healthy": at(healthy),
        }
        async with serve(providers=providers, models={"fast": alias("broken", "gone", "healthy")}) as headgate:
            if streamed:
                events = [event async for event in headgate.stub.StreamGenerate(ask("fast"))]
                attempts = events[-1].generation_end.attempts
                assert events[0].generation_start.attempt == 3
            else:
                attempts = (await headgate.stub.Generate(ask("fast"))).attempts
    assert [(a.number, a.provider, a.outcome, a.error_reason, a.http_status) for a in attempts] == [
        (1, "broken", pb.ATTEMPT_OUTCOME_FAILED, "PROVIDER_ERROR", 500),
        (2, "gone", pb.ATTEMPT_OUTCOME_FAILED, "PROVIDER_UNREACHABLE", 0),
        (3, "healthy", pb.ATTEMPT_OUTCOME_OK, "", 200),
    ]


async def test_a_stream_is_not_retried_after_the_commit_point(serve: Serve, logged: LogLines) -> None:
    """Once text went out a break ends the call with ABORTED: parts incomplete, the end partial, no second target."""
    async with Vendor(breaks_after_text) as breaking, Vendor(answers_text) as healthy:
        async with serve(providers={"a": at(breaking), "b": at(healthy)}, models={"fast": alias("a", "b")}) as headgate:
            call = headgate.stub.StreamGenerate(ask("fast"))
            events, failed = await until_failure(call)
    assert (failed.code, failed.reason) == (grpc.StatusCode.ABORTED, "STREAM_INTERRUPTED")
    assert failed.facts["partial_output"] == "true"
    assert failed.trailer["grpc-retry-pushback-ms"] == "-1"
    assert healthy.exchanges == []
    assert [event.WhichOneof("event") for event in events] == [
        "generation_start",
        "part_start",
        "text_delta",
        "part_end",
        "candidate_end",
        "generation_end",
    ]
    assert events[3].part_end.incomplete
    assert events[4].candidate_end.finish.reason == pb.FINISH_REASON_ERROR
    assert events[5].generation_end.partial
    assert [a.outcome for a in events[5].generation_end.attempts] == [pb.ATTEMPT_OUTCOME_FAILED]
    assert logged.errors == []


async def test_nothing_is_delivered_before_the_first_content(serve: Serve) -> None:
    """A role chunk and a vendor's empty chunks do not commit: headers wait, and the next target can still answer."""
    proceed = asyncio.Event()

    async def role_then_break(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("", role="assistant")))
        await proceed.wait()
        exchange.reset()

    async with Vendor(role_then_break) as breaking, Vendor(answers_text) as healthy:
        async with serve(providers={"a": at(breaking), "b": at(healthy)}, models={"fast": alias("a", "b")}) as headgate:
            call = headgate.stub.StreamGenerate(ask("fast"))
            await breaking.exchange()
            headers = asyncio.ensure_future(call.initial_metadata())
            await asyncio.wait((headers,), timeout=0.1)
            assert not headers.done()
            proceed.set()
            events = [event async for event in call]
    assert events[0].generation_start.provider == "b"
    assert "".join(event.text_delta for event in events) == "Hello there"


async def test_events_of_one_read_travel_together(serve: Serve) -> None:
    """Deltas that arrived in one piece become one message."""

    async def burst(exchange: Exchange) -> None:
        await exchange.begin()
        words = [sse(text_chunk(f"word{n} ")) for n in range(64)]
        await exchange.chunk(b"".join([*words, sse(finish_chunk()), sse(usage_chunk()), b"data: [DONE]\n\n"]))
        await exchange.end()

    async with Vendor(burst) as vendor, serve(providers={"v": at(vendor)}) as headgate:
        events = [event async for event in headgate.stub.StreamGenerate(ask("v/m"))]
    deltas = [event.text_delta for event in events if event.HasField("text_delta")]
    assert deltas == ["".join(f"word{n} " for n in range(64))]
    assert len(events) == 6


async def test_deltas_are_joined_for_as_long_as_the_caller_allows(serve: Serve) -> None:
    """max_coalesce_delay trades messages for delay: the first delta comes at once, later ones travel together."""

    async def paced(exchange: Exchange) -> None:
        await exchange.begin()
        for number in range(20):
            await exchange.chunk(sse(text_chunk(f"{number} ")))
            await asyncio.sleep(0.01)
        await exchange.chunk(sse(finish_chunk()) + b"data: [DONE]\n\n")
        await exchange.end()

    async with Vendor(paced) as vendor, serve(providers={"v": at(vendor)}) as headgate:
        texts = []
        for milliseconds in (0, 500):
            request = ask("v/m")
            request.stream.max_coalesce_delay.FromMilliseconds(milliseconds)
            deltas = [event.text_delta async for event in headgate.stub.StreamGenerate(request)]
            texts.append([delta for delta in deltas if delta])
        request.stream.max_coalesce_delay.FromSeconds(2)
        failed = await failing(headgate.stub.StreamGenerate(request))
    at_once, joined = texts
    assert "".join(at_once) == "".join(joined) == "".join(f"{number} " for number in range(20))
    assert len(at_once) > 10
    assert joined[0] == "0 "
    assert len(joined) <= 3
    assert failed.fields == ["stream.max_coalesce_delay"]


@pytest.mark.parametrize(
    ("clock", "phase"), [("first_token", "first_token"), ("total", "total")], ids=["first token", "total"]
)
async def test_a_clock_before_the_first_content_moves_on_and_says_its_name(
    serve: Serve, clock: str, phase: str
) -> None:
    """A silent vendor is left when its clock runs out; alone, it yields PROVIDER_TIMEOUT with the phase."""

    async def silent(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(b": still thinking\n\n")
        await exchange.caller_closed.wait()

    async with Vendor(silent) as slow, Vendor(answers_text) as healthy:
        providers = {"slow": at(slow, clocks={clock: 0.15}), "healthy": at(healthy)}
        async with serve(providers=providers, models={"fast": alias("slow", "healthy")}) as headgate:
            failed = await failing(headgate.stub.StreamGenerate(ask("slow/m")))
            events = [event async for event in headgate.stub.StreamGenerate(ask("fast"))]
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_TIMEOUT")
    assert failed.facts["phase"] == phase
    first, second = events[-1].generation_end.attempts
    assert (first.outcome, second.outcome) == (pb.ATTEMPT_OUTCOME_TIMED_OUT, pb.ATTEMPT_OUTCOME_OK)


async def test_silence_after_content_is_the_idle_clocks(serve: Serve) -> None:
    """A vendor that stops in the middle is cut off by the idle clock, as an interrupted stream."""

    async def stalls(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("Hello")))
        await exchange.caller_closed.wait()

    async with Vendor(stalls) as vendor, serve(providers={"v": at(vendor, clocks={"idle": 0.15})}) as headgate:
        failed = await failing(headgate.stub.StreamGenerate(ask("v/m")))
        async with asyncio.timeout(1):
            await vendor.exchanges[0].caller_closed.wait()
    assert (failed.code, failed.reason) == (grpc.StatusCode.ABORTED, "STREAM_INTERRUPTED")
    assert failed.facts["phase"] == "idle"


async def test_a_callers_execution_policy_can_only_tighten(serve: Serve) -> None:
    """attempt_timeout shortens the configured clock, and a longer one does not lengthen it."""

    async def silent(exchange: Exchange) -> None:
        await exchange.caller_closed.wait()

    async with Vendor(silent) as vendor, serve(providers={"v": at(vendor, clocks={"total": 0.3})}) as headgate:
        for milliseconds, at_most in ((50, 0.25), (60_000, 1.0)):
            request = ask("v/m")
            request.execution.attempt_timeout.FromMilliseconds(milliseconds)
            async with asyncio.timeout(at_most):
                failed = await failing(headgate.stub.Generate(request))
            assert failed.reason == "PROVIDER_TIMEOUT"


@pytest.mark.parametrize(
    ("status", "body", "code", "reason"),
    [
        (400, {"error": {"type": "invalid_request_error"}}, "INVALID_ARGUMENT", "PROVIDER_REJECTED_REQUEST"),
        (422, {"detail": "no"}, "INVALID_ARGUMENT", "PROVIDER_REJECTED_REQUEST"),
        (400, {"error": {"code": "context_length_exceeded"}}, "INVALID_ARGUMENT", "CONTEXT_LENGTH_EXCEEDED"),
        (401, {"error": {"code": "invalid_api_key"}}, "FAILED_PRECONDITION", "PROVIDER_CREDENTIALS_REJECTED"),
        (403, b"forbidden", "FAILED_PRECONDITION", "PROVIDER_CREDENTIALS_REJECTED"),
        (404, {"error": {"code": "model_not_found"}}, "FAILED_PRECONDITION", "PROVIDER_MODEL_MISSING"),
        (429, {"error": {"code": "rate_limit_exceeded"}}, "RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED"),
        (429, {"error": {"code": "insufficient_quota"}}, "RESOURCE_EXHAUSTED", "PROVIDER_QUOTA_EXHAUSTED"),
        (503, b"<html>busy</html>", "UNAVAILABLE", "PROVIDER_OVERLOADED"),
        (529, {"error": {"type": "overloaded_error"}}, "UNAVAILABLE", "PROVIDER_OVERLOADED"),
        (500, b"", "UNAVAILABLE", "PROVIDER_ERROR"),
        (502, b"bad gateway", "UNAVAILABLE", "PROVIDER_ERROR"),
        (408, b"", "UNAVAILABLE", "PROVIDER_TIMEOUT"),
        (504, b"", "UNAVAILABLE", "PROVIDER_TIMEOUT"),
        (307, b"", "UNAVAILABLE", "PROVIDER_PROTOCOL_ERROR"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_vendors_error_is_told_in_our_own_words(
    serve: Serve, logged: LogLines, status: int, body: Any, code: str, reason: str, streamed: bool
) -> None:
    """Each HTTP status has its code and reason; the vendor's text stays in the log."""
    if isinstance(body, dict) and "error" in body:
        body["error"]["message"] = "vendor's own words"

    async def refuse(exchange: Exchange) -> None:
        await exchange.answer(status, body, {"location": "http://127.0.0.1:1/", "retry-after": "7"})

    async with Vendor(refuse) as vendor, serve(providers={"v": at(vendor)}) as headgate:
        call = headgate.stub.StreamGenerate if streamed else headgate.stub.Generate
        failed = await failing(call(ask("v/m")))
    assert (failed.code.name, failed.reason) == (code, reason)
    assert failed.facts["provider"] == "v"
    assert failed.facts["model"] == "m"
    assert failed.facts["http_status"] == str(status)
    assert failed.trailer["grpc-retry-pushback-ms"] == "-1"
    assert "vendor's own words" not in str(failed.trailer) + failed.message
    if reason == "PROVIDER_RATE_LIMITED":
        assert failed.details["RetryInfo"].retry_delay.seconds == 7
    assert logged.errors == []


async def test_a_content_filters_http_error_is_an_answer(serve: Serve) -> None:
    """A prompt that is blocked by an HTTP 400 answers OK with CONTENT_FILTER, plain and streamed."""

    async def block(exchange: Exchange) -> None:
        error = {"code": "content_filter", "message": "The response was filtered", "status": 400}
        await exchange.answer(400, {"error": error})

    async with Vendor(block) as vendor, serve(providers={"v": at(vendor)}) as headgate:
        answer = await headgate.stub.Generate(ask("v/m"))
        events = [event async for event in headgate.stub.StreamGenerate(ask("v/m"))]
    for finish in (answer.candidates[0].finish, events[1].candidate_end.finish):
        assert (finish.reason, finish.provider_reason) == (pb.FINISH_REASON_CONTENT_FILTER, "content_filter")
    assert [event.WhichOneof("event") for event in events] == ["generation_start", "candidate_end", "generation_end"]
    assert [(a.outcome, a.http_status) for a in answer.attempts] == [(pb.ATTEMPT_OUTCOME_OK, 400)]


async def test_a_request_the_vendor_calls_invalid_is_not_tried_elsewhere(serve: Serve) -> None:
    """A 400 would be a 400 everywhere: the next target is not asked."""

    async def refuse(exchange: Exchange) -> None:
        await exchange.answer(400, {"error": {"type": "invalid_request_error", "message": "no"}})

    async with Vendor(refuse) as first, Vendor(answers_text) as second:
        async with serve(providers={"a": at(first), "b": at(second)}, models={"fast": alias("a", "b")}) as headgate:
            failed = await failing(headgate.stub.Generate(ask("fast")))
    assert failed.reason == "PROVIDER_REJECTED_REQUEST"
    assert second.exchanges == []


async def test_a_context_overflow_moves_on_only_with_its_trigger(serve: Serve) -> None:
    """CONTEXT_LENGTH_EXCEEDED is the caller's error, unless the caller asked for a fallback for just that."""

    async def too_long(exchange: Exchange) -> None:
        await exchange.answer(400, {"error": {"code": "context_length_exceeded", "message": "long"}})

    async with Vendor(too_long) as small, Vendor(answers_text) as large:
        async with serve(providers={"small": at(small), "large": at(large)}) as headgate:
            request = ask("small/m", routing=pb.RoutingPolicy(fallbacks=["large/m"]))
            assert (await failing(headgate.stub.Generate(request))).reason == "CONTEXT_LENGTH_EXCEEDED"
            request.routing.fallback_triggers.append(pb.FALLBACK_TRIGGER_CONTEXT_LENGTH)
            assert (await headgate.stub.Generate(request)).provider == "large"


async def test_triggers_say_when_fallbacks_are_tried_and_nothing_else(serve: Serve) -> None:
    """An alias fails over among its own targets whatever the triggers; a fallback is tried for its trigger only."""
    async with Vendor(answers_500) as broken, Vendor(answers_text) as healthy:
        providers = {"a": at(broken), "b": at(healthy)}
        async with serve(providers=providers, models={"fast": alias("a", "b")}) as headgate:
            only_length = pb.RoutingPolicy(fallback_triggers=[pb.FALLBACK_TRIGGER_CONTEXT_LENGTH], fallbacks=["b/m"])
            own = await headgate.stub.Generate(ask("fast", routing=only_length))
            refused = await failing(headgate.stub.Generate(ask("a/m", routing=only_length)))
            by_default = await headgate.stub.Generate(ask("a/m", routing=pb.RoutingPolicy(fallbacks=["b/m"])))
    assert (own.provider, by_default.provider) == ("b", "b")
    assert refused.reason == "PROVIDER_ERROR"


async def test_a_content_filter_in_the_middle_is_an_end_and_no_failure(serve: Serve) -> None:
    """Text, then an error event of a content filter: OK, CONTENT_FILTER, and not partial."""

    async def filtered(exchange: Exchange) -> None:
        error = {"error": {"code": "content_filter", "message": "no more"}}
        await exchange.stream([text_chunk("Hello"), error], done=False)

    async with Vendor(filtered) as vendor, serve(providers={"v": at(vendor)}) as headgate:
        events = [event async for event in headgate.stub.StreamGenerate(ask("v/m"))]
    assert events[-2].candidate_end.finish.reason == pb.FINISH_REASON_CONTENT_FILTER
    assert not events[-1].generation_end.partial
    assert [attempt.outcome for attempt in events[-1].generation_end.attempts] == [pb.ATTEMPT_OUTCOME_OK]


async def test_an_answer_larger_than_the_limit_is_refused_with_a_reason(serve: Serve, logged: LogLines) -> None:
    """server.max_reply_bytes is told as such, and the log says the same as the caller heard."""

    async def long(exchange: Exchange) -> None:
        await exchange.answer(200, completion("x" * 10_000))

    async with Vendor(long) as vendor:
        async with serve(providers={"v": at(vendor)}, server={"max_reply_bytes": 4096}) as headgate:
            failed = await failing(headgate.stub.Generate(ask("v/m")))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "server.max_reply_bytes" in failed.message
    assert [line["code"] for line in logged.calls] == ["INVALID_ARGUMENT"]
    assert logged.errors == []


async def test_a_failing_sub_batch_leaves_nothing_of_an_embed_behind(serve: Serve, logged: LogLines) -> None:
    """All or nothing: the other sub-batches are closed, the next target answers whole, and a cancel still works."""
    calls = 0

    async def second_fails(exchange: Exchange) -> None:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            await answers_500(exchange)
        else:
            await exchange.caller_closed.wait()

    async def embeds(exchange: Exchange) -> None:
        rows = [{"index": i, "embedding": [1.0, 0.0]} for i in range(len(exchange.json["input"]))]
        await exchange.answer(200, {"data": rows, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}})

    async with Vendor(second_fails) as broken, Vendor(embeds) as healthy:
        small = {"quirks": {"embed_batch": 1}}
        providers = {"a": at(broken, **small), "b": at(healthy, **small)}
        async with serve(providers=providers, models={"e": alias("a", "b")}) as headgate:
            request = pb.EmbedRequest(model="e", inputs=[pb.EmbedInput(text=text) for text in "xyz"])
            answer = await headgate.stub.Embed(request)
            assert await headgate.idle()
    assert (answer.provider, answer.rows, answer.dimensions) == ("b", 3, 2)
    assert {attempt.provider for attempt in answer.attempts} == {"a", "b"}
    assert all(exchange.caller_closed.is_set() for exchange in broken.exchanges[:1])
    assert logged.errors == []


async def test_the_routing_policy_chooses_among_providers(serve: Serve) -> None:
    """Allowed and denied providers are honoured; none left is NO_ELIGIBLE_PROVIDER; max_attempts caps the tries."""
    async with Vendor(answers_500) as broken, Vendor(answers_text) as healthy:
        async with serve(providers={"a": at(broken), "b": at(healthy)}, models={"fast": alias("a", "b")}) as headgate:
            allowed = ask("fast", routing=pb.RoutingPolicy(allowed_providers=["b"]))
            denied = ask("fast", routing=pb.RoutingPolicy(denied_providers=["a"]))
            assert len((await headgate.stub.Generate(allowed)).attempts) == 1
            assert len((await headgate.stub.Generate(denied)).attempts) == 1
            nobody = ask("fast", routing=pb.RoutingPolicy(denied_providers=["a", "b"]))
            failed = await failing(headgate.stub.Generate(nobody))
            once = ask("fast", execution=pb.ExecutionPolicy(max_attempts=1))
            capped = await failing(headgate.stub.Generate(once))
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_ELIGIBLE_PROVIDER")
    assert (capped.reason, capped.facts["attempt_count"]) == ("PROVIDER_ERROR", "1")


@pytest.mark.parametrize("model", ["nope", "nowhere/m", "demo/"])
async def test_an_unknown_model_is_not_found(demo: Headgate, model: str) -> None:
    """A name that is neither alias nor provider/model gets MODEL_NOT_FOUND."""
    failed = await failing(demo.stub.Generate(ask(model)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_an_unknown_strategy_is_refused(demo: Headgate) -> None:
    """The error names the field and the strategies there are."""
    failed = await failing(demo.stub.Generate(ask("demo/echo", routing=pb.RoutingPolicy(strategy="round-robin"))))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert failed.fields == ["routing.strategy"]
    assert "least-busy" in failed.message


async def test_the_vendor_is_sent_what_was_asked(serve: Serve) -> None:
    """Credential, extra headers, model, options of its issuer: all reach the vendor, and nobody else's do."""
    async with Vendor(answers_text) as vendor:
        provider = at(vendor, api_key="sk-test", headers={"X-Team": "search"}, issuer="mine")
        async with serve(providers={"v": provider}) as headgate:
            request = ask("v/org/model-7", end_user_id="u1")
            request.provider_options["mine"] = '{"top_k": 3, "metadata": {"a": "b"}}'
            request.provider_options["other"] = '{"leak": true}'
            await headgate.stub.Generate(request)
    (exchange,) = vendor.exchanges
    assert (exchange.method, exchange.path) == ("POST", "/v1/chat/completions")
    assert exchange.headers["authorization"] == "Bearer sk-test"
    assert exchange.headers["x-team"] == "search"
    assert exchange.json["model"] == "org/model-7"
    assert exchange.json["top_k"] == 3
    assert exchange.json["metadata"] == {"a": "b"}
    assert "leak" not in exchange.json


async def test_the_request_id_is_echoed_everywhere(serve: Serve, logged: LogLines) -> None:
    """A caller's x-request-id comes back in initial metadata, RequestInfo, the trailer, and stands in the log."""
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}) as headgate:
        metadata = (("x-request-id", "trace-me-1"),)
        unary = headgate.stub.Generate(ask("v/m"), metadata=metadata)
        await unary
        stream = headgate.stub.StreamGenerate(ask("v/m"), metadata=metadata)
        assert [event async for event in stream]
        for call in (unary, stream):
            assert dict(await call.initial_metadata())["x-request-id"] == "trace-me-1"
        failed = await failing(headgate.stub.Generate(ask("nope"), metadata=metadata))
        made = headgate.stub.Generate(ask("v/m"), metadata=(("x-request-id", "not an id " * 40),))
        await made
        given = dict(await made.initial_metadata())["x-request-id"]
    assert failed.details["RequestInfo"].request_id == "trace-me-1"
    assert failed.trailer["x-request-id"] == "trace-me-1"
    assert [line["request_id"] for line in logged.calls] == ["trace-me-1"] * 3 + [given]
    assert len(given) == 32


async def test_the_access_log_has_the_facts_and_no_text(serve: Serve, logged: LogLines) -> None:
    """One line a call: method, code, model, attempts, tokens, finish; nothing of prompt or answer."""
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}) as headgate:
        await headgate.stub.Generate(ask("v/m", "my private prompt", labels={"team": "search"}))
    (line,) = logged.calls
    assert line["method"] == "/headgate.v1.InferenceService/Generate"
    assert (line["code"], line["model"], line["labels"]) == ("OK", "v/m", {"team": "search"})
    assert line["finish"] == ["STOP"]
    assert line["attempts"][0]["tokens"] == {"input": 5, "output": 3}
    assert "private" not in json.dumps(line)
    assert "Hello" not in json.dumps(line)


async def test_connections_are_kept_across_calls(serve: Serve) -> None:
    """Plain and streamed calls one after another use one connection: the bytes after [DONE] are read off the path."""

    async def ends_late(exchange: Exchange) -> None:
        if not exchange.json.get("stream"):
            await exchange.answer(200, completion())
            return
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("Hi")) + sse(finish_chunk()) + b"data: [DONE]\n\n")
        await asyncio.sleep(0.02)
        await exchange.end()

    async with Vendor(ends_late) as vendor, serve(providers={"v": at(vendor)}) as headgate:
        for _ in range(3):
            await headgate.stub.Generate(ask("v/m"))
            assert [event async for event in headgate.stub.StreamGenerate(ask("v/m"))]
            await asyncio.sleep(0.05)
    assert len(vendor.exchanges) == 6
    assert vendor.connections == 1


@pytest.mark.parametrize("cut", [b"", b'data: {"choices":[{"index":0,"delta":{"content":"Hel'])
async def test_a_stream_without_an_end_is_not_a_success(serve: Serve, cut: bytes) -> None:
    """EOF without a finish reason is an error: before content another target may answer, after it the stream aborts."""

    async def ends_early(exchange: Exchange) -> None:
        await exchange.begin()
        if exchange.json["messages"][0]["content"] == "text first":
            await exchange.chunk(sse(text_chunk("Hi")))
        if cut:
            await exchange.chunk(cut)
        await exchange.end()

    async with Vendor(ends_early) as vendor, serve(providers={"v": at(vendor)}) as headgate:
        before = await failing(headgate.stub.StreamGenerate(ask("v/m")))
        after = await failing(headgate.stub.StreamGenerate(ask("v/m", "text first")))
    assert (before.code, before.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_PROTOCOL_ERROR")
    assert (after.code, after.reason) == (grpc.StatusCode.ABORTED, "STREAM_INTERRUPTED")


async def test_the_whole_request_is_checked_at_once(demo: Headgate) -> None:
    """Every violation is named with its field path."""
    request = pb.GenerateRequest(
        messages=[
            pb.Message(parts=[pb.Part(text="no role")]),
            pb.Message(role=pb.ROLE_USER, parts=[pb.Part()]),
            pb.Message(role=pb.ROLE_TOOL, parts=[pb.Part(tool_result=pb.ToolResult(call_id="c1"))]),
            pb.Message(
                role=pb.ROLE_ASSISTANT, parts=[pb.Part(tool_call=pb.ToolCall(id="c2", name="f", arguments="{"))]
            ),
        ],
        config=pb.GenerationConfig(temperature=float("nan")),
        labels={f"k{n}": "v" for n in range(17)},
    )
    failed = await failing(demo.stub.Generate(request))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert failed.fields == [
        "model",
        "messages[0].role",
        "messages[1].parts[0]",
        "messages[2].parts[0].tool_result.call_id",
        "messages[3].parts[0].tool_call.arguments",
        "config.temperature",
        "labels",
    ]
    assert "attempt_count" not in failed.facts


async def test_list_models_pages_by_name(serve: Serve) -> None:
    """Pages are sorted, complete and without repetition; a foreign token is refused."""
    providers = {"demo": {"adapter": "mock", "models": ["echo", "lorem"]}}
    models = {name: {"targets": [{"provider": "demo", "model": "echo"}]} for name in "cab"}
    async with serve(providers=providers, models=models) as headgate:
        names, token = [], ""
        while True:
            page = await headgate.stub.ListModels(pb.ListModelsRequest(page_size=2, page_token=token))
            names += [model.name for model in page.models]
            assert len(page.models) <= 2
            if not (token := page.next_page_token):
                break
        failed = await failing(headgate.stub.ListModels(pb.ListModelsRequest(page_token="?")))
        foreign = await failing(headgate.stub.ListModels(pb.ListModelsRequest(page_token="é")))
        negative = await failing(headgate.stub.ListModels(pb.ListModelsRequest(page_size=-1)))
    assert names == ["a", "b", "c", "demo/echo", "demo/lorem"]
    assert failed.fields == foreign.fields == ["page_token"]
    assert negative.fields == ["page_size"]


async def test_health_shows_how_each_provider_served(serve: Serve) -> None:
    """The operator's view counts attempts, successes and failures by provider."""
    async with Vendor(answers_text) as healthy, Vendor(answers_500) as broken:
        async with serve(providers={"good": at(healthy), "bad": at(broken)}) as headgate:
            fresh = await headgate.stub.Health(pb.HealthRequest())
            await headgate.stub.Generate(ask("good/m"))
            await failing(headgate.stub.Generate(ask("bad/m")))
            served = await headgate.stub.Health(pb.HealthRequest())
    assert [provider.state for provider in fresh.providers] == [pb.SERVING_STATE_UNSPECIFIED] * 2
    good, bad = served.providers
    assert (good.provider, good.state, good.total_calls, good.success_rate) == ("good", pb.SERVING_STATE_SERVING, 1, 1)
    assert good.HasField("last_success_time")
    assert (bad.state, bad.detail, bad.in_flight) == (pb.SERVING_STATE_NOT_SERVING, "PROVIDER_ERROR", 0)
    assert served.version
    assert served.active_calls == 0


async def test_a_conversation_needs_a_message_or_a_stored_prompt(demo: Headgate) -> None:
    """No messages at all is refused, unless vendor options name what to say."""
    failed = await failing(demo.stub.Generate(pb.GenerateRequest(model="demo/echo")))
    assert failed.fields == ["messages"]
    answer = await demo.stub.Generate(pb.GenerateRequest(model="demo/echo", messages=[user("again")]))
    assert answer.candidates[0].message.parts[0].text == "again"
