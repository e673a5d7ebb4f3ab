"""Routing through the front door: strategies, rules, wildcards, affinity and experiments, policies, capabilities."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from headgate import v1 as pb

from headgate_server.config import ConfigError, load
from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, ask, failing, user
from tests.vendor import (
    Behaviour,
    Exchange,
    Vendor,
    answers_text,
    at,
    completion,
    finish_chunk,
    text_chunk,
    usage_chunk,
)


def to(provider: str, model: str = "m", **settings: Any) -> dict[str, Any]:
    """One target."""
    return {"provider": provider, "model": model, **settings}


@asynccontextmanager
async def vendors(*behaviours: Behaviour) -> AsyncIterator[list[Vendor]]:
    """One vendor for each behaviour."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Vendor(behave)) for behave in behaviours]


def gateway(serve: Serve, running: list[Vendor], settings: dict[str, Any] | None = None, **sections: Any) -> Any:
    """Providers a, b, c at these vendors; the alias `fast` has one target at each unless `models` says otherwise."""
    names = "abc"[: len(running)]
    providers = {name: at(vendor, **(settings or {})) for name, vendor in zip(names, running, strict=True)}
    sections.setdefault("models", {"fast": {"targets": [to(name) for name in names]}})
    return serve(providers=providers, **sections)


async def provider_of(headgate: Headgate, request: pb.GenerateRequest, streamed: bool = False) -> str:
    """Who answers."""
    if streamed:
        events = [event async for event in headgate.stub.StreamGenerate(request, timeout=30)]
        return events[0].generation_start.provider
    return (await headgate.stub.Generate(request, timeout=30)).provider


async def answers_500(exchange: Exchange) -> None:
    await exchange.answer(500, {"error": {"message": "x", "type": "server_error"}})


