"""Hedging through the front door: whoever commits first answers, the other is closed, and both are on record."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest
from headgate import v1 as pb

from headgate_server.hedging import Turn, race
from headgate_server.resilience.plan import Option
from tests.conftest import LogLines, Serve
from tests.faults import answers, healthy_body, refuses_with, stalls, stalls_in_the_body
from tests.headgate_process import Headgate, ask, eventually, failing
from tests.test_resilience_policies import Options
from tests.vendor import Behaviour, Exchange, Vendor, sse, text_chunk

HEDGE_SECONDS = 0.05
NEVER_SECONDS = 60.0
CLOSED_WITHIN_SECONDS = 1.0
"""The aim is 0.1 s; a busy machine takes longer to notice."""
RPCS = ("Generate", "StreamGenerate", "Embed")


def hedged(*vendors: Vendor, delay: float = HEDGE_SECONDS) -> dict[str, Any]:
    """Alias `m` over providers a, b, ... at these vendors, with a budget for as many hedges as a test has calls."""
    retry = {"max_attempts": 1, "budget_reserve": 100}
    providers = {
        name: {"adapter": "openai", "base_url": vendor.base_url, "retry": retry}
        for name, vendor in zip("abc", vendors, strict=False)
    }
    targets = [{"provider": name, "model": "x"} for name in providers]
    return {"providers": providers, "models": {"m": {"targets": targets, "hedge_delay": delay}}}


def begin(headgate: Headgate, rpc: str, timeout: float = 30.0) -> Any:
    """The call, not yet awaited."""
    if rpc == "Embed":
        request = pb.EmbedRequest(model="m", inputs=[pb.EmbedInput(text="Hi")])
        return headgate.stub.Embed(request, timeout=timeout)
    return getattr(headgate.stub, rpc)(ask("m"), timeout=timeout)


async def finished(call: Any) -> tuple[str, list[tuple[str, str]]]:
    """Who answered, and every attempt with its outcome, as the answer has them."""
    if hasattr(call, "__aiter__"):
        events = [event async for event in call]
        assert not events[-1].generation_end.partial
        return events[0].generation_start.provider, told(events[-1].generation_end.attempts)
    answer = await call
    return answer.provider, told(answer.attempts)


def told(attempts: Any) -> list[tuple[str, str]]:
    return [(a.provider, pb.AttemptOutcome.Name(a.outcome).removeprefix("ATTEMPT_OUTCOME_")) for a in attempts]


def logged_attempts(line: Any) -> list[tuple[str, str]]:
    """The same from the access log."""
    return [(attempt["provider"], attempt["outcome"]) for attempt in line["attempts"]]


async def check_nothing_is_left(headgate: Headgate) -> None:
    """Asserts that no call, attempt or place is held any more."""
    assert await headgate.idle()
    for served in headgate.application.runtime.providers.values():
        state = served.states.of("x")
        assert (state.in_flight, state.places.taken, state.record.in_flight) == (0, 0, 0)


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("slow", [stalls, stalls_in_the_body], ids=["before the headers", "in the body"])
async def test_the_first_to_commit_wins_and_the_loser_is_closed(
    serve: Serve, logged: LogLines, rpc: str, slow: Behaviour
) -> None:
    """After the delay a second target is asked too; its answer is taken, and the first one's connection closed."""
    async with Vendor(slow) as first, Vendor(answers) as second, serve(**hedged(first, second)) as headgate:
        began = time.monotonic()
        provider, attempts = await finished(begin(headgate, rpc))
        answered = time.monotonic()
        async with asyncio.timeout(CLOSED_WITHIN_SECONDS):
            await first.exchanges[0].caller_closed.wait()
        await check_nothing_is_left(headgate)
    assert provider == "b"
    assert attempts == [("a", "SUPERSEDED"), ("b", "OK")]
    assert answered - began >= HEDGE_SECONDS
    assert [logged_attempts(line) for line in logged.calls] == [attempts]
    assert logged.errors == []


@pytest.mark.parametrize("rpc", RPCS)
async def test_a_first_target_that_answers_in_time_is_the_only_one_asked(serve: Serve, rpc: str) -> None:
    """Hedging costs nothing where it is not needed."""
    async with Vendor(answers) as first, Vendor(answers) as second:
        async with serve(**hedged(first, second, delay=NEVER_SECONDS)) as headgate:
            assert await finished(begin(headgate, rpc)) == ("a", [("a", "OK")])
    assert second.exchanges == []


