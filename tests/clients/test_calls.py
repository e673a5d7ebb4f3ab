"""What Client and AsyncClient promise of calls and streams, against a scripted server."""

from __future__ import annotations

import asyncio
import gc
from contextlib import aclosing, closing
from typing import Any

import grpc
import pytest
from headgate import AsyncClient, Client, StreamInterrupted, v1 as pb
from headgate.errors import CallCancelled, DeadlineExceeded
from headgate.fold import fold
from headgate.testing import UNKNOWN_EVENT, Reply, ScriptedServer, events_of

from tests.clients.both import connected, ended

UNICODE = "Grüße, 世界, 👩‍👩‍👧, \u202e\u05e9\u05dc\u05d5\u05dd, \x00 and e\u0301"


async def test_a_call_is_answered(client: Any, server: ScriptedServer) -> None:
    """Text goes there and back, whatever it is."""
    server.script("fast", Reply(text=UNICODE))
    answer = await client.generate("fast", UNICODE, temperature=0.5)
    assert answer.text == UNICODE
    assert answer.finish_reason == pb.FINISH_REASON_STOP
    assert server.calls[0].request == pb.GenerateRequest(
        model="fast",
        messages=[pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text=UNICODE)])],
        config=pb.GenerationConfig(temperature=0.5),
    )


async def test_a_stream_is_the_same_answer_piece_by_piece(client: Any, server: ScriptedServer) -> None:
    """Events, text and the fold of one stream agree with the plain answer."""
    pieces = list(UNICODE)
    server.script("fast", Reply(text=pieces))
    events = [event async for event in client.stream("fast", "Hi")]
    assert [event.text_delta for event in events if event.text_delta] == pieces
    assert [text async for text in client.stream("fast", "Hi").text] == pieces
    whole = await client.generate("fast", "Hi")
    assert (await client.stream("fast", "Hi").final()).proto == whole.proto


async def test_a_stream_read_in_part_is_read_to_its_end_by_final(client: Any, server: ScriptedServer) -> None:
    """What the iterator had taken is in the answer, too, and nothing is left to iterate over."""
    server.script("fast", Reply(text=["a", "b", "c"]))
    stream = client.stream("fast", "Hi")
    events = aiter(stream)
    await anext(events)
    answer = await stream.final()
    assert answer.text == "abc"
    assert (await stream.final()) is answer
    assert [event async for event in events] == []


async def test_nothing_is_sent_before_a_stream_is_read(client: Any, server: ScriptedServer) -> None:
    """A stream that nobody reads costs nothing."""
    client.stream("fast", "Hi")
    assert server.calls == []


async def test_leaving_a_loop_ends_the_call(client: Any, server: ScriptedServer) -> None:
    """The server sees the cancellation of a stream whose loop was left by break."""
    server.script("slow", Reply(text=["a", "b"], hang=True))
    async for text in client.stream("slow", "Hi").text:
        assert text == "a"
        break
    gc.collect()  # the test's own wrapper around Client is not freed by a break
    assert await ended(server) == "CANCELLED"


async def test_leaving_a_block_ends_the_call(client: Any, server: ScriptedServer) -> None:
    """So does the end of `with`, and what had come is kept."""
    server.script("slow", Reply(text=["a", "b"], hang=True))
    async with client.stream("slow", "Hi") as stream:
        assert await anext(stream.text) == "a"
    assert await ended(server) == "CANCELLED"
    with pytest.raises(CallCancelled) as caught:
        await stream.final()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"


def test_a_plain_break_ends_the_call_at_once(server: ScriptedServer) -> None:
    """Client's stream is ended by the break itself, also when the stream has a name."""
    server.script("slow", Reply(text=["a", "b"], hang=True))
    with Client(server.address) as client:
        stream = client.stream("slow", "Hi")
        for _ in stream.text:
            break
        with pytest.raises(CallCancelled):
            stream.final()
        assert server.calls[-1].wait() == "CANCELLED"


async def test_closing_an_iterator_ends_the_call_at_once(server: ScriptedServer) -> None:
    """`aclosing` and `closing` around `text` are for those who want no `with` around the stream."""
    server.script("slow", Reply(text=["a", "b"], hang=True))
    async with AsyncClient(server.address) as client:
        async with aclosing(client.stream("slow", "Hi").text) as texts:
            assert await anext(texts) == "a"
        assert await ended(server) == "CANCELLED"
    with Client(server.address) as sync:
        with closing(sync.stream("slow", "Hi").text) as pieces:
            assert await asyncio.to_thread(next, pieces) == "a"
        assert await ended(server) == "CANCELLED"