def slow(seconds: float) -> Behaviour:
    """A vendor that takes that long."""

    async def behave(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        await answers_text(exchange)

    return behave


async def test_weighted_shares_follow_the_weights(serve: Serve) -> None:
    """Of 300 calls at 3:1, 225 within six standard deviations go to the first; weight 0 gets none but as a fallback."""
    async with vendors(answers_text, answers_text, answers_text) as running:
        targets = [to("a", weight=3), to("b", weight=1), to("c", weight=0)]
        models = {"fast": {"targets": targets, "strategy": "weighted"}}
        async with gateway(serve, running, models=models) as headgate:
            answered = Counter([await provider_of(headgate, ask("fast")) for _ in range(300)])
            left = ask("fast", routing=pb.RoutingPolicy(denied_providers=["a", "b"]))
            assert await provider_of(headgate, left) == "c"
    assert 180 <= answered["a"] <= 270
    assert answered["a"] + answered["b"] == 300


async def test_least_busy_takes_the_target_with_fewest_in_flight(serve: Serve) -> None:
    """Of nine concurrent calls each of three targets has three."""
    async with vendors(slow(0.3), slow(0.3), slow(0.3)) as running:
        async with gateway(serve, running) as headgate:
            request = ask("fast", routing=pb.RoutingPolicy(strategy="least-busy"))
            answered = Counter(await asyncio.gather(*(provider_of(headgate, request) for _ in range(9))))
    assert set(answered.values()) == {3}


@pytest.mark.parametrize("streamed", [False, True])
async def test_latency_moves_away_from_a_slow_target_within_20_calls(serve: Serve, streamed: bool) -> None:
    """Two calls at most find out that a target is slow; the rest goes to the quick one."""
    async with vendors(slow(0.3), answers_text) as running:
        models = {"fast": {"targets": [to("a"), to("b")], "strategy": "latency"}}
        async with gateway(serve, running, models=models) as headgate:
            answered = [await provider_of(headgate, ask("fast"), streamed) for _ in range(20)]
    assert answered.count("a") <= 2
    assert set(answered[10:]) == {"b"}


async def test_cost_takes_the_cheapest_target_for_the_call(serve: Serve) -> None:
    """Long output makes another target cheaper than long input; unknown prices go last."""
    async with vendors(answers_text, answers_text, answers_text) as running:
        cheap_output = {"m": {"prices": {"input": "10", "output": "1"}}}
        cheap_input = {"m": {"prices": {"input": "1", "output": "10"}}}
        providers = {
            "a": at(running[0]),
            "b": at(running[1], catalog=cheap_output),
            "c": at(running[2], catalog=cheap_input),
        }
        models = {"fast": {"targets": [to("a"), to("b"), to("c")], "strategy": "cost"}}
        async with serve(providers=providers, models=models) as headgate:
            long_output = ask("fast", config=pb.GenerationConfig(max_output_tokens=4000))
            long_input = ask("fast", "word " * 4000, config=pb.GenerationConfig(max_output_tokens=1))
            unpriced = ask("fast", routing=pb.RoutingPolicy(denied_providers=["b", "c"]))
            answered = [await provider_of(headgate, request) for request in (long_output, long_input, unpriced)]
    assert answered == ["b", "c", "a"]


async def test_an_affinity_key_sticks_and_falls_over_while_its_target_is_out(serve: Serve) -> None:
    """The same key has the same target call after call, keys spread over all, and a dead target loses its keys only."""
    async with vendors(answers_text, answers_text, answers_text) as running:
        models = {"fast": {"targets": [to("a"), to("b"), to("c")], "strategy": "weighted"}}
        async with gateway(serve, running, models=models) as headgate:

            async def assigned(*denied: str) -> dict[str, str]:
                policies = {
                    f"key-{n}": pb.RoutingPolicy(affinity_key=f"key-{n}", denied_providers=denied) for n in range(60)
                }
                return {
                    key: await provider_of(headgate, ask("fast", routing=policy)) for key, policy in policies.items()
                }

            first, second, without_b = await assigned(), await assigned(), await assigned("b")
    assert first == second
    assert set(first.values()) == {"a", "b", "c"}
    assert all(without_b[key] == provider for key, provider in first.items() if provider != "b")
    assert set(without_b.values()) == {"a", "c"}


async def test_an_experiment_tells_its_arm_in_the_answer_and_the_log(serve: Serve, logged: LogLines) -> None:
    """Plain answers and streams, also those that end at once; callers keep their arm by their key."""
    async with vendors(answers_text, answers_text) as running:
        targets = [to("a", arm="control", weight=1), to("b", arm="treatment", weight=1)]
        models = {"trial": {"targets": targets, "strategy": "weighted"}}
        async with gateway(serve, running, models=models) as headgate:
            arms = set()
            for number in range(12):
                request = ask("trial", routing=pb.RoutingPolicy(affinity_key=f"user-{number}"))
                plain = await headgate.stub.Generate(request, timeout=30)
                events = [event async for event in headgate.stub.StreamGenerate(request, timeout=30)]
                told = [
                    json.loads(metadata["headgate"])["arm"]
                    for metadata in (plain.provider_metadata, events[-1].generation_end.provider_metadata)
                ]
                assert told[0] == told[1] == {"a": "control", "b": "treatment"}[plain.provider]
                arms.add(told[0])
    assert arms == {"control", "treatment"}
    assert {line["arm"] for line in logged.calls} == arms


RULES = [
    {"labels": {"task": "complex_reasoning"}, "model": "smart"},
    {"labels": {"task": "bulk_*", "team": "search"}, "model": "c/cheap"},
    {"labels": {"task": "pinned"}, "models": ["a/*"], "model": "b/m"},
]


@pytest.mark.parametrize(
    ("model", "labels", "provider", "vendor_model"),
    [
        ("fast", {"task": "complex_reasoning"}, "b", "big"),
        ("fast", {"task": "bulk_processing", "team": "search"}, "c", "cheap"),
        ("fast", {"task": "bulk_processing", "team": "ads"}, "a", "m"),
        ("fast", {}, "a", "m"),
        ("a/m", {"task": "complex_reasoning"}, "a", "m"),
        ("a/m", {"task": "pinned"}, "b", "m"),
    ],
)
async def test_rules_send_labelled_calls_elsewhere(
    serve: Serve, logged: LogLines, model: str, labels: dict[str, str], provider: str, vendor_model: str
) -> None:
    """The first rule whose labels all fit holds; explicit provider/model calls only where a rule names them."""
    async with vendors(answers_text, answers_text, answers_text) as running:
        models = {"fast": {"targets": [to("a")]}, "smart": {"targets": [to("b", "big")]}}
        async with gateway(serve, running, models=models, routing={"rules": RULES}) as headgate:
            assert await provider_of(headgate, ask(model, labels=labels)) == provider
            (asked,) = [exchange for vendor in running for exchange in vendor.exchanges]
    assert asked.json["model"] == vendor_model
    routed = {"fast": {"b": "smart", "c": "c/cheap"}, "a/m": {"b": "b/m"}}[model].get(provider)
    assert logged.calls[0].get("routed_to") == routed


async def test_wildcard_aliases_pass_on_what_the_star_stood_for(serve: Serve) -> None:
    """The exact name wins, then the longer pattern; a star matches at least one character."""
    async with vendors(answers_text) as running:
        models = {
            "gpt-*": {"targets": [to("a", "gpt-*")]},
            "gpt-5*": {"targets": [to("a", "five-*")]},
            "gpt-5.1": {"targets": [to("a", "exact")]},
            "eu.*": {"targets": [to("a", "*")]},
        }
        async with gateway(serve, running, models=models) as headgate:
            for name in ("gpt-4o", "gpt-5-mini", "gpt-5.1", "eu.llama-4"):
                await provider_of(headgate, ask(name))
            unknown = await failing(headgate.stub.Generate(ask("eu."), timeout=10))
            listed = (await headgate.stub.ListModels(pb.ListModelsRequest())).models
    assert [exchange.json["model"] for exchange in running[0].exchanges] == ["gpt-4o", "five--mini", "exact", "llama-4"]
    assert unknown.reason == "MODEL_NOT_FOUND"
    assert [model.name for model in listed] == ["a/exact", "eu.*", "gpt-*", "gpt-5*", "gpt-5.1"]


async def test_a_target_that_cannot_carry_the_request_is_not_eligible(serve: Serve) -> None:
    """Anthropic's wire reads no audio: the next target is asked, at no attempt; with none left the field is named."""
    audio = pb.Message(
        role=pb.ROLE_USER,
        parts=[pb.Part(media=pb.Media(kind=pb.MEDIA_KIND_AUDIO, mime_type="audio/wav", data=b"RIFF"))],
    )
    async with vendors(answers_text, answers_text) as running:
        providers = {
            "claude": {"adapter": "anthropic", "base_url": running[0].base_url, "api_key": "k"},
            "b": at(running[1]),
        }
        models = {"fast": {"targets": [to("claude"), to("b")]}, "deaf": {"targets": [to("claude")]}}
        async with serve(providers=providers, models=models, routing={"max_attempts": 1}) as headgate:
            answer = await headgate.stub.Generate(pb.GenerateRequest(model="fast", messages=[audio]), timeout=10)
            failed = await failing(
                headgate.stub.Generate(pb.GenerateRequest(model="deaf", messages=[audio]), timeout=10)
            )
    assert [(attempt.number, attempt.provider) for attempt in answer.attempts] == [(1, "b")]
    assert running[0].exchanges == []
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNSUPPORTED_PARAMETER")
    assert failed.fields == ["messages[0].parts[0].media"]


async def test_opaque_state_prefers_its_issuers_targets(serve: Serve) -> None:
    """A history with a signature of `b` goes to `b` first, although `a` is listed first."""
    signed = pb.Part(reasoning=pb.Reasoning(text="hm"), signature=b"sig", issuer="b")
    history = [user("Hi"), pb.Message(role=pb.ROLE_ASSISTANT, parts=[signed, pb.Part(text="Hello")]), user("And?")]
    async with vendors(answers_text, answers_text) as running, gateway(serve, running) as headgate:
        assert await provider_of(headgate, ask("fast")) == "a"
        assert await provider_of(headgate, pb.GenerateRequest(model="fast", messages=history)) == "b"


async def test_a_request_overrides_the_aliass_strategy(serve: Serve) -> None:
    """priority by request on a weighted alias: always the first."""
    async with vendors(answers_text, answers_text) as running:
        models = {"fast": {"targets": [to("a", weight=0), to("b")], "strategy": "weighted"}}
        async with gateway(serve, running, models=models) as headgate:
            assert await provider_of(headgate, ask("fast")) == "b"
            first = ask("fast", routing=pb.RoutingPolicy(strategy="priority"))
            assert {await provider_of(headgate, first) for _ in range(5)} == {"a"}


async def filters(exchange: Exchange) -> None:
    """A vendor whose content filter stops everything."""
    if exchange.json.get("stream"):
        await exchange.stream([text_chunk("", role="assistant"), finish_chunk("content_filter"), usage_chunk()])
    else:
        await exchange.answer(200, completion("", "content_filter"))


async def blocks(exchange: Exchange) -> None:
    """Azure's way to say the same."""
    await exchange.answer(400, {"error": {"code": "content_filter", "message": "blocked"}})


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("behave", [filters, blocks])
async def test_a_filtered_answer_moves_on_only_with_its_trigger(
    serve: Serve, behave: Behaviour, streamed: bool
) -> None:
    """Without CONTENT_FILTER it is the answer; with it a fallback is asked."""
    async with vendors(behave, answers_text) as running, gateway(serve, running) as headgate:
        plain = ask("a/m", routing=pb.RoutingPolicy(fallbacks=["b/m"]))
        assert await provider_of(headgate, plain, streamed) == "a"
        moving = ask(
            "a/m", routing=pb.RoutingPolicy(fallbacks=["b/m"], fallback_triggers=[pb.FALLBACK_TRIGGER_CONTENT_FILTER])
        )
        assert await provider_of(headgate, moving, streamed) == "b"


@pytest.mark.parametrize("streamed", [False, True])
async def test_when_every_target_filters_the_filtered_answer_is_the_answer(serve: Serve, streamed: bool) -> None:
    """Not an error; both attempts are on record."""
    async with vendors(filters, filters, answers_500) as running, gateway(serve, running) as headgate:
        policy = pb.RoutingPolicy(
            fallbacks=["b/m", "c/m"],
            fallback_triggers=[pb.FALLBACK_TRIGGER_CONTENT_FILTER, pb.FALLBACK_TRIGGER_ERROR],
        )
        request = ask("a/m", routing=policy)
        if streamed:
            events = [event async for event in headgate.stub.StreamGenerate(request, timeout=30)]
            (finish,) = [event.candidate_end.finish for event in events if event.HasField("candidate_end")]
            attempts = list(events[-1].generation_end.attempts)
        else:
            answer = await headgate.stub.Generate(request, timeout=30)
            finish, attempts = answer.candidates[0].finish, list(answer.attempts)
    assert finish.reason == pb.FINISH_REASON_CONTENT_FILTER
    assert [(attempt.provider, attempt.outcome) for attempt in attempts] == [
        ("a", pb.ATTEMPT_OUTCOME_OK),
        ("b", pb.ATTEMPT_OUTCOME_OK),
        ("c", pb.ATTEMPT_OUTCOME_FAILED),
    ]


async def test_triggers_decide_whether_fallbacks_are_tried(serve: Serve) -> None:
    """With CONTENT_FILTER alone a 500 goes to the model's other target, and not to the fallback."""
    async with vendors(answers_500, answers_500, answers_text) as running:
        models = {"fast": {"targets": [to("a"), to("b")]}}
        async with gateway(serve, running, models=models) as headgate:
            for triggers, attempts in (([pb.FALLBACK_TRIGGER_CONTENT_FILTER], "2"), ([], None)):
                policy = pb.RoutingPolicy(fallbacks=["c/m"], fallback_triggers=triggers)
                call = headgate.stub.Generate(ask("fast", routing=policy), timeout=30)
                if attempts:
                    assert (await failing(call)).facts["attempt_count"] == attempts
                else:
                    assert (await call).provider == "c"


async def test_a_target_takes_only_so_many_calls_and_the_rest_spills_over(serve: Serve) -> None:
    """With room for two at the first target, the third concurrent call goes to the second."""
    async with vendors(slow(0.3), slow(0.3)) as running:
        async with gateway(serve, running, {"concurrency": {"limit": 2}}) as headgate:
            answered = Counter(await asyncio.gather(*(provider_of(headgate, ask("fast")) for _ in range(3))))
    assert answered == {"a": 2, "b": 1}


async def test_calls_queue_for_a_place_in_order_and_are_shed_when_that_would_outlast_them(serve: Serve) -> None:
    """One at a time: those that can wait are served one after the other, one that cannot hears when to come back."""
    async with vendors(slow(0.2)) as running:
        settings = {"concurrency": {"limit": 1, "queue": 2}}
        async with gateway(serve, running, settings) as headgate:
            await provider_of(headgate, ask("a/m"))
            patient = [asyncio.create_task(provider_of(headgate, ask("a/m"))) for _ in range(3)]
            await running[0].exchange(2)
            async with asyncio.timeout(5):
                while headgate.application.runtime.providers["a"].states.of("m").places.waiting < 2:
                    await asyncio.sleep(0.005)
            full = await failing(headgate.stub.Generate(ask("a/m"), timeout=30))
            assert await asyncio.gather(*patient) == ["a"] * 3
            held = asyncio.create_task(provider_of(headgate, ask("a/m")))
            await running[0].exchange(5)
            hurried = await failing(headgate.stub.Generate(ask("a/m"), timeout=0.1))
            await held
            left = headgate.application.runtime.providers["a"].states.of("m").places
            assert (left.taken, left.waiting) == (0, 0)
    for failed in (full, hurried):
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "GATEWAY_OVERLOADED")
        assert failed.details["RetryInfo"].retry_delay.ToMilliseconds() > 0
        assert int(failed.trailer["grpc-retry-pushback-ms"]) > 0
    assert len(running[0].exchanges) == 5


