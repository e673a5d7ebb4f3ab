"""The one attempt loop: which target, how many tries, when an answer is committed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from headgate import v1 as pb

from headgate_server import embeddings
from headgate_server.attempt import Attempt
from headgate_server.call import GATEWAY, Call
from headgate_server.catalog import Catalog
from headgate_server.errors import CircuitOpen, ContentFiltered, GatewayError, ProviderOverloaded, ProviderRateLimited
from headgate_server.generation import Generation, filtered, finish_word, new_id, only_filtered
from headgate_server.hedging import Turn, race
from headgate_server.knowledge import CallKnowledge
from headgate_server.limits.call import CallLimits
from headgate_server.prices import add_cost
from headgate_server.providers.base import Target
from headgate_server.queueing import take_place
from headgate_server.resilience.plan import Cause, Option, Plan
from headgate_server.resilience.target import EMBED, STREAM, UNARY, TargetStates
from headgate_server.routing import Routes
from headgate_server.routing.routes import next_target_may_answer
from headgate_server.upstream import Upstream

Request = pb.GenerateRequest | pb.EmbedRequest
T = TypeVar("T")
LARGE_MATRIX_BYTES = 1024 * 1024
MOST_DIMENSIONS = 1000
COOLING = (ProviderOverloaded, ProviderRateLimited)


class Gateway:
    """Answers requests from the first target that can.

    Every RPC runs the same loop; what differs is what commits an answer: a whole answer for `generate` and `embed`,
    the first content for `stream`. After that nothing is tried again.
    """

    def __init__(
        self,
        routes: Routes,
        upstream: Upstream,
        states: Mapping[str, TargetStates],
        catalog: Catalog,
        *,
        max_attempts: int,
        max_reply_bytes: int,
    ) -> None:
        self._routes = routes
        self._upstream = upstream
        self._states = states
        self._catalog = catalog
        self._max_attempts = max_attempts
        self._max_reply_bytes = max_reply_bytes
        self._dimensions: dict[Target, int] = {}
        """What a model answered when it was not asked for a number of dimensions."""

    async def generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        """The whole answer.

        Raises:
            GatewayError: no target answered; it is the last target's error.
        """

        async def answer_from(turn: Turn) -> pb.GenerateResponse:
            target = turn.option.candidate.target
            adapter = self._upstream.endpoint(target).adapter
            http_call = adapter.encode(request, target, stream=False)
            attempt = await self._begin(turn, request, call, UNARY)
            with attempt.watched():
                try:
                    answer = adapter.decode(await self._upstream.fetch(http_call, attempt), target)
                except ContentFiltered as blocked:
                    answer = pb.GenerateResponse(candidates=[filtered(blocked)])
                answer.warnings.extend(http_call.warnings)
                add_cost(answer, attempt.prices)
                attempt.answered(answer)
                answer.provider = target.provider
                answer.model = answer.model or target.model
                return answer

        answer = await self._first(request, call, UNARY, answer_from)
        answer.id = new_id()
        if not answer.HasField("create_time"):
            answer.create_time.GetCurrentTime()
        answer.warnings.extend(call.warnings())
        answer.attempts.extend(call.attempts)
        if call.arm:
            answer.provider_metadata[GATEWAY] = call.gateway_metadata()
        call.finish_reasons = [finish_word(candidate.finish) for candidate in answer.candidates]
        call.cost = answer.cost if answer.HasField("cost") else None
        return answer

    async def stream(self, request: pb.GenerateRequest, call: Call) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """The events of the answer, from generation_start to generation_end.

        Raises:
            StreamInterrupted: the vendor broke off after content was delivered; generation_end came with `partial`.
            GatewayError: no target answered.
        """

        async def answer_from(turn: Turn) -> Generation:
            target = turn.option.candidate.target
            adapter = self._upstream.endpoint(target).adapter
            http_call = adapter.encode(request, target, stream=True)
            attempt = await self._begin(turn, request, call, STREAM)
            with attempt.watched():
                generation = Generation(
                    self._upstream, attempt, http_call, adapter.Stream(target), call, request.stream
                )
                await generation.commit()
                return generation

        generation = await self._first(request, call, STREAM, answer_from)
        async with aclosing(generation.events()) as events:
            async for event in events:
                yield event

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """One matrix of all inputs, all or nothing, from one model: sub-batches never mix targets.

        Raises:
            GatewayError: no target answered; it is the last target's error.
        """

        async def answer_from(turn: Turn) -> pb.EmbedResponse:
            target = turn.option.candidate.target
            dimensions = request.dimensions or self._dimensions.get(target, 1)
            embeddings.check_reply_size(request, dimensions, self._max_reply_bytes)
            endpoint = self._upstream.endpoint(target)
            batches = embeddings.split(request.inputs, target.host.quirks.embed_batch)
            places = asyncio.Semaphore(endpoint.embed_concurrency if turn.option.state.trusted() else 1)

            async def embed_batch(inputs: Sequence[pb.EmbedInput], cause: Cause | None = None) -> pb.EmbedResponse:
                http_call = endpoint.adapter.encode_embed(request, inputs, target)
                attempt = await self._begin(turn, request, call, EMBED, cause)
                attempt.share = len(inputs) / len(request.inputs)
                with attempt.watched():
                    body = await self._upstream.fetch(http_call, attempt)
                    answer = endpoint.adapter.decode_embed(body, len(inputs), target)
                    attempt.answered(answer)
                    answer.warnings.extend(http_call.warnings)
                    return answer

            async def embed_batch_in_turn(inputs: Sequence[pb.EmbedInput]) -> pb.EmbedResponse:
                async with places:
                    if len(batches) == 1:
                        return await embed_batch(inputs)
                    turn.exhausted = True
                    return await self._retried(turn.option, request, call, partial(embed_batch, inputs))

            answer = embeddings.join(await _all_or_nothing([embed_batch_in_turn(batch) for batch in batches]))
            if not request.dimensions and len(self._dimensions) < MOST_DIMENSIONS:
                self._dimensions[target] = answer.dimensions
            answer.provider = target.provider
            answer.model = answer.model or target.model
            add_cost(answer, self._catalog.prices(target))
            return answer

        answer = await self._first(request, call, EMBED, answer_from)
        if len(answer.data) > LARGE_MATRIX_BYTES:
            await asyncio.to_thread(embeddings.convert, answer, request)
        else:
            embeddings.convert(answer, request)
        answer.id = new_id()
        answer.warnings.extend(call.warnings())
        answer.attempts.extend(call.attempts)
        call.cost = answer.cost if answer.HasField("cost") else None
        return answer

    async def _first(
        self, request: Request, call: Call, kind: str, answer_from: Callable[[Turn], Coroutine[Any, Any, T]]
    ) -> T:
        """The first answer that commits, by the plan; what nobody can answer is raised."""
        if call.limits:
            answer_from = _limited(call.limits, request, answer_from)
        plan, hedge_delay = self._plan(request, call, kind)
        refused: T | None = None
        while True:
            try:
                option = plan.next(time.monotonic())
            except GatewayError:
                if refused is None:
                    raise
                return refused
            if isinstance(option, float):
                await asyncio.sleep(option)
                continue
            turn = Turn(option)
            call.arm = option.candidate.arm
            if hedge_delay is None:
                try:
                    answer = await answer_from(turn)
                except GatewayError as error:
                    plan.failed(option, error, time.monotonic(), exhausted=turn.exhausted)
                    continue
            else:
                won = await race(plan, turn, hedge_delay, answer_from, _discard)
                if won is None:
                    continue
                turn, answer = won
            call.arm = turn.option.candidate.arm
            if not (_is_filtered(answer) and _content_filter_moves_on(request)):
                return answer
            refused = answer
            plan.failed(turn.option, ContentFiltered("the answer was filtered"), time.monotonic())

    def _plan(self, request: Request, call: Call, kind: str) -> tuple[Plan, float | None]:
        """The call's options in order, and after how many seconds a second one is tried beside the first."""
        route = self._routes.route(request, call.principal, CallKnowledge(self._states, self._catalog, request, kind))
        if route.model != request.model:
            call.routed_to = route.model
        options = [
            Option(
                candidate,
                self._states[candidate.target.provider].of(candidate.target.model),
                is_fallback=n >= route.own,
            )
            for n, candidate in enumerate(route.candidates)
        ]
        plan = Plan(
            options,
            partial(next_target_may_answer, policy=request.routing),
            random.random,
            max_attempts=self._most_attempts(request),
            deadline=call.deadline,
        )
        if delay := request.execution.hedge_delay.ToNanoseconds():
            return plan, delay / 1e9
        return plan, route.hedge_delay

    def _most_attempts(self, request: Request) -> int:
        execution = request.execution
        asked = execution.max_attempts if execution.HasField("max_attempts") else self._max_attempts
        return min(asked, self._max_attempts)

    async def _begin(self, turn: Turn, request: Request, call: Call, kind: str, cause: Cause | None = None) -> Attempt:
        """An attempt, on record from now on, once the target has a place for it.

        Raises:
            GatewayError: it has none in time, or its circuit opened meanwhile.
        """
        state = turn.option.state
        await take_place(state.places, call.deadline - time.monotonic())
        now = time.monotonic()
        refusal = state.refusal(now)  # much may have happened in the queue
        permit = None if refusal else state.breaker.enter(now)
        if permit is None:
            state.places.give_back(None)
            raise refusal or CircuitOpen("the provider is being tried by another call")
        clocks = state.policy.clocks
        if request.HasField("execution"):
            clocks = clocks.tightened(request.execution)
        target = turn.option.candidate.target
        attempt = Attempt(
            call,
            target,
            state,
            clocks,
            kind=kind,
            cause=cause or turn.option.cause,
            permit=permit,
            prices=self._catalog.prices(target),
        )
        turn.attempts.append(attempt)
        return attempt

    async def _retried(
        self, option: Option, request: Request, call: Call, ask: Callable[[Cause | None], Coroutine[Any, Any, T]]
    ) -> T:
        """The answer to one part of a call, which is asked for again alone: other parts are answered already."""
        retries = 0
        while True:
            try:
                return await ask("retry" if retries else None)
            except GatewayError as error:
                now = time.monotonic()
                if not error.asked and isinstance(error, COOLING) and now + (error.retry_after or 0.0) < call.deadline:
                    await asyncio.sleep(error.retry_after or 0.0)
                    continue
                retries += 1
                retry_at = option.retry_at(error, retries, now, random.random())
                too_late = retry_at is None or retry_at >= call.deadline or retries >= self._most_attempts(request)
                if retry_at is None or too_late or not option.state.budget.withdraw():
                    raise
                await asyncio.sleep(retry_at - now)


