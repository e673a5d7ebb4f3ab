"""Each trap of grpc.aio that concerns a server, sprung through the front door."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from headgate import v1 as pb
from pydantic import ByteSize

from headgate_server.app import Application
from headgate_server.call import Call, CallRegistry
from headgate_server.config import Config, Server
from headgate_server.errors import GatewayError, InvalidRequest, Violation
from headgate_server.interceptors.access_log import log_call
from headgate_server.interceptors.base import End
from headgate_server.interceptors.chain import Chain
from headgate_server.interceptors.status import to_status
from headgate_server.runtime import Runtime
from headgate_server.servicers.inference import InferenceServicer
from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, ask, eventually, failing
from tests.vendor import Exchange, Vendor, answers_text, sse, text_chunk

SERVICE = "headgate.v1.InferenceService"


class Misbehaving:
    """A servicer that does whatever a bug or a careless dependency might do."""

    def __init__(self) -> None:
        self.cleaned_up: list[asyncio.Task[Any] | None] = []
        self.Embed = self.ListModels = self.Health = self.Generate

    async def Generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        match request.model:
            case "stray-cancel":
                child = asyncio.create_task(asyncio.sleep(10))
                asyncio.get_running_loop().call_soon(child.cancel)
                await child
            case "generator-exit":
                raise GeneratorExit
            case "secret":
                raise RuntimeError("the key is sk-123")
            case "long-error":
                violations = [Violation(f"messages[{n}].parts[0].text", "ü" * 500) for n in range(200)]
                raise InvalidRequest("Ü" * 5000, violations=violations)
            case "slow-cleanup":
                try:
                    await asyncio.sleep(30)
                finally:
                    await asyncio.sleep(0.3)
                    self.cleaned_up.append(asyncio.current_task())
        return pb.GenerateResponse(id=call.request_id)

    async def StreamGenerate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        yield pb.StreamGenerateResponse(text_delta="first")
        if request.model == "stray-cancel":
            child = asyncio.create_task(asyncio.sleep(10))
            asyncio.get_running_loop().call_soon(child.cancel)
            await child
        if request.model == "secret":
            raise RuntimeError("the key is sk-123")
        try:
            while True:
                yield pb.StreamGenerateResponse(text_delta="x" * 65536)
        finally:
            self.cleaned_up.append(asyncio.current_task())


class Chained:
    """A server that holds only the chain and a misbehaving servicer."""

    def __init__(self, end: Sequence[End] = (log_call,)) -> None:
        self.calls = CallRegistry()
        self.servicer = Misbehaving()
        runtime = Runtime(Config(server=Server(max_reply_bytes=ByteSize(2**20))))
        chain = Chain(SERVICE, self.calls, lambda: runtime, end=end)
        self.server = grpc.aio.server(interceptors=[chain], options=[("grpc.so_reuseport", 0)])
        pb.add_InferenceServiceServicer_to_server(cast(pb.InferenceServiceServicer, self.servicer), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    async def __aenter__(self) -> Chained:
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        self.stub = pb.InferenceServiceStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(0)


@pytest.mark.parametrize("model", ["stray-cancel", "generator-exit"])
async def test_a_stray_cancellation_is_answered(model: str, logged: LogLines) -> None:
    """A CancelledError that no caller caused gets a status, where grpc.aio alone would leave the caller waiting."""
    async with Chained() as chained:
        unary = await failing(chained.stub.Generate(ask(model), timeout=5))
        stream = await failing(chained.stub.StreamGenerate(ask("stray-cancel"), timeout=5))
    assert [unary.code, stream.code] == [grpc.StatusCode.INTERNAL] * 2
    assert [unary.reason, stream.reason] == ["INTERNAL"] * 2
    assert [line["code"] for line in logged.calls] == ["INTERNAL"] * 2


async def test_an_exception_text_never_reaches_the_caller(logged: LogLines) -> None:
    """What a bug says may hold secrets: the caller gets a fixed text, the log the trace, once."""
    async with Chained() as chained:
        unary = await failing(chained.stub.Generate(ask("secret")))
        stream = await failing(chained.stub.StreamGenerate(ask("secret")))
    for failed in (unary, stream):
        assert failed.code is grpc.StatusCode.INTERNAL
        assert failed.message == "internal error"
        assert "sk-123" not in str(failed.trailer)
    assert len(logged.errors) == 2


async def test_a_bug_at_the_end_of_a_call_spoils_neither_answer_nor_account(logged: LogLines) -> None:
    """The caller has the complete answer, what comes after still hears of the call, and the log tells the bug."""

    def stumbles(call: Call, error: GatewayError | None) -> None:
        raise RuntimeError("a bug")

    async with Chained(end=[stumbles, log_call]) as chained:
        answer = await chained.stub.Generate(ask("well"), timeout=5)
        failed = await failing(chained.stub.Generate(ask("long-error"), timeout=5))
    assert answer.id
    assert failed.reason == "INVALID_REQUEST"
    assert [line["code"] for line in logged.calls] == ["OK", "INVALID_ARGUMENT"]
    told = [line for line in logged.errors if line["event"] == "call_not_told"]
    assert [line["request_id"] for line in told] == [line["request_id"] for line in logged.calls]
    assert all(line["exc_info"] for line in told)


async def test_an_oversized_error_still_arrives_whole_and_within_its_budget() -> None:
    """Peers replace a status above 8 KiB at random, so message and details stay within 512 and 2048 bytes."""
    async with Chained() as chained:
        failed = await failing(chained.stub.Generate(ask("long-error")))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.reason == "INVALID_REQUEST"
    assert failed.message.isascii()
    assert len(failed.message) <= 512
    assert len(failed.trailer["grpc-status-details-bin"]) <= 2048
    assert failed.fields[0] == "messages[0].parts[0].text"


async def test_a_blocked_write_whose_caller_left_is_cleaned_up_in_its_own_task(logged: LogLines) -> None:
    """The generator is closed by the task that ran it, without an ERROR line, when a silent reader goes."""
    async with Chained() as chained:
        call = chained.stub.StreamGenerate(ask("endless"))
        await call.read()
        await asyncio.sleep(0.2)  # the flow-control window fills and the next write blocks
        assert len(chained.calls) == 1
        call.cancel()
        assert await chained.calls.drained(2)
        assert len(chained.servicer.cleaned_up) == 1
    assert [line["code"] for line in logged.calls] == ["CANCELLED"]
    assert logged.errors == []


async def test_stop_does_not_outrun_cleanup() -> None:
    """grpc.aio's stop() returns before handlers have cleaned up; the registry waits for them."""
    chained = Chained()
    async with chained:
        call = chained.stub.Generate(ask("slow-cleanup"))
        assert await eventually(lambda: len(chained.calls) == 1)
        await chained.server.stop(0)
        assert await chained.calls.drained(2)
        assert len(chained.servicer.cleaned_up) == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_malformed_bytes_are_the_callers_error(demo: Headgate, logged: LogLines) -> None:
    """Bytes that are no message get INVALID_ARGUMENT, without protobuf's internals and without a traceback."""
    for method, shape in (("Generate", "unary_unary"), ("StreamGenerate", "unary_stream"), ("Embed", "unary_unary")):
        call: Any = getattr(demo.channel, shape)(f"/{SERVICE}/{method}")
        failed = await failing(call(b"\xff\xff\xff\xff garbage"))
        assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
        assert failed.reason == "INVALID_REQUEST"
    assert logged.errors == []
    assert (await demo.stub.Generate(ask("demo/echo"))).candidates