async def test_a_caller_who_leaves_the_queue_leaves_no_trace(serve: Serve) -> None:
    """Its place goes to the next, and nothing was sent to the vendor for it."""
    async with vendors(slow(0.2)) as running:
        async with gateway(serve, running, {"concurrency": {"limit": 1}}) as headgate:
            held = asyncio.create_task(provider_of(headgate, ask("a/m")))
            await running[0].exchange()
            leaving = headgate.stub.Generate(ask("a/m"), timeout=30)
            staying = asyncio.create_task(provider_of(headgate, ask("a/m")))
            places = headgate.application.runtime.providers["a"].states.of("m").places
            async with asyncio.timeout(5):
                while places.waiting < 2:
                    await asyncio.sleep(0.005)
            leaving.cancel()
            assert list(await asyncio.gather(held, staying)) == ["a", "a"]
            assert await headgate.idle()
            assert (places.taken, places.waiting) == (0, 0)
    assert len(running[0].exchanges) == 2


async def test_an_open_circuit_is_told_with_its_time_and_shown_in_health(serve: Serve) -> None:
    """After two failures in a row the vendor is not asked; the error says when the next call may go."""
    async with vendors(answers_500) as running:
        settings = {"breaker": {"consecutive_failures": 2, "open_for": 30}}
        async with gateway(serve, running, settings) as headgate:
            for _ in range(2):
                await failing(headgate.stub.Generate(ask("a/m"), timeout=10))
            failed = await failing(headgate.stub.Generate(ask("a/m"), timeout=10))
            (health,) = (await headgate.stub.Health(pb.HealthRequest())).providers
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_ERROR")
    assert 29 <= failed.details["RetryInfo"].retry_delay.seconds <= 30
    assert int(failed.trailer["grpc-retry-pushback-ms"]) > 0, "nobody was asked, so that the caller may retry"
    assert len(running[0].exchanges) == 2
    assert (health.circuit, health.state) == (pb.CIRCUIT_STATE_OPEN, pb.SERVING_STATE_NOT_SERVING)
    assert health.detail == "PROVIDER_ERROR; circuits: m open"


