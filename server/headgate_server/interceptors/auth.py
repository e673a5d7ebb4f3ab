"""Who calls, before the body is parsed; and what that caller may ask for, after it."""

from __future__ import annotations

from collections.abc import Awaitable

from headgate_server.call import Call
from headgate_server.errors import ModelNotAllowed
from headgate_server.identity.credentials import provider_keys
from headgate_server.limits.estimate import Request
from headgate_server.principal import Principal


def authenticate(call: Call) -> Awaitable[None] | None:
    """Sets the call's principal, and the vendor keys that it brings."""
    found = call.runtime.identity.authenticator.authenticate(call)
    if not isinstance(found, Principal):
        return _admit_later(call, found)
    _admit(call, found)
    return None


def _admit(call: Call, principal: Principal) -> None:
    runtime = call.runtime
    call.principal = principal
    allowed = runtime.config.auth.caller_provider_keys
    call.provider_keys = provider_keys(call.metadata, runtime.issuers, allowed=allowed, repeated=call.repeated)


async def _admit_later(call: Call, principal: Awaitable[Principal]) -> None:
    _admit(call, await principal)


def permit(call: Call) -> None:
    """Refuses models that the principal may not use, by the names it asks for, whatever they stand for."""
    request = call.request
    if call.principal.allowed_models and isinstance(request, Request):
        for name in (request.model, *request.routing.fallbacks):
            if name and not call.principal.may_use_model(name):
                raise ModelNotAllowed(f'the caller may not use the model "{name}"')
