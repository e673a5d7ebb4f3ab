"""The one attempt loop: which target, how many tries, when an answer is committed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import TypeVar

from headgate import v1 as pb

from headgate_server import embeddings
from headgate_server.attempt import Attempt, begin
from headgate_server.call import Call
from headgate_server.errors import GatewayError, StreamInterrupted
from headgate_server.providers.base import HttpCall, Stream, Target
from headgate_server.resilience.health import ProviderRecord
from headgate_server.routing import Routes, next_target_may_answer
from headgate_server.upstream import Upstream

Request = pb.GenerateRequest | pb.EmbedRequest
T = TypeVar("T")


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
        *,
        max_reply_bytes: int,
    ) -> None:
        self._routes = routes
        self._upstream = upstream
        self._health = health
        self._max_reply_bytes = max_reply_bytes

    async def generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        """The whole answer.

        Raises:
            GatewayError: no target answered; it is the last target's error.
        """

        async def answer_from(target: Target) -> pb.GenerateResponse:
            with self._attempt(request, target, call) as attempt:
                adapter = self._upstream.endpoint(target).adapter
                http_call = adapter.encode(request, target, stream=False)
                answer = adapter.decode(await self._upstream.fetch(http_call, attempt), target)
                attempt.answered(answer.usage if answer.HasField("usage") else None)
                answer.provider = target.provider
                answer.model = answer.model or target.model
                answer.warnings.extend(http_call.warnings)
                return answer

        answer = await self._first(request, call, answer_from)
        answer.id = _new_id()
        if not answer.HasField("create_time"):
            answer.create_time.GetCurrentTime()
        answer.attempts.extend(call.attempts)
        call.finish_reasons = [_finish_word(candidate.finish) for candidate in answer.candidates]
        return answer

    async def stream(self, request: pb.GenerateRequest, call: Call) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """The events of the answer, from generation_start to generation_end.

        Raises:
            StreamInterrupted: the vendor broke off after content was delivered; generation_end came with `partial`.
            GatewayError: no target answered.
        """

        async def answer_from(target: Target) -> Generation:
            with self._attempt(request, target, call) as attempt:
                adapter = self._upstream.endpoint(target).adapter
                http_call = adapter.encode(request, target, stream=True)
                generation = Generation(self._upstream, attempt, http_call, adapter.Stream(target), call)
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
        embeddings.check_reply_size(request, self._max_reply_bytes)

        async def answer_from(target: Target) -> pb.EmbedResponse:
            endpoint = self._upstream.endpoint(target)
            places = asyncio.Semaphore(endpoint.embed_concurrency)

            async def embed_batch(inputs: Sequence[pb.EmbedInput]) -> pb.EmbedResponse:
                async with places:
                    with self._attempt(request, target, call) as attempt:
                        http_call = endpoint.adapter.encode_embed(request, inputs, target)
                        body = await self._upstream.fetch(http_call, attempt)
                        answer = endpoint.adapter.decode_embed(body, len(inputs), target)
                        attempt.answered(answer.usage if answer.HasField("usage") else None)
                        answer.warnings.extend(http_call.warnings)
                        return answer

            batches = embeddings.split(request.inputs, target.host.quirks.embed_batch)
            answer = embeddings.join(await _all_or_nothing([embed_batch(batch) for batch in batches]))
            answer.provider = target.provider
            answer.model = answer.model or target.model
            return answer

        answer = await self._first(request, call, answer_from)
        embeddings.convert(answer, request)
        answer.id = _new_id()
        answer.attempts.extend(call.attempts)
        return answer

    async def _first(self, request: Request, call: Call, answer_from: Callable[[Target], Awaitable[T]]) -> T:
        """The first target's answer that commits. One attempt a target, in order; the last failure is raised."""
        targets = self._routes.targets(request.model, request.routing)
        if request.execution.HasField("max_attempts"):
            targets = targets[: request.execution.max_attempts]
        for target in targets[:-1]:
            try:
                return await answer_from(target)
            except GatewayError as error:
                if not next_target_may_answer(error, request.routing):
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


