"""Server-sent events, as the standard has them and as vendors send them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from headgate_server.errors import ProviderProtocolError
from headgate_server.sse import Decoder, Event


def decoded(*chunks: bytes) -> list[Event]:
    """The events of a body that comes in these chunks."""
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)] + decoder.end()


def messages(*data: bytes) -> list[Event]:
    """Events without a name."""
    return [Event("message", item) for item in data]


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"data: a\n\ndata: b\n\n", messages(b"a", b"b")),
        (b"data: a\r\n\r\ndata: b\r\rdata:c\n\n", messages(b"a", b"b", b"c")),
        (b"data:  a \ndata\ndata: b\n\n", messages(b" a \n\nb")),
        (b"\xef\xbb\xbfdata: a\n\n", messages(b"a")),
        (b": comment\n\n:\n\nid: 1\nretry: 5\ndata: a\nunknown: x\n\n", messages(b"a")),
        (b"event: error\ndata: a\n\ndata: b\n\n", [Event("error", b"a"), *messages(b"b")]),
        (b"event: ping\n\ndata: a\n\n", messages(b"a")),
        (b"data: a\n\ndata: unfinished", messages(b"a", b"unfinished")),
        (b"data: \xe2\x80\xa8\x0b\x0c\x1c\x85\n\n", messages(b"\xe2\x80\xa8\x0b\x0c\x1c\x85")),
        (b"no field\n\n", []),
        (b"", []),
    ],
)
def test_events(body: bytes, events: list[Event]) -> None:
    """In one piece and byte by byte alike."""
    assert decoded(body) == events
    assert decoded(*(body[n : n + 1] for n in range(len(body)))) == events


lines = st.sampled_from([b"data: x", b"data:", b"event: e", b":c", b"", b"", b"data: \xc3\xa4", b"id"])
ends = st.sampled_from([b"\n", b"\r", b"\r\n"])


@given(st.lists(st.tuples(lines, ends), max_size=12), st.data())
def test_cuts_change_nothing(body_lines: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    """Wherever a body is cut, also between CR and LF, its events are the same."""
    body = b"".join(line + end for line, end in body_lines)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=6)))
    chunks = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert decoded(*chunks) == decoded(body)


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_any_bytes_are_read(chunks: list[bytes]) -> None:
    """Nothing that a vendor sends is an exception."""
    assert all(isinstance(event.data, bytes) for event in decoded(*chunks))


@pytest.mark.parametrize("chunk", [b"data: " + b"x" * 30, b"data: xxxxxxxx\n" * 3])
def test_an_event_has_a_largest_size(chunk: bytes) -> None:
    """One line or many."""
    with pytest.raises(ProviderProtocolError):
        Decoder(max_event_bytes=20).feed(chunk)


@pytest.mark.parametrize("body", [b'\n{"error": 1}', b' \r\n [{"a": 1}]\n', b'\xef\xbb\xbf\n{"error": 1}'])
def test_a_body_that_is_json_is_one_event_wherever_it_is_cut(body: bytes) -> None:
    """Google labels a JSON error as an event stream; blank lines before it change nothing, nor do cuts."""
    whole = Decoder()
    assert whole.feed(body) == []
    (event,) = whole.end()
    assert event.data.strip() == body.removeprefix(b"\xef\xbb\xbf").strip()
    for cut in range(1, len(body)):
        decoder = Decoder()
        assert decoder.feed(body[:cut]) + decoder.feed(body[cut:]) + decoder.end() == [event]
