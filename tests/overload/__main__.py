"""`make overload`: 20,000 connections, 5,000 streams, and callers who mean harm; prints what each cost."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.overload import cases
from tests.overload.server import MIB, Report

LARGE: dict[str, Callable[[Path], Awaitable[Report]]] = {
    "connections": lambda folder: cases.many_connections(folder, 20_000, 10_000),
    "idle": lambda folder: cases.idle_streams(folder, 5_000),
    "calls": lambda folder: cases.too_many_calls(folder, 5_000, 4_096),
    "readers": lambda folder: cases.slow_readers(folder, 1_000),
    "senders": lambda folder: cases.unfinished_messages(folder, 1_000, 4 * MIB, 512),
    "resets": lambda folder: cases.reset_flood(folder, 200_000),
}


def main() -> int:
    """0 if the server came through all of it."""
    parser = argparse.ArgumentParser(prog="make overload", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(LARGE)}; by default all")
    wanted = parser.parse_args().cases or list(LARGE)
    problems = 0
    for name in wanted:
        with tempfile.TemporaryDirectory() as folder:
            report = asyncio.run(_run(LARGE[name], Path(folder)))
        print(report, flush=True)
        problems += len(report.problems)
    return 1 if problems else 0


async def _run(case: Callable[[Path], Awaitable[Report]], folder: Path) -> Report:
    return await case(folder)


if __name__ == "__main__":
    sys.exit(main())
