"""Calls are counted and logged a moment after their end, several at a time."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from headgate import v1 as pb
from structlog.testing import capture_logs

from headgate_server.call import Call
from headgate_server.errors import GatewayError
from headgate_server.interceptors.ended_calls import MOST_WAITING, EndedCalls
from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, ask, eventually


async def test_a_call_is_logged_though_nobody_asks_for_it(demo: Headgate) -> None:
    """Not with the next call, and not at the end of the server."""
    with capture_logs() as lines:
        await demo.stub.Generate(ask("demo/echo"))
        await eventually(lambda: any(line["event"] == "call" for line in lines))


async def test_a_line_tells_when_its_call_ended(demo: Headgate, logged: LogLines) -> None:
    """It is written later, and belongs to no other call that ended meanwhile."""
    before = datetime.now(UTC)
    for number in range(3):
        await demo.stub.Generate(ask("demo/echo"), metadata=(("x-request-id", f"r-{number}"),))
    after = datetime.now(UTC)
    assert [line["request_id"] for line in logged.calls] == ["r-0", "r-1", "r-2"]
    moments = [datetime.fromisoformat(line["timestamp"]) for line in logged.calls]
    assert [before, *moments, after] == sorted([before, *moments, after])


async def test_one_bug_keeps_no_other_call_from_being_told() -> None:
    """Nor another listener from hearing of the same call; the bug is logged under the call's own id."""
    heard: list[str] = []

    class Ended:
        def __init__(self, request_id: str) -> None:
            self.request_id = request_id

    def stumbles(call: Call, error: GatewayError | None) -> None:
        if call.request_id == "r-1":
            raise RuntimeError("a bug")

    ended = EndedCalls([stumbles, lambda call, error: heard.append(call.request_id)])
    with capture_logs() as lines:
        for number in range(3):
            ended.add(cast(Any, Ended(f"r-{number}")), None)
        ended.tell()
    assert heard == ["r-0", "r-1", "r-2"]
    assert [(line["event"], line["request_id"]) for line in lines] == [("call_not_told", "r-1")]


async def test_many_calls_at_once_do_not_wait_for_the_moment() -> None:
    """The event loop is not held by a large batch: each one is told of as soon as it is full."""
    batches: list[int] = []
    ended = EndedCalls([lambda call, error: batches.append(len(batches))])
    for _ in range(MOST_WAITING):
        ended.add(cast(Any, object()), None)
    assert batches == []
    await asyncio.sleep(0)
    assert len(batches) == MOST_WAITING


async def test_what_is_over_needs_no_garbage_collector(serve: Serve, tmp_path: Path) -> None:
    """Calls that refer to what refers to them would pile up until a collection holds every other call for long."""
    limits = {"rules": [{"unit": "total_tokens", "limit": 1_000_000, "window": 60}]}
    ledger = {"url": f"sqlite:///{tmp_path / 'ledger.db'}"}
    async with serve(providers={"demo": {"adapter": "mock"}}, limits=limits, ledger=ledger) as headgate:
        gc.collect()
        gc.disable()
        try:
            mine = (("x-request-id", "nobody-collects-me"),)
            await headgate.stub.Generate(ask("demo/echo"), metadata=mine)
            async for _ in headgate.stub.StreamGenerate(ask("demo/lorem"), metadata=mine):
                pass
            embed = pb.EmbedRequest(model="demo/embed", inputs=[pb.EmbedInput(text="Hi")])
            await headgate.stub.Embed(embed, metadata=mine)
            await headgate.idle()
            await eventually(lambda: not any(_is_of(there, mine[0][1]) for there in gc.get_objects()))
        finally:
            gc.enable()


def _is_of(there: object, request_id: str) -> bool:
    return type(there) is Call and there.request_id == request_id