async def test_a_stream_closed_from_elsewhere_is_left(client: Any, server: ScriptedServer) -> None:
    """Who reads it is told by CallCancelled, with what had come, and its own task is not cancelled."""
    server.script("slow", Reply(text=["a", "b"], hang=True))
    stream = client.stream("slow", "Hi")
    texts = stream.text
    assert [await anext(texts), await anext(texts)] == ["a", "b"]
    reading = asyncio.ensure_future(anext(texts))
    await asyncio.sleep(0.05)
    stream.close()
    with pytest.raises(CallCancelled) as caught:
        await reading
    assert caught.value.partial is not None
    assert caught.value.partial.text == "ab"
    assert await ended(server) == "CANCELLED"


async def test_closing_a_client_fails_what_is_in_flight(server: ScriptedServer) -> None:
    """AsyncClient's calls and streams say CallCancelled; the tasks that wait for them are not cancelled."""
    server.script("slow", Reply(text="a", hang=True))
    client = AsyncClient(server.address)
    calls = [client.generate("slow", "Hi"), client.stream("slow", "Hi").final(), client.embed("slow", ["Hi"] * 1025)]
    tasks = [asyncio.create_task(call) for call in calls]
    await _arrival(server, 4)
    await client.close()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [CallCancelled] * 3


async def test_a_stream_left_before_its_token_is_not_sent(server: ScriptedServer) -> None:
    """Closing it while a token is fetched costs no call."""
    server.script("fast", Reply(text="a"))
    asked = asyncio.Event()
    given = asyncio.Event()

    async def token() -> str:
        asked.set()
        await given.wait()
        return "t"

    async with AsyncClient(server.address, token=token) as client:
        stream = client.stream("fast", "Hi")
        reading = asyncio.create_task(stream.final())
        await asked.wait()
        stream.close()
        given.set()
        with pytest.raises(CallCancelled):
            await reading
    assert server.calls == []


