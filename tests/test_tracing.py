"""Traces through the front door, at a real OTLP receiver: the tree of spans, and what each says of its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
import grpc
import grpc.aio
import pytest
from headgate import v1 as pb

from headgate_server.app import SERVICE
from headgate_server.call import Call, CallRegistry
from headgate_server.config import Traces
from headgate_server.interceptors.chain import Chain
from headgate_server.interceptors.tracing import begin_trace, end_trace
from headgate_server.runtime import Runtime
from headgate_server.telemetry.tracing import call_tracer
from tests.collector import Collector
from tests.conftest import Serve
from tests.headgate_process import ask, configured, failing
from tests.vendor import (
    Behaviour,
    Exchange,
    Vendor,
    answers_text,
    at,
    completion,
    finish_chunk,
    sse,
    text_chunk,
    usage_chunk,
)

TRACES = {"traces": {"enabled": True}}
Provider = dict[str, Any]


def alias(*providers: str, **settings: Any) -> dict[str, Any]:
    """One alias whose targets are model `m` at each provider."""
    return {"targets": [{"provider": provider, "model": "m"} for provider in providers], **settings}


async def answer(stub: Any, model: str, streamed: bool, **options: Any) -> None:
    """Has a call answered whole."""
    if streamed:
        async for _ in stub.StreamGenerate(ask(model), timeout=20, **options):
            pass
    else:
        await stub.Generate(ask(model), timeout=20, **options)


def begin(stub: Any, model: str, streamed: bool, **options: Any) -> Any:
    """A call in flight."""
    return (stub.StreamGenerate if streamed else stub.Generate)(ask(model, "CANARY"), **options)


async def answers_500(exchange: Exchange) -> None:
    await exchange.answer(500, {"error": {"message": "the secret cause", "type": "server_error"}})


async def never_answers(exchange: Exchange) -> None:
    await exchange.caller_closed.wait()


async def answers_late(exchange: Exchange) -> None:
    await asyncio.wait((asyncio.ensure_future(exchange.caller_closed.wait()),), timeout=10)


def failing_first(failures: int) -> Behaviour:
    """A vendor that fails so often, and then is in good health."""
    left = failures

    async def behave(exchange: Exchange) -> None:
        nonlocal left
        left -= 1
        await (answers_500 if left >= 0 else answers_text)(exchange)

    return behave


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_is_one_server_span_with_a_client_span_for_its_attempt(
    serve: Serve, collector: Collector, streamed: bool
) -> None:
    """By OpenTelemetry's conventions for RPC and generative AI; neither span's status is an error."""
    method = "StreamGenerate" if streamed else "Generate"
    async with Vendor(answers_text) as vendor:
        async with serve(providers={"v": at(vendor)}, telemetry=TRACES) as headgate:
            request = ask("v/m", config=pb.GenerationConfig(max_output_tokens=7, temperature=0.5))
            if streamed:
                assert [event async for event in headgate.stub.StreamGenerate(request)]
            else:
                await headgate.stub.Generate(request)
    call, (attempt,) = collector.call, collector.attempts
    assert (call.name, call.parent_id, call.status) == (f"{SERVICE}/{method}", "", "UNSET")
    assert (
        call.attributes.items()
        >= {
            "rpc.system.name": "grpc",
            "rpc.method": f"{SERVICE}/{method}",
            "rpc.response.status_code": "OK",
            "server.address": "127.0.0.1",
            "network.peer.address": "127.0.0.1",
            "gen_ai.request.model": "v/m",
            "headgate.attempts": 1,
        }.items()
    )
    assert "error.type" not in call.attributes
    assert call.event_names == (["headgate.first_token"] if streamed else [])
    assert (attempt.name, attempt.kind, attempt.status) == ("chat m", "CLIENT", "UNSET")
    assert (attempt.trace_id, attempt.parent_id) == (call.trace_id, call.span_id)
    assert (
        attempt.attributes.items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "v",
            "gen_ai.request.model": "m",
            "gen_ai.request.stream": streamed,
            "gen_ai.request.max_tokens": 7,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.response.model": "vendor-model-1",
            "gen_ai.response.id": "chatcmpl-1",
            "gen_ai.usage.input_tokens": 5,
            "gen_ai.usage.output_tokens": 3,
            "http.response.status_code": 200,
            "server.address": "127.0.0.1",
            "server.port": vendor.port,
            "headgate.provider": "v",
            "headgate.attempt.number": 1,
            "headgate.attempt.cause": "first",
            "headgate.attempt.outcome": "OK",
            "headgate.provider.request_id": "req-vendor-1",
        }.items()
    )
    assert attempt.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert ("gen_ai.response.time_to_first_chunk" in attempt.attributes) is streamed
    assert 0 < attempt.seconds < call.seconds
    assert call.resource["service.name"] == "headgate"


async def test_a_metrics_exemplar_leads_to_its_trace(serve: Serve, collector: Collector) -> None:
    """A slow bucket of a histogram names a call that was recorded."""
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, telemetry=TRACES) as headgate:
        await answer(headgate.stub, "v/m", False)
        url = f"http://{headgate.application.admin_address}/metrics"
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        async with aiohttp.ClientSession() as session, session.get(url, headers=accept) as response:
            exposed = await response.text()
    assert f'# {{trace_id="{collector.call.trace_id}"}}' in exposed


async def test_usage_tells_cached_and_reasoning_tokens(serve: Serve, collector: Collector) -> None:
    """As subsets of input and output, which is the conventions' rule and ours."""

    async def counts(exchange: Exchange) -> None:
        details = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}
        usage = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15, **details}
        await exchange.answer(200, {**completion(), "usage": usage})

    async with Vendor(counts) as vendor, serve(providers={"v": at(vendor)}, telemetry=TRACES) as headgate:
        await answer(headgate.stub, "v/m", False)
    (attempt,) = collector.attempts
    assert {name: n for name, n in attempt.attributes.items() if ".usage." in name} == {
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 2,
    }


