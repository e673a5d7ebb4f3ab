"""A vendor that answers as it was recorded, and a caller that takes plain and streamed answers alike."""

from __future__ import annotations

from collections.abc import Iterable

from headgate import v1 as pb

from tests.fold import check_invariants, fold
from tests.headgate_process import Headgate
from tests.recordings.recorded import Recording
from tests.vendor import SSE_HEADERS, Behaviour, Exchange


def replaying(turns: Iterable[Recording]) -> Behaviour:
    """Answers each request with the next of the recordings."""
    replies = iter(turns)

    async def replay(exchange: Exchange) -> None:
        turn = next(replies)
        if turn.is_stream:
            await exchange.begin(headers=SSE_HEADERS)
            await exchange.chunk(turn.body)
            await exchange.end()
        else:
            await exchange.answer(200, turn.body)

    return replay


async def answered(headgate: Headgate, request: pb.GenerateRequest, is_stream: bool) -> pb.GenerateResponse:
    """The answer of the front door, folded where it is a stream."""
    if not is_stream:
        return await headgate.stub.Generate(request)
    events = [event async for event in headgate.stub.StreamGenerate(request)]
    check_invariants(events)
    return fold(events)
