"""The client for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, TypeVar, Unpack
from weakref import WeakSet

import grpc
import grpc.aio
from headgate import v1 as pb
from headgate.answer import Answer
from headgate.connection import LOOK_SECONDS, Call, Connection, ConnectionOptions, Metadata
from headgate.embeddings import EMBEDS_AT_ONCE, EmbedInputs, Vectors, batches, joined, vectors
from headgate.errors import CallCancelled, failure
from headgate.fold import text_of
from headgate.messages import Messages
from headgate.options import CallOptions, EmbedOptions, GenerateOptions, RoundOptions, call_options
from headgate.reading import Reading
from headgate.requests import embed_request, generate_request
from headgate.tool_loop import MAX_ROUNDS, ToolLoop, ToolRun
from headgate.tools import ToolLike, read_tool

T = TypeVar("T")


class AsyncClient:
    """A connection to Headgate for asyncio; one is enough for an event loop.

        async with AsyncClient("localhost:50051") as client:
            answer = await client.generate("fast", "Hello")
            async for text in client.stream("fast", "Hello").text:
                print(text, end="")

    Everything is as in Client. It may be made before there is an event loop; each loop has a connection of its own.
    """

    def __init__(self, address: str = "", **options: Unpack[ConnectionOptions]) -> None:
        self._connection = Connection.to(address, options)
        self._channels: dict[asyncio.AbstractEventLoop, _Channel] = {}

    async def generate(
        self, model: str | pb.GenerateRequest, messages: Messages = (), **options: Unpack[GenerateOptions]
    ) -> Answer:
        """The answer to a conversation, at once; a whole GenerateRequest may be given instead of model and messages."""
        request = generate_request(model, messages, options)
        call = self._connection.call(options)
        sent = self._stub.Generate(request, timeout=call.timeout, metadata=await self._metadata(call))
        return Answer(await _answered(sent, call), call.request_id)

    def stream(
        self, model: str | pb.GenerateRequest, messages: Messages = (), **options: Unpack[GenerateOptions]
    ) -> AsyncStream:
        """The answer to a conversation as it comes; the call is made when reading begins, and ended when it ends."""
        return AsyncStream(self, generate_request(model, messages, options), self._connection.call(options))

    async def run_tools(
        self,
        model: str,
        messages: Messages,
        tools: Sequence[ToolLike],
        *,
        max_rounds: int = MAX_ROUNDS,
        **options: Unpack[RoundOptions],
    ) -> ToolRun:
        """Asks, answers the model's tool calls by these functions, and asks again until it calls no more.

        Calls of one round run at the same time: async functions in this loop, others in threads. Everything else is as
        in Client.run_tools.
        """
        known = [read_tool(tool) for tool in tools]
        loop = ToolLoop(generate_request(model, messages, {**options, "tools": known}), known, max_rounds)
        while not loop.done:
            loop.add_answer(await self.generate(loop.request, **call_options(options)))
            await loop.answer_all_async()
        return loop.run

    async def embed(
        self,
        model: str | pb.EmbedRequest,
        inputs: EmbedInputs = (),
        **options: Unpack[EmbedOptions],
    ) -> Vectors:
        """A row of numbers for each input, as a numpy array of shape (inputs, dimensions).

        Without numpy it is a two-dimensional memoryview. Any number of inputs is sent in batches, a few at a time.
        """
        return vectors(*await self._embed(model, inputs, options))

    async def embed_response(
        self,
        model: str | pb.EmbedRequest,
        inputs: EmbedInputs = (),
        **options: Unpack[EmbedOptions],
    ) -> pb.EmbedResponse:
        """The same as the contract has it, with usage and cost of all batches; `vectors(response)` reads it."""
        return joined(await self._embed(model, inputs, options))

    async def models(self, **options: Unpack[CallOptions]) -> list[pb.Model]:
        """The aliases and models that you may name, by name."""
        found: list[pb.Model] = []
        call = self._connection.call({"timeout": LOOK_SECONDS, **options})
        request = pb.ListModelsRequest(page_size=1000)
        while True:
            sent = self._stub.ListModels(request, timeout=call.timeout, metadata=await self._metadata(call))
            page = await _answered(sent, call)
            found += page.models
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def health(self, **options: Unpack[CallOptions]) -> pb.HealthResponse:
        """The operator's view of the server and its providers."""
        call = self._connection.call({"timeout": LOOK_SECONDS, **options})
        sent = self._stub.Health(pb.HealthRequest(), timeout=call.timeout, metadata=await self._metadata(call))
        return await _answered(sent, call)

    async def close(self) -> None:
        """Ends the connection of this event loop and all calls in flight."""
        if connected := self._channels.pop(asyncio.get_running_loop(), None):
            for stream in [*connected.streams]:
                stream.close()  # older releases of grpc.aio leave them open
            await connected.channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _stub(self) -> pb.InferenceServiceAsyncStub:
        return self._connected.stub

    @property
    def _connected(self) -> _Channel:
        loop = asyncio.get_running_loop()
        if (connected := self._channels.get(loop)) is None:
            for other in [*self._channels]:
                if other.is_closed():  # its channel holds it, and would never be freed
                    self._channels.pop(other, None)
            connected = self._channels[loop] = _Channel(_channel(self._connection))
        return connected

    async def _metadata(self, call: Call) -> Metadata:
        """What goes with a call, a fresh token included."""
        if not self._connection.token:
            return call.metadata
        token = self._connection.token()
        return call.bearing(token if isinstance(token, str) else await token)

    async def _embed(self, model: Any, inputs: Any, options: Any) -> list[pb.EmbedResponse]:
        pieces = batches(embed_request(model, inputs, options))
        call = self._connection.call(options)
        if len(pieces) > 1:
            return await self._embed_together(pieces, call)
        sent = self._stub.Embed(pieces[0], timeout=call.timeout, metadata=await self._metadata(call))
        return [await _answered(sent, call)]

    async def _embed_together(self, pieces: Sequence[pb.EmbedRequest], call: Call) -> list[pb.EmbedResponse]:
        end = time.monotonic() + call.timeout
        metadata = await self._metadata(call)
        slots = asyncio.Semaphore(EMBEDS_AT_ONCE)

        async def embedded(piece: pb.EmbedRequest) -> pb.EmbedResponse:
            async with slots:
                left = max(0.0, end - time.monotonic())
                return await _answered(self._stub.Embed(piece, timeout=left, metadata=metadata), call)

        tasks = [asyncio.create_task(embedded(piece)) for piece in pieces]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()


