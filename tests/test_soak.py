"""A short soak, the same each time; `make soak` is the long one, with calls and faults of its own."""

from __future__ import annotations

import asyncio
import sys

from tests.headgate_process import eventually, running
from tests.soak.accounts import Log, held, unmatched
from tests.soak.callers import call, plans
from tests.soak.vendors import Vendors, sections
from tests.tools import run


async def test_whatever_vendors_and_callers_do_every_call_is_accounted_for_and_nothing_is_left() -> None:
    """A short soak, in a process of its own: what other tests leave behind is not its affair."""
    soaked = await run(sys.executable, "-m", "tests.soak", "--calls", "600", "--seed", "4")
    assert soaked.code == 0, soaked.stdout[-3000:]
    assert "\n0 problems" in soaked.stdout
    for outcome in ("OK", "FAILED", "TIMED_OUT", "CANCELLED", "SUPERSEDED"):
        assert f"attempt {outcome}" in soaked.stdout


async def test_a_stop_amid_all_that_is_told_to_every_caller_once() -> None:
    """Whoever is cut off hears that the server stopped, as a failure or an interrupted stream; nothing is left."""
    log, vendors = Log(), Vendors(seed=5, faulty_share=0.8)
    others = asyncio.all_tasks()
    with log.listening():
        async with vendors.listening(), running(**sections(vendors.running)) as headgate:
            made = {plan: asyncio.create_task(call(headgate, plan)) for plan in plans(5, 100, leaving_share=0.1)}
            await eventually(lambda: len(headgate.application.calls) + len(log.codes) >= 80, 10)
            await headgate.application.stop(delay=0, grace=0)
            told = {plan: await task for plan, task in made.items()}
            await eventually(lambda: not any(held(headgate, vendors)), 5)
        await eventually(lambda: not vendors.open_connections, 20)
        await eventually(lambda: asyncio.all_tasks() <= others, 20)
    assert list(unmatched(told, log, vendors)) == []
    assert log.errors == []
    assert "GATEWAY_DRAINING" in {outcome.reason for outcome in told.values()}
