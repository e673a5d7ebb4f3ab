"""Scripted servers, and clients of both kinds to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from headgate.testing import ScriptedServer

from tests.clients.both import connected


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of client in turn."""
    return str(request.param)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A scripted server without a script."""
    with ScriptedServer() as server:
        yield server


@pytest.fixture
async def client(kind: str, server: ScriptedServer) -> AsyncIterator[Any]:
    """A client of that server."""
    async with connected(kind, server.address) as client:
        yield client