class AsyncStream:
    """An answer as it comes: iterate over it for events, or over `text`; `await final()` is the whole answer.

    Leaving the loop or the `async with` block ends the call, at the vendor too. A bare `break` ends it as soon as the
    event loop runs again; the `async with` block, or `aclosing` around an iterator, at once. Raises what Stream raises.

        async with client.stream("fast", "Hello") as stream:
            async for text in stream.text:
                print(text, end="")
        print((await stream.final()).usage)
    """

    def __init__(self, client: AsyncClient, request: pb.GenerateRequest, call: Call) -> None:
        self._client = client  # a client that nobody else holds must live as long as its stream
        self._request = request
        self._call = call
        self._sent: Any = None
        self._events: AsyncIterator[pb.StreamGenerateResponse] | None = None
        self._reading = Reading(call.request_id)

    @property
    def request_id(self) -> str:
        """The id that the gateway logs."""
        return self._call.request_id

    @property
    def text(self) -> AsyncGenerator[str, None]:
        """The text of the first candidate, piece by piece."""
        return self._text()

    async def _text(self) -> AsyncGenerator[str, None]:
        async with aclosing(self._each()) as events:
            async for event in events:
                if text := text_of(event):
                    yield text

    def __aiter__(self) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        return self._each()

    async def _each(self) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        try:
            while (event := await self._next()) is not None:
                yield event
        finally:
            self.close()

    async def final(self) -> Answer:
        """The whole answer, once all of it has come: what is left of the stream is read."""
        while await self._next() is not None:
            pass
        return self._reading.answer()

    def close(self) -> None:
        """Ends the call, if it has not ended."""
        if self._reading.leave() and self._sent is not None:
            self._sent.cancel()

    async def aclose(self) -> None:
        """The same, for `contextlib.aclosing`."""
        self.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _next(self) -> pb.StreamGenerateResponse | None:
        """The next event; None at the end of a whole answer."""
        if self._reading.ended():
            return None
        if self._events is None:
            self._events = await self._begun()
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            self._reading.end()
            return None
        except grpc.RpcError as error:
            raise self._reading.fail(error) from error
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            self.close()  # the stream or its client was, from elsewhere
            self._reading.ended()
            return None
        self._reading.events.append(event)
        return event

    async def _begun(self) -> AsyncIterator[pb.StreamGenerateResponse]:
        metadata = await self._client._metadata(self._call)
        self._reading.ended()  # it may have been left while its token was made
        connected = self._client._connected
        connected.streams.add(self)
        self._sent = connected.stub.StreamGenerate(self._request, timeout=self._call.timeout, metadata=metadata)
        return aiter(self._sent)


class _Channel:
    """A channel, its stub, and the streams that somebody may be reading."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.stub: pb.InferenceServiceAsyncStub = pb.InferenceServiceStub(channel)
        self.streams: WeakSet[AsyncStream] = WeakSet()


async def _answered(sent: Awaitable[T], call: Call) -> T:
    try:
        return await sent
    except grpc.RpcError as error:
        raise failure(error, call.request_id) from error
    except asyncio.CancelledError:
        if _is_cancelled():
            raise
        raise CallCancelled("the client was closed", request_id=call.request_id) from None


def _is_cancelled() -> bool:
    """Whether this task is; grpc.aio raises CancelledError, too, where only the call was ended."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _channel(connection: Connection) -> grpc.aio.Channel:
    interceptors = list(connection.interceptors)
    if connection.tracing:
        from headgate.tracing import aio_interceptors

        interceptors = [*aio_interceptors(connection.tracing), *interceptors]
    if connection.credentials:
        return grpc.aio.secure_channel(
            connection.address, connection.credentials, connection.channel_options, interceptors=interceptors
        )
    return grpc.aio.insecure_channel(connection.address, connection.channel_options, interceptors=interceptors)
