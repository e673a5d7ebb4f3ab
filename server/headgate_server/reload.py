"""Reads the configuration again on SIGHUP and whenever a file beside it changes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import structlog
from watchfiles import watch

from headgate_server.config import Config, ConfigError, load

SETTLE_MILLISECONDS = 200
"""How long a folder must be quiet: an editor or a ConfigMap changes several names for one change."""
LOOK_SECONDS = 5.0
"""Between looks where no change is told of: it came before the watch began, or the file system does not tell."""

log = structlog.get_logger(component="configuration")

Apply = Callable[[Config], Awaitable[None]]
Fingerprint: TypeAlias = dict[Path, tuple[int, int, int] | None]


async def tell_of_changes(folders: Iterable[Path], look_seconds: float) -> AsyncIterator[None]:
    """Tells when something has changed in one of them, and after that time when nothing has.

    Raises:
        OSError: a folder cannot be watched.
    """
    # Not by watchfiles' own awatch: anyio, which it loads for one wait in a thread, takes 5 MB.
    left = threading.Event()
    changes = watch(
        *folders,
        watch_filter=None,
        recursive=False,
        debounce=SETTLE_MILLISECONDS,
        rust_timeout=int(look_seconds * 1000),
        yield_on_timeout=True,
        stop_event=left,
    )
    try:
        while await asyncio.to_thread(next, changes, None) is not None:
            yield
    finally:
        left.set()


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
        watch: Callable[[Iterable[Path], float], AsyncIterator[None]] = tell_of_changes,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._path = path.absolute()
        self._environment = environment
        self._apply = apply
        self._refused = refused
        self._watched = watch
        self._look_seconds = look_seconds
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
            if read is None or (changed and not applied):
                seen = {}  # what was missing may come: it is looked for at every look
            else:
                self._told = []
            changed = True
            # Files that only the new configuration names have not been seen: the first look at them reads once more.
            await self._until_wanted(named_files(self._path, config), seen)

    async def _until_wanted(self, files: set[Path], seen: Fingerprint) -> None:
        watching = asyncio.create_task(self._watch(files, seen))
        try:
            await self._wanted.wait()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        self._wanted.clear()

    async def _watch(self, files: set[Path], seen: Fingerprint) -> None:
        """Asks for a reload when one of the files is not as it was seen.

        Folders are watched, not files: a ConfigMap swaps a symlink. Where nothing can be watched, the files are looked
        at all the same.
        """
        folders = {file.parent for file in files if file.parent.is_dir()}
        try:
            async for _ in self._watched(folders, self._look_seconds):
                if fingerprint(files) != seen:
                    self.request()
        except OSError as error:  # such as when no more folders can be watched on this machine
            log.warning("configuration_not_watched", file=str(self._path), error=str(error))
        while True:
            await asyncio.sleep(self._look_seconds)
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
