"""The soak itself: calls of all kinds, a fifth in trouble and a fifth left by their callers, and the accounts of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice

from tests.headgate_process import Headgate, configured, eventually, running
from tests.soak.accounts import Log, held, objects, unmatched, unrecorded
from tests.soak.callers import Outcome, Plan, call, plans
from tests.soak.vendors import Vendors, sections
from tests.tools import resident_bytes

WARM_UP_SHARE = 0.2
SETTLE_SECONDS = 20.0
KEPT_OBJECTS = 4000
KEPT_BYTES = 8 * 1024 * 1024
"""Growth that is no leak: pools that happen to be fuller, and what the allocator does not give back."""
KEPT_BYTES_A_CALL = 2048
PARTS = 3
"""So many times in a row a leak must grow beyond that."""


@dataclass(frozen=True, slots=True)
class Options:
    """How much, how many at once, and what share of requests and of callers goes wrong."""

    calls: int
    seed: int
    at_once: int = 64
    faulty_share: float = 0.2
    leaving_share: float = 0.2
    reload_seconds: float = 0.5


@dataclass(slots=True)
class Report:
    """What came of it. `grown` is how many objects and bytes the last part added."""

    options: Options
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    faults: int = 0
    grown: tuple[int, int] = (0, 0)
    problems: list[str] = field(default_factory=list)


async def soak(options: Options) -> Report:
    """Makes calls to warm up, then two halves of the rest, between which nothing may grow.

    Where something did, another half, and once more, tells a leak, which grows each time, from pools that happened to
    be fuller.
    """
    report, log = Report(options), Log()
    vendors = Vendors(options.seed, options.faulty_share)
    others = asyncio.all_tasks()
    with log.listening():
        async with vendors.listening():
            async with running(**sections(vendors.running)) as headgate:
                reloading = asyncio.create_task(_reload(headgate, vendors, options.reload_seconds))
                part = _Part(headgate, vendors, log, report)
                calls = plans(options.seed, options.calls * PARTS, options.leaving_share)
                warm_up = int(options.calls * WARM_UP_SHARE)
                half = (options.calls - warm_up) // 2
                began = time.monotonic()
                await part.make(islice(calls, warm_up))
                await part.make(islice(calls, half))
                for _ in range(PARTS):
                    before = objects(), resident_bytes(os.getpid())
                    await part.make(islice(calls, half))
                    after = objects(), resident_bytes(os.getpid())
                    report.grown = after[0] - before[0], after[1] - before[1]
                    if not any(_leaks(report, half)):
                        break
                report.seconds = time.monotonic() - began
                reloading.cancel()
                with suppress(asyncio.CancelledError):
                    await reloading
            with suppress(TimeoutError):
                await eventually(lambda: not vendors.open_connections, SETTLE_SECONDS)
            if vendors.open_connections:
                report.problems.append(f"{vendors.open_connections} connections left open")
        with suppress(TimeoutError):
            await eventually(lambda: asyncio.all_tasks() <= others, SETTLE_SECONDS)
        report.problems += [f"left over: {task.get_coro()}" for task in asyncio.all_tasks() - others]
    report.attempts, report.requests, report.faults = log.attempts, vendors.requests, vendors.faults
    report.problems += log.errors
    report.problems += _leaks(report, half)
    return report


async def _reload(headgate: Headgate, vendors: Vendors, seconds: float) -> None:
    """Serves by the next generation of the configuration every so often."""
    for generation in count(1):
        await asyncio.sleep(seconds)
        await headgate.application.reload(configured(**sections(vendors.running, generation)))


class _Part:
    """Some of the calls, made at once by so many callers and accounted for when all have ended."""

    def __init__(self, headgate: Headgate, vendors: Vendors, log: Log, report: Report) -> None:
        self._headgate = headgate
        self._vendors = vendors
        self._log = log
        self._report = report

    async def make(self, calls: Iterator[Plan]) -> None:
        told: dict[Plan, Outcome] = {}

        async def caller() -> None:
            for plan in calls:
                told[plan] = await call(self._headgate, plan)

        await asyncio.gather(*(caller() for _ in range(self._report.options.at_once)))
        await self._settle()
        report = self._report
        report.outcomes.update(f"{told.code} {told.reason}".rstrip() for told in told.values())
        report.problems += unmatched(told, self._log, self._vendors)
        report.problems += unrecorded(self._headgate, self._log)
        self._vendors.forget()

    async def _settle(self) -> None:
        """What callers have left is over at once; the ends of answers are read off for a second at most."""
        try:
            await eventually(lambda: not any(held(self._headgate, self._vendors)), SETTLE_SECONDS)
        except TimeoutError:
            self._report.problems += held(self._headgate, self._vendors)
        self._headgate.application.ended.tell()


def _leaks(report: Report, calls: int) -> Iterator[str]:
    more_objects, more_bytes = report.grown
    if more_objects > KEPT_OBJECTS:
        yield f"{more_objects} objects more after {calls} calls"
    if more_bytes > KEPT_BYTES + KEPT_BYTES_A_CALL * calls:
        yield f"{more_bytes} bytes more after {calls} calls"
