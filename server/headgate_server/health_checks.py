"""Looks after providers that have no traffic: a cheap call tells whether they can be reached."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable

import structlog

from headgate_server.config import HealthChecks
from headgate_server.endpoints import Endpoint
from headgate_server.errors import GatewayError, GatewayOverloaded
from headgate_server.resilience.health import ProviderRecord
from headgate_server.upstream import Upstream

log = structlog.get_logger(component="health")


class HealthChecker:
    """Asks each provider that had no call for `interval` seconds, until it is stopped; 0 asks nobody."""

    def __init__(
        self, upstream: Upstream, providers: Iterable[tuple[Endpoint, ProviderRecord]], checks: HealthChecks
    ) -> None:
        self._upstream = upstream
        self._providers = tuple(providers)
        self._checks = checks
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to look after all of them."""
        if self._checks.interval:
            self._tasks = [asyncio.create_task(self._look_after(*provider)) for provider in self._providers]

    async def stop(self) -> None:
        """Asks nobody any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look_after(self, endpoint: Endpoint, record: ProviderRecord) -> None:
        await asyncio.sleep(self._checks.interval * random.random())  # not all of them, and not all servers, at once
        while True:
            calls = record.total_calls
            await asyncio.sleep(self._checks.interval)
            if record.total_calls == calls and not record.in_flight:
                await self._check(endpoint, record)

    async def _check(self, endpoint: Endpoint, record: ProviderRecord) -> None:
        try:
            await self._upstream.check(endpoint, self._checks.timeout)
        except GatewayOverloaded:
            return
        except GatewayError as error:
            if record.check_failed(error):
                log.warning("provider_check_failed", provider=endpoint.name, reason=error.reason, error=error.message)
        except Exception:
            log.exception("provider_check_broke", provider=endpoint.name)
        else:
            if record.check_succeeded(time.time()):
                log.info("provider_reachable_again", provider=endpoint.name)
