"""Two servers behind one round_robin client, restarted in turn while calls go on: none of these may fail."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
from headgate import service_config, v1 as pb

from tests.fold import check_invariants
from tests.headgate_process import ask
from tests.tools import free_port, headgate_serve

TOKENS_PER_SECOND = 20
CALLERS = 40
UNARY_SHARE = 0.5
PATIENCE_SECONDS = 60.0
SETTLING_SECONDS = 3.0
"""Between two restarts: the client has to find the new process."""
RECONNECTS_SOON = ("grpc.max_reconnect_backoff_ms", 1000)
"""Our clients wait up to ten seconds before they try an address again that was long down, other ones two minutes."""
DELAY_SECONDS = 1.0
"""server.drain_delay: clients that watch health leave at once, others need no time on loopback."""


@dataclass(frozen=True, slots=True)
class Options:
    """How much is done. `longest` is of streams, in seconds; `service_config` is what the client goes by."""

    calls: int
    restarts: int
    longest: float
    seed: int
    service_config: str = service_config()


@dataclass(slots=True)
class Report:
    """What came of it."""

    made: list[str] = field(default_factory=list)
    """Request ids."""
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


class Replica:
    """One server at a fixed address, whose process is replaced by another again and again."""

    def __init__(self, folder: Path, name: str, options: Options) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._ledger = folder / f"{name}.db"
        self._log = folder / f"{name}.log"
        self._config = folder / f"{name}.yaml"
        self._config.write_text(json.dumps(_configuration(options, self._ledger)))
        self._life = AsyncExitStack()

    async def start(self) -> None:
        """Begins a life."""
        environment = {"PORT": self.address.rpartition(":")[2]}
        command = headgate_serve("--config", str(self._config), env=environment, log=self._log)
        self._process = await self._life.enter_async_context(command)

    async def stop(self) -> int:
        """Ends it, as Kubernetes does; the exit code."""
        self._process.process.send_signal(signal.SIGTERM)
        finished = await self._process.ended(PATIENCE_SECONDS)
        await self._life.aclose()
        return finished.code

    def on_record(self) -> Iterator[tuple[str, str]]:
        """The request id and the outcome of each call in its ledger, over all its lives."""
        with closing(sqlite3.connect(self._ledger)) as ledger:
            yield from ledger.execute("SELECT request_id, outcome FROM headgate_calls")


async def restarts(folder: Path, options: Options) -> Report:
    """Restarts the two in turn, and makes calls all the time: as many as were asked for, or more."""
    report, began = Report(), time.perf_counter()
    replicas = [Replica(folder, name, options) for name in ("one", "two")]
    await asyncio.gather(*(replica.start() for replica in replicas))
    target = "ipv4:" + ",".join(replica.address for replica in replicas)
    channel_options = (("grpc.service_config", options.service_config), RECONNECTS_SOON)
    async with grpc.aio.insecure_channel(target, options=channel_options) as channel:
        stub = pb.InferenceServiceStub(channel)
        await stub.Generate(ask("demo/echo"), wait_for_ready=True, timeout=PATIENCE_SECONDS)
        turns = asyncio.create_task(_take_turns(replicas, options, report))
        callers = [_Caller(stub, Random(f"{options.seed} {number}"), report) for number in range(CALLERS)]
        await asyncio.gather(*(caller.call_until(turns, options) for caller in callers))
        await turns
    report.seconds = time.perf_counter() - began
    report.problems += [f"exit code {code}" for replica in replicas if (code := await replica.stop())]
    report.problems += _unrecorded(replicas, report)
    return report


def _configuration(options: Options, ledger: Path) -> dict[str, Any]:
    paced = {"words": 100_000, "tokens_per_second": TOKENS_PER_SECOND}
    return {
        "ledger": {"url": f"sqlite:///{ledger}"},
        "server": {"drain_delay": DELAY_SECONDS, "drain_grace": options.longest + 10},
        "providers": {"demo": {"adapter": "mock"}, "paced": {"adapter": "mock", "mock": paced}},
    }


async def _take_turns(replicas: Sequence[Replica], options: Options, report: Report) -> None:
    for number in range(options.restarts):
        await asyncio.sleep(SETTLING_SECONDS)
        replica = replicas[number % len(replicas)]
        if code := await replica.stop():
            report.problems.append(f"exit code {code}")
        await replica.start()


class _Caller:
    """Makes one call after another."""

    def __init__(self, stub: pb.InferenceServiceAsyncStub, random: Random, report: Report) -> None:
        self._stub = stub
        self._random = random
        self._report = report

    async def call_until(self, turns: asyncio.Task[None], options: Options) -> None:
        """Until the restarts are over, and there were calls enough."""
        while not turns.done() or len(self._report.made) < options.calls:
            request_id = f"call-{len(self._report.made)}"
            self._report.made.append(request_id)
            try:
                await self._call(request_id, options.longest)
            except grpc.aio.AioRpcError as error:
                self._report.outcomes[error.code().name] += 1
                self._report.problems.append(f"{request_id}: {error.code().name} {error.details()}")
            else:
                self._report.outcomes["OK"] += 1

    async def _call(self, request_id: str, longest: float) -> None:
        metadata = (("x-request-id", request_id),)
        if self._random.random() < UNARY_SHARE:
            await self._stub.Generate(ask("demo/echo"), metadata=metadata, timeout=PATIENCE_SECONDS)
            await asyncio.sleep(self._random.random() / 10)
            return
        tokens = max(1, int(self._random.random() * longest * TOKENS_PER_SECOND))
        request = ask("paced/lorem", config=pb.GenerationConfig(max_output_tokens=tokens))
        events = [event async for event in self._stub.StreamGenerate(request, metadata=metadata, timeout=600)]
        check_invariants(events)


def _unrecorded(replicas: Sequence[Replica], report: Report) -> Iterator[str]:
    """Calls that have not exactly one row in the ledgers, as answered."""
    outcomes = defaultdict(list)
    for replica in replicas:
        for request_id, outcome in replica.on_record():
            outcomes[request_id].append(outcome)
    for request_id in report.made:
        if outcomes[request_id] != ["OK"]:
            yield f"{request_id}: on record as {outcomes[request_id]}"
