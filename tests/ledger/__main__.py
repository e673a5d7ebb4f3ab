"""`make reconcile`: thousands of mixed calls against the books of vendors, and a server that is killed many times."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from headgate_server import logs
from headgate_server.config import Telemetry
from tests.identity.databases import postgresql
from tests.ledger.kills import survive
from tests.ledger.reconciliation import Report, reconcile

SHOWN = 20


def main() -> int:
    """0 if everything adds up."""
    parser = argparse.ArgumentParser(prog="make reconcile", description=__doc__)
    parser.add_argument("--calls", type=int, default=5_000, help="how many (5000)")
    parser.add_argument("--kills", type=int, default=20, help="how often a server is killed under load (20)")
    parser.add_argument("--seed", type=int, default=1, help="for the same calls and faults again (1)")
    given = parser.parse_args()
    logs.configure(Telemetry(log_level="error"))
    with tempfile.TemporaryDirectory() as folder:
        problems = [*_reconcile(Path(folder), given.calls, given.seed), *_kill(Path(folder), given.kills, given.seed)]
    for problem in problems[:SHOWN]:
        print(f"PROBLEM {problem}")
    print(f"{len(problems)} problems")
    return 1 if problems else 0


def _reconcile(folder: Path, calls: int, seed: int) -> list[str]:
    began = time.monotonic()
    report = asyncio.run(reconcile(folder / "ledger.db", calls, seed))
    _print(report, time.monotonic() - began)
    return report.problems


def _kill(folder: Path, kills: int, seed: int) -> list[str]:
    with postgresql() as url:
        report = asyncio.run(survive(folder, url, kills, seed))
    print(f"{report.kills} kills: {report.answered} calls answered before, {report.on_disk} found on disk afterwards,")
    print(f"{report.arrived} in PostgreSQL in the end, {report.lost} attempts LOST")
    return report.problems


def _print(report: Report, seconds: float) -> None:
    print(f"{report.calls} calls and {report.attempts} attempts entered; {report.accounts} requests in the books")
    print(f"{report.exact} with usage to the token, {report.unheard} closed before it was heard, {seconds:.0f} s")
    for name, told in report.tokens_told.items():
        print(f"{name}: {told} told, {report.tokens_entered[name]} entered")
    for counts in (report.outcomes, report.causes):
        print(", ".join(f"{count} {name}" for name, count in counts.most_common()))


if __name__ == "__main__":
    sys.exit(main())
