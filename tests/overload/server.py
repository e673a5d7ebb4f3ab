"""The server under attack, in a process of its own, and what an honest caller of it sees meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from headgate import v1 as pb

from tests.headgate_process import ask
from tests.tools import headgate_serve, resident_bytes

PROVIDERS: dict[str, Any] = {
    "demo": {"adapter": "mock", "mock": {"words": 2000}},
    "brief": {"adapter": "mock", "mock": {"words": 300}},
    "idle": {
        "adapter": "mock",
        "mock": {"failures": [{"stall_after": 3, "every": 1}]},
        "clocks": {"idle": 600, "first_token": 600},
    },
}
MIB = 2**20
PATIENCE_SECONDS = 60.0


@dataclass(slots=True)
class Report:
    """What one case showed: figures for people, and problems, of which there should be none."""

    case: str
    figures: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, rule: str) -> None:
        """Notes a rule that was broken."""
        if not holds:
            self.problems.append(rule)

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {value:,.1f}" for name, value in self.figures.items())
        return "\n".join((f"{self.case}: {shown}", *(f"  PROBLEM {problem}" for problem in self.problems)))


class Server:
    """A running server, looked at from outside."""

    def __init__(self, address: str, pid: int, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.pid = pid
        self._stub = pb.InferenceServiceStub(channel)
        self.peak_mib = 0.0

    def measure_mib(self) -> float:
        """Memory of its process now; `peak_mib` is the most that was ever measured."""
        held = resident_bytes(self.pid) / MIB
        self.peak_mib = max(self.peak_mib, held)
        return held

    async def answer_ms(self, calls: int = 20) -> float:
        """The quickest of some honest calls, each of which must be answered."""
        return 1000 * min([await _seconds(self._generate) for _ in range(calls)])

    async def stream_cpu_ms(self, streams: int) -> float:
        """Processor time that the server takes for a stream of 2,000 words, whatever else it has to do meanwhile."""
        before = cpu_seconds(self.pid)
        for _ in range(streams):
            await self._stream()
        return 1000 * (cpu_seconds(self.pid) - before) / streams

    async def recovery_seconds(self) -> float:
        """How long until an honest call on a new connection is answered again."""
        began = time.perf_counter()
        while time.perf_counter() - began < PATIENCE_SECONDS:
            options = (("grpc.use_local_subchannel_pool", 1),)
            async with grpc.aio.insecure_channel(self.address, options=options) as channel:
                with suppress(grpc.aio.AioRpcError):
                    await pb.InferenceServiceStub(channel).Generate(ask("demo/echo"), timeout=5)
                    return time.perf_counter() - began
            await asyncio.sleep(0.05)
        raise AssertionError(f"the server has not recovered within {PATIENCE_SECONDS:g} s")

    async def _generate(self) -> None:
        await self._stub.Generate(ask("demo/echo"), timeout=PATIENCE_SECONDS)

    async def _stream(self) -> None:
        async for _ in self._stub.StreamGenerate(ask("demo/lorem"), timeout=PATIENCE_SECONDS):
            pass


async def _seconds(call: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


@asynccontextmanager
async def under_attack(folder: Path, **settings: Any) -> AsyncIterator[Server]:
    """A server with these settings of `server`, that logs errors alone."""
    file = folder / "headgate.yaml"
    file.write_text(json.dumps({"server": settings, "auth": {"anonymous": True}, "providers": PROVIDERS}))
    async with headgate_serve("--config", str(file), env={"LOG_LEVEL": "error"}) as running:
        async with grpc.aio.insecure_channel(running.address) as channel:
            server = Server(running.address, running.process.pid, channel)
            await server.answer_ms()
            await server.stream_cpu_ms(2)
            yield server


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
