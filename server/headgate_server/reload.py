"""Reads the configuration again on SIGHUP and whenever its file, or one that it names, changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import TypeAlias

import structlog

from headgate_server.config import Config, ConfigError, load

LOOK_SECONDS = 1.0
"""Between looks at the files. A watch of their folders would wake up with every write to a ledger beside them."""
SETTLE_SECONDS = 0.2
"""How long changed files must stay as they are: an editor or a ConfigMap changes several names for one change."""
RETRY_SECONDS = 5.0
"""After which a configuration that could not be used is tried again: a file that it lacked may have come."""

log = structlog.get_logger(component="configuration")

Apply = Callable[[Config], Awaitable[None]]
Fingerprint: TypeAlias = dict[Path, tuple[int, int, int] | None]


class Reloader:
    """Loads the file anew when it is told to, one load at a time, and hands a good configuration to `apply`.

    A configuration that cannot be used changes nothing: `refused` is told, and every problem of it is logged.
    """

    def __init__(
        self,
        path: Path,
        environment: Mapping[str, str],
        apply: Apply,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path.absolute()
        self._environment = environment
        self._apply = apply
        self._refused = refused
        self._wanted = asyncio.Event()
        self._told: list[str] = []

    def request(self) -> None:
        """Asks for a reload; several requests before it begins are one."""
        self._wanted.set()

    async def run(self, config: Config) -> None:
        """Reloads until it is cancelled; `config` is what is served, and was read from the file a moment ago."""
        changed = False
        while True:
            seen = await asyncio.to_thread(fingerprint, named_files(self._path, config))
            read = await self._read()
            is_served = read is not None and read == config and not changed
            applied = read is not None and not is_served and await self._applied(read)
            if read is not None and applied:
                config = read
            if is_good := is_served or applied:
                self._told = []
            changed = True
            # Files that only the new configuration names have not been seen: the first look at them reads once more.
            await self._until_wanted(named_files(self._path, config), seen, inf if is_good else RETRY_SECONDS)

    async def _until_wanted(self, files: set[Path], seen: Fingerprint, patience: float) -> None:
        looking = asyncio.create_task(self._look(files, seen, patience))
        try:
            await self._wanted.wait()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        self._wanted.clear()

    async def _look(self, files: set[Path], seen: Fingerprint, patience: float) -> None:
        """Asks for a reload when one of the files is not as it was seen, nor about to change again; when all are, after
        that many seconds."""
        found, asked_at = seen, time.monotonic() + patience
        while True:
            await asyncio.sleep(LOOK_SECONDS if found == seen else SETTLE_SECONDS)
            try:
                before, found = found, await asyncio.to_thread(fingerprint, files)
            except Exception:
                log.exception("configuration_not_looked_at", file=str(self._path))
            else:
                if found == before and (found != seen or time.monotonic() >= asked_at):
                    self.request()

    async def _read(self) -> Config | None:
        try:
            return await asyncio.to_thread(load, self._path, self._environment)
        except ConfigError as error:
            self._refuse([str(problem) for problem in error.problems])
            return None

    async def _applied(self, config: Config) -> bool:
        try:
            await self._apply(config)
        except OSError as error:
            self._refuse([str(error)])
            return False
        except Exception:
            self._refused()
            log.exception("configuration_not_applied", file=str(self._path))
            return False
        return True

    def _refuse(self, problems: list[str]) -> None:
        if problems == self._told:
            return
        self._told = problems
        self._refused()
        log.error("configuration_refused", file=str(self._path), problems=problems)


def named_files(path: Path, config: Config) -> set[Path]:
    """The configuration's file, and those that it names and the server reads; relative names count from its folder."""
    values = config.model_dump(exclude={"ledger": {"spool"}})
    return {path.absolute(), *((path.parent / file).absolute() for file in _paths(values))}


def fingerprint(files: set[Path]) -> Fingerprint:
    """What tells a changed file from the one that was read; None for a file that is not there."""
    return {file: _fingerprint(file) for file in files}


def _fingerprint(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _paths(values: object) -> Iterator[Path]:
    if isinstance(values, Path):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _paths(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _paths(value)