async def test_a_cancelled_task_ends_its_call(server: ScriptedServer) -> None:
    """AsyncClient's calls end with the task that waits for them, plain ones and streams."""
    server.script("slow", Reply(text="a", hang=True))
    async with AsyncClient(server.address) as client:
        for call in (client.generate("slow", "Hi"), client.stream("slow", "Hi").final()):
            task = asyncio.create_task(call)
            await _arrival(server, len(server.calls) + 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await ended(server) == "CANCELLED"


async def test_a_stream_keeps_its_client(kind: str, server: ScriptedServer) -> None:
    """A client that nobody else holds lives until its stream is read."""
    server.script("fast", Reply(text=["a", "b"], pause=0.01))
    if kind == "async":
        assert "".join([text async for text in AsyncClient(server.address).stream("fast", "Hi").text]) == "ab"
    else:
        assert await asyncio.to_thread(lambda: "".join(Client(server.address).stream("fast", "Hi").text)) == "ab"


async def test_calls_have_deadlines(kind: str, server: ScriptedServer) -> None:
    """Ten minutes unless the client or the call says otherwise; ten seconds for a look at the server."""
    server.script("fast", Reply(text="a"))
    async with connected(kind, server.address) as client:
        await client.generate("fast", "Hi")
        await client.health()
        await client.generate("fast", "Hi", timeout=20)
    async with connected(kind, server.address, timeout=30) as client:
        await client.stream("fast", "Hi").final()
        await client.embed("fast", "Hi")
    timeouts = [call.timeout for call in server.calls]
    assert timeouts == [pytest.approx(seconds, abs=5) for seconds in (600, 10, 20, 30, 30)]


async def test_a_deadline_that_passes_is_an_error(client: Any, server: ScriptedServer) -> None:
    """Plain calls and streams fail with DeadlineExceeded, streams with what had come."""
    server.script("slow", Reply(text=["a", "b"], hang=True))
    with pytest.raises(DeadlineExceeded):
        await client.generate("slow", "Hi", timeout=0.2)
    with pytest.raises(DeadlineExceeded) as caught:
        await client.stream("slow", "Hi", timeout=0.3).final()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "ab"
    assert await ended(server) == "CANCELLED"


async def test_an_unknown_event_is_ignored(client: Any, server: ScriptedServer) -> None:
    """Events of a later release change nothing, wherever they stand."""
    known = Reply(text=["a", "b"]).stream()
    mixed = [event for pair in zip(known, [UNKNOWN_EVENT] * len(known), strict=True) for event in pair]
    server.script("next", Reply(events=[UNKNOWN_EVENT, *mixed]))
    assert [text async for text in client.stream("next", "Hi").text] == ["a", "b"]
    assert (await client.stream("next", "Hi").final()).proto == Reply(text="ab").unary()


async def test_a_broken_stream_gives_what_came(client: Any, server: ScriptedServer) -> None:
    """StreamInterrupted carries the part that was delivered, marked as incomplete, and is raised again by final()."""
    server.script("cut", Reply(text=["a", "b"], error=StreamInterrupted("the vendor broke off")))
    stream = client.stream("cut", "Hi")
    texts = stream.text
    assert [await anext(texts), await anext(texts)] == ["a", "b"]
    with pytest.raises(StreamInterrupted) as caught:
        await anext(texts)
    partial = caught.value.partial
    assert partial is not None
    assert partial.text == "ab"
    assert partial.message.parts[0].incomplete
    assert partial.finish_reason == pb.FINISH_REASON_ERROR
    with pytest.raises(StreamInterrupted):
        await stream.final()


@pytest.mark.parametrize("reply", [Reply(events=[]), Reply(events=Reply(text="ab").stream()[:-1])])
async def test_a_stream_without_its_end_is_not_whole(client: Any, server: ScriptedServer, reply: Reply) -> None:
    """Status OK alone does not make an answer."""
    server.script("odd", reply)
    with pytest.raises(StreamInterrupted):
        await client.stream("odd", "Hi").final()


async def test_a_partial_end_is_not_whole_either(client: Any, server: ScriptedServer) -> None:
    """A generation_end that says partial is an interruption, whatever the status."""
    server.script("odd", Reply(events=events_of(Reply(text="ab").unary(), ["a", "b"], partial=True)))
    with pytest.raises(StreamInterrupted) as caught:
        await client.stream("odd", "Hi").final()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "ab"


async def test_text_is_the_first_candidates(client: Any, server: ScriptedServer) -> None:
    """Of several candidates `text` gives the first one's; `final()` has all."""
    message = pb.Message(role=pb.ROLE_ASSISTANT, parts=[pb.Part(text="one")])
    other = pb.Message(role=pb.ROLE_ASSISTANT, parts=[pb.Part(text="two")])
    response = pb.GenerateResponse(
        candidates=[pb.Candidate(index=0, message=message), pb.Candidate(index=1, message=other)]
    )
    server.script("both", Reply(response=response))
    assert [text async for text in client.stream("both", "Hi").text] == ["one"]
    assert (await client.stream("both", "Hi").final()).proto == response


async def test_models_are_all_pages(client: Any, server: ScriptedServer) -> None:
    """More models than a page holds are listed."""
    for number in range(1001):
        server.script(f"m{number:04}", Reply())
    models = await client.models()
    assert [model.name for model in models] == [f"m{number:04}" for number in range(1001)]


async def test_health_is_the_servers(client: Any, server: ScriptedServer) -> None:
    """`health()` is what the server says of itself."""
    assert (await client.health()).state == pb.SERVING_STATE_SERVING


async def test_a_whole_request_goes_as_it_is(client: Any, server: ScriptedServer) -> None:
    """The contract's own message may be given, and then nothing beside it."""
    server.script("fast", Reply(text="a"))
    request = pb.GenerateRequest(model="fast", messages=[pb.Message(role=pb.ROLE_USER)], end_user_id="u")
    await client.generate(request)
    assert server.calls[0].request == request
    with pytest.raises(TypeError):
        await client.generate(request, temperature=1)


async def _arrival(server: ScriptedServer, calls: int) -> None:
    async with asyncio.timeout(5):
        while len(server.calls) < calls:
            await asyncio.sleep(0.005)


def test_a_client_made_before_the_loop_serves_several(server: ScriptedServer) -> None:
    """AsyncClient may be global: each event loop has a connection of its own, also at the same time."""
    server.script("fast", Reply(text="a"))
    client = AsyncClient(server.address)

    async def once() -> str:
        answer = await client.generate("fast", "Hi")
        await client.close()
        return answer.text

    for _ in range(2):
        assert asyncio.run(once()) == "a"

    async def both() -> tuple[str, str]:
        events = aiter(client.stream("fast", "Hi"))
        await anext(events)
        other = await asyncio.to_thread(asyncio.run, once())
        return fold([event async for event in events]).candidates[0].message.parts[0].text, other

    assert asyncio.run(both()) == ("a", "a")


def test_a_loop_that_is_closed_leaves_no_connection(server: ScriptedServer) -> None:
    """A global AsyncClient under one asyncio.run after the other keeps but the last one's channel."""
    server.script("fast", Reply(text="a"))
    client = AsyncClient(server.address, channel_options={"grpc.use_local_subchannel_pool": 1})

    def channels() -> int:
        gc.collect()
        return sum(isinstance(each, grpc.aio.Channel) for each in gc.get_objects())

    async def once() -> None:
        await client.generate("fast", "Hi")

    before = channels()
    for _ in range(3):
        asyncio.run(once())
    assert channels() == before + 1
