"""GET /metrics, /healthz, /readyz, /status.json, the status page at /, and /debug where it is wanted."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from importlib.resources import files
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from headgate_server.config.values import is_loopback, split_address

CLOSE_SECONDS = 1.0


def content_hash(page: str, tag: str) -> str:
    """What allows the one inline element of that tag, and no other, in a content security policy."""
    content = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


PAGE = files(__package__).joinpath("page.html").read_text("utf-8")
SECURITY = {
    "cache-control": "no-store",
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            f"script-src {content_hash(PAGE, 'script')}",
            f"style-src {content_hash(PAGE, 'style')}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

Shown = Callable[[], Mapping[str, Any]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminListener:
    """Serves what it is given: `status` and each of `debug` (by name) are asked at every request, after `catch_up`, by
    which they know of everything up to then."""

    def __init__(
        self,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        status: Shown,
        debug: Mapping[str, Shown],
        catch_up: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._ready = ready
        self._status = status
        self._catch_up = catch_up
        self._host = ""
        application = web.Application(middlewares=[_secured, self._for_us])
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/status.json", _json_of(status))
        application.router.add_get("/", self._page)
        for name, shown in debug.items():
            application.router.add_get(f"/debug/{name}", _json_of(shown))
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=CLOSE_SECONDS)

    async def start(self, listen: str) -> str:
        """Listens; the address that was bound, as HOST:PORT.

        Raises:
            OSError: it cannot be bound.
        """
        host, port = split_address(listen)
        self._host = host.lower()
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, reuse_address=True).start()
        return f"{listen.rpartition(':')[0]}:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        """Answers nobody any more."""
        await self._runner.cleanup()

    @web.middleware
    async def _for_us(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuses names that are not ours: a page of another site may have had its name resolved to our address, and
        could then read what we answer (DNS rebinding)."""
        # Others than this machine's browsers reach a listener that is open to other machines anyway.
        if is_loopback(self._host) and not _is_address_or(self._host, request.headers.get("host", "")):
            raise web.HTTPMisdirectedRequest(text="the Host must be an IP address, localhost or that of admin.listen\n")
        self._catch_up()
        return await handler(request)

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        # In a thread: thousands of series take milliseconds, in which no call would go on.
        body = await asyncio.to_thread(encode, self._registry)
        return web.Response(body=body, headers={"content-type": content_type})

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        ready = self._ready()
        return web.Response(status=200 if ready else 503, text="ready\n" if ready else "not ready\n")


def _is_address_or(host: str, asked: str) -> bool:
    """Whether a Host header has an IP address, localhost or this host; so has none at all, which no browser sends."""
    try:
        name = (urlsplit(f"//{asked}").hostname or "").rstrip(".")
        if name in ("", "localhost", host):
            return not asked or bool(name)
        ip_address(name)
    except ValueError:
        return False
    return True


@web.middleware
async def _secured(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as refused:
        refused.headers.update(SECURITY)
        raise
    response.headers.update(SECURITY)
    return response


def _json_of(shown: Shown) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(shown()), content_type="application/json")

    return answer