async def test_a_call_without_a_request_is_answered(demo: Headgate) -> None:
    """A caller who closes without a message gets INVALID_ARGUMENT, where grpc.aio alone would never answer."""
    for method, shape in (("Generate", "stream_unary"), ("StreamGenerate", "stream_stream")):
        call: Any = getattr(demo.channel, shape)(f"/{SERVICE}/{method}")
        failed = await failing(call(iter(()), timeout=5))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_an_error_whose_code_is_ok_does_not_hang_the_call() -> None:
    """abort(OK) leaves a caller waiting for ever: such an error is a bug of ours, and answered as one."""

    class Impossible(GatewayError):
        code = grpc.StatusCode.OK

    assert to_status(Impossible("no"), "id", []).code is grpc.StatusCode.INTERNAL


async def test_every_method_is_a_literal_coroutine_or_async_generator_function() -> None:
    """grpc.aio takes anything else for a synchronous handler, or answers an empty stream with OK."""
    for name in ("Generate", "Embed", "ListModels", "Health"):
        assert inspect.iscoroutinefunction(getattr(InferenceServicer, name))
    assert inspect.isasyncgenfunction(InferenceServicer.StreamGenerate)


async def test_a_request_that_is_wrong_all_over_is_not_read_to_its_end(demo: Headgate, logged: LogLines) -> None:
    """A million empty parts cost no more than the first violations, and the log line stays small."""
    request = ask("x" * 100_000)
    request.messages[0].parts.extend(pb.Part() for _ in range(100_000))
    failed = await failing(demo.stub.Generate(request))
    assert failed.fields[:2] == ["model", "messages[0].parts[1]"]
    (line,) = logged.calls
    assert len(str(line)) < 2000


