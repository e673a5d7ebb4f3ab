"""What operators do: grpcurl, grpc-health-probe, signals, drains."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from headgate import v1 as pb

from tests.conftest import LogLines, Serve
from tests.fold import check_invariants
from tests.headgate_process import Headgate, ask, failing, until_failure
from tests.tools import ROOT, grpcurl, headgate_serve, messages, resident_bytes, run, tool
from tests.vendor import Exchange, Vendor, finish_chunk, sse, text_chunk

SERVICE = "headgate.v1.InferenceService"
NAMES = ("", SERVICE, "readiness", "liveness")


async def test_grpcurl_shows_error_details_in_full(demo: Headgate) -> None:
    """Reflection knows google.rpc, so details are readable without any file."""
    request = {"messages": [{"role": "ROLE_USER", "parts": [{"text": "Hi"}]}]}
    shown = await grpcurl(demo.address, f"{SERVICE}/Generate", request)
    assert shown.code != 0
    assert "google.rpc.ErrorInfo" in shown.stderr
    assert '"reason": "INVALID_REQUEST"' in shown.stderr.replace('":"', '": "')
    assert "google.rpc.BadRequest" in shown.stderr
    assert "model" in shown.stderr


async def test_grpcurl_works_from_the_proto_files_and_the_descriptor_set(serve: Serve) -> None:
    """Without reflection, `-proto` needs no include path beyond the repository's own, and the descriptor set works."""
    body = {"model": "demo/echo", "messages": [{"role": "ROLE_USER", "parts": [{"text": "Hi"}]}]}
    sources = (
        ("-import-path", str(ROOT / "proto"), "-proto", "headgate/v1/inference_service.proto"),
        ("-protoset", str(ROOT / "clients/python/headgate/v1/headgate.protoset")),
    )
    async with serve(providers={"demo": {"adapter": "mock"}}, server={"reflection": False}) as headgate:
        without = await grpcurl(headgate.address)
        assert "does not support the reflection API" in without.stderr
        for source in sources:
            (answer,) = messages((await grpcurl(headgate.address, f"{SERVICE}/Generate", body, *source)).stdout)
            assert answer["candidates"][0]["message"]["parts"][0]["text"] == "Hi"


async def test_the_health_probe_reports_serving_for_every_name(demo: Headgate) -> None:
    """grpc-health-probe, as Kubernetes would run it."""
    for name in NAMES:
        probed = await run(tool("grpc-health-probe"), f"-addr={demo.address}", f"-service={name}")
        assert (probed.code, "SERVING" in probed.stderr + probed.stdout) == (0, True), probed.stderr
    unknown = await run(tool("grpc-health-probe"), f"-addr={demo.address}", "-service=nope")
    assert unknown.code != 0


async def test_health_watch_passes_the_chain_and_tells_of_the_drain(serve: Serve) -> None:
    """Watch streams through all interceptors; on a drain readiness turns, liveness stays."""
    async with serve(providers={"demo": {"adapter": "mock"}}) as headgate:
        stub: Any = health_pb2_grpc.HealthStub(headgate.channel)
        watches = {name: stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in NAMES}
        for watch in watches.values():
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        hurry = asyncio.Event()
        draining = asyncio.create_task(headgate.application.stop(delay=30, grace=30, hurry=hurry))
        for name in ("", SERVICE, "readiness"):
            assert (await watches[name].read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        liveness = await stub.Check(health_pb2.HealthCheckRequest(service="liveness"))
        assert liveness.status == health_pb2.HealthCheckResponse.SERVING
        assert (await headgate.stub.Generate(ask("demo/echo"))).candidates, "calls are served during the delay"
        state = (await headgate.stub.Health(pb.HealthRequest())).state
        assert state == pb.SERVING_STATE_DRAINING
        hurry.set()
        await draining


async def test_sigterm_lets_a_stream_finish_and_exits_0(tmp_path: Path) -> None:
    """On SIGTERM a stream in flight ends whole, new calls are refused, the log is JSON and the exit code 0."""
    proceed = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("Hello")))
        await proceed.wait()
        await exchange.chunk(sse(text_chunk(" there")) + sse(finish_chunk()) + b"data: [DONE]\n\n")
        await exchange.end()

    async with Vendor(slow) as vendor:
        config = tmp_path / "headgate.yaml"
        config.write_text(
            "server: {drain_delay: 0.2, drain_grace: 20}\nproviders:\n"
            f'  v: {{adapter: openai, base_url: "{vendor.base_url}"}}\n'
        )
        async with headgate_serve("--config", str(config)) as headgate:
            async with grpc.aio.insecure_channel(headgate.address) as channel:
                stub = pb.InferenceServiceStub(channel)
                call: Any = stub.StreamGenerate(ask("v/m"))
                first = [await call.read() for _ in range(3)]
                headgate.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.6)
                async with grpc.aio.insecure_channel(headgate.address) as late:
                    refused = await failing(pb.InferenceServiceStub(late).Generate(ask("v/m")))
                proceed.set()
                rest = []
                while (event := await call.read()) is not grpc.aio.EOF:
                    rest.append(event)
            finished = await headgate.ended()
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert "".join(event.text_delta for event in [*first, *rest]) == "Hello there"
    assert not rest[-1].generation_end.partial
    assert finished.code == 0
    lines = [json.loads(line) for line in finished.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["serving", "draining", "call", "stopped"]
    assert lines[2]["request_id"]


async def test_a_second_signal_cuts_the_drain_short(tmp_path: Path) -> None:
    """A drain that would take a minute ends at once; the call in flight is cancelled and logged."""

    async def stall(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("Hello")))
        await exchange.caller_closed.wait()

    async with Vendor(stall) as vendor:
        config = tmp_path / "headgate.yaml"
        config.write_text(
            "server: {drain_delay: 30, drain_grace: 30}\nproviders:\n"
            f'  v: {{adapter: openai, base_url: "{vendor.base_url}"}}\n'
        )
        async with headgate_serve("--config", str(config)) as headgate:
            async with grpc.aio.insecure_channel(headgate.address) as channel:
                call = pb.InferenceServiceStub(channel).StreamGenerate(ask("v/m"))
                await anext(aiter(call))
                headgate.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.2)
                async with asyncio.timeout(5):
                    finished = await headgate.stop(signal.SIGTERM)
                events, failed = await until_failure(call)
    assert (failed.code, failed.reason) == (grpc.StatusCode.ABORTED, "STREAM_INTERRUPTED")
    assert events[-1].generation_end.partial
    assert finished.code == 0
    lines = [json.loads(line) for line in finished.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["serving", "draining", "call", "stopped"]
    assert (lines[2]["code"], lines[2]["reason"]) == ("ABORTED", "STREAM_INTERRUPTED")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_that_never_end_do_not_spoil_the_exit(tmp_path: Path, number: signal.Signals) -> None:
    """Whoever goes on until the process is gone finds exit code 0 all the same."""
    config = tmp_path / "headgate.yaml"
    config.write_text("providers: {demo: {adapter: mock}}\n")
    async with headgate_serve("--config", str(config)) as headgate:
        ended = asyncio.create_task(headgate.ended())
        while not ended.done():
            with suppress(ProcessLookupError):
                headgate.process.send_signal(number)
            await asyncio.sleep(0.005)
        finished = await ended
    assert finished.code == 0, finished.stderr
    assert json.loads(finished.stderr.splitlines()[-1])["event"] == "stopped"


async def test_a_call_cut_off_before_content_may_be_sent_again(serve: Serve, logged: LogLines) -> None:
    """At the end of the grace a call that delivered nothing gets GATEWAY_DRAINING with RetryInfo."""

    async def stall(exchange: Exchange) -> None:
        await exchange.caller_closed.wait()

    async with Vendor(stall) as vendor:
        async with serve(providers={"v": {"adapter": "openai", "base_url": vendor.base_url}}) as headgate:
            plain = asyncio.ensure_future(failing(headgate.stub.Generate(ask("v/m"))))
            streamed = asyncio.ensure_future(failing(headgate.stub.StreamGenerate(ask("v/m"))))
            await vendor.exchange(2)
            await headgate.application.stop(delay=0, grace=0.1)
            failures = [await plain, await streamed]
    for failed in failures:
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "GATEWAY_DRAINING")
        assert failed.details["RetryInfo"].retry_delay.seconds == 1
    assert [line["reason"] for line in logged.calls] == ["GATEWAY_DRAINING"] * 2
    assert logged.errors == []


