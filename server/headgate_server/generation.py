"""One stream from one target, from the first socket read to the account at its end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence

from headgate import v1 as pb

from headgate_server.attempt import Attempt
from headgate_server.call import GATEWAY, Call
from headgate_server.errors import ContentFiltered, GatewayError, InternalError, StreamInterrupted
from headgate_server.prices import add_cost
from headgate_server.providers.base import HttpCall, Stream
from headgate_server.upstream import Upstream


class Generation:
    """One stream from one target: the vendor's events in, ours out. Nobody else closes what it opens."""

    def __init__(
        self,
        upstream: Upstream,
        attempt: Attempt,
        http_call: HttpCall,
        stream: Stream,
        call: Call,
        options: pb.StreamOptions,
    ) -> None:
        self._upstream = upstream
        self._attempt = attempt
        self._http_call = http_call
        self._stream = stream
        self._call = call
        coalesce = options.max_coalesce_delay.ToMilliseconds() / 1000
        self._vendor_events = upstream.stream(http_call, attempt, coalesce=coalesce)
        self._held_back: list[pb.StreamGenerateResponse] = []
        self._content_came = False
        self._delivering = False
        self._ended = False
        self._left_to_upstream = False

    async def commit(self) -> None:
        """Waits for the first content, or the end of an answer without any.

        Raises:
            GatewayError: neither came; nothing was delivered and another target may be tried.
        """
        try:
            self._held_back = await self._read()
        except ContentFiltered as blocked:
            await self._vendor_events.aclose()
            self._held_back = self._end(_filtered_events(blocked))
        except BaseException:
            self._count(self._stream.interrupt(pb.FINISH_REASON_ERROR)[-1].generation_end)
            await self._vendor_events.aclose()
            raise
        self._begin(self._held_back[0].generation_start)

    async def events(self) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        """What was held back until the commit, then the rest.

        Raises:
            StreamInterrupted: the vendor broke off; the events before it say what is partial.
        """
        try:
            events = self._held_back
            self._delivering = True
            if self._ended:
                self._tell_call(events)
            while events:
                for event in events:
                    yield event
                if self._call.interruption() and not self._ended:
                    raise asyncio.CancelledError
                events = await self._read()
        except ContentFiltered as blocked:
            await self._vendor_events.aclose()
            for event in self._filter(blocked):
                yield event
        except GatewayError as error:
            self._attempt.failed(error)
            await self._vendor_events.aclose()
            for event in self._interrupt(pb.FINISH_REASON_ERROR):
                yield event
            raise _interrupted(error) from error
        except asyncio.CancelledError:
            interruption = self._call.interruption()
            if interruption is None:
                raise
            self._attempt.cancelled()
            await self._vendor_events.aclose()
            for event in self._interrupt(pb.FINISH_REASON_ERROR):
                yield event
            raise interruption from None
        except Exception:
            self._attempt.failed(InternalError())
            raise
        finally:
            await self.abandon()

    @property
    def filtered(self) -> bool:
        """It is over before anything was delivered, because the vendor's content filter stopped it."""
        return self._ended and only_filtered(
            [event.candidate_end.finish for event in self._held_back if event.HasField("candidate_end")]
        )

    async def abandon(self) -> None:
        """Nobody will read the events: the vendor's connection is closed."""
        if not self._ended:
            self._attempt.cancelled()
            self._interrupt(pb.FINISH_REASON_CANCELLED)
        if not self._left_to_upstream:
            await self._vendor_events.aclose()

    async def _read(self) -> list[pb.StreamGenerateResponse]:
        """The next events, of at least one socket read; none after the end."""
        if self._ended:
            return []
        async for vendor_events in self._vendor_events:
            events = self._stream.feed(vendor_events)
            self._attempt.streamed(events, self._stream.usage_reports)
            if events and not self._content_came:
                self._content_came = True
                self._attempt.content_came()
            if self._stream.complete:
                self._left_to_upstream = True
                self._upstream.finish(self._vendor_events)
                return events + self._end(self._stream.end())
            if events:
                return events
        return self._end(self._stream.end())

    def _begin(self, start: pb.GenerationStart) -> None:
        start.id = new_id()
        start.provider = self._attempt.target.provider
        start.model = start.model or self._attempt.target.model
        start.attempt = self._attempt.record.number
        start.warnings.extend(self._http_call.warnings)
        start.warnings.extend(self._call.warnings())
        if not start.HasField("create_time"):
            start.create_time.GetCurrentTime()

    def _end(self, events: list[pb.StreamGenerateResponse]) -> list[pb.StreamGenerateResponse]:
        self._ended = True
        end = events[-1].generation_end
        add_cost(end, self._attempt.prices)
        self._attempt.answered(end)
        return self._told(events)

    def _filter(self, blocked: ContentFiltered) -> list[pb.StreamGenerateResponse]:
        """A content filter stopped the answer in the middle: an outcome, and the answer's end."""
        candidate = filtered(blocked)
        events = self._stream.interrupt(pb.FINISH_REASON_CONTENT_FILTER)
        for event in events:
            if event.HasField("candidate_end"):
                event.candidate_end.finish.CopyFrom(candidate.finish)
        events[-1].generation_end.partial = False
        return self._end(events)

    def _interrupt(self, finish: pb.FinishReason.ValueType) -> list[pb.StreamGenerateResponse]:
        self._ended = True
        events = self._stream.interrupt(finish)
        end = events[-1].generation_end
        self._count(end)
        add_cost(end, self._attempt.prices)
        return self._told(events)

    def _count(self, end: pb.GenerationEnd) -> None:
        """What was used up to here, as far as the vendor has said so."""
        self._attempt.streamed((), self._stream.usage_reports)
        self._attempt.counted(end)

    def _told(self, events: list[pb.StreamGenerateResponse]) -> list[pb.StreamGenerateResponse]:
        """The last events, of which the call learns if they are its answer."""
        if self._delivering:
            self._tell_call(events)
        return events

    def _tell_call(self, events: list[pb.StreamGenerateResponse]) -> None:
        """The call ends with these events: they learn of all its attempts, and the call of finish and cost."""
        finishes = [event.candidate_end.finish for event in events if event.HasField("candidate_end")]
        self._call.finish_reasons = [finish_word(finish) for finish in finishes]
        end = events[-1].generation_end
        self._call.cost = end.cost if end.HasField("cost") else None
        end.attempts.extend(self._call.attempts)
        if self._call.arm:
            end.provider_metadata[GATEWAY] = self._call.gateway_metadata()


