"""Vendors that keep books of their own: what each request was, and which usage they told of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from typing import Any

from tests.soak.vendors import NAMES
from tests.vendor import SSE_HEADERS, Exchange, Vendor, finish_chunk, sse, text_chunk

NUMBER = re.compile(rb"call (\d+)\.")
PAUSE_SECONDS = 0.004
NO_HEADERS_SECONDS = 0.05


@dataclass(slots=True)
class Account:
    """One request that reached a vendor. `usage` is input, output and cached tokens that it sent word of."""

    call: int
    provider: str
    vendor_id: str
    kind: str
    usage: tuple[int, int, int] | None = None


class Books:
    """Three vendors of OpenAI's wire, which answer, fail, stall and break off by chance, the same for the same seed."""

    def __init__(self, seed: int, faulty_share: float) -> None:
        self.accounts: list[Account] = []
        self.running: dict[str, Vendor] = {}
        self._seed = seed
        self._faulty_share = faulty_share
        self._ids = count()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Serves all of them."""
        a, b, c = (Vendor(partial(self._behave, name), forgets=True) for name in NAMES)
        async with a, b, c:
            self.running = dict(zip(NAMES, (a, b, c), strict=True))
            yield

    async def _behave(self, provider: str, exchange: Exchange) -> None:
        found = NUMBER.search(exchange.body)
        if not found:
            await exchange.answer(200, {"data": []})
            return
        account = Account(int(found[1]), provider, f"vendor-{next(self._ids)}", "")
        self.accounts.append(account)
        chance = Random(f"{self._seed} {account.vendor_id}")
        behave = answers if chance.random() >= self._faulty_share else chance.choice(TROUBLES)
        account.kind = behave.__name__
        usage = (chance.randint(1, 9999), chance.randint(1, 999), chance.randint(0, 1))
        await behave(exchange, account, usage)


Usage = tuple[int, int, int]
Behaviour = Callable[[Exchange, Account, Usage], Awaitable[None]]


async def answers(exchange: Exchange, account: Account, usage: Usage) -> None:
    """All that was asked for, and the usage."""
    if exchange.path.endswith("/embeddings"):
        rows = [{"index": index, "embedding": [1.0, -0.5]} for index in range(len(exchange.json["input"]))]
        account.usage = (usage[0], 0, 0)
        body = {"data": rows, "model": "m", "usage": {"prompt_tokens": usage[0]}}
        await exchange.answer(200, body, _headers(account))
    elif exchange.json.get("stream"):
        await _stream(exchange, account, usage)
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end()
    else:
        await asyncio.sleep(PAUSE_SECONDS)
        message = {"role": "assistant", "content": "Hello there"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        account.usage = usage
        body = {"id": "c", "model": "m", "choices": [choice], "usage": _usage(usage)}
        await exchange.answer(200, body, _headers(account))


async def tells_no_usage(exchange: Exchange, account: Account, _: Usage) -> None:
    """A whole stream, or else nothing."""
    if exchange.json.get("stream"):
        await _stream(exchange, account, None)
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end()
    else:
        await stalls(exchange, account, _)


async def stalls_after_usage(exchange: Exchange, account: Account, usage: Usage) -> None:
    """Text and usage, and never an end."""
    if exchange.json.get("stream"):
        await _stream(exchange, account, usage)
    await exchange.caller_closed.wait()


async def breaks_in_the_text(exchange: Exchange, account: Account, _: Usage) -> None:
    await _begin(exchange, account)
    await exchange.chunk(sse(text_chunk("Hello")))
    await asyncio.sleep(PAUSE_SECONDS)
    exchange.reset()


async def stalls_in_the_text(exchange: Exchange, account: Account, _: Usage) -> None:
    await _begin(exchange, account)
    await exchange.chunk(sse(text_chunk("Hello")))
    await exchange.caller_closed.wait()


async def stalls(exchange: Exchange, _account: Account, _: Usage) -> None:
    await exchange.caller_closed.wait()


async def resets(exchange: Exchange, _account: Account, _: Usage) -> None:
    exchange.reset()


async def fails(exchange: Exchange, account: Account, usage: Usage) -> None:
    status = (429, 500, 503, 529)[usage[0] % 4]
    await exchange.answer(status, {"error": {"message": "no", "type": "some_error"}}, _headers(account))


TROUBLES: tuple[Behaviour, ...] = (
    fails,
    fails,
    resets,
    tells_no_usage,
    stalls_after_usage,
    breaks_in_the_text,
    stalls_in_the_text,
    stalls,
)


async def _stream(exchange: Exchange, account: Account, usage: Usage | None) -> None:
    await _begin(exchange, account)
    for event in (text_chunk("Hello"), text_chunk(" there"), finish_chunk()):
        await exchange.chunk(sse(event))
        await asyncio.sleep(PAUSE_SECONDS)
    if usage:
        account.usage = usage
        await exchange.chunk(sse({**finish_chunk(), "choices": [], "usage": _usage(usage)}))


async def _begin(exchange: Exchange, account: Account) -> None:
    await exchange.begin(headers={**SSE_HEADERS, **_headers(account)})


def _headers(account: Account) -> dict[str, str]:
    return {"x-request-id": account.vendor_id}


def _usage(usage: Usage) -> dict[str, Any]:
    prompt, completion, cached = usage
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
