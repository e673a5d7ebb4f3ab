"""Headgate in this process: a real grpc.aio server on a free port, with a real channel to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from headgate import v1 as pb

from headgate_server.app import Application
from headgate_server.config import Config

DETAILS = {
    name: getattr(error_details_pb2, name)
    for name in ("ErrorInfo", "BadRequest", "RetryInfo", "RequestInfo", "ResourceInfo", "QuotaFailure")
}


@dataclass(slots=True)
class Headgate:
    """A running server and a client of it."""

    application: Application
    address: str
    channel: grpc.aio.Channel
    stub: pb.InferenceServiceAsyncStub

    async def idle(self) -> bool:
        """No call is left in flight, within two seconds; and all are told of."""
        drained = await self.application.calls.drained(2.0)
        self.application.ended.tell()
        return drained


_running: set[Application] = set()


@asynccontextmanager
async def running(**sections: Any) -> AsyncIterator[Headgate]:
    """A server with this configuration, on a free port of loopback. Nothing is asked twice unless `routing` says so."""
    config = configured(**sections)
    application = Application(config)
    _running.add(application)
    address = f"127.0.0.1:{await application.start()}"
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        try:
            yield Headgate(application, address, channel, pb.InferenceServiceStub(channel))
        finally:
            await application.stop(delay=0, grace=0.2)
            _running.discard(application)


def tell_of_ended_calls() -> None:
    """What servers of this test count and log a moment later is counted and logged by now."""
    for application in _running:
        application.ended.tell()


def configured(**sections: Any) -> Config:
    """What `running` serves with these sections."""
    # What this process holds is the tests', not the server's.
    server = {"listen": "127.0.0.1:0", "reflection": True, "max_memory_bytes": 0, **sections.pop("server", {})}
    routing = sections.pop("routing", {"retry": {"max_attempts": 1}})
    admin = {"listen": "127.0.0.1:0", **sections.pop("admin", {})}
    defaults = {"server": server, "admin": admin, "auth": {"anonymous": True}, "routing": routing}
    return Config.model_validate({**defaults, **sections})


def user(text: str) -> pb.Message:
    """One user turn."""
    return pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text=text)])


def ask(model: str, text: str = "Hi", **fields: Any) -> pb.GenerateRequest:
    """A request of one user turn."""
    return pb.GenerateRequest(model=model, messages=[user(text)], **fields)


@dataclass(slots=True)
class Failure:
    """A failed call as a caller sees it, with its google.rpc details by name."""

    code: grpc.StatusCode
    message: str
    details: dict[str, Any]
    trailer: dict[str, str | bytes]

    @property
    def reason(self) -> str:
        info = self.details.get("ErrorInfo")
        return info.reason if info else ""

    @property
    def facts(self) -> dict[str, str]:
        return dict(self.details["ErrorInfo"].metadata)

    @property
    def fields(self) -> list[str]:
        """Field paths of BadRequest."""
        bad_request = self.details.get("BadRequest")
        return [violation.field for violation in bad_request.field_violations] if bad_request else []


def failure(error: grpc.aio.AioRpcError) -> Failure:
    """What a failed call says."""
    trailer = dict(error.trailing_metadata() or ())
    details: dict[str, Message] = {}
    packed = trailer.get("grpc-status-details-bin", b"")
    assert isinstance(packed, bytes)
    for detail in status_pb2.Status.FromString(packed).details:
        name = detail.TypeName().rpartition(".")[2]
        assert name not in details, f"{name} stands twice"
        message = DETAILS[name]()
        assert detail.Unpack(message)
        details[name] = message
    return Failure(error.code(), error.details() or "", details, trailer)


async def failing(call: Any) -> Failure:
    """Awaits a call, or reads a stream, that must fail."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return failure(error)
    raise AssertionError("the call did not fail")


async def until_failure(call: Any) -> tuple[list[pb.StreamGenerateResponse], Failure]:
    """What a stream delivered before it failed, as it must."""
    events: list[pb.StreamGenerateResponse] = []
    try:
        async for event in call:
            events.append(event)  # noqa: PERF401  # what came before the failure counts
    except grpc.aio.AioRpcError as error:
        return events, failure(error)
    raise AssertionError("the stream did not fail")


async def eventually(condition: Any, seconds: float = 2.0) -> bool:
    """Whether the condition becomes true in time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
    return True