async def test_vendors_have_the_names_of_the_conventions(serve: Serve, collector: Collector) -> None:
    """Known hosts by OpenTelemetry's names for them, whatever the operator calls the provider."""
    async with Vendor(answers_text) as vendor:
        borrowed = {"api_key": "k", "base_url": vendor.base_url}
        providers = {"mine": {"host": "mistral", **borrowed}, "groq": borrowed}
        async with serve(providers=providers, telemetry=TRACES) as headgate:
            await answer(headgate.stub, "mine/m", False)
            await answer(headgate.stub, "groq/m", False)
    names = {
        span.attributes["headgate.provider"]: span.attributes["gen_ai.provider.name"] for span in collector.attempts
    }
    assert names == {"mine": "mistral_ai", "groq": "groq"}


async def test_each_batch_of_embeddings_is_an_attempt(serve: Serve, collector: Collector) -> None:
    """Two batches are two spans of the operation `embeddings` under one call."""

    async def embeds(exchange: Exchange) -> None:
        rows = [{"index": n, "embedding": [1.0, 2.0]} for n in range(len(exchange.json["input"]))]
        await exchange.answer(200, {"data": rows, "model": "e-1", "usage": {"prompt_tokens": 2, "total_tokens": 2}})

    async with Vendor(embeds) as vendor:
        batched = at(vendor, quirks={"embed_batch": 1})
        async with serve(providers={"v": batched}, telemetry=TRACES) as headgate:
            inputs = [pb.EmbedInput(text="a"), pb.EmbedInput(text="b")]
            await headgate.stub.Embed(pb.EmbedRequest(model="v/e", inputs=inputs))
    first, second = collector.attempts
    assert {first.parent_id, second.parent_id} == {collector.call.span_id}
    for attempt in (first, second):
        assert attempt.name == "embeddings e"
        assert attempt.attributes["gen_ai.operation.name"] == "embeddings"
        assert attempt.attributes["gen_ai.response.model"] == "e-1"
        assert attempt.attributes["gen_ai.embeddings.dimension.count"] == 2


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_retry_is_a_span_of_its_own_and_an_event_of_the_call(
    serve: Serve, collector: Collector, streamed: bool
) -> None:
    """The first attempt's span is an error with its reason; the call's is not, because it was answered."""
    routing = {"retry": {"max_attempts": 2, "base_delay": 0.01}}
    async with Vendor(failing_first(1)) as vendor:
        async with serve(providers={"v": at(vendor)}, telemetry=TRACES, routing=routing) as headgate:
            await answer(headgate.stub, "v/m", streamed)
    first, second = collector.attempts
    assert (first.status, first.status_text, first.attributes["error.type"]) == (
        "ERROR",
        "PROVIDER_ERROR",
        "PROVIDER_ERROR",
    )
    assert first.attributes["http.response.status_code"] == 500
    assert "gen_ai.response.model" not in first.attributes
    assert (second.status, second.attributes["headgate.attempt.cause"]) == ("UNSET", "retry")
    assert collector.call.status == "UNSET"
    assert collector.call.event_names == ["headgate.retry", *(["headgate.first_token"] if streamed else [])]
    assert collector.call.events[0].attributes == {"headgate.attempt.number": 2, "headgate.provider": "v"}


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_fallback_is_told(serve: Serve, collector: Collector, streamed: bool) -> None:
    """The next target's attempt says why it was made, and so does an event."""
    async with Vendor(answers_500) as broken, Vendor(answers_text) as healthy:
        providers = {"a": at(broken), "b": at(healthy)}
        async with serve(providers=providers, models={"fast": alias("a", "b")}, telemetry=TRACES) as headgate:
            await answer(headgate.stub, "fast", streamed)
    causes = [
        (span.attributes["headgate.provider"], span.attributes["headgate.attempt.cause"]) for span in collector.attempts
    ]
    assert causes == [("a", "first"), ("b", "fallback")]
    assert collector.call.event_names[0] == "headgate.fallback"
    assert collector.call.attributes["headgate.attempts"] == 2


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_hedge_is_told_and_its_loser_is_no_error(serve: Serve, collector: Collector, streamed: bool) -> None:
    """Both attempts overlap under the call; the slow one is SUPERSEDED, and only the winner bears the answer."""
    async with Vendor(answers_late) as slow, Vendor(answers_text) as quick:
        providers = {"a": at(slow), "b": at(quick)}
        models = {"fast": alias("a", "b", hedge_delay=0.05)}
        async with serve(providers=providers, models=models, telemetry=TRACES) as headgate:
            await answer(headgate.stub, "fast", streamed)
    slow_span, quick_span = collector.attempts
    assert (slow_span.status, slow_span.attributes["headgate.attempt.outcome"]) == ("UNSET", "SUPERSEDED")
    assert "gen_ai.response.model" not in slow_span.attributes
    assert quick_span.attributes["headgate.attempt.cause"] == "hedge"
    assert quick_span.attributes["gen_ai.response.model"] == "vendor-model-1"
    assert collector.call.event_names[0] == "headgate.hedge"
    assert slow_span.seconds > quick_span.seconds


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_abort_is_an_error_where_the_server_is_to_blame(
    serve: Serve, collector: Collector, streamed: bool
) -> None:
    """UNAVAILABLE is the server's error, INVALID_ARGUMENT the caller's; both bear code and reason."""
    async with Vendor(answers_500) as vendor:
        async with serve(providers={"v": at(vendor)}, telemetry=TRACES) as headgate:
            await failing(begin(headgate.stub, "v/m", streamed))
            await failing(begin(headgate.stub, "", streamed))
    ends = {
        span.attributes["rpc.response.status_code"]: (span.status, span.attributes["error.type"])
        for span in collector.servers
    }
    assert ends == {"UNAVAILABLE": ("ERROR", "PROVIDER_ERROR"), "INVALID_ARGUMENT": ("UNSET", "INVALID_REQUEST")}