async def test_streams_cut_off_while_they_write_still_say_what_is_partial(serve: Serve, logged: LogLines) -> None:
    """Whatever a stream is doing when the server stops: its last events come behind what it was writing."""

    async def goes_on(exchange: Exchange) -> None:
        await exchange.begin()
        while not exchange.caller_closed.is_set():
            await exchange.chunk(sse(text_chunk("and on ")))
            await asyncio.sleep(0.002)

    async with Vendor(goes_on) as vendor:
        async with serve(providers={"v": {"adapter": "openai", "base_url": vendor.base_url}}) as headgate:
            calls = [headgate.stub.StreamGenerate(ask("v/m")) for _ in range(20)]
            reading = [asyncio.ensure_future(until_failure(call)) for call in calls]
            await asyncio.gather(*(call.initial_metadata() for call in calls))
            await headgate.application.stop(delay=0, grace=0)
            streams = await asyncio.gather(*reading)
    for events, failed in streams:
        assert failed.reason == "STREAM_INTERRUPTED"
        check_invariants(events, partial=True)
    assert logged.errors == []


async def test_an_open_watch_does_not_hold_up_the_drain(serve: Serve) -> None:
    """Clients with health checking keep a Watch open for ever: a drain without calls ends at once all the same."""
    async with serve(providers={"demo": {"adapter": "mock"}}) as headgate:
        stub: Any = health_pb2_grpc.HealthStub(headgate.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="readiness"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        async with asyncio.timeout(5):
            await headgate.application.stop(delay=0, grace=60)


async def test_the_welcome_says_what_is_served_and_a_call_to_paste() -> None:
    """`headgate serve` with nothing configured serves the mock, and the call it prints works."""
    async with headgate_serve() as headgate:
        paste = next(line for line in headgate.welcome if "grpcurl" in line)
        command = paste.strip().replace("grpcurl", tool("grpcurl"), 1)
        shown = await run("sh", "-c", command)
        finished = await headgate.stop()
    assert shown.code == 0, shown.stderr
    assert "generation_end" in messages(shown.stdout)[-1]
    assert finished.code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from Linux's /proc")
async def test_a_server_at_rest_holds_at_most_90_mb_and_says_nothing(tmp_path: Path) -> None:
    """Once it watches its configuration file, too, and somebody writes another one beside it."""
    config = tmp_path / "headgate.yaml"
    config.write_text("providers: {demo: {adapter: mock}}\n")
    async with headgate_serve("--config", str(config)) as headgate:
        await asyncio.sleep(1)
        (tmp_path / "another-file").touch()
        await asyncio.sleep(0.5)
        assert resident_bytes(headgate.process.pid) <= 90e6
        finished = await headgate.stop(signal.SIGINT)
    assert [json.loads(line)["event"] for line in finished.stderr.splitlines()] == ["serving", "draining", "stopped"]
