"""`make rolling`: 2,000 calls across ten restarts of two servers; prints what came of them."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from headgate import service_config

from tests.rolling.restarts import Options, restarts

SHOWN = 20


def main() -> int:
    """0 if no call failed, and every one is on record."""
    parser = argparse.ArgumentParser(prog="make rolling", description=__doc__)
    parser.add_argument("--calls", type=int, default=2000, help="at least so many (2000)")
    parser.add_argument("--restarts", type=int, default=10, help="of the two servers together (10)")
    parser.add_argument("--longest", type=float, default=20.0, help="seconds that the longest stream takes (20)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="for the same calls again")
    parser.add_argument("--service-config", default=service_config(), help="JSON that the client goes by")
    given = parser.parse_args()
    options = Options(given.calls, given.restarts, given.longest, given.seed, given.service_config)
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(restarts(Path(folder), options))
    print(f"seed {options.seed}: {len(report.made)} calls, {options.restarts} restarts, {report.seconds:.0f} s")
    for name, count in report.outcomes.most_common():
        print(f"{count:8}  {name}")
    for problem in report.problems[:SHOWN]:
        print(f"PROBLEM {problem}")
    print(f"{len(report.problems)} problems")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
