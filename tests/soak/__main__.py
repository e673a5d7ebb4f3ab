"""`make soak`: thousands of calls, a fifth of them faulty and a fifth left; prints what came of them."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys

from headgate_server import logs
from headgate_server.config import Telemetry
from tests.soak.run import Options, Report, soak

SHOWN = 20


def main() -> int:
    """0 if everything adds up."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--at-once", type=int, default=64, help="callers at a time (64)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="for the same calls and faults again")
    parser.add_argument("--faulty", type=float, default=0.2, help="share of requests in which the vendor fails (0.2)")
    parser.add_argument("--leaving", type=float, default=0.2, help="share of callers who cancel (0.2)")
    parser.add_argument("--reload", type=float, default=0.5, help="seconds between two reloads (0.5)")
    given = parser.parse_args()
    options = Options(given.calls, given.seed, given.at_once, given.faulty, given.leaving, given.reload)
    print(f"seed {options.seed}: {options.calls} calls, {options.at_once} at once", flush=True)
    logs.configure(Telemetry(log_level="info"))
    report = _run(options)
    _print(report)
    return 1 if report.problems else 0


def _run(options: Options) -> Report:
    """On the event loop that `headgate serve` takes."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(soak(options))
    return uvloop.run(soak(options))


def _print(report: Report) -> None:
    made = report.outcomes.total()
    print(f"{made} calls in {report.seconds:.1f} s, {made / report.seconds:.0f} a second")
    print(f"{report.faults} of {report.requests} requests failed by the vendors' doing")
    for title, counts in (("outcome", report.outcomes), ("attempt", report.attempts)):
        for name, count in counts.most_common():
            print(f"{count:8}  {title} {name}")
    more_objects, more_bytes = report.grown
    print(f"last part: {more_objects:+} objects, {more_bytes / 1024:+.0f} KiB resident")
    for problem in report.problems[:SHOWN]:
        print(f"PROBLEM {problem}")
    print(f"{len(report.problems)} problems")


if __name__ == "__main__":
    sys.exit(main())
