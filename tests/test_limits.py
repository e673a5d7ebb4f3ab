"""Limits counted in memory, through the front door: what is refused, what a caller is told, what is given back."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from headgate import v1 as pb

from headgate_server.config import Config
from tests.conftest import Serve
from tests.headgate_process import ask, failing
from tests.test_anthropic_front_door import at as anthropic_at
from tests.vendor import Exchange, Vendor, answers_text, at, completion, sse, text_chunk, usage_chunk

Rule = dict[str, Any]
MINUTE = 60


def limits(*rules: Rule, **settings: Any) -> dict[str, Any]:
    """A limits section of these rules."""
    return {"rules": list(rules), **settings}


def alias(*providers: str) -> dict[str, Any]:
    """One alias whose targets are model `m` at each provider."""
    return {"targets": [{"provider": provider, "model": "m"} for provider in providers]}


def small(model: str = "v/m", most: int = 100, text: str = "Hi") -> pb.GenerateRequest:
    """A request of a few bytes with this much output at most."""
    return ask(model, text, config=pb.GenerationConfig(max_output_tokens=most))


def estimate(request: pb.GenerateRequest) -> int:
    """What is reserved for it: a token for each byte, and the output."""
    return request.ByteSize() + request.config.max_output_tokens


async def trailer(call: Any) -> dict[str, str]:
    """The limits' trailing metadata of a call that must succeed."""
    if hasattr(call, "__aiter__"):
        async for _ in call:
            pass
    else:
        await call
    return {key: value for key, value in await call.trailing_metadata() if key.startswith("x-ratelimit-")}


@pytest.mark.parametrize("algorithm", ["sliding_window", "token_bucket"])
async def test_a_call_beyond_the_limit_is_refused_with_when_and_which(serve: Serve, algorithm: str) -> None:
    """RESOURCE_EXHAUSTED with RetryInfo, QuotaFailure and pushback; the vendor hears nothing of it."""
    rule = {"unit": "requests", "limit": 2, "window": MINUTE, "per": ["model"], "algorithm": algorithm}
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, limits=limits(rule)) as headgate:
        for _ in range(2):
            await headgate.stub.Generate(small())
        failed = await failing(headgate.stub.Generate(small()))
        streamed = await failing(headgate.stub.StreamGenerate(small()))
        assert (await headgate.stub.Generate(small("v/other"))).candidates, "another model has a limit of its own"
    assert len(vendor.exchanges) == 3
    for each in (failed, streamed):
        assert (each.code, each.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        (violation,) = each.details["QuotaFailure"].violations
        assert (violation.subject, violation.quota_metric) == ("model:v/m", "requests")
        assert "2 requests are allowed" in violation.description
        delay = each.details["RetryInfo"].retry_delay.ToMilliseconds()
        expected = MINUTE * 1000 if algorithm == "sliding_window" else MINUTE * 500
        assert expected - 5000 < delay <= expected + 1000, "a slot of the window is a second"
        assert each.trailer["grpc-retry-pushback-ms"] == str(delay)
        assert each.trailer["x-ratelimit-remaining-requests"] == "0"


async def test_remaining_amounts_travel_in_trailing_metadata(serve: Serve) -> None:
    """The tightest limit of requests and of tokens, once the call is settled; unary, streamed and failed alike."""
    rules = limits(
        {"unit": "requests", "limit": 10, "window": MINUTE},
        {"unit": "requests", "limit": 1000, "window": 3600},
        {"unit": "total_tokens", "limit": 5000, "window": MINUTE},
        {"unit": "output_tokens", "limit": 1000, "window": MINUTE},
    )
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, limits=rules) as headgate:
        unary = await trailer(headgate.stub.Generate(small()))
        streamed = await trailer(headgate.stub.StreamGenerate(small()))
        failed = await failing(headgate.stub.Generate(small("unknown")))
    assert (unary["x-ratelimit-limit-requests"], unary["x-ratelimit-remaining-requests"]) == ("10", "9")
    assert (unary["x-ratelimit-limit-tokens"], unary["x-ratelimit-remaining-tokens"]) == ("1000", "997")
    assert MINUTE < float(unary["x-ratelimit-reset-requests"]) + 1 <= MINUTE + 2
    assert streamed["x-ratelimit-remaining-requests"] == "8"
    assert failed.reason == "MODEL_NOT_FOUND"
    assert failed.trailer["x-ratelimit-remaining-requests"] == "8", "what never reached a vendor is given back"


