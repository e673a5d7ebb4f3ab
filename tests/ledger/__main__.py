"""`make reconcile`: thousands of mixed calls, and then the ledger against the books of the vendors."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from headgate_server import logs
from headgate_server.config import Telemetry
from tests.ledger.reconciliation import Report, reconcile

SHOWN = 20


def main() -> int:
    """0 if everything adds up."""
    parser = argparse.ArgumentParser(prog="make reconcile", description=__doc__)
    parser.add_argument("--calls", type=int, default=5_000, help="how many (5000)")
    parser.add_argument("--seed", type=int, default=1, help="for the same calls and faults again (1)")
    given = parser.parse_args()
    logs.configure(Telemetry(log_level="error"))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(reconcile(Path(folder) / "ledger.db", given.calls, given.seed))
    _print(report, time.monotonic() - began)
    return 1 if report.problems else 0


def _print(report: Report, seconds: float) -> None:
    print(f"{report.calls} calls and {report.attempts} attempts entered; {report.accounts} requests in the books")
    print(f"{report.exact} with usage to the token, {report.unheard} closed before it was heard, {seconds:.0f} s")
    for name, told in report.tokens_told.items():
        print(f"{name}: {told} told, {report.tokens_entered[name]} entered")
    for counts in (report.outcomes, report.causes):
        print(", ".join(f"{count} {name}" for name, count in counts.most_common()))
    for problem in report.problems[:SHOWN]:
        print(f"PROBLEM {problem}")
    print(f"{len(report.problems)} problems")


if __name__ == "__main__":
    sys.exit(main())
