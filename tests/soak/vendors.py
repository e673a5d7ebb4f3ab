"""Vendors that fail one request in so many, each in another way, the same in every run with one seed."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from tests.faults import FAULTS, begin, healthy_body, refuses_with
from tests.vendor import Behaviour, Exchange, Vendor

NUMBER = re.compile(rb"call (\d+)\.")
PIECES = 4
PAUSE_SECONDS = 0.005
NAMES = ("a", "b", "c")
KEPT = "a"


async def paced(exchange: Exchange) -> None:
    """Good health, in pieces, so that a caller can leave between any two."""
    await _send(exchange, PIECES)
    await exchange.end()


async def breaks_after_text(exchange: Exchange) -> None:
    await _send(exchange, PIECES - 1)
    exchange.reset()


async def closes_after_text(exchange: Exchange) -> None:
    await _send(exchange, PIECES - 1)
    exchange.writer.close()


async def stalls_after_text(exchange: Exchange) -> None:
    await _send(exchange, PIECES - 1)
    await exchange.caller_closed.wait()


async def _send(exchange: Exchange, pieces: int) -> None:
    await begin(exchange)
    body = healthy_body(exchange)
    size = -(-len(body) // PIECES)
    for piece in range(pieces):
        await exchange.chunk(body[piece * size : (piece + 1) * size])
        await asyncio.sleep(PAUSE_SECONDS)


TROUBLES: tuple[Behaviour, ...] = (
    *(fault.behave for fault in FAULTS if fault.listens and fault.is_trusted and not fault.waits),
    refuses_with(429, retry_after_ms="50"),
    breaks_after_text,
    closes_after_text,
    stalls_after_text,
)


class Vendors:
    """What stands behind the gateway. `seen` are the numbers of the calls that any vendor was asked for."""

    def __init__(self, seed: int, faulty_share: float) -> None:
        self._seed = seed
        self._faulty_share = faulty_share
        self._asked: Counter[int] = Counter()
        self.seen: set[int] = set()
        self.requests = 0
        self.faults = 0
        self.serving = 0
        """Requests that are still being answered, or stalled."""
        self.running: dict[str, Vendor] = {}

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Serves all of them."""
        async with (
            Vendor(self._behave, forgets=True) as a,
            Vendor(self._behave, forgets=True) as b,
            Vendor(self._behave, forgets=True) as c,
        ):
            self.running = dict(zip(NAMES, (a, b, c), strict=True))
            yield

    @property
    def open_connections(self) -> int:
        """To all of them."""
        return sum(vendor.open_connections for vendor in self.running.values())

    def forget(self) -> None:
        """Begins to count anew."""
        self._asked.clear()
        self.seen.clear()

    async def _behave(self, exchange: Exchange) -> None:
        self.serving += 1
        try:
            await self._behaviour(exchange)(exchange)
        finally:
            self.serving -= 1

    def _behaviour(self, exchange: Exchange) -> Behaviour:
        found = NUMBER.search(exchange.body)
        if not found:
            return _lists_no_models
        number = int(found[1])
        self.seen.add(number)
        self.requests += 1
        self._asked[number] += 1
        chance = Random(f"{self._seed} {number} {self._asked[number]}")
        if chance.random() >= self._faulty_share:
            return paced
        self.faults += 1
        return chance.choice(TROUBLES)


async def _lists_no_models(exchange: Exchange) -> None:
    await exchange.answer(200, {"data": []})


def sections(running: Mapping[str, Vendor], generation: int = 0) -> dict[str, Any]:
    """A configuration with everything that routing and resilience have, over these vendors.

    In each generation `b` is another provider, in every third `c` is; `a` stays what it is.
    """
    at = {name: {"adapter": "openai", "base_url": vendor.base_url} for name, vendor in running.items()}
    small_batches = {"embed_batch": 2}
    targets = [{"provider": name, "model": "x"} for name in NAMES]
    return {
        "providers": {
            "a": {**at["a"], "quirks": small_batches},
            "b": {**at["b"], "transport": "httpx2", "headers": {"x-generation": str(generation)}},
            "c": {
                **at["c"],
                "quirks": small_batches,
                "concurrency": {"limit": 4, "queue": 8},
                "headers": {"x-generation": str(generation // 3)},
            },
        },
        "models": {
            "first": {"targets": targets},
            "shared": {"targets": targets, "strategy": "weighted"},
            "quickest": {"targets": targets, "strategy": "latency"},
            "idlest": {"targets": targets, "strategy": "least-busy"},
            "hedged": {"targets": targets[::-1], "hedge_delay": 0.02},
            "alone": {"targets": targets[:1]},
        },
        "routing": {
            "clocks": {"first_token": 0.3, "idle": 0.3, "total": 2.0},
            "retry": {"max_attempts": 3, "base_delay": 0.01},
            "breaker": {"open_for": 0.2, "max_open_for": 1.0},
            "max_attempts": 6,
            "default_deadline": 20.0,
        },
    }