async def test_what_was_not_used_is_given_back(serve: Serve) -> None:
    """The estimate is reserved, and the vendor's own count is what remains of it."""
    request = small(most=600)
    rule = {"unit": "total_tokens", "limit": 1000, "window": MINUTE}
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, limits=limits(rule)) as headgate:
        remaining = [
            int((await trailer(headgate.stub.StreamGenerate(request)))["x-ratelimit-remaining-tokens"])
            for _ in range(5)
        ]
    assert remaining == [1000 - 8 * call for call in range(1, 6)]


async def test_a_call_larger_than_the_limit_is_refused_for_good(serve: Serve) -> None:
    """Nobody should try again what can never fit: no RetryInfo, pushback -1, and the text says why."""
    rule = {"unit": "total_tokens", "limit": 500, "window": MINUTE}
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, limits=limits(rule)) as headgate:
        request = small(most=500)
        failed = await failing(headgate.stub.Generate(request))
    assert failed.reason == "RATE_LIMITED"
    assert "RetryInfo" not in failed.details
    assert failed.trailer["grpc-retry-pushback-ms"] == "-1"
    assert f"500 total tokens are allowed in 60 s, and the call may take {estimate(request)}" in failed.message
    assert vendor.exchanges == []


async def test_an_image_that_is_named_by_its_address_is_reserved_as_one(serve: Serve) -> None:
    """Its few bytes say nothing of what it costs: the same request without it has room."""
    rule = {"unit": "input_tokens", "limit": 4000, "window": MINUTE}
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, limits=limits(rule)) as headgate:
        request = small()
        await headgate.stub.Generate(request)
        request.messages[0].parts.add(media=pb.Media(mime_type="image/png", uri="https://example.com/a.png"))
        failed = await failing(headgate.stub.Generate(request))
    assert failed.reason == "RATE_LIMITED"
    assert len(vendor.exchanges) == 1


async def test_what_the_gateway_itself_allows_a_vendor_is_reserved(serve: Serve) -> None:
    """Where a wire demands a limit of output and the caller has none, the one that is sent counts."""
    rule = {"unit": "output_tokens", "limit": 20_000, "window": MINUTE}
    async with Vendor(answers_text) as vendor:
        provider = {"adapter": "anthropic", "base_url": vendor.base_url}
        async with serve(providers={"v": provider}, limits=limits(rule)) as headgate:
            failed = await failing(headgate.stub.Generate(ask("v/m")))
    assert "the call may take 32000" in failed.message
    assert vendor.exchanges == []


async def test_a_limit_in_provider_options_is_reserved(serve: Serve) -> None:
    """What callers hand through to the vendor may be more than what they tell the gateway."""
    rule = {"unit": "output_tokens", "limit": 1000, "window": MINUTE}
    request = small(most=1)
    request.provider_options["v"] = '{"max_completion_tokens": 5000}'
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, limits=limits(rule)) as headgate:
        assert (await failing(headgate.stub.Generate(request))).reason == "RATE_LIMITED"
    assert vendor.exchanges == []