async def test_a_stream_that_breaks_under_its_caller_is_an_error(serve: Serve, collector: Collector) -> None:
    """ABORTED, which the conventions leave to the server to judge: here it always means a broken answer."""

    async def breaks(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("Hello")))
        exchange.reset()

    async with Vendor(breaks) as vendor, serve(providers={"v": at(vendor)}, telemetry=TRACES) as headgate:
        await failing(begin(headgate.stub, "v/m", True))
    assert (collector.call.status, collector.call.attributes["error.type"]) == ("ERROR", "STREAM_INTERRUPTED")
    (attempt,) = collector.attempts
    assert (attempt.status, attempt.attributes["gen_ai.response.model"]) == ("ERROR", "vendor-model-1")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_cancelled_call_is_no_error(serve: Serve, collector: Collector, streamed: bool) -> None:
    """Its code says that it was cancelled; status and error.type stay unset, and so do those of its attempt."""
    async with Vendor(never_answers) as vendor:
        async with serve(providers={"v": at(vendor)}, telemetry=TRACES) as headgate:
            call = begin(headgate.stub, "v/m", streamed)
            waiting = asyncio.ensure_future(failing_quietly(call))
            await vendor.exchange()
            call.cancel()
            await waiting
            assert await headgate.idle()
    (attempt,) = collector.attempts
    assert collector.call.attributes["rpc.response.status_code"] == "CANCELLED"
    assert (collector.call.status, attempt.status) == ("UNSET", "UNSET")
    assert "error.type" not in {**collector.call.attributes, **attempt.attributes}
    assert attempt.attributes["headgate.attempt.outcome"] == "CANCELLED"


