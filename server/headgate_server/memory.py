"""Sees to it that the process does not outgrow its memory: beyond a limit it sheds what nobody has worked for yet."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

INTERVAL_SECONDS = 0.1
TRIM_SECONDS = 1.0
"""It stops the world for some milliseconds."""
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

log = structlog.get_logger(component="server")


class MemoryWatch:
    """Tells whether the process holds more than `limit` bytes, and has `relieve` called as long as it does.

    `relieve` gives memory back and says how many calls that cost. A limit of 0 is none; neither is there one where the
    system does not tell what a process holds.
    """

    def __init__(self, limit: int, relieve: Callable[[], int]) -> None:
        self._limit = limit if _STATM.exists() else 0
        self._relieve = relieve
        self._trimmed = 0.0
        self.short = False
        """More is held than the limit."""

    async def run(self) -> None:
        """Watches until it is cancelled."""
        while self._limit:
            await asyncio.sleep(INTERVAL_SECONDS)
            self._look()

    def _look(self) -> None:
        held = _resident_bytes()
        if held > self._limit and time.monotonic() - self._trimmed > TRIM_SECONDS:
            _trim()
            self._trimmed = time.monotonic()
            held = _resident_bytes()
        short = held > self._limit
        if short:
            given_up = self._relieve()
            if given_up or not self.short:
                log.warning("memory_short", resident_bytes=held, limit_bytes=self._limit, requests_given_up=given_up)
        elif self.short:
            log.info("memory_recovered", resident_bytes=held)
        self.short = short


def _resident_bytes() -> int:
    return int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES


def _trim() -> None:
    """Has the C library return what is free: glibc keeps it, and the process would seem full for ever."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