async def test_a_refused_call_takes_nothing_from_any_limit(serve: Serve) -> None:
    """All limits are checked before anything is taken from one; each that has no room is named."""
    rules = limits(
        {"unit": "requests", "limit": 100, "window": MINUTE},
        {"unit": "requests", "limit": 1, "window": MINUTE, "per": ["model"]},
        {"unit": "requests", "limit": 1, "window": 3600, "per": ["model"]},
    )
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, limits=rules) as headgate:
        await headgate.stub.Generate(small())
        for _ in range(5):
            failed = await failing(headgate.stub.Generate(small()))
        assert [violation.subject for violation in failed.details["QuotaFailure"].violations] == ["model:v/m"] * 2
        assert failed.details["RetryInfo"].retry_delay.seconds > 3500, "the longest wait counts"
        other = await trailer(headgate.stub.Generate(small("v/other", most=1)))
    assert other["x-ratelimit-remaining-requests"] == "0"
    assert len(vendor.exchanges) == 2


async def test_failures_give_back_what_no_vendor_used(serve: Serve) -> None:
    """A request that turns out invalid gives back all; a vendor's error is a request, and no tokens."""

    async def refuses(exchange: Exchange) -> None:
        await exchange.answer(400, {"error": {"message": "no", "type": "invalid_request_error"}})

    rules = limits(
        {"unit": "requests", "limit": 10, "window": MINUTE},
        {"unit": "total_tokens", "limit": 1000, "window": MINUTE},
    )
    async with Vendor(refuses) as vendor, serve(providers={"v": at(vendor)}, limits=rules) as headgate:
        owned = {"v": '{"model": "other"}'}
        invalid = await failing(headgate.stub.Generate(ask("v/m", config=small().config, provider_options=owned)))
        refused = await failing(headgate.stub.Generate(small()))
    assert (invalid.reason, refused.reason) == ("INVALID_REQUEST", "PROVIDER_REJECTED_REQUEST")
    assert invalid.trailer["x-ratelimit-remaining-requests"] == "10"
    assert invalid.trailer["x-ratelimit-remaining-tokens"] == "1000"
    assert refused.trailer["x-ratelimit-remaining-requests"] == "9"
    assert refused.trailer["x-ratelimit-remaining-tokens"] == "1000"


async def test_a_cancelled_call_counts_as_its_estimate_and_leaves_its_place(serve: Serve) -> None:
    """A vendor that was left in the middle may have generated all of it; its place in the concurrency limit is free."""

    async def stalls(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("Hello")))
        await exchange.caller_closed.wait()

    rules = limits(
        {"unit": "concurrency", "limit": 1},
        {"unit": "total_tokens", "limit": 1000, "window": MINUTE},
    )
    request = small(most=300)
    async with Vendor(stalls) as vendor, serve(providers={"v": at(vendor)}, limits=rules) as headgate:
        call = headgate.stub.StreamGenerate(request)
        await anext(aiter(call))
        beside = await failing(headgate.stub.Generate(request))
        assert beside.details["QuotaFailure"].violations[0].quota_metric == "concurrency"
        assert beside.details["RetryInfo"].retry_delay.seconds == 1
        call.cancel()
        assert await headgate.idle()
        vendor.behave = answers_text
        after = await trailer(headgate.stub.Generate(request))
    assert int(after["x-ratelimit-remaining-tokens"]) == 1000 - estimate(request) - 8


async def test_what_came_after_a_vendor_s_last_word_on_usage_counts(serve: Serve) -> None:
    """Anthropic counts the input at once, and of the output a token: who leaves before the end has used more."""

    async def counts_input(exchange: Exchange) -> None:
        start = {"type": "message_start", "message": {"usage": {"input_tokens": 40, "output_tokens": 1}}}
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x" * 400}}
        await exchange.begin()
        for event in (start, block, delta):
            await exchange.chunk(sse(event, str(event["type"])))
        await exchange.caller_closed.wait()

    rule = {"unit": "total_tokens", "limit": 1000, "window": MINUTE}
    request = small("anthropic/m", most=300)
    async with Vendor(counts_input) as one, Vendor(answers_text) as other:
        providers = {"anthropic": anthropic_at(one), "v": at(other)}
        async with serve(providers=providers, limits=limits(rule)) as headgate:
            call = headgate.stub.StreamGenerate(request)
            async for event in call:
                if event.text_delta:
                    break
            call.cancel()
            assert await headgate.idle()
            after = await trailer(headgate.stub.Generate(small()))
    assert int(after["x-ratelimit-remaining-tokens"]) == 1000 - (40 + 1 + 100) - 8


