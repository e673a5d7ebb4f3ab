"""Clients that a server must survive: raw HTTP/2, because no gRPC library does what they do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import h2.exceptions
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes, Settings
from headgate import v1 as pb

SERVICE = "/headgate.v1.InferenceService/"
FRAME_BYTES = 16384
READ_BYTES = 65536
CANCEL = 8


class Connection:
    """One HTTP/2 connection to the server under attack."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, h2: H2Connection) -> None:
        self._reader = reader
        self._writer = writer
        self._h2 = h2
        self.statuses: Counter[str] = Counter()
        """What streams ended with: a gRPC status by number, or `reset`."""
        self.answered = 0
        """Streams on which the server has begun to answer."""
        self.ended: set[int] = set()
        self.closed = False
        """The server has closed it, or told it to go."""
        self.answers_pings = True
        self._listening = asyncio.create_task(self._listen())

    def begin(self, method: str) -> int:
        """Opens a call without a message; its stream."""
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", SERVICE + method),
                (":authority", "headgate"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            ],
        )
        return stream

    def ask(self, method: str, request: pb.GenerateRequest) -> int:
        """Sends a whole call."""
        stream = self.begin(method)
        body = request.SerializeToString()
        self._h2.send_data(stream, message_prefix(len(body)) + body, end_stream=True)
        return stream

    def reset(self, stream: int) -> None:
        """Takes a call back."""
        self._h2.reset_stream(stream, CANCEL)

    def send_some(self, stream: int, data: bytes | memoryview) -> int:
        """Sends as much as one frame and the server's window take; how much that was."""
        if stream in self.ended:
            return len(data)
        with suppress(h2.exceptions.ProtocolError):
            size = min(len(data), FRAME_BYTES, self._h2.local_flow_control_window(stream))
            if size > 0:
                self._h2.send_data(stream, bytes(data[:size]))
            return size
        return len(data)

    async def ping(self) -> None:
        """Asks whether the server is there."""
        self._h2.ping(b"are you?")
        await self.flush()

    async def flush(self) -> None:
        """Lets out what was put together."""
        with suppress(OSError):  # it may be closed, which `closed` tells
            self._writer.write(self._h2.data_to_send())
            await self._writer.drain()

    async def close(self) -> None:
        """Leaves without a word."""
        self._writer.transport.abort()
        await self._listening

    async def _listen(self) -> None:
        with suppress(OSError, h2.exceptions.ProtocolError):
            while data := await self._reader.read(READ_BYTES):
                for event in self._h2.receive_data(data):
                    self._hear(event)
                answer = self._h2.data_to_send()
                if self.answers_pings:
                    self._writer.write(answer)
        self.closed = True
        self._writer.close()

    def _hear(self, event: object) -> None:
        match event:
            case DataReceived(stream_id=stream) if stream is not None:
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
            case ResponseReceived() | TrailersReceived():
                self.answered += isinstance(event, ResponseReceived)
                if status := dict(event.headers or ()).get(b"grpc-status"):
                    self.statuses[status.decode()] += 1
                    self.ended.add(event.stream_id or 0)
            case StreamReset(stream_id=stream) if stream is not None and stream not in self.ended:
                self.statuses["reset"] += 1
                self.ended.add(stream)
            case ConnectionTerminated():
                self.closed = True


async def connect(address: str, *, reads: bool = True) -> Connection:
    """Connects; one that does not read opens no window to the server's data."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    h2 = H2Connection(H2Configuration(client_side=True))
    if not reads:
        h2.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: 0})
    h2.initiate_connection()
    writer.write(h2.data_to_send())
    return Connection(reader, writer, h2)


@asynccontextmanager
async def connections(address: str, number: int, *, reads: bool = True) -> AsyncIterator[list[Connection]]:
    """So many of them; those that the server refuses say that they are closed."""
    opened: list[Connection] = []
    try:
        while len(opened) < number:
            batch = min(200, number - len(opened))
            opened += await asyncio.gather(*(connect(address, reads=reads) for _ in range(batch)))
            await asyncio.sleep(0)
        yield opened
    finally:
        await asyncio.gather(*(connection.close() for connection in opened))


def message_prefix(size: int) -> bytes:
    """What gRPC puts before a message of so many bytes."""
    return b"\0" + size.to_bytes(4, "big")
