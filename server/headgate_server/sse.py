"""Server-sent events: bytes in, events out. Pure; https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

from typing import NamedTuple

from headgate_server.errors import ProviderProtocolError

MAX_EVENT_BYTES = 16 * 1024 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One dispatched event: its type (`message` unless the stream names one) and its data, still UTF-8."""

    type: str
    data: bytes


class Decoder:
    """The state of one event stream. Lines end at CR, LF or CRLF and at nothing else.

    A body that begins as JSON is no event stream, whatever its label: Google sends errors so. It is one event, whole.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._type = b""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._skip_line_feed = False
        self._at_start = True
        self._head = b""
        self._is_json = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes, in order.

        Raises:
            ProviderProtocolError: an event is larger than `max_event_bytes`.
        """
        if self._at_start:
            chunk = self._begin(chunk)
        if self._is_json:
            self._keep(chunk)
            return []
        if self._skip_line_feed and chunk:
            self._skip_line_feed = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        if b"\n" not in chunk and b"\r" not in chunk:
            self._keep(chunk)
            return []
        if chunk.endswith(b"\r"):
            self._skip_line_feed = True
        if self._tail:
            chunk = b"".join((*self._tail, chunk))
            self._tail.clear()
            self._tail_bytes = 0
        lines = chunk.splitlines()
        if not chunk.endswith((b"\n", b"\r")):
            self._keep(lines.pop())
        events: list[Event] = []
        for line in lines:
            if not line:
                self._dispatch(events)
            elif line.startswith(b"data:"):
                self._add(line[6:] if line.startswith(b"data: ") else line[5:])
            elif line.startswith(b"event:"):
                self._type = line[6:].removeprefix(b" ")
            elif line == b"data":
                self._add(b"")
        return events

    def end(self) -> list[Event]:
        """What an unterminated last event holds: vendors close without the blank line that the standard wants."""
        events: list[Event] = []
        if self._is_json:
            self._data = [b"".join(self._tail)]
        elif self._tail:
            events += self.feed(b"\n")
        self._dispatch(events)
        return events

    def _begin(self, chunk: bytes) -> bytes:
        """The first bytes that say something: blank ones before them do not, nor does a byte order mark."""
        head = self._head + chunk
        if len(head) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(head):
            self._head = head
            return b""
        head = head.removeprefix(BYTE_ORDER_MARK).lstrip()
        self._head = b""
        if head:
            self._at_start = False
            self._is_json = head.startswith((b"{", b"["))
        return head

    def _dispatch(self, events: list[Event]) -> None:
        if self._data:
            kind = self._type.decode("utf-8", "replace") if self._type else "message"
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            events.append(Event(kind, data))
            self._data = []
            self._data_bytes = 0
        self._type = b""

    def _add(self, value: bytes) -> None:
        self._data_bytes += len(value) + 1
        self._check(self._data_bytes)
        self._data.append(value)

    def _keep(self, tail: bytes) -> None:
        if not tail:
            return
        self._tail.append(tail)
        self._tail_bytes += len(tail)
        self._check(self._tail_bytes + self._data_bytes)

    def _check(self, size: int) -> None:
        if size > self._max_event_bytes:
            raise ProviderProtocolError(f"the provider sent an event of more than {self._max_event_bytes} bytes")
