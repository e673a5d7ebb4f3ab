"""The one thread that reads and writes the spool, and the bounded queue that leads to it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import structlog

from headgate_server.ledger.columns import CALLS, OPEN
from headgate_server.ledger.entry import Rows
from headgate_server.ledger.spool import Spool

T = TypeVar("T")

IDLE_SECONDS = 1.0
RETRY_SECONDS = 0.5
AT_ONCE = 500
"""Calls in one transaction."""
PRUNED_AT_ONCE = 2_000
DAY_SECONDS = 86_400.0
OUTCOME = CALLS.index("outcome")

log = structlog.get_logger(component="ledger")


@dataclass(slots=True)
class Figures:
    """What became of calls so far. `refused` are those that the file would not take, whatever its state."""

    written: int = 0
    dropped: int = 0
    refused: int = 0
    failures: int = 0


class Writer:
    """Rows are put into the queue on the event loop, and written together every few milliseconds.

    While the file cannot be written they wait, up to `most_queued`; what comes then is counted and lost.
    """

    def __init__(self, spool: Spool, *, flush_interval: float, most_queued: int, retention_days: int | None) -> None:
        self.figures = Figures()
        self.trouble = ""
        """Why nothing is written, for people; empty when all is well."""
        self._spool = spool
        self._flush_interval = flush_interval
        self._most_queued = most_queued
        self._retention_days = retention_days
        self._queue: deque[Rows] = deque()
        self._taken: list[Rows] = []
        self._put_weight = 0
        self._done_weight = 0
        self._dropped_since_told = 0
        self._waiting_since = 0.0
        self._retry_at = 0.0
        self._pruned_at = 0.0
        self._jobs: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Rows in memory."""
        return self._put_weight - self._done_weight

    def lag(self, now: float) -> float:
        """Seconds since everything was written; `now` is monotonic time."""
        return now - self._waiting_since if self.queued else 0.0

    def put(self, rows: Rows) -> None:
        """Has the rows written soon. Never waits."""
        weight, queued = rows.weight, self.queued
        if queued + weight > self._most_queued:
            if rows.call[OUTCOME] != OPEN:  # of a call in flight the last word is still to come
                self._drop()
            return
        if not queued:
            self._waiting_since = time.monotonic()
        self._put_weight += weight
        self._queue.append(rows)
        if not self._wake.is_set():
            self._wake.set()

    async def do(self, job: Callable[[Spool], T]) -> T:
        """What the job returns, or raises, in the thread.

        Raises:
            RuntimeError: the writer is closed.
        """
        if self._stopping.is_set():
            raise RuntimeError("the ledger is closed")
        result: Future[T] = Future()

        def run() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                result.set_result(job(self._spool))
            except Exception as error:
                result.set_exception(error)

        self._jobs.append(run)
        self._wake.set()
        return await asyncio.wrap_future(result)

    async def close(self, seconds: float) -> None:
        """Writes what is left, if that is possible in this time, and lets go of the file."""
        self._stopping.set()
        self._wake.set()
        await asyncio.to_thread(self._thread.join, seconds)
        if self.queued:
            log.error("ledger_rows_lost_at_stop", rows=self.queued)

    def _drop(self) -> None:
        self.figures.dropped += 1
        self._dropped_since_told += 1
        if self._dropped_since_told == 1:
            log.error("ledger_queue_full", rows=self.queued, trouble=self.trouble or "the disk is too slow")

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(IDLE_SECONDS)
            time.sleep(self._flush_interval)
            self._wake.clear()
            if time.monotonic() >= self._retry_at:
                self._write()
            self._do_jobs()
            self._prune()
        self._write()
        self._do_jobs()
        self._spool.close()

    def _write(self) -> None:
        """Writes all that is queued, or as much as can be written now."""
        while self._queue or self._taken:
            while self._queue and len(self._taken) < AT_ONCE:
                self._taken.append(self._queue.popleft())
            try:
                self._spool.write(self._taken)
            except sqlite3.OperationalError as error:  # disk full, read-only, not there: the rows are not to blame
                self._failed(error)
                return
            except Exception:  # one of the rows: its numbers are too large, or its text is none
                if not self._write_one_by_one():
                    return
            else:
                self._done(self._taken)
            self._taken = []
        self._waiting_since = time.monotonic()

    def _write_one_by_one(self) -> bool:
        """Finds the rows that the file does not take; False if it takes none at the moment."""
        while self._taken:
            try:
                self._spool.write(self._taken[:1])
            except sqlite3.OperationalError as error:
                self._failed(error)
                return False
            except Exception as error:
                self.figures.refused += 1
                self._done_weight += self._taken[0].weight
                log.error("ledger_rows_refused", call=self._taken[0].call[0], error=str(error))
            else:
                self._done(self._taken[:1])
            del self._taken[0]
        return True

    def _done(self, entries: list[Rows]) -> None:
        self._done_weight += sum(entry.weight for entry in entries)
        self.figures.written += sum(entry.call[OUTCOME] != OPEN for entry in entries)
        if self.trouble:
            log.info("ledger_written_again", dropped=self._dropped_since_told)
            self.trouble = ""
        self._dropped_since_told = 0

    def _failed(self, error: sqlite3.Error) -> None:
        self.figures.failures += 1
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if not self.trouble:
            log.error("ledger_not_written", error=str(error), rows=self.queued)
        self.trouble = f"the ledger's file cannot be written: {error}"

    def _do_jobs(self) -> None:
        while self._jobs:
            self._jobs.popleft()()

    def _prune(self) -> None:
        """Deletes a few of the rows that are too old, once a second."""
        now = time.monotonic()
        if self._retention_days is None or now < self._pruned_at + IDLE_SECONDS or self.trouble:
            return
        self._pruned_at = now
        try:
            self._spool.prune(time.time() - self._retention_days * DAY_SECONDS, PRUNED_AT_ONCE)
        except sqlite3.Error as error:
            log.warning("ledger_not_pruned", error=str(error))
