"""The ways in which a vendor fails a request before anything of its answer counts, and what that is called."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import trustme

from tests.transports import tls_of
from tests.vendor import (
    JSON_HEADERS,
    SSE_HEADERS,
    Behaviour,
    Exchange,
    Vendor,
    completion,
    finish_chunk,
    json_bytes,
    sse,
    text_chunk,
    usage_chunk,
)

CLOCK_SECONDS = 0.6
HALF = 40
"""Bytes of an answer that end within its first event, or within its JSON."""
IMPATIENT = {"first_token": CLOCK_SECONDS, "total": CLOCK_SECONDS * 1.2}
PATIENT_FOR_BYTES = {"first_token": 20.0, "idle": CLOCK_SECONDS, "total": 20.0}


def healthy_body(exchange: Exchange) -> bytes:
    """What a vendor in good health answers: a matrix, a stream or a completion, as asked."""
    if exchange.path.endswith("/embeddings"):
        rows = [{"index": index, "embedding": [1.0, -0.5]} for index in range(len(exchange.json["input"]))]
        return json_bytes({"data": rows, "model": "m", "usage": {"prompt_tokens": len(rows)}})
    if exchange.json.get("stream"):
        events = [text_chunk("Hello"), text_chunk(" there"), finish_chunk(), usage_chunk()]
        return b"".join(map(sse, events)) + b"data: [DONE]\n\n"
    return json_bytes(completion())


async def begin(exchange: Exchange) -> None:
    """Status and headers of an answer in good health, so far."""
    await exchange.begin(headers=SSE_HEADERS if exchange.json.get("stream") else JSON_HEADERS)


async def answers(exchange: Exchange) -> None:
    """Good health."""
    await begin(exchange)
    await exchange.chunk(healthy_body(exchange))
    await exchange.end()


def refuses_with(status: int, **headers: str) -> Behaviour:
    """Answers that status, with an error object in OpenAI's manner."""

    async def behave(exchange: Exchange) -> None:
        error = {"message": "the vendor's own words", "type": "some_error"}
        await exchange.answer(status, {"error": error}, {name.replace("_", "-"): v for name, v in headers.items()})

    return behave


async def resets(exchange: Exchange) -> None:
    exchange.reset()


async def closes(exchange: Exchange) -> None:
    exchange.writer.close()


async def stalls(exchange: Exchange) -> None:
    await exchange.caller_closed.wait()


async def stalls_in_the_body(exchange: Exchange) -> None:
    await begin(exchange)
    await exchange.caller_closed.wait()


async def sends_half_and_ends(exchange: Exchange) -> None:
    await _send_half(exchange)
    await exchange.end()


async def sends_half_and_closes(exchange: Exchange) -> None:
    await _send_half(exchange)
    exchange.writer.close()


async def sends_half_and_resets(exchange: Exchange) -> None:
    await _send_half(exchange)
    exchange.reset()


async def sends_half_and_stalls(exchange: Exchange) -> None:
    await _send_half(exchange)
    await exchange.caller_closed.wait()


async def drips(exchange: Exchange) -> None:
    """All of it, in more time than silence may last, but never silent for long."""
    await begin(exchange)
    body = healthy_body(exchange)
    for byte in body:
        await exchange.chunk(bytes([byte]))
        await asyncio.sleep(2 * CLOCK_SECONDS / len(body))
    await exchange.end()


async def sends_garbage(exchange: Exchange) -> None:
    await exchange.answer(200, b"<html>It works!</html>", {"content-type": "text/html"})