async def failing_quietly(call: Any) -> None:
    """Waits for the end of a call that is cancelled."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        pass


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_callers_deadline_is_an_error(serve: Serve, collector: Collector, streamed: bool) -> None:
    """By the conventions, though the vendor is not to blame: its attempt was cancelled."""
    async with Vendor(never_answers) as vendor:
        async with serve(providers={"v": at(vendor)}, telemetry=TRACES) as headgate:
            failed = await failing(begin(headgate.stub, "v/m", streamed, timeout=0.3))
            assert failed.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert await headgate.idle()
    (attempt,) = collector.attempts
    assert (collector.call.status, collector.call.attributes["error.type"]) == ("ERROR", "DEADLINE")
    assert attempt.status == "UNSET"


class Crashing:
    """A servicer with a bug whose text repeats the prompt."""

    async def Generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        raise RuntimeError(f"cannot do {request.messages}")

    Embed = ListModels = Health = Generate

    async def StreamGenerate(self, request: pb.GenerateRequest, call: Call) -> AsyncIterator[pb.StreamGenerateResponse]:
        yield pb.StreamGenerateResponse(text_delta="first")
        raise RuntimeError(f"cannot do {request.messages}")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_crash_tells_where_it_happened_but_not_its_text(collector: Collector, streamed: bool) -> None:
    """Type and stack are an event of the call's span; the text of an exception may hold anything."""
    runtime = Runtime(configured(providers={"demo": {"adapter": "mock"}}))
    tracer = call_tracer(Traces(enabled=True), "127.0.0.1:0")
    chain = Chain(SERVICE, CallRegistry(), lambda: runtime, begin=[begin_trace(tracer)], end=[end_trace])
    server = grpc.aio.server(interceptors=[chain])
    pb.add_InferenceServiceServicer_to_server(cast(pb.InferenceServiceServicer, Crashing()), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        failed = await failing(begin(pb.InferenceServiceStub(channel), "m", streamed))
    await server.stop(1)
    await tracer.close()
    await runtime.close()
    assert failed.code is grpc.StatusCode.INTERNAL
    (event,) = collector.call.events
    assert (collector.call.status, collector.call.status_text) == ("ERROR", "internal error")
    assert (event.name, event.attributes["exception.type"]) == ("exception", "RuntimeError")
    assert f"in {'StreamGenerate' if streamed else 'Generate'}" in event.attributes["exception.stacktrace"]
    assert b"CANARY" not in collector.raw


async def test_prompts_and_answers_are_recorded_only_where_that_is_asked_for(
    serve: Serve, collector: Collector
) -> None:
    """By default there is no trace of either, by opt-in the attempt that answered has both, cut to the limit."""
    async with Vendor(answers_500) as broken, Vendor(answers_text) as vendor:
        providers = {"a": at(broken), "v": at(vendor)}
        async with serve(providers=providers, telemetry=TRACES) as headgate:
            await headgate.stub.Generate(ask("v/m", "a question of mine"))
        assert b"a question of mine" not in collector.raw
        assert b"Hello there" not in collector.raw
        collector.spans.clear()
        recorded = {"traces": {"enabled": True, "content": True, "content_limit": 100}}
        models = {"fast": alias("a", "v")}
        async with serve(providers=providers, models=models, telemetry=recorded) as headgate:
            assert [e async for e in headgate.stub.StreamGenerate(ask("fast", "a question of mine" + "x" * 1000))]
    failed, answered = collector.attempts
    (prompt,) = json.loads(answered.attributes["gen_ai.input.messages"])
    (said,) = json.loads(answered.attributes["gen_ai.output.messages"])
    assert prompt["role"] == "user"
    assert prompt["parts"][0]["content"].startswith("a question of mine")
    assert len(prompt["parts"][0]["content"]) <= 100
    assert said == {
        "role": "assistant",
        "parts": [{"type": "text", "content": "Hello there"}],
        "finish_reason": "stop",
    }
    assert "gen_ai.input.messages" not in failed.attributes


async def test_plain_answers_with_tools_and_media_are_recorded_without_bytes(
    serve: Serve, collector: Collector
) -> None:
    """Calls of tools and their results are told; of media what it is, never its bytes."""
    history = [
        pb.Message(
            role=pb.ROLE_USER,
            parts=[
                pb.Part(text="Weather?"),
                pb.Part(media=pb.Media(kind=pb.MEDIA_KIND_IMAGE, data=b"PIXELS", mime_type="image/png")),
            ],
        ),
        pb.Message(
            role=pb.ROLE_ASSISTANT,
            parts=[pb.Part(tool_call=pb.ToolCall(id="c1", name="weather", arguments='{"city":"Ulm"}'))],
        ),
        pb.Message(
            role=pb.ROLE_TOOL,
            parts=[pb.Part(tool_result=pb.ToolResult(call_id="c1", name="weather", parts=[pb.Part(text="sun")]))],
        ),
    ]
    recorded = {"traces": {"enabled": True, "content": True}}
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, telemetry=recorded) as headgate:
        await headgate.stub.Generate(pb.GenerateRequest(model="v/m", messages=history))
    (attempt,) = collector.attempts
    asked = json.loads(attempt.attributes["gen_ai.input.messages"])
    assert [part for message in asked for part in message["parts"]] == [
        {"type": "text", "content": "Weather?"},
        {"type": "blob", "modality": "image", "mime_type": "image/png"},
        {"type": "tool_call", "id": "c1", "name": "weather", "arguments": '{"city":"Ulm"}'},
        {"type": "tool_call_response", "id": "c1", "response": "sun"},
    ]
    assert json.loads(attempt.attributes["gen_ai.output.messages"])[0]["finish_reason"] == "stop"
    assert b"PIXELS" not in collector.raw


