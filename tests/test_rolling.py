"""Servers are replaced while calls go on; `make rolling` is the long form."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
from headgate import service_config, v1 as pb

from tests.conftest import Serve
from tests.headgate_process import ask
from tests.rolling.restarts import Options, restarts

MOCK = {"demo": {"adapter": "mock"}}


async def test_no_call_fails_across_rolling_restarts(tmp_path: Path) -> None:
    """Unary calls and streams, by a client that goes by the published service config; every one is on record."""
    report = await restarts(tmp_path, Options(calls=100, restarts=2, longest=2.0, seed=1))
    assert report.problems == []
    assert report.outcomes["OK"] == len(report.made) >= 100


async def test_no_call_fails_when_a_server_stops_that_is_full_of_calls(serve: Serve) -> None:
    """Calls that gRPC's core has taken and Python not yet get CANCELLED from it (grpc/grpc#41785): clients that watch
    health have left by then."""
    async with serve(providers=MOCK) as stopping, serve(providers=MOCK) as staying:
        target = f"ipv4:{stopping.address},{staying.address}"
        options = (("grpc.service_config", service_config()), ("grpc.use_local_subchannel_pool", 1))
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub = pb.InferenceServiceStub(channel)
            await stub.Generate(ask("demo/echo"), wait_for_ready=True, timeout=20)
            stopped = asyncio.Event()
            calling = [asyncio.create_task(call_until(stopped, stub)) for _ in range(60)]
            await asyncio.sleep(0.5)
            await stopping.application.stop(delay=0.3, grace=5)
            stopped.set()
            assert sum(await asyncio.gather(*calling)) > 100


async def call_until(stopped: asyncio.Event, stub: pb.InferenceServiceAsyncStub) -> int:
    """Makes one call after another; how many, none of which failed."""
    made = 0
    while not stopped.is_set():
        await stub.Generate(ask("demo/echo"), timeout=20)
        made += 1
    return made
