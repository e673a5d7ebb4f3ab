"""The keys of an identity provider: fixed, or from its JSON Web Key Set, fetched ahead of need and on rotation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from headgate_server.identity.jwt import VerificationKey, verification_keys
from headgate_server.transports.base import HttpRequest, Transport

MAX_JWKS_BYTES = 512 * 1024
FETCH_SECONDS = 10.0
CONNECT_SECONDS = 5.0
RETRY_SECONDS = 10.0
BETWEEN_FETCHES_SECONDS = 5.0
"""An unknown key id fetches the set anew, at most so often: anybody can send unknown key ids."""
PATIENCE_SECONDS = 3.0

log = structlog.get_logger(component="identity")


class FixedKey:
    """One key that the configuration states."""

    def __init__(self, key: str) -> None:
        self.generation = 0
        self._key = VerificationKey(key)

    async def find(self, key_id: str) -> VerificationKey | None:
        """That key, whatever the token calls it."""
        return self._key

    def start(self) -> None:
        """There is nothing to fetch."""

    async def tried(self) -> None:
        """There is nothing to wait for."""

    async def close(self) -> None:
        """There is nothing to close."""


class FetchedKeys:
    """The keys of a JSON Web Key Set at an address. The last ones that could be had go on serving."""

    def __init__(
        self, url: str, algorithms: Sequence[str], transport: Transport, refresh: float, token_file: Path | None
    ) -> None:
        self.generation = 0
        self._url = url
        self._algorithms = algorithms
        self._transport = transport
        self._refresh = refresh
        self._token_file = token_file
        self._keys: dict[str, VerificationKey] = {}
        self._wanted = asyncio.Event()
        self._fetched = asyncio.Event()
        self._wanted_at = -BETWEEN_FETCHES_SECONDS
        self._keeping: asyncio.Task[None] | None = None

    async def find(self, key_id: str) -> VerificationKey | None:
        """The key of that name. An unknown one may be new: the set is fetched, and waited for, though not for long."""
        if found := self._known(key_id):
            return found
        now = time.monotonic()
        if self._fetched.is_set() and now - self._wanted_at >= BETWEEN_FETCHES_SECONDS:
            self._wanted_at = now
            self._fetched.clear()
            self._wanted.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._fetched.wait(), PATIENCE_SECONDS)
        return self._known(key_id)

    def start(self) -> None:
        """Begins to keep the keys fresh; once is enough."""
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep_fresh())

    async def tried(self) -> None:
        """Waits until the first set came or failed to come."""
        await self._fetched.wait()

    async def close(self) -> None:
        """Stops fetching."""
        if self._keeping:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self._transport.close()

    def _known(self, key_id: str) -> VerificationKey | None:
        if key_id in self._keys or key_id or len(self._keys) != 1:
            return self._keys.get(key_id)
        return next(iter(self._keys.values()))  # a token that names no key means the only one

    async def _keep_fresh(self) -> None:
        while True:
            self._fetched.clear()
            self._wanted.clear()
            succeeded = await self._fetch()
            self._fetched.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), self._refresh if succeeded else RETRY_SECONDS)

    async def _fetch(self) -> bool:
        """Replaces the keys, if it can; an empty set is taken for a mishap."""
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                keys = verification_keys(await self._ask(), self._algorithms)
            if not keys:
                raise ValueError("holds no key for signatures")
        except TimeoutError:
            log.warning("signing_keys_not_fetched", url=self._url, detail="too slow")
        except Exception as error:  # whatever a set may hold: the last keys must go on, and be asked for again
            detail = getattr(error, "vendor_detail", "") or str(error) or type(error).__name__
            log.warning("signing_keys_not_fetched", url=self._url, detail=detail)
        else:
            if keys != self._keys:
                self.generation += 1
                log.info("signing_keys_changed", url=self._url, key_ids=sorted(keys))
            self._keys = keys
            return True
        return False

    async def _ask(self) -> bytes:
        headers = {"accept": "application/json"}
        if self._token_file:
            headers["authorization"] = f"Bearer {self._token_file.read_text('utf-8').strip()}"
        response = await self._transport.send(HttpRequest("GET", self._url, headers, b"", CONNECT_SECONDS))
        try:
            if response.status != 200:
                raise ValueError(f"was answered with HTTP status {response.status}")
            body = b""
            while chunk := await response.read():
                body += chunk
                if len(body) > MAX_JWKS_BYTES:
                    raise ValueError(f"is larger than {MAX_JWKS_BYTES} bytes")
            return body
        finally:
            response.close()