class Generation:
    """One stream from one target: the vendor's events in, ours out. Nobody else closes what it opens."""

    def __init__(self, upstream: Upstream, attempt: Attempt, http_call: HttpCall, stream: Stream, call: Call) -> None:
        self._upstream = upstream
        self._attempt = attempt
        self._http_call = http_call
        self._stream = stream
        self._call = call
        self._vendor_events = upstream.stream(http_call, attempt)
        self._held_back: list[pb.StreamGenerateResponse] = []
        self._ended = False

    async def commit(self) -> None:
        """Waits for the first content, or the end of an answer without any.

        Raises:
            GatewayError: neither came; nothing was delivered and another target may be tried.
        """
        try:
            self._held_back = await self._read()
        except BaseException:
            await self._vendor_events.aclose()
            raise
        if any(event.HasField("part_start") for event in self._held_back):
            self._attempt.content_came()
        self._begin(self._held_back[0].generation_start)

    async def events(self) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """What was held back until the commit, then the rest.

        Raises:
            StreamInterrupted: the vendor broke off; the events before it say what is partial.
        """
        try:
            events = self._held_back
            while events:
                for event in events:
                    yield event
                events = await self._read()
        except GatewayError as error:
            self._attempt.failed(error)
            await self._vendor_events.aclose()
            for event in self._interrupt(pb.FINISH_REASON_ERROR):
                yield event
            raise _interrupted(error) from error
        finally:
            if not self._ended:
                self._attempt.cancelled()
                self._interrupt(pb.FINISH_REASON_CANCELLED)
            if not self._stream.complete:
                await self._vendor_events.aclose()

    async def _read(self) -> list[pb.StreamGenerateResponse]:
        """The next events, of at least one socket read; none after the end."""
        if self._ended:
            return []
        async for vendor_events in self._vendor_events:
            events = self._stream.feed(vendor_events)
            if self._stream.complete:
                self._upstream.finish(self._vendor_events)
                return events + self._end(self._stream.end())
            if events:
                return events
        return self._end(self._stream.end())

    def _begin(self, start: pb.GenerationStart) -> None:
        start.id = _new_id()
        start.provider = self._attempt.target.provider
        start.model = start.model or self._attempt.target.model
        start.attempt = self._attempt.record.number
        start.warnings.extend(self._http_call.warnings)
        if not start.HasField("create_time"):
            start.create_time.GetCurrentTime()

    def _end(self, events: list[pb.StreamGenerateResponse]) -> list[pb.StreamGenerateResponse]:
        self._ended = True
        end = events[-1].generation_end
        self._attempt.answered(end.usage if end.HasField("usage") else None)
        return self._accounted(events)

    def _interrupt(self, finish: pb.FinishReason.ValueType) -> list[pb.StreamGenerateResponse]:
        self._ended = True
        events = self._stream.interrupt(finish)
        end = events[-1].generation_end
        if end.HasField("usage"):
            self._attempt.record.usage.CopyFrom(end.usage)
        return self._accounted(events)

    def _accounted(self, events: list[pb.StreamGenerateResponse]) -> list[pb.StreamGenerateResponse]:
        """The last events, with the whole call's account in generation_end."""
        finishes = [event.candidate_end.finish for event in events if event.HasField("candidate_end")]
        self._call.finish_reasons = [_finish_word(finish) for finish in finishes]
        events[-1].generation_end.attempts.extend(self._call.attempts)
        return events


def _interrupted(error: GatewayError) -> StreamInterrupted:
    facts = {**error.facts, "partial_output": "true", "cause": error.reason}
    return StreamInterrupted(
        "the provider's stream broke off after content was delivered",
        facts=facts,
        vendor_detail=error.vendor_detail or error.message,
    )


def _finish_word(finish: pb.Finish) -> str:
    return pb.FinishReason.Name(finish.reason).removeprefix("FINISH_REASON_")


def _new_id() -> str:
    return f"gen-{uuid.uuid4().hex}"


async def _all_or_nothing(answers: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """All answers in order; the first failure cancels the others and is raised."""
    if len(answers) == 1:
        return [await answers[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer) for answer in answers]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