async def test_a_slow_first_target_can_still_win(serve: Serve, logged: LogLines) -> None:
    """It was asked first and commits first: then the hedge is the loser. Nothing that it sent is delivered."""
    hedge_asked = asyncio.Event()

    async def second_to_be_asked_for(exchange: Exchange) -> None:
        await hedge_asked.wait()
        await answers(exchange)

    async def opens_and_stalls(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("", role="assistant")))
        hedge_asked.set()
        await exchange.caller_closed.wait()

    async with Vendor(second_to_be_asked_for) as first, Vendor(opens_and_stalls) as second:
        async with serve(**hedged(first, second)) as headgate:
            provider, attempts = await finished(begin(headgate, "StreamGenerate"))
            async with asyncio.timeout(CLOSED_WITHIN_SECONDS):
                await second.exchanges[0].caller_closed.wait()
            await check_nothing_is_left(headgate)
    assert (provider, attempts) == ("a", [("a", "OK"), ("b", "SUPERSEDED")])
    assert logged.errors == []


@pytest.mark.parametrize("rpc", RPCS)
async def test_when_both_answer_at_once_one_is_taken_and_both_are_on_record(
    serve: Serve, logged: LogLines, rpc: str
) -> None:
    """However the race ends, one attempt is OK and the other SUPERSEDED, and the log tells of the answer delivered."""
    rounds = 20
    both_asked = asyncio.Barrier(2)

    async def together(exchange: Exchange) -> None:
        await both_asked.wait()
        await exchange.answer(200, healthy_body(exchange))  # in one piece, so that both are whole in the same moment

    async with Vendor(together) as first, Vendor(together) as second:
        async with serve(**hedged(first, second, delay=0.001)) as headgate:
            for _ in range(rounds):
                provider, attempts = await finished(begin(headgate, rpc))
                assert sorted(outcome for _, outcome in attempts) == ["OK", "SUPERSEDED"]
                assert (provider, "OK") in attempts
            await check_nothing_is_left(headgate)
        await eventually(lambda: first.open_connections == second.open_connections == 0)
    assert len(first.exchanges) == len(second.exchanges) == rounds
    assert [line.get("finish") for line in logged.calls] == [None if rpc == "Embed" else ["STOP"]] * rounds
    assert logged.errors == []


async def test_the_log_tells_how_the_answer_ended_and_not_the_loser(serve: Serve, logged: LogLines) -> None:
    """One stream is whole at once, the other has only begun: whichever is taken, its own end is logged."""
    rounds = 20
    both_asked = asyncio.Barrier(2)

    async def whole(exchange: Exchange) -> None:
        await both_asked.wait()
        await exchange.answer(200, healthy_body(exchange))

    async def begun(exchange: Exchange) -> None:
        await both_asked.wait()
        body = healthy_body(exchange)
        half = len(body) // 2
        await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body[:half])
        await asyncio.sleep(0.02)
        await exchange.write(body[half:])

    async with Vendor(begun) as first, Vendor(whole) as second:
        async with serve(**hedged(first, second, delay=0.001)) as headgate:
            for _ in range(rounds):
                await finished(begin(headgate, "StreamGenerate"))
            await check_nothing_is_left(headgate)
    assert [line["finish"] for line in logged.calls] == [["STOP"]] * rounds
    assert logged.errors == []


async def test_a_first_target_that_fails_before_the_delay_is_followed_at_once(serve: Serve) -> None:
    """An error is no reason to wait for the hedge."""
    async with Vendor(refuses_with(500)) as first, Vendor(answers) as second:
        async with serve(**hedged(first, second, delay=NEVER_SECONDS)) as headgate:
            async with asyncio.timeout(10):
                assert await finished(begin(headgate, "Generate")) == ("b", [("a", "FAILED"), ("b", "OK")])


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("failing_one", ["a", "b"])
async def test_a_failure_in_the_race_leaves_the_other_running(
    serve: Serve, logged: LogLines, rpc: str, failing_one: str
) -> None:
    """Whichever of the two fails while both run, the other one answers, and no third attempt is made."""
    both_asked, has_failed = asyncio.Barrier(2), asyncio.Event()

    def behaviour(name: str) -> Behaviour:
        async def behave(exchange: Exchange) -> None:
            await both_asked.wait()
            if name == failing_one:
                await refuses_with(500)(exchange)
                has_failed.set()
            else:
                await has_failed.wait()
                await asyncio.sleep(0.02)
                await answers(exchange)

        return behave

    async with Vendor(behaviour("a")) as first, Vendor(behaviour("b")) as second:
        async with serve(**hedged(first, second)) as headgate:
            provider, attempts = await finished(begin(headgate, rpc))
            await check_nothing_is_left(headgate)
    assert provider != failing_one
    assert dict(attempts) == {failing_one: "FAILED", provider: "OK"}
    assert len(attempts) == 2
    assert logged.errors == []


