"""The ways in which callers overload a server, at any size. Each says what it cost, and what should not have been."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from headgate import v1 as pb

from headgate_server.listeners import raise_open_file_limit
from tests.headgate_process import ask, eventually
from tests.overload.attackers import Connection, connect, connections, message_prefix
from tests.overload.server import MIB, PATIENCE_SECONDS, Report, Server, cpu_seconds, under_attack

STREAMS_PER_CONNECTION = 500
TALKING = 60
"""So many whole streams are measured, by the processor time of the server: others may use the machine as well."""
UNAVAILABLE = str(grpc.StatusCode.UNAVAILABLE.value[0])


async def many_connections(folder: Path, number: int, limit: int) -> Report:
    """More connections than `server.max_connections`: the rest are closed at once, those that are there work on."""
    report = Report(f"{number} connections, {limit} allowed")
    raise_open_file_limit()
    async with under_attack(folder, max_connections=limit) as server:
        before, began = server.measure_mib(), time.perf_counter()
        async with connections(server.address, number) as opened:
            await eventually(lambda: sum(one.closed for one in opened) >= number - limit, PATIENCE_SECONDS)
            refused = sum(one.closed for one in opened)
            report.figures = {
                "refused": refused,
                "seconds": time.perf_counter() - began,
                "KiB each": (server.measure_mib() - before) * 1024 / (number - refused),
                "answer ms": await server.answer_ms(),
            }
            report.expect(refused <= number - limit + 1, f"{refused} were refused")
        await _recovered(report, server, before)
    report.expect(report.figures["KiB each"] < 64, "a connection costs more than 64 KiB")
    return report


async def idle_streams(folder: Path, number: int, slower: float = 1.2) -> Report:
    """Streams that say nothing must not slow one that talks."""
    report = Report(f"{number} idle streams beside a talking one")
    async with under_attack(folder, max_concurrent_calls=number + 100) as server:
        before, alone_ms = server.measure_mib(), await server.stream_cpu_ms(TALKING)
        channels: list[grpc.aio.Channel] = []
        streams: list[Any] = []
        for _ in range(0, number, STREAMS_PER_CONNECTION):
            channel = grpc.aio.insecure_channel(server.address, options=(("grpc.use_local_subchannel_pool", 1),))
            channels.append(channel)
            stub = pb.InferenceServiceStub(channel)
            batch = min(STREAMS_PER_CONNECTION, number - len(streams))
            calls: list[Any] = [stub.StreamGenerate(ask("idle/lorem"), timeout=600) for _ in range(batch)]
            streams += calls
            await asyncio.gather(*(call.read() for call in calls))
        held = server.measure_mib()
        beside_ms = await server.stream_cpu_ms(TALKING)
        report.figures = {
            "alone CPU ms": alone_ms,
            "beside CPU ms": beside_ms,
            "KiB each": (held - before) * 1024 / number,
        }
        for channel in channels:
            await channel.close()
        await _recovered(report, server, before)
    report.expect(beside_ms < slower * alone_ms, f"the talking stream is {beside_ms / alone_ms:.2f} times slower")
    report.expect(report.figures["KiB each"] < 100, "a stream in flight costs more than 100 KiB")
    return report


async def too_many_calls(folder: Path, number: int, limit: int) -> Report:
    """More calls than `server.max_concurrent_calls`: the rest are told at once that the gateway is overloaded."""
    report = Report(f"{number} streams, {limit} allowed")
    async with under_attack(folder, max_concurrent_calls=limit) as server:
        before = server.measure_mib()
        async with connections(server.address, -(-number // STREAMS_PER_CONNECTION)) as opened:
            await _ask(opened, number, ask("idle/lorem"))
            await eventually(lambda: _statuses(opened, UNAVAILABLE) >= number - limit, PATIENCE_SECONDS)
            refused = _statuses(opened, UNAVAILABLE)
            report.figures = {"refused": refused, "MiB more": server.measure_mib() - before}
            report.expect(refused == number - limit, f"{refused} were refused")
        await _recovered(report, server, before)
    return report


async def slow_readers(folder: Path, number: int) -> Report:
    """Callers who do not read what they asked for: the server holds little of it, and answers others."""
    report = Report(f"{number} callers who do not read")
    async with under_attack(folder) as server:
        before = server.measure_mib()
        async with connections(server.address, -(-number // STREAMS_PER_CONNECTION), reads=False) as opened:
            await _ask(opened, number, ask("brief/lorem"))
            await eventually(lambda: sum(one.answered for one in opened) == number, PATIENCE_SECONDS)
            answer_ms = await server.answer_ms()
            report.figures = {"KiB each": (server.measure_mib() - before) * 1024 / number, "answer ms": answer_ms}
        await _recovered(report, server, before)
    report.expect(report.figures["KiB each"] < 300, "a caller who does not read costs more than 300 KiB")
    return report


async def unfinished_messages(folder: Path, number: int, size: int, limit_mib: int) -> Report:
    """Senders of messages that never end: the memory stays within its limit, and they are told why they are cut."""
    report = Report(f"{number} senders of {size / MIB:g} MiB and no end, {limit_mib} MiB allowed")
    async with under_attack(folder, max_memory_bytes=limit_mib * MIB) as server:
        before = server.measure_mib()
        async with connections(server.address, -(-number // STREAMS_PER_CONNECTION)) as opened:
            await _send_without_end(opened, number, size, server)
            await eventually(lambda: sum(len(one.ended) for one in opened) >= number, PATIENCE_SECONDS)
            report.figures = {"cut": _statuses(opened, UNAVAILABLE), "peak MiB": server.peak_mib}
            report.expect(report.figures["cut"] > 0, "the memory was never short")
            report.expect(_statuses(opened, "reset") == 0, "some were cut without a status")
        await _recovered(report, server, before)
    report.expect(server.peak_mib < 1.5 * limit_mib, "the memory went far beyond its limit")
    return report


async def reset_flood(folder: Path, number: int) -> Report:
    """Calls that are taken back as soon as they are made (CVE-2023-44487)."""
    report = Report(f"{number} calls taken back at once")
    async with under_attack(folder) as server:
        before, cpu = server.measure_mib(), cpu_seconds(server.pid)
        attacker = await connect(server.address)
        for _ in range(number // 100):
            for _ in range(100):
                attacker.reset(attacker.begin("Generate"))
            await attacker.flush()
            await asyncio.sleep(0)
        report.figures["answer ms"] = await server.answer_ms()
        report.figures["CPU us each"] = 1e6 * (cpu_seconds(server.pid) - cpu) / number
        await attacker.close()
        await _recovered(report, server, before)
    return report


async def _ask(opened: list[Connection], number: int, request: pb.GenerateRequest) -> None:
    for index in range(number):
        opened[index % len(opened)].ask("StreamGenerate", request)
    for one in opened:
        await one.flush()


async def _send_without_end(opened: list[Connection], number: int, size: int, server: Server) -> None:
    """Sends `size` bytes of each message that was announced as larger, as fast as the server takes them."""
    data = memoryview(message_prefix(size + 1) + bytes(size))
    sent = {(one, one.begin("Generate")): 0 for index in range(number) for one in [opened[index % len(opened)]]}
    idle_rounds = 0
    while sent and idle_rounds < 100:
        progress = 0
        for one, stream in list(sent):
            taken = one.send_some(stream, data[sent[one, stream] :])
            progress += taken
            sent[one, stream] += taken
            if sent[one, stream] >= len(data):
                del sent[one, stream]
        for one in opened:
            await one.flush()
        idle_rounds = 0 if progress else idle_rounds + 1
        await asyncio.sleep(0 if progress else 0.02)
        server.measure_mib()


async def _recovered(report: Report, server: Server, before_mib: float) -> None:
    report.figures["recovery s"] = await server.recovery_seconds()
    report.figures["MiB before"] = before_mib
    report.figures["MiB after"] = server.measure_mib()


def _statuses(opened: list[Connection], status: str) -> int:
    return sum(one.statuses[status] for one in opened)
