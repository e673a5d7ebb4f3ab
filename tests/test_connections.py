"""How long a connection lives and what it may do: each limit of the configuration, seen from the other side."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from headgate import service_config, v1 as pb

from headgate_server.config.tree import Server
from headgate_server.listeners import channel_options
from tests.conftest import Serve
from tests.headgate_process import ask, eventually
from tests.overload.attackers import Connection, connect

MOCK = {"demo": {"adapter": "mock"}, "paced": {"adapter": "mock", "mock": {"words": 40, "tokens_per_second": 20}}}
DEFAULTS = {
    "grpc.so_reuseport": 0,
    "grpc.max_receive_message_length": 32 * 2**20,
    "grpc.max_metadata_size": 16 * 2**10,
    "grpc.absolute_max_metadata_size": 16 * 2**10,
    "grpc.max_concurrent_streams": 1000,
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.http2.ping_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.min_ping_interval_without_data_ms": 10_000,
    "grpc.server_handshake_timeout_ms": 10_000,
    "grpc.max_connection_idle_ms": 600_000,
    "grpc.max_connection_age_grace_ms": 600_000,
    "grpc.max_allowed_incoming_connections": 10_000,
}


def test_the_defaults_let_streams_think_and_hold_nobodys_connection_for_ever() -> None:
    """As gRPC's core is told them; without an age connections end by being idle alone."""
    options = dict(channel_options(Server()))
    assert DEFAULTS.items() <= options.items()
    assert "grpc.max_connection_age_ms" not in options


async def seconds_until_closed(connection: Connection) -> float:
    """How long the server leaves it open, or does not tell it to go."""
    began = time.monotonic()
    await eventually(lambda: connection.closed, 10)
    await connection.close()
    return time.monotonic() - began


async def test_a_connection_that_says_nothing_is_closed(serve: Serve) -> None:
    """After server.handshake_timeout: no HTTP/2 came of it."""
    async with serve(providers=MOCK, server={"handshake_timeout": 0.5}) as headgate:
        host, _, port = headgate.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        began = time.monotonic()
        async with asyncio.timeout(5):
            while await reader.read(1024):
                pass  # the server's own settings
        writer.close()
    assert time.monotonic() - began > 0.3


async def test_an_idle_connection_is_told_to_go(serve: Serve) -> None:
    """After server.max_connection_idle without a call."""
    async with serve(providers=MOCK, server={"max_connection_idle": 0.5}) as headgate:
        assert await seconds_until_closed(await connect(headgate.address)) > 0.3


async def test_connections_are_replaced_and_no_call_fails(serve: Serve) -> None:
    """After server.max_connection_age: the old one is told to go, calls on it finish, new ones go by the next."""
    async with serve(providers=MOCK, server={"max_connection_age": 0.5, "max_connection_age_grace": 10}) as headgate:
        stream: Any = headgate.stub.StreamGenerate(ask("paced/lorem"))
        began = time.monotonic()
        while time.monotonic() - began < 2:
            await headgate.stub.Generate(ask("demo/echo"))
            await asyncio.sleep(0.01)
        events = [event async for event in stream]
        assert not events[-1].generation_end.partial
        assert await seconds_until_closed(await connect(headgate.address)) < 2


async def test_a_stream_ends_with_its_connection_after_the_grace(serve: Serve) -> None:
    """Hence max_connection_age_grace is longer than the longest stream."""
    server = {"max_connection_age": 0.3, "max_connection_age_grace": 0.3}
    async with serve(providers=MOCK, server=server) as headgate:
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            async for _ in headgate.stub.StreamGenerate(ask("paced/lorem")):
                pass
    assert broken.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_peer_that_does_not_answer_pings_is_given_up(serve: Serve) -> None:
    """After server.keepalive_time and keepalive_timeout: its machine is gone, or its way."""
    async with serve(providers=MOCK, server={"keepalive_time": 1, "keepalive_timeout": 1}) as headgate:
        silent = await connect(headgate.address)
        await silent.flush()
        await asyncio.sleep(0.2)
        silent.answers_pings = False
        assert await seconds_until_closed(silent) > 0.5


async def test_a_client_that_pings_too_often_is_disconnected(serve: Serve) -> None:
    """More often than server.min_ping_interval."""
    async with serve(providers=MOCK) as headgate:
        pinging = await connect(headgate.address)
        while not pinging.closed:
            await pinging.ping()
            await asyncio.sleep(0.05)
        assert await seconds_until_closed(pinging) < 5


async def test_calls_beyond_the_streams_of_a_connection_wait_in_the_client(serve: Serve) -> None:
    """server.max_concurrent_streams: of those that pass the server just as another ends, gRPC refuses some without a
    reason; the published service config has them sent again."""
    async with serve(providers=MOCK, server={"max_concurrent_streams": 2}) as headgate:
        options = (("grpc.service_config", service_config()), ("grpc.use_local_subchannel_pool", 1))
        async with grpc.aio.insecure_channel(headgate.address, options=options) as channel:
            stub = pb.InferenceServiceStub(channel)
            request = ask("paced/lorem", config=pb.GenerationConfig(max_output_tokens=6))
            began = time.monotonic()
            await asyncio.gather(*(read(stub.StreamGenerate(request, timeout=20)) for _ in range(6)))
    assert time.monotonic() - began > 3 * 0.2, "they went one after another, two at a time"


async def test_health_checks_are_bounded_too(serve: Serve) -> None:
    """server.max_concurrent_rpcs counts every call, watches included; gRPC's core refuses the rest."""
    async with serve(providers=MOCK, server={"max_concurrent_rpcs": 2}) as headgate:
        stub: Any = health_pb2_grpc.HealthStub(headgate.channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await headgate.stub.Generate(ask("demo/echo"))
        for watch in watches:
            watch.cancel()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def read(stream: Any) -> None:
    """To its end, which must be a good one."""
    async for _ in stream:
        pass
