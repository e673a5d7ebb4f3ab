"""Reads the configuration again on SIGHUP and whenever a file beside it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import structlog
from watchfiles import awatch

from headgate_server.config import Config, ConfigError, load

SETTLE_MILLISECONDS = 200
"""How long a folder must be quiet: an editor or a ConfigMap changes several names for one change."""
LOOK_MILLISECONDS = 5000
"""Between looks where no change is told of: it came before the watch began, or the file system does not tell."""

log = structlog.get_logger(component="configuration")

Apply = Callable[[Config], Awaitable[None]]
Fingerprint: TypeAlias = dict[Path, tuple[int, int, int] | None]


class Reloader:
    """Loads the file anew when it is told to, one load at a time, and hands a good configuration to `apply`.

    A configuration that cannot be used changes nothing: `refused` is told, and every problem of it is logged.
    """

    def __init__(
        self, path: Path, environment: Mapping[str, str], apply: Apply, refused: Callable[[], None] = lambda: None
    ) -> None:
        self._path = path.absolute()
        self._environment = environment
        self._apply = apply
        self._refused = refused
        self._wanted = asyncio.Event()

    def request(self) -> None:
        """Asks for a reload; several requests before it begins are one."""
        self._wanted.set()

    async def run(self, config: Config) -> None:
        """Reloads until it is cancelled; `config` is what is served, and was read from the file a moment ago."""
        changed = False
        while True:
            seen = fingerprint(named_files(self._path, config))
            read = await self._read()
            if read is not None and (changed or read != config) and await self._applied(read):
                config = read
            changed = True
            # Files that only the new configuration names have not been seen: the first look at them reads once more.
            await self._until_wanted(named_files(self._path, config), seen)

    async def _until_wanted(self, files: set[Path], seen: Fingerprint) -> None:
        watching = asyncio.create_task(self._watch(files, seen))
        try:
            await self._wanted.wait()
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        self._wanted.clear()

    async def _watch(self, files: set[Path], seen: Fingerprint) -> None:
        """Asks for a reload when one of the files is not as it was seen.

        Folders are watched, not files: a ConfigMap swaps a symlink.
        """
        folders = {file.parent for file in files if file.parent.is_dir()}
        changes = awatch(
            *folders,
            watch_filter=None,
            recursive=False,
            debounce=SETTLE_MILLISECONDS,
            rust_timeout=LOOK_MILLISECONDS,
            yield_on_timeout=True,
        )
        async for _ in changes:
            if fingerprint(files) != seen:
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
