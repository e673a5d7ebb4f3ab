"""Asking a second target when the first is slow: whoever commits first wins, and the other is closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from headgate_server.attempt import Attempt
from headgate_server.errors import GatewayError
from headgate_server.resilience.plan import Option, Plan

T = TypeVar("T")


class Turn:
    """One option's turn: the attempts made in it. `exhausted` says that its target was asked again already."""

    __slots__ = ("attempts", "exhausted", "option")

    def __init__(self, option: Option) -> None:
        self.option = option
        self.attempts: list[Attempt] = []
        self.exhausted = False


async def race(
    plan: Plan,
    first: Turn,
    delay: float,
    answer_from: Callable[[Turn], Coroutine[Any, Any, T]],
    discard: Callable[[T], Awaitable[None]],
) -> tuple[Turn, T] | None:
    """The first answer of `first` and, if that takes longer than `delay` seconds, of a second target; with its turn.

    None when all of them failed, of which the plan knows then. What loses is cancelled, closed and on record; an answer
    that nobody takes, because another one won or the caller left, is discarded.
    """
    running = {asyncio.create_task(answer_from(first)): first}
    hedge_in: float | None = delay
    try:
        while running:
            done, _ = await asyncio.wait(running, timeout=hedge_in, return_when=asyncio.FIRST_COMPLETED)
            if not done and (second := plan.hedge(time.monotonic())):
                turn = Turn(second)
                running[asyncio.create_task(answer_from(turn))] = turn
            hedge_in = None
            for task in done:
                turn = running[task]
                try:
                    answer = task.result()
                except GatewayError as error:
                    del running[task]
                    plan.failed(turn.option, error, time.monotonic(), exhausted=turn.exhausted)
                    continue
                losers = {other: turn for other, turn in running.items() if other is not task}
                _supersede(losers.values())
                await _close(losers, discard)
                running.clear()
                return turn, answer
        return None
    finally:
        await _close(running, discard)


def _supersede(losers: Iterable[Turn]) -> None:
    for loser in losers:
        for attempt in loser.attempts:
            attempt.supersede()


async def _close(running: Iterable[asyncio.Task[T]], discard: Callable[[T], Awaitable[None]]) -> None:
    for task in running:
        task.cancel()
    for answer in await asyncio.gather(*running, return_exceptions=True):
        if not isinstance(answer, BaseException):
            await discard(answer)
