"""A server under load that is killed, again and again: what was on disk arrives in PostgreSQL, once."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
from headgate import v1 as pb

from tests.headgate_process import ask
from tests.ledger.statements import execute
from tests.tools import headgate_serve

AT_ONCE = 12
FLUSH_SECONDS = 0.02
SETTLED_SECONDS = 0.5
"""What was answered longer ago than this must be on disk, however busy the machine is."""
LOAD_SECONDS = 60.0
"""Until some calls are answered and some in flight: a busy machine may need them."""
ARRIVAL_SECONDS = 60.0


@dataclass(slots=True)
class Report:
    """What was found. `problems` should be empty."""

    kills: int = 0
    answered: int = 0
    """Calls that were answered some time before a kill."""
    on_disk: int = 0
    """Calls found in the spool after kills, in flight or ended."""
    lost: int = 0
    """Attempts in flight at a kill, entered as LOST."""
    arrived: int = 0
    problems: list[str] = field(default_factory=list)


async def survive(folder: Path, url: str, kills: int, seed: int) -> Report:
    """Kills a server so often, starts it once more, and compares."""
    chance = Random(seed)
    config = folder / "headgate.yaml"
    config.write_text(json.dumps(_configuration(url)))
    report = Report()
    answered: set[str] = set()
    on_disk: set[str] = set()
    for number in range(kills):
        answered |= await _killed_amid_load(config, f"run-{number}", chance.uniform(0.7, 1.5))
        on_disk |= _in_spool(folder)
        report.kills += 1
    async with headgate_serve("--config", str(config)) as last:
        async with asyncio.timeout(ARRIVAL_SECONDS):
            while _in_spool(folder):
                await asyncio.sleep(0.1)
        assert (await last.stop()).code == 0
    await _compare(url, answered, on_disk, report)
    return report


def _configuration(url: str) -> dict[str, Any]:
    slow = {"adapter": "mock", "mock": {"tokens_per_second": 40, "words": 100}}
    return {
        "server": {"drain_delay": 0},
        "auth": {"anonymous": True},
        "telemetry": {"log_level": "error"},
        "providers": {"fast": {"adapter": "mock"}, "slow": slow},
        "ledger": {"url": url, "spool": "spool.db", "ship_interval": 0.05, "flush_interval": FLUSH_SECONDS},
    }


async def _killed_amid_load(config: Path, run: str, seconds: float) -> set[str]:
    """Runs a server under load for so long at least, and kills it; the names of calls that must be on disk."""
    answered: dict[str, float] = {}
    async with headgate_serve("--config", str(config)) as headgate:
        async with grpc.aio.insecure_channel(headgate.address) as channel:
            stub: pb.InferenceServiceAsyncStub = pb.InferenceServiceStub(channel)
            callers = [asyncio.create_task(_call(stub, f"{run}-{n}", answered)) for n in range(AT_ONCE)]
            await asyncio.sleep(seconds)
            async with asyncio.timeout(LOAD_SECONDS):
                while not (_settled(answered, time.monotonic()) and _in_flight(config.parent)):
                    await asyncio.sleep(0.05)
            headgate.process.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            await headgate.process.wait()
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
    return _settled(answered, killed)


def _settled(answered: Mapping[str, float], now: float) -> set[str]:
    return {name for name, at in answered.items() if at < now - SETTLED_SECONDS}


async def _call(stub: pb.InferenceServiceAsyncStub, caller: str, answered: dict[str, float]) -> None:
    """One call after another, every third caller's slow streams."""
    number = 0
    with suppress(grpc.aio.AioRpcError):
        while True:
            name = f"{caller}-{number}"
            metadata = (("x-request-id", name),)
            if caller.endswith(("0", "3", "6", "9")):
                async for _ in stub.StreamGenerate(ask("slow/lorem"), metadata=metadata):
                    pass
            else:
                await stub.Generate(ask("fast/echo"), metadata=metadata)
            answered[name] = time.monotonic()
            number += 1


def _in_spool(folder: Path) -> set[str]:
    """The names of all calls on the local disk."""
    with closing(sqlite3.connect(folder / "spool.db")) as connection:
        return {row[0] for row in connection.execute("SELECT request_id FROM headgate_calls")}


def _in_flight(folder: Path) -> bool:
    with closing(sqlite3.connect(folder / "spool.db")) as connection:
        return bool(connection.execute("SELECT 1 FROM headgate_attempts WHERE outcome = 'OPEN' LIMIT 1").fetchall())


async def _compare(url: str, answered: set[str], on_disk: set[str], report: Report) -> None:
    calls = await execute(url, "SELECT request_id, outcome, attempts FROM headgate_calls")
    attempts = await execute(
        url,
        "SELECT request_id, a.outcome, estimated FROM headgate_attempts a "
        "JOIN (SELECT id, request_id FROM headgate_calls) c ON a.call_id = c.id",
    )
    ((orphans,),) = await execute(
        url, "SELECT count(*) FROM headgate_attempts WHERE call_id NOT IN (SELECT id FROM headgate_calls)"
    )
    names = [call[0] for call in calls]
    arrived = set(names)
    report.answered, report.on_disk, report.arrived = len(answered), len(on_disk), len(arrived)
    report.lost = sum(outcome == "LOST" for _, outcome, _ in attempts)
    if len(names) != len(arrived):
        report.problems.append(f"{len(names) - len(arrived)} calls are there twice")
    if missing := on_disk - arrived:
        report.problems.append(f"{len(missing)} calls on disk never arrived, such as {min(missing)}")
    if missing := answered - arrived:
        report.problems.append(f"{len(missing)} answered calls were never on disk, such as {min(missing)}")
    if orphans or sum(call[2] for call in calls) != len(attempts):
        report.problems.append(f"{orphans} attempts without calls; {len(attempts)} attempts of {len(calls)} calls")
    if left_open := [call for call in calls if call[1] == "OPEN"]:
        report.problems.append(f"left open: {left_open[:3]}")
    if certain := [attempt for attempt in attempts if attempt[1] == "LOST" and not attempt[2]]:
        report.problems.append(f"lost, and not marked as estimated: {certain[:3]}")
