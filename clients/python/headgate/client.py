"""The client for programs with threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Any, Unpack

import grpc
from headgate import v1 as pb
from headgate.answer import Answer
from headgate.connection import LOOK_SECONDS, Call, Connection, ConnectionOptions, Metadata
from headgate.embeddings import EMBEDS_AT_ONCE, EmbedInputs, Vectors, batches, joined, vectors
from headgate.errors import failure
from headgate.fold import text_of
from headgate.messages import Messages
from headgate.options import CallOptions, EmbedOptions, GenerateOptions, RoundOptions, call_options
from headgate.reading import Reading
from headgate.requests import embed_request, generate_request
from headgate.tool_loop import MAX_ROUNDS, ToolLoop, ToolRun
from headgate.tools import ToolLike, read_tool, refuse_async


class Client:
    """A connection to Headgate; safe to share between threads, one is enough for a process.

        with Client("localhost:50051") as client:
            print(client.generate("fast", "Hello").text)

    `address` is by default the environment's HEADGATE_ADDRESS, else localhost:50051; all that gRPC can resolve is good,
    such as `dns:///headgate.prod:50051` or `ipv4:10.0.0.1:50051,10.0.0.2:50051`. The other arguments are those of
    ConnectionOptions. Nothing is connected before the first call; calls are spread over all addresses that serve, and
    one that no server has begun to answer is sent up to three more times.

    All methods raise the errors of headgate.errors, TypeError and ValueError for arguments that cannot be sent.
    """

    def __init__(self, address: str = "", **options: Unpack[ConnectionOptions]) -> None:
        self._connection = Connection.to(address, options)
        self._channel = _channel(self._connection)
        self._stub = pb.InferenceServiceStub(self._channel)

    def generate(
        self, model: str | pb.GenerateRequest, messages: Messages = (), **options: Unpack[GenerateOptions]
    ) -> Answer:
        """The answer to a conversation, at once; a whole GenerateRequest may be given instead of model and messages."""
        request = generate_request(model, messages, options)
        call = self._connection.call(options)
        try:
            return Answer(self._stub.Generate(request, call.timeout, self._metadata(call)), call.request_id)
        except grpc.RpcError as error:
            raise failure(error, call.request_id) from error

    def stream(
        self, model: str | pb.GenerateRequest, messages: Messages = (), **options: Unpack[GenerateOptions]
    ) -> Stream:
        """The answer to a conversation as it comes; the call is made when reading begins, and ended when it ends."""
        return Stream(self, generate_request(model, messages, options), self._connection.call(options))

    def run_tools(
        self,
        model: str,
        messages: Messages,
        tools: Sequence[ToolLike],
        *,
        max_rounds: int = MAX_ROUNDS,
        **options: Unpack[RoundOptions],
    ) -> ToolRun:
        """Asks, answers the model's tool calls by these functions, and asks again until it calls no more.

        Calls of one round run at the same time, in threads. What a function raises is told to the model, text included.
        The loop ends, too, at a call of a tool without function. `timeout` is for each round.

        Raises:
            TooManyRounds: the model calls tools in the last round, too.
        """
        known = [read_tool(tool) for tool in tools]
        refuse_async(known)
        loop = ToolLoop(generate_request(model, messages, {**options, "tools": known}), known, max_rounds)
        while not loop.done:
            loop.add_answer(self.generate(loop.request, **call_options(options)))
            loop.answer_all()
        return loop.run

    def embed(
        self,
        model: str | pb.EmbedRequest,
        inputs: EmbedInputs = (),
        **options: Unpack[EmbedOptions],
    ) -> Vectors:
        """A row of numbers for each input, as a numpy array of shape (inputs, dimensions).

        Without numpy it is a two-dimensional memoryview. Any number of inputs is sent in batches, a few at a time.
        """
        return vectors(*self._embed(model, inputs, options))

    def embed_response(
        self,
        model: str | pb.EmbedRequest,
        inputs: EmbedInputs = (),
        **options: Unpack[EmbedOptions],
    ) -> pb.EmbedResponse:
        """The same as the contract has it, with usage and cost of all batches; `vectors(response)` reads it."""
        return joined(self._embed(model, inputs, options))

    def models(self, **options: Unpack[CallOptions]) -> list[pb.Model]:
        """The aliases and models that you may name, by name."""
        found: list[pb.Model] = []
        call = self._connection.call({"timeout": LOOK_SECONDS, **options})
        request = pb.ListModelsRequest(page_size=1000)
        try:
            while True:
                page = self._stub.ListModels(request, call.timeout, self._metadata(call))
                found += page.models
                if not page.next_page_token:
                    return found
                request.page_token = page.next_page_token
        except grpc.RpcError as error:
            raise failure(error, call.request_id) from error

    def health(self, **options: Unpack[CallOptions]) -> pb.HealthResponse:
        """The operator's view of the server and its providers."""
        call = self._connection.call({"timeout": LOOK_SECONDS, **options})
        try:
            return self._stub.Health(pb.HealthRequest(), call.timeout, self._metadata(call))
        except grpc.RpcError as error:
            raise failure(error, call.request_id) from error

    def close(self) -> None:
        """Ends the connection and all calls in flight."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _metadata(self, call: Call) -> Metadata:
        """What goes with a call, a fresh token included."""
        if not self._connection.token:
            return call.metadata
        token = self._connection.token()
        if isinstance(token, str):
            return call.bearing(token)
        getattr(token, "close", lambda: None)()  # a coroutine that nobody awaits would warn
        raise TypeError("token must give text; AsyncClient awaits it")

    def _embed(self, model: Any, inputs: Any, options: Any) -> list[pb.EmbedResponse]:
        pieces = batches(embed_request(model, inputs, options))
        call = self._connection.call(options)
        try:
            if len(pieces) == 1:
                return [self._stub.Embed(pieces[0], call.timeout, self._metadata(call))]
            return self._embed_together(pieces, call)
        except grpc.RpcError as error:
            raise failure(error, call.request_id) from error

    def _embed_together(self, pieces: Sequence[pb.EmbedRequest], call: Call) -> list[pb.EmbedResponse]:
        end = time.monotonic() + call.timeout
        metadata = self._metadata(call)
        waiting: deque[Any] = deque()
        responses = []
        try:
            for piece in pieces:
                if len(waiting) == EMBEDS_AT_ONCE:
                    responses.append(waiting.popleft().result())
                waiting.append(self._stub.Embed.future(piece, max(0.0, end - time.monotonic()), metadata))
            while waiting:
                responses.append(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()
        return responses


class Stream:
    """An answer as it comes: iterate over it for events, or over `text`; `final()` is the whole answer.

    Leaving the loop or the `with` block ends the call, at the vendor too. To read only a part and go on later, keep the
    iterator.

        with client.stream("fast", "Hello") as stream:
            for text in stream.text:
                print(text, end="")
        print(stream.final().usage)

    Raises while it is read:
        StreamInterrupted: the answer broke off; `partial` is what came.
        CallFailed: any other of its kinds, with `partial` if anything came.
    """

    def __init__(self, client: Client, request: pb.GenerateRequest, call: Call) -> None:
        self._client = client  # a client that nobody else holds must live as long as its stream
        self._request = request
        self._call = call
        self._events: Any = None
        self._reading = Reading(call.request_id)

    @property
    def request_id(self) -> str:
        """The id that the gateway logs."""
        return self._call.request_id

    @property
    def text(self) -> Generator[str, None, None]:
        """The text of the first candidate, piece by piece."""
        return (text for event in self if (text := text_of(event)))

    def __iter__(self) -> Generator[pb.StreamGenerateResponse, None, None]:
        try:
            while (event := self._next()) is not None:
                yield event
        finally:
            self.close()

    def final(self) -> Answer:
        """The whole answer, once all of it has come: what is left of the stream is read."""
        while self._next() is not None:
            pass
        return self._reading.answer()

    def close(self) -> None:
        """Ends the call, if it has not ended."""
        if self._reading.leave() and self._events is not None:
            _cancel(self._events)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self) -> pb.StreamGenerateResponse | None:
        """The next event; None at the end of a whole answer."""
        if self._reading.ended():
            return None
        if self._events is None:
            metadata = self._client._metadata(self._call)
            self._events = self._client._stub.StreamGenerate(self._request, self._call.timeout, metadata)
        try:
            event: pb.StreamGenerateResponse = next(self._events)
        except StopIteration:
            self._reading.end()
            return None
        except grpc.RpcError as error:
            raise self._reading.fail(error) from error
        self._reading.events.append(event)
        return event


def _channel(connection: Connection) -> grpc.Channel:
    if connection.credentials:
        channel = grpc.secure_channel(connection.address, connection.credentials, connection.channel_options)
    else:
        channel = grpc.insecure_channel(connection.address, connection.channel_options)
    if connection.interceptors:
        channel = grpc.intercept_channel(channel, *connection.interceptors)
    if connection.tracing:
        from headgate.tracing import traced

        channel = traced(channel, connection.tracing)
    return channel


def _cancel(events: Any) -> None:
    """Ends a call of grpc, or the generator that tracing makes of it."""
    if hasattr(events, "cancel"):
        events.cancel()
    else:
        events.close()
