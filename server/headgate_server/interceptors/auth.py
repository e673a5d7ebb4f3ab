"""Who calls, before the body is parsed; and what that caller may ask for, after it."""

from __future__ import annotations

from headgate import v1 as pb

from headgate_server.call import Call
from headgate_server.errors import ModelNotAllowed
from headgate_server.identity.credentials import provider_keys


async def authenticate(call: Call) -> None:
    """Sets the call's principal, and the vendor keys that it brings."""
    runtime = call.runtime
    call.principal = await runtime.identity.authenticator.authenticate(call)
    allowed = runtime.config.auth.caller_provider_keys
    call.provider_keys = provider_keys(call.metadata, runtime.issuers, allowed=allowed, repeated=call.repeated)


def permit(call: Call) -> None:
    """Refuses models that the principal may not use, by the names it asks for, whatever they stand for."""
    request = call.request
    if call.principal.allowed_models and isinstance(request, pb.GenerateRequest | pb.EmbedRequest):
        for name in (request.model, *request.routing.fallbacks):
            if name and not call.principal.may_use_model(name):
                raise ModelNotAllowed(f'the caller may not use the model "{name}"')
