"""Vendor tokens that must be fetched and refreshed. Google's are here; those of OAuth and Entra ID in oauth.py.

A request never waits for a token: a background task fetches ahead of each expiry, and `headers` answers from memory.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from headgate_server.errors import ProviderCredentialsRejected, ProviderError, ProviderUnreachable

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

GOOGLE_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
FETCH_SECONDS = 10.0
REFRESH_AHEAD_SECONDS = 300.0
LONGEST_RETRY_SECONDS = 60.0
FOREVER_SECONDS = 3600.0
BETWEEN_REJECTIONS_SECONDS = 60.0

log = structlog.get_logger(component="credentials")


class Credential(Protocol):
    """What authenticates the calls of one provider."""

    def headers(self) -> Mapping[str, str]:
        """The headers of a call that begins now; never waits.

        Raises:
            ProviderError: there is no valid token, and why the last one could not be had.
        """
        ...

    def start(self) -> None:
        """Begins to fetch, off every request's way; more than once is no harm."""
        ...

    async def tried(self) -> None:
        """Waits until the first token came or failed to come."""
        ...

    def rejected(self) -> None:
        """The vendor did not accept it, though it has not expired."""
        ...

    async def close(self) -> None:
        """Fetches no more, and closes every connection to where it comes from."""
        ...


@dataclass(frozen=True, slots=True)
class Token:
    """What a source issued. `expires_at` is on the monotonic clock."""

    headers: Mapping[str, str] = field(repr=False)
    expires_at: float


class TokenSource(Protocol):
    """Where tokens come from."""

    async def fetch(self) -> Token:
        """A new token.

        Raises:
            ProviderError: there is none; ProviderUnreachable, or ProviderCredentialsRejected.
        """
        ...

    async def close(self) -> None:
        """Closes every connection."""
        ...


class RefreshedToken:
    """The Credential of one provider whose token comes from `source`."""

    def __init__(self, provider: str, source: TokenSource) -> None:
        self._provider = provider
        self._source = source
        self._token: Token | None = None
        self._failure: ProviderError = ProviderUnreachable("the provider's token has not been fetched yet")
        self._tried = asyncio.Event()
        self._wanted = asyncio.Event()
        self._rejected_at = -BETWEEN_REJECTIONS_SECONDS
        self._fetching: asyncio.Task[None] | None = None

    def headers(self) -> Mapping[str, str]:
        """The headers that bear the token."""
        if self._token is None or self._token.expires_at <= time.monotonic():
            raise type(self._failure)(self._failure.message, vendor_detail=self._failure.vendor_detail)
        return self._token.headers

    def start(self) -> None:
        """Begins to fetch, off every request's way; more than once is no harm."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._keep_fresh())

    async def _keep_fresh(self) -> None:
        """Fetches ahead of each expiry, and when the vendor rejects a token; after a failure ever more slowly."""
        failures = 0
        while True:
            try:
                self._token = await self._source.fetch()
            except ProviderError as error:
                self._failure = error
                failures += 1
                delay = retry_delay(failures)
                log.warning(
                    "token_not_fetched", provider=self._provider, reason=error.reason, detail=error.vendor_detail
                )
            else:
                failures = 0
                delay = refresh_delay(self._token.expires_at - time.monotonic())
            self._tried.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), delay)
            self._wanted.clear()

    async def tried(self) -> None:
        """Waits until the first token came or failed to come."""
        await self._tried.wait()

    def rejected(self, now: float | None = None) -> None:
        """Fetches anew, at most once a minute: a vendor that rejects every token must not make a storm of them."""
        now = time.monotonic() if now is None else now
        if now - self._rejected_at >= BETWEEN_REJECTIONS_SECONDS:
            self._rejected_at = now
            self._wanted.set()

    async def close(self) -> None:
        """Fetches no more, and closes the source."""
        if self._fetching:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        await self._source.close()


def refresh_delay(lifetime: float) -> float:
    """Seconds until a token of that lifetime is replaced: five minutes ahead, or at half time if it is short."""
    return max(lifetime - REFRESH_AHEAD_SECONDS, lifetime / 2, 1.0 if lifetime > 1.0 else 0.1)


def retry_delay(failures: int) -> float:
    """Seconds until the next try after so many failures in a row."""
    return min(2.0 ** min(failures - 1, 6), LONGEST_RETRY_SECONDS)


class GoogleTokens:
    """Tokens for Google Cloud: of a service account's key or a workload identity's configuration in `file`, else by
    Application Default Credentials. https://docs.cloud.google.com/docs/authentication/application-default-credentials
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._credentials: Credentials | None = None

    async def fetch(self) -> Token:
        """A new token, fetched in a thread, because Google's package blocks."""
        return await asyncio.to_thread(self._fetch)

    async def close(self) -> None:
        """There is nothing to close: each fetch has its own connection."""

    def _fetch(self) -> Token:
        from google.auth import exceptions
        from google.auth.transport.requests import Request

        try:
            if self._credentials is None:
                self._credentials = _google_credentials(self._file)
            request = partial(Request(), timeout=FETCH_SECONDS)
            self._credentials.refresh(request)  # type: ignore[no-untyped-call]  # the package types a part of itself
        except exceptions.TransportError as error:
            raise ProviderUnreachable("no connection to Google's token service", vendor_detail=str(error)) from error
        except (exceptions.GoogleAuthError, OSError, ValueError) as error:
            raise ProviderCredentialsRejected(
                "Google does not accept the gateway's credentials", vendor_detail=str(error)
            ) from error
        headers: dict[str, str] = {}
        self._credentials.apply(headers)  # type: ignore[no-untyped-call]  # the package types a part of itself
        return Token(headers, time.monotonic() + _lifetime(self._credentials.expiry))


def google_extra_missing() -> str:
    """What to install when Google's package is not there; empty when it is."""
    if find_spec("google.auth") and find_spec("requests"):
        return ""
    return "google-auth is not installed: pip install 'headgate-server[google]'"


def _google_credentials(file: Path | None) -> Credentials:
    import google.auth

    scopes = (GOOGLE_SCOPE,)
    with warnings.catch_warnings():
        # The package warns of files of unknown kind from strangers; this one is the operator's.
        warnings.simplefilter("ignore")
        if file is None:
            return google.auth.default(scopes)[0]
        found: Credentials = google.auth.load_credentials_from_file(file, scopes)[0]  # type: ignore[no-untyped-call]  # the package types a part of itself
        return found


def _lifetime(expiry: datetime | None) -> float:
    """Seconds until a moment that Google's package gives without its zone, UTC."""
    if expiry is None:
        return FOREVER_SECONDS
    return expiry.replace(tzinfo=UTC).timestamp() - time.time()