async def test_when_both_fail_the_call_does(serve: Serve) -> None:
    """The error is that of the attempt which failed last; a third target is asked before that."""
    async with Vendor(stalls_and_refuses) as first, Vendor(stalls_and_refuses) as second, Vendor(answers) as third:
        async with serve(**hedged(first, second)) as headgate:
            failed = await failing(begin(headgate, "Generate"))
            assert (failed.reason, failed.facts["attempt_count"]) == ("PROVIDER_OVERLOADED", "2")
        async with serve(**hedged(first, second, third)) as headgate:
            assert await finished(begin(headgate, "Generate")) == (
                "c",
                [("a", "FAILED"), ("b", "FAILED"), ("c", "OK")],
            )


async def stalls_and_refuses(exchange: Exchange) -> None:
    await asyncio.sleep(2 * HEDGE_SECONDS)
    await refuses_with(503)(exchange)


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("way", ["cancel", "deadline"])
async def test_a_caller_who_leaves_during_the_race_closes_both(
    serve: Serve, logged: LogLines, rpc: str, way: str
) -> None:
    """Neither has lost or failed: both attempts are CANCELLED, both connections closed."""
    async with Vendor(stalls) as first, Vendor(stalls) as second:
        async with serve(**hedged(first, second)) as headgate:
            call = begin(headgate, rpc, timeout=0.5 if way == "deadline" else 30.0)
            waiting = asyncio.ensure_future(failing(call))
            exchanges = [await vendor.exchange() for vendor in (first, second)]
            if way == "cancel":
                call.cancel()
            async with asyncio.timeout(CLOSED_WITHIN_SECONDS + 0.5):
                for exchange in exchanges:
                    await exchange.caller_closed.wait()
            await asyncio.wait((waiting,))
            await check_nothing_is_left(headgate)
    (line,) = logged.calls
    assert line["code"] == ("DEADLINE_EXCEEDED" if way == "deadline" else "CANCELLED")
    assert logged_attempts(line) == [("a", "CANCELLED"), ("b", "CANCELLED")]
    assert logged.errors == []


async def test_a_caller_can_ask_for_a_hedge(serve: Serve) -> None:
    """execution.hedge_delay goes before the alias's own; here the alias would wait for ever."""
    async with Vendor(stalls) as first, Vendor(answers) as second:
        async with serve(**hedged(first, second, delay=NEVER_SECONDS)) as headgate:
            request = ask("m")
            request.execution.hedge_delay.FromMilliseconds(20)
            answer = await headgate.stub.Generate(request, timeout=10)
    assert told(answer.attempts) == [("a", "SUPERSEDED"), ("b", "OK")]


async def test_a_stream_is_not_hedged_after_the_commit_point(serve: Serve) -> None:
    """Text has gone out: however long the rest takes, nobody else is asked."""

    async def pauses_after_text(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("Hello")))
        await asyncio.sleep(4 * HEDGE_SECONDS)
        await exchange.chunk(sse(text_chunk(" there")) + b"data: [DONE]\n\n")
        await exchange.end()

    async with Vendor(pauses_after_text) as first, Vendor(answers) as second:
        async with serve(**hedged(first, second, delay=2 * HEDGE_SECONDS)) as headgate:
            assert await finished(begin(headgate, "StreamGenerate")) == ("a", [("a", "OK")])
    assert second.exchanges == []


async def test_a_caller_who_leaves_while_the_loser_is_being_closed_leaves_nothing_open() -> None:
    """The winner's answer is in nobody's hands then: it is discarded, and so is a loser's that came all the same."""
    closing, discarded = asyncio.Event(), []

    async def answer_from(turn: Turn) -> str:
        if turn is not first:
            return "winner"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            closing.set()
            await asyncio.sleep(0.01)
        return "loser"

    async def discard(answer: str) -> None:
        discarded.append(answer)

    plan = Options(2, deadline=math.inf).plan
    option = plan.next(now=time.monotonic())
    assert isinstance(option, Option)
    first = Turn(option)
    racing = asyncio.create_task(race(plan, first, 0.001, answer_from, discard))
    await closing.wait()
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert "winner" in discarded
