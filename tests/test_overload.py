"""What callers can do to a server, in small; `make overload` does the same in large, and prints what it cost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from tests.conftest import LogLines, Serve
from tests.headgate_process import eventually
from tests.overload import cases
from tests.overload.attackers import connect, message_prefix
from tests.overload.server import MIB, Report

SMALL: dict[str, Callable[[Path], Awaitable[Report]]] = {
    "connections": lambda folder: cases.many_connections(folder, 600, 400),
    "idle": lambda folder: cases.idle_streams(folder, 300, slower=2.0),
    "calls": lambda folder: cases.too_many_calls(folder, 1500, 300),
    "readers": lambda folder: cases.slow_readers(folder, 100),
    "senders": lambda folder: cases.unfinished_messages(folder, 100, 4 * MIB, 200),
    "resets": lambda folder: cases.reset_flood(folder, 5_000),
}


@pytest.mark.parametrize("case", SMALL)
async def test_the_server_comes_through_with_bounded_memory_and_honest_refusals(case: str, tmp_path: Path) -> None:
    """Too many connections and calls, streams that idle, and callers who do not read, do not end or take back."""
    report = await SMALL[case](tmp_path)
    assert report.problems == [], str(report)


async def test_a_request_that_does_not_arrive_in_time_is_refused(serve: Serve, logged: LogLines) -> None:
    """Whether none of it came, or its beginning; the caller hears why."""
    async with serve(providers={"demo": {"adapter": "mock"}}, server={"receive_timeout": 0.2}) as headgate:
        sender = await connect(headgate.address)
        for beginning in (b"", message_prefix(1000) + b"half of it"):
            sender.send_some(sender.begin("Generate"), beginning)
            await sender.flush()
        await eventually(lambda: len(sender.ended) == 2)
        await sender.close()
    assert sender.statuses == {str(grpc.StatusCode.INVALID_ARGUMENT.value[0]): 2}
    assert [line["error"] for line in logged.calls] == ["the request did not arrive within 0.2 s"] * 2
    assert logged.errors == []
