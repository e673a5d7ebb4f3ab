"""The one attempt loop: which target, how many tries, when an answer is committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import TypeVar

from headgate import v1 as pb

from headgate_server import embeddings
from headgate_server.attempt import Attempt, begin
from headgate_server.call import Call
from headgate_server.catalog import Catalog
from headgate_server.errors import ContentFiltered, GatewayError
from headgate_server.generation import Generation, filtered, finish_word, new_id
from headgate_server.prices import add_cost
from headgate_server.providers.base import Target
from headgate_server.resilience.health import ProviderRecord
from headgate_server.routing import Routes, next_target_may_answer
from headgate_server.upstream import Upstream

Request = pb.GenerateRequest | pb.EmbedRequest
T = TypeVar("T")
LARGE_MATRIX_BYTES = 1024 * 1024


class Gateway:
    """Answers requests from the first target that can.

    Every RPC runs the same loop; what differs is what commits an answer: a whole answer for `generate` and `embed`,
    the first content for `stream`. After that nothing is tried again.
    """

    def __init__(
        self,
        routes: Routes,
        upstream: Upstream,
        health: Mapping[str, ProviderRecord],
        catalog: Catalog,
        *,
        max_reply_bytes: int,
    ) -> None:
        self._routes = routes
        self._upstream = upstream
        self._health = health
        self._catalog = catalog
        self._max_reply_bytes = max_reply_bytes
        self._dimensions: dict[Target, int] = {}
        """What a model answered when it was not asked for a number of dimensions."""

    async def generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        """The whole answer.

        Raises:
            GatewayError: no target answered; it is the last target's error.
        """

        async def answer_from(target: Target) -> pb.GenerateResponse:
            adapter = self._upstream.endpoint(target).adapter
            http_call = adapter.encode(request, target, stream=False)
            with self._attempt(request, target, call) as attempt:
                try:
                    answer = adapter.decode(await self._upstream.fetch(http_call, attempt), target)
                except ContentFiltered as blocked:
                    answer = pb.GenerateResponse(candidates=[filtered(blocked)])
                attempt.answered(answer.usage if answer.HasField("usage") else None)
                answer.provider = target.provider
                answer.model = answer.model or target.model
                answer.warnings.extend(http_call.warnings)
                add_cost(answer, self._catalog.prices(target))
                return answer

        answer = await self._first(request, call, answer_from)
        answer.id = new_id()
        if not answer.HasField("create_time"):
            answer.create_time.GetCurrentTime()
        answer.attempts.extend(call.attempts)
        call.finish_reasons = [finish_word(candidate.finish) for candidate in answer.candidates]
        return answer

    async def stream(self, request: pb.GenerateRequest, call: Call) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """The events of the answer, from generation_start to generation_end.

        Raises:
            StreamInterrupted: the vendor broke off after content was delivered; generation_end came with `partial`.
            GatewayError: no target answered.
        """

        async def answer_from(target: Target) -> Generation:
            adapter = self._upstream.endpoint(target).adapter
            http_call = adapter.encode(request, target, stream=True)
            with self._attempt(request, target, call) as attempt:
                generation = Generation(
                    self._upstream,
                    attempt,
                    http_call,
                    adapter.Stream(target),
                    call,
                    request.stream,
                    self._catalog.prices(target),
                )
                await generation.commit()
                return generation

        generation = await self._first(request, call, answer_from)
        async with aclosing(generation.events()) as events:
            async for event in events:
                yield event

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """One matrix of all inputs, all or nothing, from one model: sub-batches never mix targets.

        Raises:
            GatewayError: no target answered; it is the last target's error.
        """

        async def answer_from(target: Target) -> pb.EmbedResponse:
            dimensions = request.dimensions or self._dimensions.get(target, 1)
            embeddings.check_reply_size(request, dimensions, self._max_reply_bytes)
            endpoint = self._upstream.endpoint(target)
            places = asyncio.Semaphore(endpoint.embed_concurrency)

            async def embed_batch(inputs: Sequence[pb.EmbedInput]) -> pb.EmbedResponse:
                http_call = endpoint.adapter.encode_embed(request, inputs, target)
                async with places:
                    with self._attempt(request, target, call) as attempt:
                        body = await self._upstream.fetch(http_call, attempt)
                        answer = endpoint.adapter.decode_embed(body, len(inputs), target)
                        attempt.answered(answer.usage if answer.HasField("usage") else None)
                        answer.warnings.extend(http_call.warnings)
                        return answer

            batches = embeddings.split(request.inputs, target.host.quirks.embed_batch)
            answer = embeddings.join(await _all_or_nothing([embed_batch(batch) for batch in batches]))
            if not request.dimensions:
                self._dimensions[target] = answer.dimensions
            answer.provider = target.provider
            answer.model = answer.model or target.model
            add_cost(answer, self._catalog.prices(target))
            return answer

        answer = await self._first(request, call, answer_from)
        if len(answer.data) > LARGE_MATRIX_BYTES:
            await asyncio.to_thread(embeddings.convert, answer, request)
        else:
            embeddings.convert(answer, request)
        answer.id = new_id()
        answer.attempts.extend(call.attempts)
        return answer

    async def _first(self, request: Request, call: Call, answer_from: Callable[[Target], Awaitable[T]]) -> T:
        """The first target's answer that commits. One attempt a target, in order; the last failure is raised."""
        targets, own = self._routes.route(request.model, request.routing)
        if request.execution.HasField("max_attempts"):
            targets = targets[: request.execution.max_attempts]
        for following, target in enumerate(targets[:-1], start=1):
            try:
                return await answer_from(target)
            except GatewayError as error:
                if not next_target_may_answer(error, request.routing, is_fallback=following >= own):
                    raise
        return await answer_from(targets[-1])

    @contextmanager
    def _attempt(self, request: Request, target: Target, call: Call) -> Iterator[Attempt]:
        """An attempt on record; whatever leaves the block by an exception ends it."""
        clocks = self._upstream.endpoint(target).clocks
        if request.HasField("execution"):
            clocks = clocks.tightened(request.execution)
        attempt = begin(call, target, clocks, self._health[target.provider])
        with attempt.watched():
            yield attempt


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