async def sends_an_error_within_success(exchange: Exchange) -> None:
    error = {"error": {"message": "the vendor's own words", "type": "overloaded_error"}}
    await begin(exchange)
    await exchange.chunk(sse(error) if exchange.json.get("stream") else json_bytes(error))
    await exchange.end()


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to fail. `reason` and `code` are what a caller is told who has no other target; empty for no failure.

    `asked_again` says that the same target is worth another try, `recovers` that the fault can pass between two tries,
    `lasts` how many seconds one try takes at least, `waits` how long the vendor wants to be left alone.
    """

    name: str
    behave: Behaviour
    reason: str
    code: str = "UNAVAILABLE"
    outcome: str = "FAILED"
    http_status: int = 0
    asked_again: bool = True
    recovers: bool = True
    cuts_off: bool = False
    """It is for Headgate to close the connection."""
    by_clock: bool = False
    lasts: float = 0.0
    waits: float = 0.0
    clocks: Mapping[str, float] = field(default_factory=dict)
    listens: bool = True
    is_trusted: bool = True

    def __str__(self) -> str:
        return self.name


def stall(name: str, behave: Behaviour, **facts: int) -> Fault:
    """A fault that a clock of ours ends. After a long wait in vain the same target is not asked again."""
    return Fault(
        name,
        behave,
        "PROVIDER_TIMEOUT",
        outcome="TIMED_OUT",
        asked_again=False,
        cuts_off=True,
        by_clock=True,
        lasts=CLOCK_SECONDS,
        clocks=IMPATIENT,
        **facts,  # type: ignore[arg-type]  # http_status alone
    )


LIMITED = "PROVIDER_RATE_LIMITED"
OVERLOADED = "PROVIDER_OVERLOADED"
UNREACHABLE = "PROVIDER_UNREACHABLE"
UNREADABLE = "PROVIDER_PROTOCOL_ERROR"

FAULTS = (
    Fault(
        "429 with Retry-After",
        refuses_with(429, retry_after="1"),
        LIMITED,
        "RESOURCE_EXHAUSTED",
        http_status=429,
        waits=1.0,
    ),
    Fault("429", refuses_with(429), LIMITED, "RESOURCE_EXHAUSTED", http_status=429),
    Fault("500", refuses_with(500), "PROVIDER_ERROR", http_status=500),
    Fault("503", refuses_with(503), OVERLOADED, http_status=503),
    Fault("529", refuses_with(529), OVERLOADED, http_status=529),
    Fault("408", refuses_with(408), "PROVIDER_TIMEOUT", outcome="TIMED_OUT", http_status=408),
    Fault("409", refuses_with(409), "PROVIDER_ERROR", http_status=409),
    Fault(
        "a redirect", refuses_with(307, location="http://127.0.0.1:1/"), UNREADABLE, http_status=307, asked_again=False
    ),
    Fault("no connection", answers, UNREACHABLE, recovers=False, listens=False),
    Fault("a certificate that nobody trusts", answers, UNREACHABLE, recovers=False, is_trusted=False),
    Fault("a reset before the headers", resets, UNREACHABLE),
    Fault("a close before the headers", closes, UNREACHABLE),
    stall("a stall before the headers", stalls),
    stall("a stall in the body", stalls_in_the_body, http_status=200),
    stall("half an event, then a stall", sends_half_and_stalls, http_status=200),
    Fault("half an event, then a reset", sends_half_and_resets, UNREADABLE, http_status=200),
    Fault("half an event, then a close", sends_half_and_closes, UNREADABLE, http_status=200),
    Fault("half an event, then the end", sends_half_and_ends, UNREADABLE, http_status=200, asked_again=False),
    Fault("garbage", sends_garbage, UNREADABLE, http_status=200, asked_again=False),
    Fault("an error within a 200", sends_an_error_within_success, OVERLOADED, http_status=200),
    Fault("a slow drip", drips, "", "OK", "OK", http_status=200, clocks=PATIENT_FOR_BYTES, lasts=CLOCK_SECONDS),
)


@asynccontextmanager
async def vendor_with(fault: Fault, times: float = math.inf) -> AsyncIterator[Vendor]:
    """A vendor that treats its first `times` requests so, and answers then."""
    faults_left = times

    async def behave(exchange: Exchange) -> None:
        nonlocal faults_left
        faults_left -= 1
        await (fault.behave if faults_left >= 0 else answers)(exchange)

    if not fault.listens:
        with port_without_listener() as port:
            yield Vendor(behave, port=port)
        return
    async with Vendor(behave, tls=None if fault.is_trusted else _untrusted()) as vendor:
        yield vendor


def _untrusted() -> ssl.SSLContext:
    return tls_of(trustme.CA(), "127.0.0.1")


@contextmanager
def port_without_listener() -> Iterator[int]:
    """A port that refuses connections and that nobody else can listen on meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@contextmanager
def port_without_answer() -> Iterator[int]:
    """A port where every connection is attempted in vain: its queue is full, and nobody takes from it."""
    with ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def _send_half(exchange: Exchange) -> None:
    await begin(exchange)
    await exchange.chunk(healthy_body(exchange)[:HALF])