async def test_what_exceeds_the_estimate_is_carried_as_debt(serve: Serve) -> None:
    """A vendor that uses more than was asked for is not stopped; the next calls are."""

    async def excessive(exchange: Exchange) -> None:
        await exchange.answer(200, {**completion(), "usage": usage_chunk(1000, 900)["usage"]})

    rule = {"unit": "total_tokens", "limit": 1000, "window": MINUTE, "algorithm": "token_bucket"}
    async with Vendor(excessive) as vendor, serve(providers={"v": at(vendor)}, limits=limits(rule)) as headgate:
        assert (await trailer(headgate.stub.Generate(small())))["x-ratelimit-remaining-tokens"] == "0"
        failed = await failing(headgate.stub.Generate(small()))
    debt = 900 + estimate(small())
    assert failed.details["RetryInfo"].retry_delay.ToMilliseconds() == pytest.approx(debt * MINUTE, rel=0.02)


async def test_every_attempt_that_may_have_used_something_counts(serve: Serve) -> None:
    """A target that ran out of time counts as the estimate, beside the one that answered."""

    async def silent(exchange: Exchange) -> None:
        await exchange.caller_closed.wait()

    rule = {"unit": "total_tokens", "limit": 10_000, "window": MINUTE}
    async with Vendor(silent) as slow, Vendor(answers_text) as healthy:
        providers = {"slow": at(slow, clocks={"total": 0.2}), "healthy": at(healthy)}
        async with serve(
            providers=providers, models={"fast": alias("slow", "healthy")}, limits=limits(rule)
        ) as headgate:
            request = small("fast", most=200)
            told = await trailer(headgate.stub.Generate(request))
    left = len(slow.exchanges)
    assert left >= 1
    assert int(told["x-ratelimit-remaining-tokens"]) == 10_000 - left * estimate(request) - 8


async def test_another_attempt_needs_room_of_its_own(serve: Serve) -> None:
    """When the first target may have used up what was reserved, the next is asked only if as much is there again."""

    async def silent(exchange: Exchange) -> None:
        await exchange.caller_closed.wait()

    request = small("fast", most=400)
    rule = {"unit": "total_tokens", "limit": estimate(request) + 50, "window": MINUTE}
    async with Vendor(silent) as slow, Vendor(answers_text) as healthy:
        providers = {"slow": at(slow, clocks={"total": 0.2}), "healthy": at(healthy)}
        async with serve(
            providers=providers, models={"fast": alias("slow", "healthy")}, limits=limits(rule)
        ) as headgate:
            failed = await failing(headgate.stub.Generate(request))
    assert failed.reason == "RATE_LIMITED"
    assert (len(slow.exchanges), len(healthy.exchanges)) == (1, 0)


async def test_a_provider_at_its_limit_is_passed_over(serve: Serve) -> None:
    """Limits per provider are asked when the target is known; the next target answers, and the last one's refusal goes
    to the caller."""
    rule = {"unit": "requests", "limit": 1, "window": MINUTE, "per": ["provider"]}
    async with Vendor(answers_text) as first, Vendor(answers_text) as second:
        async with serve(
            providers={"a": at(first), "b": at(second)}, models={"fast": alias("a", "b")}, limits=limits(rule)
        ) as headgate:
            answers = [(await headgate.stub.Generate(small("fast"))).provider for _ in range(2)]
            failed = await failing(headgate.stub.Generate(small("fast")))
    assert answers == ["a", "b"]
    assert failed.reason == "RATE_LIMITED"
    assert failed.details["QuotaFailure"].violations[0].subject.startswith("provider:")