async def _discard(answer: object) -> None:
    """Nobody takes the answer: a stream is closed."""
    if isinstance(answer, Generation):
        await answer.abandon()


def _is_filtered(answer: object) -> bool:
    if isinstance(answer, Generation):
        return answer.filtered
    return isinstance(answer, pb.GenerateResponse) and only_filtered([c.finish for c in answer.candidates])


def _content_filter_moves_on(request: Request) -> bool:
    return pb.FALLBACK_TRIGGER_CONTENT_FILTER in request.routing.fallback_triggers


def _limited(
    limits: CallLimits, request: Request, answer_from: Callable[[Turn], Coroutine[Any, Any, T]]
) -> Callable[[Turn], Coroutine[Any, Any, T]]:
    """Answers if the limits have room for one more try, for the provider that it goes to and the name it came by."""

    async def answer_within_limits(turn: Turn) -> T:
        candidate = turn.option.candidate
        requests = _requests(request, candidate.target)
        limited = limits.attempt(candidate.target, candidate.asked, requests, turn.attempts)
        try:
            if waiting := limits.enter_attempt(limited):
                await waiting
            return await answer_from(turn)
        finally:
            limited.over = True

    return answer_within_limits


def _requests(request: Request, target: Target) -> int:
    """In how many requests it goes to the target."""
    if isinstance(request, pb.EmbedRequest):
        return len(embeddings.split(request.inputs, target.host.quirks.embed_batch))
    return 1


async def _all_or_nothing(answers: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """All answers in order; the first failure cancels the others and is raised."""
    if len(answers) == 1:
        return [await answers[0]]
    tasks = [asyncio.create_task(answer) for answer in answers]
    # Not a TaskGroup: on Python 3.11 it leaves this task marked as cancelled after a failure, and swallows a caller's
    # cancel that comes at the same moment.
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        if not task.cancelled() and (error := task.exception()):
            raise error
    return [task.result() for task in tasks]
