"""What stands in a row: who asked, who answered, what it cost, and who counted that."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
from headgate import v1 as pb

from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, ask, configured, eventually, failing, user
from tests.identity.callers import PEPPER, bearer, static_key
from tests.ledger.reconciliation import Row, rows_of
from tests.test_anthropic_front_door import at as anthropic_at
from tests.vendor import Exchange, Vendor, answers_text, at, completion, finish_chunk, sse, text_chunk, usage_chunk

PRICES = {"input": "3", "output": "15"}
REPLY = "Hello there, whoever you are"
REPLY_TOKENS = math.ceil(len(REPLY) / 4)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def entering(file: Path, **settings: Any) -> dict[str, Any]:
    """A ledger in this file."""
    return {"url": f"sqlite:///{file}", "flush_interval": 0.001, **settings}


def priced(vendor: Vendor, **settings: Any) -> dict[str, Any]:
    """A provider whose model m has a price."""
    return {"v": at(vendor, catalog={"m": {"prices": PRICES}}, **settings)}


def estimate(request: pb.GenerateRequest) -> int:
    """Input tokens of a request that nobody counts."""
    return math.ceil(request.ByteSize() / 4)


async def the_rows(file: Path, number: int = 1) -> tuple[list[Row], list[Row]]:
    """So many calls, and their attempts, once they are written."""
    await eventually(
        lambda: len([row for row in rows_of(file, "headgate_calls") if row["outcome"] != "OPEN"]) >= number
    )
    return rows_of(file, "headgate_calls"), rows_of(file, "headgate_attempts")


async def cancelled_after_text(headgate: Headgate, request: pb.GenerateRequest) -> None:
    """A stream that its caller leaves once it has seen text."""
    call = headgate.stub.StreamGenerate(request)
    async for event in call:
        if event.text_delta:
            break
    call.cancel()
    assert await headgate.idle()


async def test_a_row_tells_who_asked_for_what_and_what_it_cost(serve: Serve, file: Path) -> None:
    """Tenant, key, labels, end user, names of models, tokens, cost to the nano with the prices it goes by."""
    key, keys = static_key("acme")
    auth = {"anonymous": False, "pepper": PEPPER, "keys": keys}
    models = {"chat": {"targets": [{"provider": "v", "model": "m", "arm": "b"}]}}
    async with Vendor(answers_text) as vendor:
        async with serve(providers=priced(vendor), models=models, auth=auth, ledger=entering(file)) as headgate:
            request = ask("chat", labels={"team": "x"}, end_user_id="someone")
            metadata = (*bearer(key.text), ("x-request-id", "r-1"))
            answer = await headgate.stub.Generate(request, metadata=metadata)
            (call,), (attempt,) = await the_rows(file)
    whose = {"tenant": "acme", "key_id": key.id, "labels": '{"team":"x"}', "model": "chat"}
    tokens = {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8, "estimated": 0}
    cost = {"cost_nanos": 5 * 3_000 + 3 * 15_000, "currency": "USD"}
    answered = {"provider": "v", "provider_model": "m", "outcome": "OK", "reason": ""}
    assert call.items() >= {**whose, **tokens, **cost, **answered, "request_id": "r-1", "method": "Generate"}.items()
    assert call.items() >= {"end_user_id": "someone", "arm": "b", "attempts": 1}.items()
    assert attempt.items() >= {**whose, **tokens, **cost, **answered, "call_id": call["id"], "number": 1}.items()
    assert attempt.items() >= {"cause": "first", "http_status": 200, "provider_request_id": "req-vendor-1"}.items()
    assert attempt.items() >= {"cost_source": "ESTIMATE", "price_version": "configuration", "caller_key": 0}.items()
    assert 0 < attempt["latency_micros"] < call["latency_micros"]
    assert attempt["cost_nanos"] == answer.cost.total_nanos
    assert attempt["cache_read_tokens"] is None, "unknown is not 0"


async def test_a_cancelled_stream_costs_its_prompt_and_what_was_streamed(serve: Serve, file: Path) -> None:
    """No usage came: both are estimated, marked so, and priced."""

    async def speaks_and_stalls(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk(REPLY)))
        await exchange.caller_closed.wait()

    request = ask("v/m", "Tell me who I am.")
    async with Vendor(speaks_and_stalls) as vendor:
        async with serve(providers=priced(vendor), ledger=entering(file)) as headgate:
            await cancelled_after_text(headgate, request)
            (call,), (attempt,) = await the_rows(file)
    assert (call["outcome"], attempt["outcome"], attempt["estimated"]) == ("CANCELLED", "CANCELLED", 1)
    assert (attempt["input_tokens"], attempt["output_tokens"]) == (estimate(request), REPLY_TOKENS)
    assert attempt["cost_nanos"] == estimate(request) * 3_000 + REPLY_TOKENS * 15_000
    assert call["first_token_micros"] > 0


async def test_usage_that_came_before_the_cut_counts_and_what_came_after_it_is_added(serve: Serve, file: Path) -> None:
    """Anthropic counts the input at once; a vendor that counts as it goes is believed up to its last word."""

    async def counts_input(exchange: Exchange) -> None:
        usage = {"input_tokens": 40, "cache_read_input_tokens": 2, "output_tokens": 1}
        start = {"type": "message_start", "message": {"id": "msg_1", "model": "m", "usage": usage}}
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": REPLY}}
        await exchange.begin()
        for event in (start, block, delta):
            await exchange.chunk(sse(event, str(event["type"])))
        await exchange.caller_closed.wait()

    async def counts_as_it_goes(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse({**text_chunk("Hello"), "usage": usage_chunk(7, 9)["usage"]}))
        await exchange.caller_closed.wait()

    async with Vendor(counts_input) as one, Vendor(counts_as_it_goes) as other:
        providers = {"anthropic": anthropic_at(one), "v": at(other)}
        async with serve(providers=providers, ledger=entering(file)) as headgate:
            await cancelled_after_text(headgate, ask("anthropic/m"))
            await cancelled_after_text(headgate, ask("v/m"))
            _, (input_counted, all_counted) = await the_rows(file, 2)
    assert (input_counted["input_tokens"], input_counted["cache_read_tokens"]) == (42, 2)
    assert (input_counted["output_tokens"], input_counted["estimated"]) == (1 + REPLY_TOKENS, 1)
    assert (all_counted["input_tokens"], all_counted["output_tokens"], all_counted["estimated"]) == (7, 9, 0)


async def test_a_vendor_that_has_counted_the_prompt_alone_has_not_counted_what_came(serve: Serve, file: Path) -> None:
    """Gemini says so with every chunk, and of its output only with the last."""

    async def counts_the_prompt(exchange: Exchange) -> None:
        candidate = {"content": {"parts": [{"text": REPLY}], "role": "model"}, "index": 0}
        usage = {"promptTokenCount": 10, "totalTokenCount": 10}
        await exchange.begin()
        await exchange.chunk(sse({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"}))
        await exchange.caller_closed.wait()

    async with Vendor(counts_the_prompt) as vendor:
        gemini = {**anthropic_at(vendor), "host": "gemini", "catalog": {"m": {"prices": PRICES}}}
        async with serve(providers={"gemini": gemini}, ledger=entering(file)) as headgate:
            await cancelled_after_text(headgate, ask("gemini/m"))
            _, (attempt,) = await the_rows(file)
    assert (attempt["input_tokens"], attempt["output_tokens"], attempt["estimated"]) == (10, REPLY_TOKENS, 1)
    assert attempt["cost_nanos"] == 10 * 3_000 + REPLY_TOKENS * 15_000


async def test_usage_of_a_stream_that_fails_before_its_first_content_counts(serve: Serve, file: Path) -> None:
    """The vendor has read the prompt, said what that cost, and then failed."""

    async def counts_and_fails(exchange: Exchange) -> None:
        start = {"type": "message_start", "message": {"id": "msg_1", "model": "m", "usage": {"input_tokens": 40}}}
        await exchange.begin()
        await exchange.chunk(sse(start, "message_start"))
        await exchange.chunk(sse({"type": "error", "error": {"type": "overloaded_error", "message": "no"}}, "error"))
        await exchange.end()

    async with Vendor(counts_and_fails) as vendor:
        async with serve(providers={"anthropic": anthropic_at(vendor)}, ledger=entering(file)) as headgate:
            await failing(headgate.stub.StreamGenerate(ask("anthropic/m")))
            _, (attempt,) = await the_rows(file)
    assert (attempt["outcome"], attempt["reason"]) == ("FAILED", "PROVIDER_OVERLOADED")
    assert (attempt["input_tokens"], attempt["output_tokens"]) == (40, 0)


async def test_errors_and_what_never_arrived_cost_nothing(serve: Serve, file: Path) -> None:
    """A retry after a 500 that is answered, and a vendor that nobody reaches: three rows, one of which costs."""
    answers = iter((500, 200))

    async def fails_once(exchange: Exchange) -> None:
        status = next(answers)
        await exchange.answer(status, completion() if status == 200 else {"error": {"message": "no", "type": "x"}})

    async with Vendor(fails_once) as vendor:
        providers = priced(vendor, retry={"max_attempts": 2, "base_delay": 0.001})
        providers["gone"] = {"adapter": "openai", "base_url": "http://127.0.0.1:1/v1"}
        async with serve(providers=providers, ledger=entering(file)) as headgate:
            await headgate.stub.Generate(ask("v/m"))
            await failing(headgate.stub.Generate(ask("gone/m")))
            (retried, unreached), attempts = await the_rows(file, 2)
    told = [
        (row["outcome"], row["cause"], row["http_status"], row["input_tokens"], row["estimated"]) for row in attempts
    ]
    assert told == [("FAILED", "first", 500, 0, 0), ("OK", "retry", 200, 5, 0), ("FAILED", "first", None, 0, 0)]
    assert (retried["attempts"], retried["input_tokens"], retried["cost_nanos"]) == (2, 5, 5 * 3_000 + 3 * 15_000)
    assert (unreached["outcome"], unreached["reason"]) == ("UNAVAILABLE", "PROVIDER_UNREACHABLE")


async def test_answers_without_usage_are_estimated_whole(serve: Serve, file: Path) -> None:
    """Plain and streamed alike, by what was said."""

    async def counts_nothing(exchange: Exchange) -> None:
        if exchange.json.get("stream"):
            await exchange.stream([text_chunk(REPLY), finish_chunk()])
        else:
            body = completion(REPLY)
            del body["usage"]
            await exchange.answer(200, body)

    async with Vendor(counts_nothing) as vendor:
        async with serve(providers=priced(vendor), ledger=entering(file)) as headgate:
            await headgate.stub.Generate(ask("v/m"))
            [event async for event in headgate.stub.StreamGenerate(ask("v/m"))]
            _, attempts = await the_rows(file, 2)
    for attempt in attempts:
        assert (attempt["outcome"], attempt["output_tokens"], attempt["estimated"]) == ("OK", REPLY_TOKENS, 1)
        assert attempt["cost_nanos"] > 0


async def test_a_cost_that_the_vendor_states_is_taken_and_a_caller_s_own_key_is_marked(
    serve: Serve, file: Path
) -> None:
    """Whatever the price list says, and whoever pays."""

    async def states_cost(exchange: Exchange) -> None:
        body = completion()
        await exchange.answer(200, {**body, "usage": {**body["usage"], "cost": 0.25}})

    async with Vendor(states_cost) as vendor:
        providers = priced(vendor, issuer="acme")
        auth = {"anonymous": True, "caller_provider_keys": True}
        async with serve(providers=providers, auth=auth, ledger=entering(file)) as headgate:
            await headgate.stub.Generate(ask("v/m"), metadata=(("x-provider-key-acme", "own"),))
            _, (attempt,) = await the_rows(file)
    assert attempt.items() >= {"cost_nanos": 250_000_000, "cost_source": "PROVIDER", "caller_key": 1}.items()
    assert attempt["price_version"] == "vendor"


async def test_each_part_of_a_batch_has_its_own_row(serve: Serve, file: Path) -> None:
    """Five inputs in batches of two, of which the last is estimated by its share of the request."""

    async def embeds(exchange: Exchange) -> None:
        inputs = exchange.json["input"]
        rows = [{"index": index, "embedding": [1.0]} for index in range(len(inputs))]
        usage = {"usage": {"prompt_tokens": 10 * len(inputs)}} if len(inputs) == 2 else {}
        await exchange.answer(200, {"data": rows, "model": "m", **usage})

    request = pb.EmbedRequest(model="v/m", inputs=[pb.EmbedInput(text="some text to embed")] * 5)
    async with Vendor(embeds) as vendor:
        providers = priced(vendor, quirks={"embed_batch": 2})
        async with serve(providers=providers, ledger=entering(file)) as headgate:
            await headgate.stub.Embed(request)
            (call,), attempts = await the_rows(file)
    last = math.ceil(math.ceil(request.ByteSize() / 4) / 5)
    assert sorted((row["input_tokens"], row["estimated"]) for row in attempts) == [(last, 1), (20, 0), (20, 0)]
    assert (call["attempts"], call["input_tokens"], call["estimated"]) == (3, 40 + last, 1)
    assert call["cost_nanos"] == (40 + last) * 3_000


async def test_calls_that_reach_no_vendor_have_a_row_and_those_that_ask_for_none_have_not(
    serve: Serve, file: Path
) -> None:
    """Refused and invalid calls are entered, within bounds; health and lists of models are not."""
    async with serve(providers={"demo": {"adapter": "mock"}}, ledger=entering(file)) as headgate:
        await failing(headgate.stub.Generate(ask("nope")))
        await failing(headgate.stub.Generate(ask("x" * 10_000, labels={"k" * 1000: "\0" * 1000})))
        await headgate.stub.Health(pb.HealthRequest())
        await headgate.stub.ListModels(pb.ListModelsRequest())
        calls, attempts = await the_rows(file, 2)
    assert [(row["outcome"], row["reason"]) for row in calls] == [
        ("NOT_FOUND", "MODEL_NOT_FOUND"),
        ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    ]
    assert len(calls[1]["model"]) == 256
    assert len(calls[1]["labels"]) < 2000
    assert attempts == []


async def test_a_long_attempt_is_on_disk_before_its_end_and_once_after_it(serve: Serve, file: Path) -> None:
    """So that whatever becomes of the server it is known what a vendor was asked."""
    proceed = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await proceed.wait()
        await answers_text(exchange)

    def outcomes(table: str) -> list[str]:
        return [row["outcome"] for row in rows_of(file, table)]

    request = ask("v/m")
    async with Vendor(slow) as vendor:
        async with serve(providers=priced(vendor), ledger=entering(file)) as headgate:
            call = asyncio.ensure_future(headgate.stub.Generate(request))
            await eventually(lambda: outcomes("headgate_attempts") == ["OPEN"])
            assert outcomes("headgate_calls") == ["OPEN"]
            (attempt,) = rows_of(file, "headgate_attempts")
            assert (attempt["input_tokens"], attempt["estimated"]) == (estimate(request), 1)
            proceed.set()
            await call
            await eventually(lambda: outcomes("headgate_calls") == ["OK"])
            assert outcomes("headgate_attempts") == ["OK"]


async def test_an_attempt_that_failed_is_on_disk_while_its_call_waits_for_another(serve: Serve, file: Path) -> None:
    """What is over of a call in flight is as good to know as what is not."""

    async def fails(exchange: Exchange) -> None:
        await exchange.answer(429, {"error": {"message": "no", "type": "x"}}, {"retry-after": "5"})

    def outcomes(table: str) -> list[str]:
        return [row["outcome"] for row in rows_of(file, table)]

    async with Vendor(fails) as vendor:
        providers = priced(vendor, retry={"max_attempts": 2})
        async with serve(providers=providers, ledger=entering(file)) as headgate:
            call = asyncio.ensure_future(headgate.stub.Generate(ask("v/m")))
            await eventually(lambda: outcomes("headgate_attempts") == ["FAILED"])
            assert outcomes("headgate_calls") == ["OPEN"]
            call.cancel()
            await eventually(lambda: outcomes("headgate_calls") == ["CANCELLED"])
            assert outcomes("headgate_attempts") == ["FAILED"]


CONVERSATION = pb.GenerateRequest(
    model="demo/echo",
    messages=[pb.Message(role=pb.ROLE_SYSTEM, parts=[pb.Part(text="a secret of ours")]), user("my words")],
)


@pytest.mark.parametrize(
    ("policy", "holds", "lacks"),
    [
        ({"prompts": True}, ["a secret of ours"], []),
        ({"answers": True}, [], ["a secret of ours"]),
        ({"prompts": True, "answers": True}, ["a secret of ours", '"role":"assistant"'], []),
        ({"prompts": True, "redact": ["system"]}, ["my words", "[redacted]"], ["a secret of ours"]),
        ({"prompts": True, "answers": True, "redact": ["text"]}, ["[redacted]"], ["a secret of ours", "my words"]),
        ({"prompts": True, "limit": 37}, ["a sec"], ["a secret", "my words"]),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
async def test_what_was_said_is_kept_as_far_as_the_policy_says(
    serve: Serve, file: Path, policy: dict[str, Any], holds: list[str], lacks: list[str], streams: bool
) -> None:
    """In a table of its own, whether streamed or not."""
    async with serve(providers={"demo": {"adapter": "mock"}}, ledger=entering(file, content=policy)) as headgate:
        if streams:
            [event async for event in headgate.stub.StreamGenerate(CONVERSATION)]
        else:
            await headgate.stub.Generate(CONVERSATION)
        (call,), _ = await the_rows(file)
    (content,) = rows_of(file, "headgate_contents")
    assert content["call_id"] == call["id"]
    kept = content["prompt"] + content["answer"]
    assert all(text in kept for text in holds)
    assert not any(text in kept for text in lacks)
    assert bool(content["answer"]) == policy.get("answers", False)


async def test_nothing_that_was_said_is_kept_unless_the_configuration_says_so(
    serve: Serve, file: Path, logged: LogLines
) -> None:
    """Not in the file at all. A reload of the policy holds from the next call on; other keys need a new start."""
    demo = {"demo": {"adapter": "mock"}}
    async with serve(providers=demo, ledger=entering(file)) as headgate:
        await headgate.stub.Generate(ask("demo/echo", "words of a caller"))
        await the_rows(file)
        assert rows_of(file, "headgate_contents") == []
        assert all(b"words of a caller" not in path.read_bytes() for path in file.parent.iterdir())
        keeping = entering(file, content={"prompts": True})
        await headgate.application.reload(configured(providers=demo, ledger=keeping))
        assert not any(line["event"] == "restart_needed" for line in logged.lines)
        await headgate.stub.Generate(ask("demo/echo", "other words"))
        await the_rows(file, 2)
        assert len(rows_of(file, "headgate_contents")) == 1
        await headgate.application.reload(configured(providers=demo, ledger={**keeping, "queue": 500}))
    assert [line["keys"] for line in logged.lines if line["event"] == "restart_needed"] == [["ledger"]]


def test_the_columns_that_are_written_are_those_of_the_tables() -> None:
    """columns.py and tables.py say the same."""
    from headgate_server.ledger.columns import TABLES
    from headgate_server.ledger.tables import metadata

    assert {name: list(columns) for name, columns in TABLES.items()} == {
        name: table.columns.keys() for name, table in metadata.tables.items()
    }


def test_ids_sort_by_time_and_never_come_twice() -> None:
    """Many in one moment, and a clock that goes back; another process has others."""
    from uuid import UUID

    from headgate_server.ledger.ids import Ids

    ids = Ids()
    made = [ids.new(now) for now in [1000.0] * 5000 + [999.0] * 5000 + [2000.0] * 10]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert {UUID(made[0]).version, UUID(made[-1]).version} == {7}
    assert Ids().new(1000.0) not in made