async def test_a_provider_whose_limit_is_too_small_is_passed_over(serve: Serve) -> None:
    """A call that is larger than one provider's limit goes to another; alone, it is refused for good."""
    rule = {"unit": "total_tokens", "limit": 50, "window": MINUTE, "only": {"provider": ["a"]}}
    async with Vendor(answers_text) as first, Vendor(answers_text) as second:
        async with serve(
            providers={"a": at(first), "b": at(second)}, models={"fast": alias("a", "b")}, limits=limits(rule)
        ) as headgate:
            assert (await headgate.stub.Generate(small("fast"))).provider == "b"
            failed = await failing(headgate.stub.Generate(small("a/m")))
    assert (failed.reason, failed.trailer["grpc-retry-pushback-ms"]) == ("RATE_LIMITED", "-1")
    assert first.exchanges == []


async def test_a_target_that_was_passed_over_needs_no_room(serve: Serve) -> None:
    """What the caller may use is enough for one attempt, and only one is made."""
    rules = limits(
        {"unit": "total_tokens", "limit": 50, "window": MINUTE, "only": {"provider": ["a"]}},
        {"unit": "total_tokens", "limit": estimate(small("fast")), "window": MINUTE, "per": ["key"]},
    )
    async with Vendor(answers_text) as first, Vendor(answers_text) as second:
        async with serve(
            providers={"a": at(first), "b": at(second)}, models={"fast": alias("a", "b")}, limits=rules
        ) as headgate:
            assert (await headgate.stub.Generate(small("fast"))).provider == "b"


async def test_each_retry_at_a_provider_is_a_request_of_its_own(serve: Serve) -> None:
    """However often calls are tried again, a provider never gets more requests than its limit."""

    async def breaks(exchange: Exchange) -> None:
        await exchange.answer(500, {})

    rule = {"unit": "requests", "limit": 4, "window": MINUTE, "per": ["provider"]}
    routing = {"retry": {"max_attempts": 5, "base_delay": 0.01}, "breaker": {"consecutive_failures": 0}}
    async with Vendor(breaks) as vendor:
        async with serve(providers={"v": at(vendor)}, limits=limits(rule), routing=routing) as headgate:
            await asyncio.gather(*(failing(headgate.stub.Generate(small())) for _ in range(3)))
            assert (await failing(headgate.stub.Generate(small()))).reason == "RATE_LIMITED"
    assert len(vendor.exchanges) == 4


async def test_what_exceeds_the_estimate_is_carried_after_a_retry_too(serve: Serve) -> None:
    """The retry's own reservation is of a request alone: the first one's takes the tokens beyond the estimate."""

    async def breaks_once(exchange: Exchange) -> None:
        if len(vendor.exchanges) == 1:
            await exchange.answer(500, {})
        else:
            await exchange.answer(200, {**completion(), "usage": usage_chunk(10, 700)["usage"]})

    rules = limits(
        {"unit": "requests", "limit": 10, "window": MINUTE, "per": ["provider"]},
        {"unit": "total_tokens", "limit": 1000, "window": MINUTE, "per": ["provider"]},
    )
    routing = {"retry": {"max_attempts": 2, "base_delay": 0.01}}
    async with Vendor(breaks_once) as vendor:
        async with serve(providers={"v": at(vendor)}, limits=rules, routing=routing) as headgate:
            told = await trailer(headgate.stub.Generate(small()))
    used = sum(usage_chunk(10, 700)["usage"][count] for count in ("prompt_tokens", "completion_tokens"))
    assert used > estimate(small())
    assert (told["x-ratelimit-remaining-requests"], told["x-ratelimit-remaining-tokens"]) == ("8", str(1000 - used))