async def test_unknown_methods_and_services_are_unimplemented(demo: Headgate, logged: LogLines) -> None:
    """Methods that do not exist get UNIMPLEMENTED, in our service and elsewhere."""
    for path in (f"/{SERVICE}/Nope", "/other.Service/Nope"):
        call: Any = demo.channel.unary_unary(path)
        failed = await failing(call(b""))
        assert failed.code is grpc.StatusCode.UNIMPLEMENTED
    assert logged.errors == []


async def test_two_servers_cannot_share_a_port(demo: Headgate) -> None:
    """With SO_REUSEPORT, the default, a second server would silently take half of the calls."""
    config = Config.model_validate({"server": {"listen": demo.address}, "auth": {"anonymous": True}})
    second = Application(config)
    with pytest.raises(OSError, match="cannot listen"):
        await second.start()
    await second.stop(delay=0, grace=0)


async def test_pool_slots_survive_cancel_churn(serve: Serve, logged: LogLines) -> None:
    """After 200 cancelled calls over 10 connections every slot is usable, and the vendor holds no open request."""

    async def behave(exchange: Exchange) -> None:
        if exchange.json["messages"][0]["content"] == "answer":
            await answers_text(exchange)
        else:
            await exchange.begin()
            await exchange.chunk(sse({}))
            await exchange.caller_closed.wait()

    async with Vendor(behave) as vendor:
        provider = {"adapter": "openai", "base_url": vendor.base_url, "max_connections": 10}
        async with serve(providers={"vendor": provider}) as headgate:
            for round_number in range(20):
                calls = [headgate.stub.StreamGenerate(ask("vendor/m", "stall")) for _ in range(10)]
                await vendor.exchange(10 * (round_number + 1))
                for call in calls:
                    call.cancel()
                assert await headgate.idle()
            answers = [headgate.stub.Generate(ask("vendor/m", "answer")) for _ in range(10)]
            for answer in answers:
                assert (await answer).candidates[0].message.parts[0].text == "Hello there"
    assert logged.errors == []
    assert [line["code"] for line in logged.calls].count("CANCELLED") == 200


async def test_more_calls_than_the_server_holds_are_refused_with_a_hint(serve: Serve) -> None:
    """Beyond max_concurrent_calls a call gets GATEWAY_OVERLOADED with RetryInfo at once; health still answers."""

    async def stall(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("a")))
        await exchange.caller_closed.wait()

    async with Vendor(stall) as vendor:
        providers = {"vendor": {"adapter": "openai", "base_url": vendor.base_url}}
        async with serve(providers=providers, server={"max_concurrent_calls": 2}) as headgate:
            held = [headgate.stub.StreamGenerate(ask("vendor/m")) for _ in range(2)]
            for call in held:
                await call.read()
            failed = await failing(headgate.stub.Generate(ask("vendor/m")))
            assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "GATEWAY_OVERLOADED")
            assert failed.details["RetryInfo"].retry_delay.seconds == 1
            assert failed.trailer["grpc-retry-pushback-ms"] == "1000"
            for call in held:
                call.cancel()
            assert await headgate.idle()
