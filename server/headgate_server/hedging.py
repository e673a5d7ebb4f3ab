"""Asking a second target when the first is slow: whoever commits first wins, and the other is closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from headgate_server.attempt import Attempt
from headgate_server.errors import GatewayError
from headgate_server.generation import Generation
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
    plan: Plan, first: Turn, delay: float, answer_from: Callable[[Turn], Coroutine[Any, Any, T]]
) -> tuple[Turn, T] | None:
    """The first answer of `first` and, if that takes longer than `delay` seconds, of a second target; with its turn.

    None when all of them failed, of which the plan knows then. What loses is cancelled, closed and on record.
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
                turn = running.pop(task)
                try:
                    answer = task.result()
                except GatewayError as error:
                    plan.failed(turn.option, error, time.monotonic(), exhausted=turn.exhausted)
                    continue
                for loser in running.values():
                    for attempt in loser.attempts:
                        attempt.supersede()
                return turn, answer
        return None
    finally:
        await _close(running)


async def _close(running: Mapping[asyncio.Task[Any], Turn]) -> None:
    for task in running:
        task.cancel()
    answers = await asyncio.gather(*running, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, Generation):
            await answer.abandon()