@pytest.mark.parametrize("by", ["fallback", "rule"])
async def test_no_way_leads_around_the_limit_of_a_name(serve: Serve, by: str) -> None:
    """A name's limit counts what comes to it as a fallback, or by a routing rule, like what asks for it."""
    rule = {"unit": "requests", "limit": 2, "window": MINUTE, "per": ["model"], "only": {"model": ["dear"]}}
    models = {"cheap": alias("a"), "dear": alias("b")}
    rerouted = {"rules": [{"models": ["cheap"], "labels": {"to": "dear"}, "model": "dear"}]}
    if by == "fallback":
        roundabout = small("cheap")
        roundabout.routing.MergeFrom(pb.RoutingPolicy(denied_providers=["a"], fallbacks=["dear"]))
    else:
        roundabout = small("cheap")
        roundabout.labels["to"] = "dear"
    async with Vendor(answers_text) as first, Vendor(answers_text) as second:
        providers = {"a": at(first), "b": at(second)}
        async with serve(providers=providers, models=models, limits=limits(rule), routing=rerouted) as headgate:
            await headgate.stub.Generate(small("dear"))
            await headgate.stub.Generate(roundabout)
            failed = [await failing(headgate.stub.Generate(each)) for each in (roundabout, small("dear"))]
            assert (await headgate.stub.Generate(small("cheap"))).provider == "a"
    assert [each.reason for each in failed] == ["RATE_LIMITED"] * 2
    assert failed[0].details["QuotaFailure"].violations[0].subject == "model:dear"
    assert (len(first.exchanges), len(second.exchanges)) == (1, 2)


async def test_retries_and_fallbacks_at_once_never_pass_a_limit(serve: Serve) -> None:
    """Of 40 calls at once that use all that they may, fail, are tried again and fall back, the vendors never get more
    requests, and never write more for a name, than is allowed."""
    most = 100

    async def breaks_every_other_time(exchange: Exchange) -> None:
        if len(first.exchanges) % 2:
            await exchange.answer(500, {})
        else:
            await exchange.answer(200, {**completion(), "usage": usage_chunk(1, most)["usage"]})

    async def uses_all(exchange: Exchange) -> None:
        await exchange.answer(200, {**completion(), "usage": usage_chunk(1, most)["usage"]})

    rules = limits(
        {"unit": "requests", "limit": 9, "window": MINUTE, "per": ["provider"], "only": {"provider": ["a"]}},
        {"unit": "output_tokens", "limit": 7 * most, "window": MINUTE, "per": ["model"], "only": {"model": ["dear"]}},
    )
    routing = {"retry": {"max_attempts": 3, "base_delay": 0.01}, "breaker": {"consecutive_failures": 0}}
    request = small("cheap", most=most)
    request.routing.fallbacks.append("dear")
    async with Vendor(breaks_every_other_time) as first, Vendor(uses_all) as second:
        sections = {"models": {"cheap": alias("a"), "dear": alias("b")}, "limits": rules}
        async with serve(providers={"a": at(first), "b": at(second)}, routing=routing, **sections) as headgate:
            calls = [headgate.stub.Generate(request) for _ in range(40)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
    answered = [answer.provider for answer in answers if not isinstance(answer, BaseException)]
    assert len(first.exchanges) == 9
    assert answered.count("b") == len(second.exchanges) == 7


async def test_only_those_that_a_rule_names_are_limited(serve: Serve) -> None:
    """A rule with patterns leaves all others alone."""
    rule = {"unit": "requests", "limit": 1, "window": MINUTE, "only": {"model": ["v/gpt-*", "v/o3"]}}
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, limits=limits(rule)) as headgate:
        await headgate.stub.Generate(small("v/gpt-5"))
        assert (await failing(headgate.stub.Generate(small("v/o3")))).reason == "RATE_LIMITED", "they share it"
        for _ in range(3):
            assert (await headgate.stub.Generate(small("v/other"))).candidates


