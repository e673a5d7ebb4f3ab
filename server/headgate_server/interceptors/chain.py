"""The one interceptor that gRPC sees: it parses, applies the others in order, and drives the handler.

Streaming handlers run as coroutines that write, with every generator closed on every way out, because grpc.aio
neither closes an async generator whose caller went away nor answers when a stray CancelledError escapes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from headgate_server.call import REQUEST_ID, Call, CallRegistry
from headgate_server.errors import InvalidRequest
from headgate_server.interceptors.base import Interceptor

if TYPE_CHECKING:
    # grpcio's own classes are generic for type checkers only.
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

Respond = Callable[[Call], Awaitable[Any]]


class Chain(grpc.aio.ServerInterceptor):
    """Applies `before_parse`, parses, applies `after_parse`, and calls the handler with (request, call).

    Only methods of `service` are touched: health and reflection pass.
    """

    def __init__(
        self,
        service: str,
        calls: CallRegistry,
        *,
        before_parse: Sequence[Interceptor],
        after_parse: Sequence[Interceptor] = (),
    ) -> None:
        self._prefix = f"/{service}/"
        self._calls = calls
        self._before_parse = tuple(before_parse)
        self._after_parse = tuple(after_parse)
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
        parse = handler.request_deserializer
        serialize = handler.response_serializer

        async def unary(raw: bytes, context: Context) -> Message:
            async def respond(call: Call) -> Message:
                behaviour = cast(Callable[[Message, Call], Awaitable[Message]], handler.unary_unary)
                reply = await behaviour(cast(Message, call.request), call)
                await _send(call, context.send_initial_metadata(((REQUEST_ID, call.request_id),)))
                return reply

            return cast(Message, await self._run(method, raw, context, parse, respond))

        async def stream(raw: bytes, context: Context) -> None:
            async def respond(call: Call) -> None:
                behaviour = cast(Callable[[Message, Call], AsyncGenerator[Message, None]], handler.unary_stream)
                began = False
                async with aclosing(behaviour(cast(Message, call.request), call)) as events:
                    async for event in events:
                        if not began:
                            began = True
                            await _send(call, context.send_initial_metadata(((REQUEST_ID, call.request_id),)))
                        await _send(call, context.write(event))

            await self._run(method, raw, context, parse, respond)

        # types-grpcio knows only the synchronous shapes of handlers.
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(cast(Any, stream), None, serialize)
        return grpc.unary_unary_rpc_method_handler(cast(Any, unary), None, serialize)

    async def _run(self, method: str, raw: bytes, context: Context, parse: Any, respond: Respond) -> Any:
        call = Call(method, context, self._calls)
        self._calls.enter(call)
        try:
            async with AsyncExitStack() as around:
                for interceptor in self._before_parse:
                    await around.enter_async_context(interceptor(call))
                call.request = _parse(parse, raw)
                for interceptor in self._after_parse:
                    await around.enter_async_context(interceptor(call))
                return await respond(call)
        finally:
            self._calls.leave(call)


def _parse(parse: Callable[[bytes], Message], raw: bytes) -> Message:
    try:
        return parse(raw)
    except DecodeError:
        raise InvalidRequest("the request is not a protobuf message of the expected type") from None


async def _send(call: Call, sending: Awaitable[None]) -> None:
    try:
        await sending
    except grpc.aio.InternalError:
        # The connection went away under a write: grpc.aio tells by this error, and cancels nobody.
        call.caller_gone = True
        raise asyncio.CancelledError from None
