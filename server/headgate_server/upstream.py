"""The only module that calls a vendor over HTTP, behind the transport seam."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing, suppress
from typing import TypeVar

from headgate_server.attempt import Attempt
from headgate_server.endpoints import Endpoint
from headgate_server.errors import GatewayError, ProviderProtocolError, ProviderTimeout
from headgate_server.providers.base import HttpCall, Target
from headgate_server.redaction import redacted
from headgate_server.sse import Decoder, Event
from headgate_server.transports.base import HttpRequest, HttpResponse

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
MAX_JOINED_BYTES = 256 * 1024
CHECK_PATH = "/models"
DRAIN_SECONDS = 1.0
ERROR_BODY_SECONDS = 2.0
REQUEST_ID_HEADERS = ("x-request-id", "request-id", "apim-request-id", "x-amzn-requestid")

T = TypeVar("T")
_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class Upstream:
    """Makes the HTTP calls of attempts: each wait under the attempt's clock, each response closed on every way out."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self._endpoints = endpoints
        self._draining: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Reads no further in answers whose callers have all they wanted."""
        for task in tuple(self._draining):
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)

    def endpoint(self, target: Target) -> Endpoint:
        """The provider that a target is at."""
        return self._endpoints[target.provider]

    def capabilities(self, target: Target) -> frozenset[str]:
        """What the target's wire can carry."""
        return self.endpoint(target).adapter.CAPABILITIES

    async def fetch(self, call: HttpCall, attempt: Attempt) -> bytes:
        """The whole body of the answer.

        Raises:
            GatewayError: the vendor answered an error, or none, or too late.
        """
        return await _within(attempt, self._fetch(call, attempt))

    async def _fetch(self, call: HttpCall, attempt: Attempt) -> bytes:
        response = await self._send(call, attempt, streams=False)
        try:
            return await _body(response)
        finally:
            response.close()

    async def stream(
        self, call: HttpCall, attempt: Attempt, *, coalesce: float = 0.0
    ) -> AsyncGenerator[list[Event], None]:
        """The events of the answer, those of one read together, or of all reads within `coalesce` seconds.

        The first events never wait.

        Raises:
            GatewayError: the vendor answered an error, or none, or too late, or broke off.
        """
        attempt.clock.stream_expected()
        response = await _within(attempt, self._send(call, attempt, streams=True))
        try:
            decoder = Decoder()
            patience = 0.0
            while chunk := await _within(attempt, response.read()):
                events = decoder.feed(chunk)
                if patience:
                    await _gather(events, response, decoder, patience)
                if events:
                    yield events
                    patience = coalesce
            if events := decoder.end():
                yield events
        finally:
            response.close()

    async def check(self, endpoint: Endpoint, seconds: float) -> Mapping[str, str]:
        """Asks for the list of models, which is cheap, and is satisfied with any answer that shows a working service:
        the headers of that answer.

        Raises:
            GatewayError: the provider cannot be reached, failed, or does not accept the credentials.
        """
        try:
            async with asyncio.timeout(seconds):
                authentication = endpoint.authentication()
                request = HttpRequest("GET", endpoint.base_url + CHECK_PATH, authentication, b"", seconds)
                response = await endpoint.transport.send(request)
                try:
                    if response.status >= 500 or response.status in (401, 403):
                        error = await _refusal(endpoint, response, endpoint.target(""))
                        error.vendor_detail = redacted(error.vendor_detail, authentication.values())
                        raise error
                    await _beginning(response)
                    return response.headers
                finally:
                    response.close()
        except TimeoutError:
            raise ProviderTimeout("the provider did not answer a check in time", facts={"phase": "total"}) from None

    def finish(self, events: AsyncGenerator[list[Event], None]) -> None:
        """The vendor has said all it had to say; the end of the HTTP body is read off the caller's path.

        A `[DONE]` comes before the body's last bytes, and closing in between would cost a connection each time.
        """
        task = asyncio.create_task(_drain(events))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def _send(self, call: HttpCall, attempt: Attempt, *, streams: bool) -> HttpResponse:
        endpoint = self.endpoint(attempt.target)
        authentication = endpoint.authentication(attempt.caller_key)
        attempt.secrets = authentication.values()
        request = HttpRequest(
            method=call.method,
            url=endpoint.base_url + call.path,
            headers={
                "content-type": "application/json",
                "accept": "text/event-stream" if streams else "application/json",
                **attempt.trace_headers,
                **authentication,
                **call.headers,
            },
            body=call.body,
            connect_timeout=attempt.clock.clocks.connect,
        )
        response = await endpoint.transport.send(request)
        attempt.record.http_status = response.status
        attempt.record.provider_request_id = _request_id(response.headers)
        if 200 <= response.status < 300:
            return response
        try:
            raise await _refusal(endpoint, response, attempt.target, attempt.caller_key)
        finally:
            response.close()


async def _refusal(endpoint: Endpoint, response: HttpResponse, target: Target, caller_key: str = "") -> GatewayError:
    """What a status other than success means."""
    if response.status < 400:
        return ProviderProtocolError(
            "the provider answered with a redirect, which is never followed",
            facts={"http_status": str(response.status)},
        )
    if response.status == 401 and endpoint.credential and not caller_key:
        endpoint.credential.rejected()
    body = await _beginning(response)
    return endpoint.adapter.error(response.status, response.headers, body, target)


async def _drain(events: AsyncGenerator[list[Event], None]) -> None:
    with suppress(TimeoutError, GatewayError):
        async with asyncio.timeout(DRAIN_SECONDS), aclosing(events):
            async for _ in events:
                pass


async def _gather(events: list[Event], response: HttpResponse, decoder: Decoder, seconds: float) -> None:
    """Adds what arrives within the time, up to a size. What goes wrong meanwhile is for the next read to say."""
    size = 0
    with suppress(TimeoutError, GatewayError):
        async with asyncio.timeout(seconds):
            while size < MAX_JOINED_BYTES and (chunk := await response.read()):
                size += len(chunk)
                events += decoder.feed(chunk)


async def _beginning(response: HttpResponse) -> bytes:
    """What can be had of an error's body: its status counts, whatever becomes of the rest."""
    body = b""
    with suppress(GatewayError, TimeoutError):
        async with asyncio.timeout(ERROR_BODY_SECONDS):
            while len(body) < MAX_ERROR_BYTES and (chunk := await response.read()):
                body += chunk
    return body[:MAX_ERROR_BYTES]


async def _body(response: HttpResponse) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := await response.read():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise ProviderProtocolError(f"the provider answered with more than {MAX_ANSWER_BYTES} bytes")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _within(attempt: Attempt, waiting: Awaitable[T]) -> T:
    """Waits under the attempt's clock; the error says which clock spoke."""
    seconds, phase = attempt.clock.limit(time.monotonic())
    try:
        async with asyncio.timeout(seconds):
            return await waiting
    except TimeoutError:
        callers = phase == "default_deadline" or phase in attempt.clock.clocks.callers
        raise ProviderTimeout.by_clock(phase, callers=callers) from None


def _request_id(headers: Mapping[str, str]) -> str:
    """The vendor's own name for the call, if it is a word: a header may hold anything."""
    for name in REQUEST_ID_HEADERS:
        if value := headers.get(name):
            return value if _REQUEST_ID.fullmatch(value) else ""
    return ""