async def test_embeddings_count_their_input(serve: Serve) -> None:
    """An Embed call has no output; its input is bounded by its bytes, and settled."""
    rules = limits(
        {"unit": "input_tokens", "limit": 300, "window": MINUTE},
        {"unit": "output_tokens", "limit": 1, "window": MINUTE},
    )
    async with serve(providers={"demo": {"adapter": "mock"}}, limits=rules) as headgate:
        request = pb.EmbedRequest(model="demo/embed", inputs=[pb.EmbedInput(text="one two three")])
        call = headgate.stub.Embed(request)
        used = (await call).usage.input_tokens
        told = dict(await call.trailing_metadata())
        request.inputs.add(text="x" * 400)
        failed = await failing(headgate.stub.Embed(request))
    assert told["x-ratelimit-remaining-tokens"] == str(300 - used)
    assert "input tokens" in failed.message


async def test_a_reload_changes_limits_and_keeps_what_was_counted(serve: Serve) -> None:
    """A raised limit leaves room for the difference; calls in flight settle where they reserved."""
    proceed = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await proceed.wait()
        await answers_text(exchange)

    def config(limit: int, vendor: Vendor) -> Config:
        rules = limits(
            {"unit": "requests", "limit": limit, "window": MINUTE},
            {"unit": "total_tokens", "limit": 1000, "window": MINUTE, "algorithm": "token_bucket"},
        )
        return Config.model_validate({"auth": {"anonymous": True}, "providers": {"v": at(vendor)}, "limits": rules})

    async with Vendor(waits) as vendor:
        first = config(2, vendor)
        async with serve(providers={"v": at(vendor)}, limits=first.limits.model_dump(mode="json")) as headgate:
            held = asyncio.ensure_future(headgate.stub.Generate(small(most=500)))
            await vendor.exchange()
            await headgate.application.reload(config(3, vendor))
            proceed.set()
            await held
            told = await trailer(headgate.stub.Generate(small(most=500)))
            assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("3", "1")
            assert int(told["x-ratelimit-remaining-tokens"]) >= 1000 - 16
            await headgate.stub.Generate(small())
            assert (await failing(headgate.stub.Generate(small()))).reason == "RATE_LIMITED"


async def test_questions_to_the_gateway_itself_are_not_limited(serve: Serve) -> None:
    """ListModels and Health use nothing."""
    rule = {"unit": "requests", "limit": 1, "window": MINUTE}
    async with serve(providers={"demo": {"adapter": "mock"}}, limits=limits(rule)) as headgate:
        for _ in range(3):
            await headgate.stub.ListModels(pb.ListModelsRequest())
            assert (await headgate.stub.Health(pb.HealthRequest())).state == pb.SERVING_STATE_SERVING


async def test_a_concurrency_limit_is_never_passed_and_never_wasted(serve: Serve) -> None:
    """Of many calls at once exactly as many reach the vendor; each end makes room for exactly one more."""
    proceed = asyncio.Semaphore(0)

    async def waits(exchange: Exchange) -> None:
        await proceed.acquire()
        await answers_text(exchange)

    rule = {"unit": "concurrency", "limit": 5}
    async with Vendor(waits) as vendor, serve(providers={"v": at(vendor)}, limits=limits(rule)) as headgate:
        calls = [asyncio.ensure_future(headgate.stub.Generate(small())) for _ in range(5)]
        await vendor.exchange(5)
        refused = await asyncio.gather(*(failing(headgate.stub.Generate(small())) for _ in range(20)))
        assert {each.reason for each in refused} == {"RATE_LIMITED"}
        proceed.release()
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        calls.append(asyncio.ensure_future(headgate.stub.Generate(small())))
        await vendor.exchange(6)
        assert (await failing(headgate.stub.Generate(small()))).reason == "RATE_LIMITED"
        for _ in range(5):
            proceed.release()
        await asyncio.gather(*calls)
