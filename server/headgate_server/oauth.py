"""Tokens by OAuth 2.0: client credentials of any service, and those of Microsoft Entra ID.

azure-identity is not used: what a server needs of it is one form to post or one address to get, while the package would
bring five more, read the environment behind the configuration's back, and try seven ways in turn where one is meant.
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from urllib.parse import quote_plus, urlencode

from headgate_server.credentials import FETCH_SECONDS, FOREVER_SECONDS, Token
from headgate_server.errors import ProviderCredentialsRejected, ProviderError, ProviderUnreachable
from headgate_server.json_codec import JsonObject, clip, loads
from headgate_server.transports.base import HttpRequest, Transport

MAX_ANSWER_BYTES = 256 * 1024
CONNECT_SECONDS = 5.0
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class OAuthTokens:
    """Bearer tokens that a token service answers a request with; `asking` makes a new request for each."""

    def __init__(self, asking: Callable[[], HttpRequest], transport: Transport) -> None:
        self._asking = asking
        self._transport = transport

    async def fetch(self) -> Token:
        """A new token."""
        try:
            request = self._asking()
        except (OSError, ValueError) as error:
            raise ProviderCredentialsRejected(
                "the gateway's own credentials cannot be read", vendor_detail=str(error)
            ) from error
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                status, body = await self._ask(request)
        except TimeoutError:
            raise ProviderUnreachable("the token service is too slow") from None
        if status != 200:
            raise _refusal(status, body)
        return _token(body)

    async def close(self) -> None:
        """Closes the connections to the token service."""
        await self._transport.close()

    async def _ask(self, request: HttpRequest) -> tuple[int, bytes]:
        response = await self._transport.send(request)
        try:
            body = b""
            while len(body) < MAX_ANSWER_BYTES and (chunk := await response.read()):
                body += chunk
            return response.status, body
        finally:
            response.close()


def client_credentials(
    token_url: str, client_id: str, client_secret: str, *, scope: str = "", audience: str = "", basic: bool = False
) -> HttpRequest:
    """Asks with a secret, which stands in the body, or with `basic` in the header.
    https://datatracker.ietf.org/doc/html/rfc6749#section-4.4
    """
    form = {"grant_type": "client_credentials", "scope": scope, "audience": audience}
    if not basic:
        return _form(token_url, {**form, "client_id": client_id, "client_secret": client_secret})
    secret = b64encode(f"{quote_plus(client_id)}:{quote_plus(client_secret)}".encode()).decode()
    return _form(token_url, form, {"authorization": f"Basic {secret}"})


def federated_credentials(token_url: str, client_id: str, token_file: Path, *, scope: str) -> HttpRequest:
    """Asks with a token of another issuer, such as Kubernetes, which renews the file.
    https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow

    Raises:
        OSError: the file cannot be read.
    """
    form = {
        "grant_type": "client_credentials",
        "client_id": client_id,
        "client_assertion_type": JWT_BEARER,
        "client_assertion": token_file.read_text("utf-8").strip(),
        "scope": scope,
    }
    return _form(token_url, form)


def managed_identity(endpoint: str, *, scope: str, client_id: str = "", identity_header: str = "") -> HttpRequest:
    """Asks the machine for its own identity: a virtual machine, or with `identity_header` App Service and its like.
    https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
    https://learn.microsoft.com/azure/app-service/overview-managed-identity
    """
    query = {
        "api-version": "2019-08-01" if identity_header else "2018-02-01",
        "resource": scope.removesuffix("/.default"),
        "client_id": client_id,
    }
    headers = {"x-identity-header": identity_header} if identity_header else {"metadata": "true"}
    return HttpRequest("GET", f"{endpoint}?{_encoded(query)}", headers, b"", CONNECT_SECONDS)


def _form(url: str, form: dict[str, str], headers: dict[str, str] | None = None) -> HttpRequest:
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "accept": "application/json",
        **(headers or {}),
    }
    return HttpRequest("POST", url, headers, _encoded(form).encode(), CONNECT_SECONDS)


def _encoded(fields: dict[str, str]) -> str:
    return urlencode({name: value for name, value in fields.items() if value})


def _token(body: bytes) -> Token:
    answer = _object(body)
    token = answer.get("access_token")
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise ProviderUnreachable("the token service answered without a token")
    lifetime = _lifetime(answer)
    if lifetime <= 0:
        raise ProviderUnreachable("the token service answered with a token that has expired")
    return Token({"authorization": f"Bearer {token}"}, time.monotonic() + lifetime)


def _lifetime(answer: JsonObject) -> float:
    """Seconds; App Service says when the token expires, not in how long, and some services say nothing."""
    if (seconds := _number(answer.get("expires_in"))) is not None:
        return seconds
    if (moment := _number(answer.get("expires_on"))) is not None:
        return moment - time.time()
    return FOREVER_SECONDS


def _number(value: object) -> float | None:
    """A number, which Microsoft writes as text."""
    try:
        number = float(value) if isinstance(value, str | int | float) else None
    except (ValueError, OverflowError):
        return None
    return number if number is not None and isfinite(number) else None


def _refusal(status: int, body: bytes) -> ProviderError:
    answer = _object(body)
    said = f"{answer.get('error') or ''}: {answer.get('error_description') or ''}" if answer else clip(body)
    detail = f"HTTP {status}: {said}"[:2048]
    if status in (400, 401, 403):
        return ProviderCredentialsRejected(
            "the token service does not accept the gateway's credentials", vendor_detail=detail
        )
    return ProviderUnreachable("the token service failed", vendor_detail=detail)


def _object(body: bytes) -> JsonObject:
    try:
        answer = loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
