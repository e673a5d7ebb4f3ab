"""A real Headgate on a free port, and what tests ask of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from structlog.testing import capture_logs

from headgate_server import logs
from headgate_server.config import Telemetry
from tests.collector import Collector, collecting
from tests.headgate_process import Headgate, running, tell_of_ended_calls
from tests.transports import TRANSPORTS, Gate
from tests.vendor import Vendor

Serve = Callable[..., AbstractAsyncContextManager[Headgate]]


@pytest.fixture(scope="session", autouse=True)
def _structured_logs() -> None:
    logs.configure(Telemetry())


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
    """What was logged during a test: our own lines as dictionaries, and those of libraries."""

    def __init__(self, ours: list[Any], theirs: pytest.LogCaptureFixture) -> None:
        self._ours = ours
        self._theirs = theirs

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Our own lines, of calls that have just ended, too."""
        tell_of_ended_calls()
        return list(self._ours)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The access log."""
        return [line for line in self.lines if line["event"] == "call"]

    @property
    def errors(self) -> list[dict[str, Any]]:
        """Every line of level ERROR, whoever wrote it."""
        ours = [line for line in self.lines if line["log_level"] in ("error", "critical")]
        theirs = [
            {"event": record.getMessage(), "logger": record.name}
            for record in self._theirs.records
            if record.levelno >= logging.ERROR
        ]
        return ours + theirs


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[LogLines]:
    """The log of this test."""
    with capture_logs([logs.add_call]) as ours, caplog.at_level(logging.INFO):
        yield LogLines(ours, caplog)


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """A collector that servers find by OpenTelemetry's own variables. It has all spans once they have stopped."""
    async with collecting() as running:
        for variable, value in running.environment.items():
            monkeypatch.setenv(variable, value)
        yield running


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """The name of each transport in turn."""
    return str(request.param)


@pytest.fixture
def gate(serve: Serve, transport: str) -> Gate:
    """A gateway over that transport, with this vendor as provider `v`: `async with gate(vendor, ...) as headgate`."""

    def start(vendor: Vendor, **settings: Any) -> Any:
        provider = {"adapter": "openai", "base_url": vendor.base_url, "transport": transport, **settings}
        return serve(providers={"v": provider})

    return start
