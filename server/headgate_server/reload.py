"""Reads the configuration again on SIGHUP and whenever its file, or one that it names, changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
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
            seen = fingerprint(named_files(self._path, config))
            read = await self._read()
            applied = read is not None and (changed or read != config) and await self._applied(read)
            if read is not None and applied:
                config = read
            is_lacking = read is None or (changed and not applied)
            if not is_lacking:
                self._told = []
            changed = True
            # Files that only the new configuration names have not been seen: the first look at them reads once more.
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if is_lacking else None):
                    await self._until_wanted(named_files(self._path, config), seen)

    async def _until_wanted(self, files: set[Path], seen: Fingerprint) -> None:
        looking = asyncio.create_task(self._look(files, seen))
        try:
            await self._wanted.wait()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        self._wanted.clear()

    async def _look(self, files: set[Path], seen: Fingerprint) -> None:
        """Asks for a reload when one of the files is not as it was seen, nor about to change again."""
        found = seen
        while True:
            await asyncio.sleep(LOOK_SECONDS if found == seen else SETTLE_SECONDS)
            before, found = found, await asyncio.to_thread(fingerprint, files)
            if found == before != seen:
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
    """The configuration's file, and those that it names; relative names count from its folder."""
    return {path.absolute(), *((path.parent / file).absolute() for file in _paths(config.model_dump()))}


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
