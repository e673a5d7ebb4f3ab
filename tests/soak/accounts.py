"""What must add up: one line in the log for each call, every attempt on record, nothing in flight, nothing kept."""

from __future__ import annotations

import gc
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from headgate_server import logs
from tests.headgate_process import Headgate
from tests.soak.callers import Outcome, Plan
from tests.soak.vendors import KEPT, Vendors

MAY_NOT_ARRIVE = ("CANCELLED", "DEADLINE_EXCEEDED")
"""A caller can be gone before the server hears of the call."""


class Log(logging.Handler):
    """Counts what is logged instead of keeping it, which would look like a leak."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.codes: defaultdict[str, list[str]] = defaultdict(list)
        self.attempts: Counter[str] = Counter()
        self.by_provider: Counter[str] = Counter()
        self.errors: list[str] = []

    def __call__(self, _logger: Any, method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if line["event"] == "call":
            self.codes[line["request_id"]].append(line["code"])
            self.attempts.update(attempt["outcome"] for attempt in line.get("attempts", ()))
            self.by_provider.update(attempt["provider"] for attempt in line.get("attempts", ()))
        elif method in ("error", "critical", "exception"):
            self.errors.append(str(line))
        raise structlog.DropEvent

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(record.getMessage())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes every line in the place of what is configured; loggers hold on to that very list of processors."""
        processors = structlog.get_config()["processors"]
        configured = list(processors)
        processors[:] = [logs.add_call, self]
        logging.getLogger().addHandler(self)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(self)
            processors[:] = configured


def unmatched(told: dict[Plan, Outcome], log: Log, vendors: Vendors) -> Iterator[str]:
    """Calls that have not exactly one outcome, told alike to the caller and to the log."""
    for plan, outcome in told.items():
        codes = log.codes.pop(plan.request_id, [])
        if outcome.wrong:
            yield f"{plan}: {outcome.code}, but {outcome.wrong}"
        if outcome.code not in MAY_NOT_ARRIVE:
            if codes != [outcome.code]:
                yield f"{plan}: told {outcome.code}, logged {codes}"
        elif len(codes) > 1 or (not codes and plan.number in vendors.seen):
            yield f"{plan}: {outcome.code}, logged {codes}"
        if outcome.code == "INTERNAL":
            yield f"{plan}: INTERNAL"
    for request_id, codes in log.codes.items():
        yield f"{request_id}: nobody called, logged {codes}"


def held(headgate: Headgate, vendors: Vendors) -> Iterator[str]:
    """What is in flight."""
    if len(headgate.application.calls):
        yield f"{len(headgate.application.calls)} calls"
    if vendors.serving:
        yield f"{vendors.serving} requests at the vendors"
    for name, served in headgate.application.runtime.providers.items():
        state = served.states.of("x")
        counts = (state.in_flight, state.places.taken, state.places.waiting, state.record.in_flight)
        if any(counts):
            yield f"{name}: in flight, places taken, waiting, on record: {counts}"


def unrecorded(headgate: Headgate, log: Log) -> Iterator[str]:
    """Attempts that the log has and the provider's record has not, or the other way round."""
    recorded = headgate.application.runtime.providers[KEPT].states.record.total_calls
    if (logged := log.by_provider[KEPT]) != recorded:
        yield f"{logged} attempts at {KEPT} in the log, {recorded} on record"


def objects() -> int:
    """Objects that are alive."""
    gc.collect()
    return len(gc.get_objects())
