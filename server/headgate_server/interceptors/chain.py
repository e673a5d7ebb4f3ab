"""The one interceptor that gRPC sees: it begins each call, checks it, drives the handler, and ends it.

Streaming handlers run as coroutines that write, with every generator closed on every way out, because grpc.aio
neither closes an async generator whose caller went away nor answers when a stray CancelledError escapes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from headgate_server.call import REQUEST_ID, Call, CallRegistry
from headgate_server.errors import InvalidRequest
from headgate_server.interceptors.base import Begin, Check, End, tell
from headgate_server.interceptors.status import fail
from headgate_server.receiving import Reception

if TYPE_CHECKING:
    # grpcio's own classes are generic for type checkers only.
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

    from headgate_server.runtime import Runtime

Respond = Callable[[Call], Awaitable[Any]]
Serialize = Callable[[Call, Message], bytes]


class Chain(grpc.aio.ServerInterceptor):
    """Every call goes through these, in this order, each of them in the order in which they are listed:

    `begin`, then `before_parse`, which look at metadata alone, then `after_parse`, which have the request, then the
    handler, which gets (request, call). Each `end` comes whatever happened, and hears the one outcome. `runtime` tells
    the generation of the configuration that a new call begins with. Only methods of `service` are touched: health and
    reflection pass.
    """

    def __init__(
        self,
        service: str,
        calls: CallRegistry,
        runtime: Callable[[], Runtime],
        *,
        begin: Sequence[Begin] = (),
        before_parse: Sequence[Check] = (),
        after_parse: Sequence[Check] = (),
        end: Sequence[End] = (),
        reception: Reception | None = None,
    ) -> None:
        self._prefix = f"/{service}/"
        self._calls = calls
        self._runtime = runtime
        self._begin = tuple(begin)
        self._before_parse = tuple(before_parse)
        self._after_parse = tuple(after_parse)
        self._end = tuple(end)
        self._reception = reception or Reception()
        self._handlers: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(self._prefix):
            return handler
        driven = self._handlers.get(method)
        if driven is None:
            driven = self._handlers[method] = self._drive(method, handler)
        return driven

    def _drive(self, method: str, handler: Handler) -> Handler:
        """The handler with everything around it, put together once.

        To gRPC every method takes a stream of bytes, so that the chain runs before the request is received, and can
        answer a caller who ends without one. On the wire that is the same.
        """
        respond = _stream if handler.response_streaming else _unary
        answer = self._around(respond(handler, _serialize(handler)), handler.request_deserializer)

        async def driven(_requests: Any, context: Context) -> Any:
            call = Call(method, context, self._calls, self._runtime())
            self._calls.enter(call)
            timer = None if call.has_deadline else call.end_when_overdue()
            try:
                reply = await answer(call)
                if call.trailer:
                    context.set_trailing_metadata(tuple(call.trailer))
                return reply
            except BaseException as exception:
                await fail(call, exception)
            finally:
                if timer:
                    timer.cancel()
                self._calls.leave(call)

        # types-grpcio knows only the synchronous shapes of handlers.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(cast(Any, driven), None, None)
        return grpc.stream_unary_rpc_method_handler(cast(Any, driven), None, None)

    def _around(self, respond: Respond, parse: Any) -> Respond:
        async def answer(call: Call) -> Any:
            try:
                for begin in self._begin:
                    begin(call)
                await _pass(self._before_parse, call)
                raw = await self._reception.read(call)
                call.request = _parse(parse, raw)
                call.request_bytes = len(raw)
                await _pass(self._after_parse, call)
                return await respond(call)
            finally:
                error = call.end(sys.exception())
                for end in self._end:
                    tell(end, call, error)

        return answer


async def _pass(checks: Sequence[Check], call: Call) -> None:
    for check in checks:
        if waiting := check(call):
            await waiting


def _serialize(handler: Handler) -> Serialize:
    """Serializes, and refuses what is larger than a caller may be sent: the core would tell no reason."""
    serialize: Any = handler.response_serializer

    def serialize_within_limit(call: Call, reply: Message) -> bytes:
        data = cast(bytes, serialize(reply))
        limit = call.runtime.config.server.max_reply_bytes
        if len(data) > limit:
            raise InvalidRequest(f"the answer takes {len(data)} bytes, more than server.max_reply_bytes ({limit})")
        return data

    return serialize_within_limit


def _unary(handler: Handler, serialize: Serialize) -> Respond:
    behaviour: Any = handler.unary_unary

    async def respond(call: Call) -> bytes:
        message = await behaviour(call.request, call)
        reply = serialize(call, message)
        if call.trace:
            call.trace.replied(message)
        if call.entry:
            call.entry.replied(message)
        await _send(call, call.context.send_initial_metadata(((REQUEST_ID, call.request_id),)))
        return reply

    return respond


def _stream(handler: Handler, serialize: Serialize) -> Respond:
    behaviour: Any = handler.unary_stream

    async def respond(call: Call) -> None:
        write = call.context.write
        async with aclosing(behaviour(call.request, call)) as events:
            async for event in events:
                if not call.delivering:
                    call.delivering = True
                    await _send(call, call.context.send_initial_metadata(((REQUEST_ID, call.request_id),)))
                if call.trace:
                    call.trace.replied(event)
                if call.entry:
                    call.entry.replied(event)
                await _send(call, write(serialize(call, event)))

    return respond


def _parse(parse: Any, raw: Any) -> Message:
    if raw is grpc.aio.EOF:
        raise InvalidRequest("the call ended without a request")
    try:
        return cast(Message, parse(raw))
    except DecodeError:
        raise InvalidRequest("the request is not a protobuf message of the expected type") from None


async def _send(call: Call, sending: Awaitable[None]) -> None:
    call.sending = True
    try:
        await sending
        call.sending = False
    except grpc.aio.InternalError:
        # The connection went away under a write: grpc.aio tells by this error, and cancels nobody.
        call.caller_gone = True
        raise asyncio.CancelledError from None
