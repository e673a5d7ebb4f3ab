"""A real Headgate on a free port, and what tests ask of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from headgate_server import logs
from tests.headgate_process import Headgate, running

Serve = Callable[..., AbstractAsyncContextManager[Headgate]]


@pytest.fixture(scope="session", autouse=True)
def _structured_logs() -> None:
    logs.configure("info", "json")


@pytest.fixture
def serve() -> Serve:
    """Starts a server with this configuration: `async with serve(providers=..., models=...) as headgate`."""
    return running


@pytest.fixture
async def demo(serve: Serve) -> AsyncIterator[Headgate]:
    """A server whose only provider is the mock."""
    async with serve(providers={"demo": {"adapter": "mock"}}) as headgate:
        yield headgate


class LogLines:
    """What was logged during a test, as the dictionaries that became lines."""

    def __init__(self, handler: pytest.LogCaptureFixture) -> None:
        self._capture = handler

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [
            {**record.msg, "level": record.levelname}
            if isinstance(record.msg, dict)
            else {"event": record.getMessage(), "level": record.levelname, "logger": record.name}
            for record in self._capture.records
        ]

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The access log."""
        return [line for line in self.lines if line.get("event") == "call"]

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if logging.getLevelNamesMapping()[line["level"]] >= logging.ERROR]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[LogLines]:
    """The log of this test."""
    with caplog.at_level(logging.INFO):
        yield LogLines(caplog)