def filtered(blocked: ContentFiltered) -> pb.Candidate:
    """The candidate of a prompt that a vendor refused with an HTTP error: an outcome, not a failure."""
    return pb.Candidate(
        message=pb.Message(role=pb.ROLE_ASSISTANT),
        finish=pb.Finish(
            reason=pb.FINISH_REASON_CONTENT_FILTER,
            provider_reason=blocked.facts.get("provider_code", ""),
            detail=blocked.message,
        ),
        provider_metadata=blocked.provider_metadata,
    )


def only_filtered(finishes: Sequence[pb.Finish]) -> bool:
    """Every candidate was stopped by the vendor's content filter."""
    return bool(finishes) and all(finish.reason == pb.FINISH_REASON_CONTENT_FILTER for finish in finishes)


def _filtered_events(blocked: ContentFiltered) -> list[pb.StreamGenerateResponse]:
    candidate = filtered(blocked)
    end = pb.CandidateEnd(finish=candidate.finish, provider_metadata=candidate.provider_metadata)
    return [
        pb.StreamGenerateResponse(generation_start=pb.GenerationStart()),
        pb.StreamGenerateResponse(candidate_end=end),
        pb.StreamGenerateResponse(generation_end=pb.GenerationEnd()),
    ]


def _interrupted(error: GatewayError) -> StreamInterrupted:
    facts = {**error.facts, "partial_output": "true", "cause": error.reason}
    return StreamInterrupted(
        "the provider's stream broke off after content was delivered",
        facts=facts,
        vendor_detail=error.vendor_detail or error.message,
    )


def finish_word(finish: pb.Finish) -> str:
    """The reason as logs have it: STOP, MAX_TOKENS, ..."""
    return pb.FinishReason.Name(finish.reason).removeprefix("FINISH_REASON_")


def new_id() -> str:
    """The gateway's id of one answer."""
    return f"gen-{random.getrandbits(128):032x}"
