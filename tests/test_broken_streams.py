"""A stream that breaks at any event, and at any byte of one: no text twice, no end that passes for a whole answer."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest
from headgate import v1 as pb

from tests.conftest import LogLines
from tests.fold import check_invariants, fold
from tests.headgate_process import Failure, Headgate, ask, eventually, failure, running
from tests.vendor import SSE_HEADERS, Exchange, Vendor, answers_text, sse

BREAKS = ("reset", "end", "stall")
CLOCK_SECONDS = 2.0
AT_ONCE = 64
HEALTHY_TEXT = "Hello there"
CUT = re.compile(rb"cut (\d+)")


@dataclass(frozen=True, slots=True)
class Step:
    """One event of a vendor's stream; `adds` is what a caller reads of it, `closes` how many parts are whole by it."""

    data: bytes
    adds: str = ""
    closes: int = 0
    finishes: bool = False
    """Everything is said, though the stream goes on."""
    completes: bool = False


def chunk(adds: str = "", finish: str | None = None, closes: int = 0, **delta: Any) -> Step:
    """A Chat Completions chunk."""
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    event = {"id": "chatcmpl-1", "created": 1_790_000_000, "model": "vendor-model", "choices": choices}
    return Step(sse(_raw(event)), adds, closes, finishes=finish is not None)


def call_chunk(adds: str, **named: Any) -> Step:
    """A chunk of a tool call."""
    function = {"arguments": adds, **({"name": "look_up"} if named else {})}
    return chunk(adds, tool_calls=[{"index": 0, "function": function, **named}])


def block(kind: str, index: int, adds: str = "", closes: int = 0, **fields: Any) -> Step:
    """An event of one content block of the Messages API."""
    name = f"content_block_{kind}"
    return Step(sse(_raw({"type": name, "index": index, **fields}), name), adds, closes)


def message(kind: str, *, finishes: bool = False, completes: bool = False, **fields: Any) -> Step:
    """An event of the Messages API that is of no block."""
    return Step(sse(_raw({"type": kind, **fields}), kind), finishes=finishes, completes=completes)


def _raw(event: Any) -> bytes:
    """JSON in which characters are not escaped, so that a cut can fall within one."""
    return json.dumps(event, ensure_ascii=False).encode()