async def test_no_secret_is_in_any_span(serve: Serve, collector: Collector) -> None:
    """Canaries in keys, headers, prompts, answers, labels, a vendor's error: none of them is sent to the collector."""

    async def repeats(exchange: Exchange) -> None:
        if exchange.json["model"] == "bad":
            await exchange.answer(401, {"error": {"message": "CANARY-vendor refuses CANARY-key", "type": "auth"}})
        elif exchange.json.get("stream"):
            await exchange.stream([text_chunk("CANARY-answer"), finish_chunk(), usage_chunk()])
        else:
            await exchange.answer(200, completion("CANARY-answer"))

    async with Vendor(repeats) as vendor:
        secretive = at(vendor, api_key="CANARY-key", headers={"x-team": "CANARY-header"})
        auth = {"anonymous": True, "caller_provider_keys": True}
        async with serve(providers={"v": secretive}, auth=auth, telemetry=TRACES) as headgate:
            metadata = (
                ("authorization", "Bearer CANARY-bearer"),
                ("x-api-key", "CANARY-caller"),
                ("x-provider-key-v", "CANARY-own"),
                ("baggage", "user=CANARY-baggage"),
            )
            options = {
                "labels": {"team": "CANARY-label"},
                "end_user_id": "CANARY-user",
                "provider_options": {"v": '{"note":"CANARY-option"}'},
                "config": pb.GenerationConfig(stop_sequences=["CANARY-stop"]),
            }
            for model in ("m", "bad"):
                request = ask(f"v/{model}", "CANARY-prompt", **options)
                for call in (headgate.stub.Generate, headgate.stub.StreamGenerate):
                    await failing_quietly(call(request, metadata=metadata))
    assert len(collector.servers) == 4
    assert b"CANARY" not in collector.raw
    assert any("CANARY-prompt" in exchange.body.decode() for exchange in vendor.exchanges)