async def test_half_open_lets_one_probe_through_and_its_success_closes(serve: Serve) -> None:
    """Of ten calls at once one reaches the vendor; the others hear that it is being tried."""
    healthy = asyncio.Event()

    async def recovers(exchange: Exchange) -> None:
        if healthy.is_set():
            await asyncio.sleep(0.2)
            await answers_text(exchange)
        else:
            await answers_500(exchange)

    async with vendors(recovers) as running:
        settings = {"breaker": {"consecutive_failures": 1, "open_for": 0.2}}
        async with gateway(serve, running, settings) as headgate:
            await failing(headgate.stub.Generate(ask("a/m"), timeout=10))
            healthy.set()
            await asyncio.sleep(0.25)
            calls = [headgate.stub.Generate(ask("a/m"), timeout=10) for _ in range(10)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert (await headgate.stub.Generate(ask("a/m"), timeout=10)).candidates
    assert sum(isinstance(answer, pb.GenerateResponse) for answer in answers) == 1
    assert len(running[0].exchanges) == 3


@pytest.mark.parametrize("way", ["cancel", "own error", "own clock"])
async def test_callers_cannot_open_a_circuit(serve: Serve, way: str) -> None:
    """Cancels, invalid requests and a caller's own short clocks say nothing of the vendor."""

    async def rejects(exchange: Exchange) -> None:
        await exchange.answer(400, {"error": {"type": "invalid_request_error"}})

    async with vendors(rejects if way == "own error" else slow(30)) as running:
        async with gateway(serve, running, {"breaker": {"consecutive_failures": 1}}) as headgate:
            for number in range(3):
                request = ask("a/m")
                if way == "own clock":
                    request.execution.attempt_timeout.FromMilliseconds(20)
                call = headgate.stub.Generate(request, timeout=10)
                if way == "cancel":
                    await running[0].exchange(number + 1)
                    call.cancel()
                else:
                    await failing(call)
            assert await headgate.idle()
            (health,) = (await headgate.stub.Health(pb.HealthRequest())).providers
    assert health.circuit == pb.CIRCUIT_STATE_CLOSED
    assert len(running[0].exchanges) == 3


MISTAKEN = """providers:
  a: {adapter: mock}
models:
  fast:
    strategy: fastest
    targets:
      - {provider: a, model: m}
      - {provider: a, model: m}
  star: {targets: [{provider: a, model: x-*}]}
  a*b*: {targets: [{provider: a, model: m}]}
routing:
  rules:
    - {labels: {task: t}, model: nowhere}
    - {labels: {task: t}, model: b/m}
    - {labels: {}, model: fast}
"""


def test_mistakes_in_routing_are_told_with_their_lines(tmp_path: Any) -> None:
    """Rules to nowhere, stars without a source, doubled targets, unknown strategies."""
    file = tmp_path / "headgate.yaml"
    file.write_text(MISTAKEN)
    with pytest.raises(ConfigError) as refused:
        load(file, {})
    told = [str(problem).removeprefix(f"{file}:") for problem in refused.value.problems]
    assert told == [
        "5: models.fast.strategy: must be 'priority', 'weighted', 'least-busy', 'latency' or 'cost'",
        "8: models.fast.targets[1]: is in the list already",
        "9: models.star.targets[0].model: has a * that the alias lacks",
        "10: models.a*b*: an alias has at most one *",
        "13: routing.rules[0].model: there is no alias nowhere",
        "14: routing.rules[1].model: there is no provider b",
        "15: routing.rules[2].labels: must not be empty",
    ]