STREAMS = {
    "openai": (
        chunk(role="assistant", content=""),
        chunk("Let me ", reasoning_content="Let me "),
        chunk("think 🤔.", reasoning_content="think 🤔."),
        chunk("Grüße", content="Grüße"),
        chunk(" aus 東京", content=" aus 東京"),
        call_chunk("", id="call_1", type="function"),
        call_chunk('{"city":'),
        call_chunk('"京"}'),
        chunk(finish="tool_calls", closes=3),
        Step(sse({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}})),
        Step(b"data: [DONE]\n\n", completes=True),
    ),
    "anthropic": (
        message("message_start", message={"id": "msg_1", "model": "vendor-model", "usage": {"input_tokens": 5}}),
        message("ping"),
        block("start", 0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
        block("delta", 0, "Let me ", delta={"type": "thinking_delta", "thinking": "Let me "}),
        block("delta", 0, "think 🤔.", delta={"type": "thinking_delta", "thinking": "think 🤔."}),
        block("delta", 0, delta={"type": "signature_delta", "signature": "c2lnbmF0dXJl"}),
        block("stop", 0, closes=1),
        block("start", 1, content_block={"type": "text", "text": ""}),
        block("delta", 1, "Grüße", delta={"type": "text_delta", "text": "Grüße"}),
        block("delta", 1, " aus 東京", delta={"type": "text_delta", "text": " aus 東京"}),
        block("stop", 1, closes=1),
        block("start", 2, content_block={"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {}}),
        block("delta", 2, '{"city":', delta={"type": "input_json_delta", "partial_json": '{"city":'}),
        block("delta", 2, '"京"}', delta={"type": "input_json_delta", "partial_json": '"京"}'}),
        block("stop", 2, closes=1),
        message("message_delta", finishes=True, delta={"stop_reason": "tool_use"}, usage={"output_tokens": 3}),
        message("message_stop", completes=True),
    ),
}
SPLIT = {"the first content": "Let me ", "later text": " aus 東京"}


@dataclass(slots=True)
class Cut:
    """Where one stream breaks: after `sent`, once a caller has read `seen`. `read` is what the caller has in the end.

    `whole` parts are closed by then; `is_answer` says that the vendor has said all there is.
    """

    sent: bytes
    seen: str
    read: str
    whole: int
    is_answer: bool
    delivered: asyncio.Event = field(default_factory=asyncio.Event)


def cuts_between(steps: Sequence[Step], how: str) -> Iterator[Cut]:
    """A cut behind each event, and one before all of them."""
    for number in range(len(steps) + 1):
        sent = steps[:number]
        yield Cut(
            b"".join(step.data for step in sent),
            seen=(text := "".join(step.adds for step in sent)),
            read=text,
            whole=sum(step.closes for step in sent),
            is_answer=any(step.completes or (step.finishes and how == "end") for step in sent),
        )


def cuts_within(steps: Sequence[Step], adds: str, how: str) -> Iterator[Cut]:
    """A cut at each byte of the event that adds this. One that lacks nothing but its blank line counts, at an end."""
    number = next(n for n, step in enumerate(steps) if step.adds == adds)
    before, step = steps[:number], steps[number]
    sent, seen = b"".join(s.data for s in before), "".join(s.adds for s in before)
    for length in range(1, len(step.data)):
        head = step.data[:length]
        counts = how == "end" and head.rstrip(b"\n") == step.data.rstrip(b"\n")
        yield Cut(sent + head, seen, seen + adds if counts else seen, sum(s.closes for s in before), is_answer=False)


@dataclass(slots=True)
class Heard:
    """What came of one call."""

    events: list[pb.StreamGenerateResponse] = field(default_factory=list)
    text: str = ""
    failed: Failure | None = None


class Breaking:
    """A vendor in front of which a healthy one stands by, and its callers. Each call breaks at a cut of its own."""

    def __init__(self, cuts: Sequence[Cut], how: str) -> None:
        self._cuts = cuts
        self._how = how

    async def behave(self, exchange: Exchange) -> None:
        found = CUT.search(exchange.body)
        assert found
        cut = self._cuts[int(found[1])]
        await exchange.begin(headers=SSE_HEADERS)
        if cut.sent:
            await exchange.chunk(cut.sent)
        if cut.seen:
            await cut.delivered.wait()
        match self._how:
            case "reset":
                exchange.reset()
            case "end":
                await exchange.end()
            case "stall":
                await exchange.caller_closed.wait()

    async def heard(self, headgate: Headgate, number: int) -> Heard:
        """Makes the call that breaks at that cut."""
        cut, heard = self._cuts[number], Heard()
        try:
            async for event in headgate.stub.StreamGenerate(ask("m", f"cut {number}.")):
                heard.events.append(event)
                heard.text += event.reasoning_delta + event.text_delta + event.arguments_delta
                if heard.text == cut.seen:
                    cut.delivered.set()
        except grpc.aio.AioRpcError as error:
            heard.failed = failure(error)
        return heard


async def broken(cuts: Sequence[Cut], how: str, wire: str) -> list[Heard]:
    """What each cut comes to, beside a target in good health."""
    breaking = Breaking(cuts, how)
    at_once = asyncio.Semaphore(AT_ONCE)
    async with Vendor(breaking.behave) as first, Vendor(answers_text) as second:
        patience = {"clocks": {"first_token": CLOCK_SECONDS, "idle": CLOCK_SECONDS}} if how == "stall" else {}
        providers = {
            "a": {"adapter": wire, "base_url": first.base_url, "breaker": {"consecutive_failures": 0}, **patience},
            "b": {"adapter": "openai", "base_url": second.base_url},
        }
        models = {"m": {"targets": [{"provider": "a", "model": "x"}, {"provider": "b", "model": "y"}]}}
        async with running(providers=providers, models=models) as headgate:

            async def one(number: int) -> Heard:
                async with at_once:
                    return await breaking.heard(headgate, number)

            heard = await asyncio.gather(*(one(number) for number in range(len(cuts))))
            assert await headgate.idle()
        await eventually(lambda: first.open_connections == second.open_connections == 0)
    return heard


def check(heard: Heard, cut: Cut, how: str) -> None:
    """Asserts what the contract promises of a stream that broke there."""
    failed_as = "TIMED_OUT" if how == "stall" else "FAILED"
    end = heard.events[-1].generation_end
    attempts = [
        (attempt.provider, pb.AttemptOutcome.Name(attempt.outcome).removeprefix("ATTEMPT_OUTCOME_"))
        for attempt in end.attempts
    ]
    if cut.is_answer:
        assert heard.failed is None
        assert attempts == [("a", "OK")]
    elif not cut.read:
        assert heard.failed is None
        assert attempts == [("a", failed_as), ("b", "OK")]
        assert heard.text == HEALTHY_TEXT
    else:
        assert heard.failed
        assert (heard.failed.code.name, heard.failed.reason) == ("ABORTED", "STREAM_INTERRUPTED")
        assert heard.failed.facts["partial_output"] == "true"
        assert attempts == [("a", failed_as)]
    if cut.read:
        assert heard.text == cut.read
        parts = fold(heard.events).candidates[0].message.parts
        assert [part.incomplete for part in parts] == [number >= cut.whole for number in range(len(parts))]
    check_invariants(heard.events, partial=heard.failed is not None)


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("wire", STREAMS)
async def test_a_stream_that_breaks_between_events_is_whole_or_openly_partial(
    logged: LogLines, wire: str, how: str
) -> None:
    """Before the first content the next target answers whole; later nothing is tried, and every end says what it is."""
    cuts = list(cuts_between(STREAMS[wire], how))
    for heard, cut in zip(await broken(cuts, how, wire), cuts, strict=True):
        check(heard, cut, how)
    assert logged.errors == []


@pytest.mark.parametrize("adds", SPLIT.values(), ids=SPLIT)
@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("wire", STREAMS)
async def test_an_event_that_breaks_at_any_byte_adds_nothing(logged: LogLines, wire: str, how: str, adds: str) -> None:
    """What is left of it is neither delivered nor taken for an answer."""
    cuts = list(cuts_within(STREAMS[wire], adds, how))
    for heard, cut in zip(await broken(cuts, how, wire), cuts, strict=True):
        check(heard, cut, how)
    assert logged.errors == []
