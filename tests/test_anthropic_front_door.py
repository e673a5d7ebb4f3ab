"""Anthropic's wire through the front door: what the vendor receives and what the caller gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
from headgate import v1 as pb

from tests.conftest import Serve
from tests.fold import check_invariants, fold
from tests.headgate_process import ask, failing
from tests.vendor import Exchange, Vendor, sse

WIRE = Path(__file__).parent / "wire" / "anthropic"
LIMIT = pb.GenerationConfig(max_output_tokens=99)
START = {"type": "message_start", "message": {"id": "msg_1", "model": "m", "usage": {"input_tokens": 3}}}
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "their words"}}


def at(vendor: Vendor) -> dict[str, Any]:
    """A provider of Anthropic's wire at this vendor."""
    return {"host": "anthropic", "base_url": vendor.base_url, "api_key": "secret"}


async def answers(exchange: Exchange) -> None:
    """A turn with thinking and calls, plain or streamed as asked."""
    if exchange.json.get("stream"):
        await exchange.begin()
        await exchange.chunk((WIRE / "thinking-and-calls.sse").read_bytes())
        await exchange.end()
    else:
        await exchange.answer(200, (WIRE / "thinking-and-calls.json").read_bytes())


async def is_overloaded(exchange: Exchange) -> None:
    """A vendor that begins a 200 stream, and then says that it is overloaded."""
    await exchange.begin()
    await exchange.chunk(sse(START, "message_start") + sse({"type": "ping"}, "ping"))
    await exchange.chunk(sse(OVERLOADED, "error"))
    await exchange.end()


async def test_a_streamed_answer_goes_back_as_history(serve: Serve) -> None:
    """Thinking with its signature, redacted thinking, text and calls, byte for byte as the vendor gave them."""
    async with Vendor(answers) as vendor:
        async with serve(providers={"anthropic": at(vendor)}) as headgate:
            request = ask("anthropic/claude-opus-5", config=LIMIT)
            events = [event async for event in headgate.stub.StreamGenerate(request)]
            check_invariants(events)
            message = fold(events).candidates[0].message
            calls = [part.tool_call for part in message.parts if part.HasField("tool_call")]
            results = [pb.Part(tool_result=pb.ToolResult(call_id=call.id)) for call in calls]
            request.messages.extend([message, pb.Message(role=pb.ROLE_TOOL, parts=results)])
            await headgate.stub.Generate(request)
    first, second = vendor.exchanges
    assert (first.path, first.headers["x-api-key"]) == ("/v1/messages", "secret")
    assert first.headers["anthropic-version"] == "2023-06-01"
    given = json.loads((WIRE / "thinking-and-calls.json").read_bytes())
    assert second.json["messages"][1] == {"role": "assistant", "content": given["content"]}
    assert b'"input":{"city": "Trieste"}' in second.body


async def test_an_overload_within_a_stream_before_content_moves_to_the_next_target(serve: Serve) -> None:
    """Neither message_start nor a ping is content."""
    async with Vendor(is_overloaded) as busy, Vendor(answers) as healthy:
        models = {"fast": {"targets": [{"provider": name, "model": "claude-opus-5"} for name in ("busy", "healthy")]}}
        async with serve(providers={"busy": at(busy), "healthy": at(healthy)}, models=models) as headgate:
            call = headgate.stub.StreamGenerate(ask("fast", config=LIMIT))
            answer = fold([event async for event in call])
            failed = await failing(headgate.stub.StreamGenerate(ask("busy/claude-opus-5", config=LIMIT)))
    assert answer.provider == "healthy"
    assert [attempt.error_reason for attempt in answer.attempts] == ["PROVIDER_OVERLOADED", ""]
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_OVERLOADED")
    assert "their words" not in failed.message
