"""headgate.v1.InferenceService: delegate, answer."""

from __future__ import annotations

import base64
import bisect
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from google.protobuf.timestamp_pb2 import Timestamp
from headgate import v1 as pb

import headgate_server
from headgate_server.call import Call, CallRegistry
from headgate_server.errors import InvalidRequest
from headgate_server.ledger.ledger import Ledger
from headgate_server.principal import Principal

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000


class InferenceServicer:
    """The chain calls each method with the parsed and validated request and the Call, in place of gRPC's context."""

    def __init__(self, calls: CallRegistry, ledger: Ledger | None = None) -> None:
        self._calls = calls
        self._ledger = ledger
        self._start_time = Timestamp()
        self._start_time.GetCurrentTime()
        self.state: pb.ServingState.ValueType = pb.SERVING_STATE_SERVING

    async def Generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        return await call.runtime.gateway.generate(request, call)

    async def StreamGenerate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.StreamGenerateResponse, None]:
        async with aclosing(call.runtime.gateway.stream(request, call)) as events:
            async for event in events:
                yield event

    async def Embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        return await call.runtime.gateway.embed(request, call)

    async def ListModels(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        models = _usable(call.runtime.models, call.principal)
        first = bisect.bisect_right(models, _last_name(request.page_token), key=lambda model: model.name)
        page = models[first : first + size]
        more = first + size < len(models)
        return pb.ListModelsResponse(models=page, next_page_token=_token(page[-1].name) if more else "")

    async def Health(self, request: pb.HealthRequest, call: Call) -> pb.HealthResponse:
        state = self.state
        troubles = {
            "x-ratelimit-state": call.runtime.limits.limiter.trouble,
            "x-ledger-state": self._ledger.trouble if self._ledger else "",
        }
        if told := [(name, _ascii(trouble)) for name, trouble in troubles.items() if trouble]:
            call.trailer += told
            state = pb.SERVING_STATE_DEGRADED if state == pb.SERVING_STATE_SERVING else state
        return pb.HealthResponse(
            state=state,
            version=headgate_server.__version__,
            start_time=self._start_time,
            providers=[served.states.health(time.monotonic()) for served in call.runtime.providers.values()],
            active_calls=len(self._calls) - 1,
        )


def _ascii(text: str) -> str:
    """As metadata can hold it."""
    return text.encode("ascii", "backslashreplace").decode()


def _usable(models: Sequence[pb.Model], principal: Principal) -> Sequence[pb.Model]:
    """The models that a principal may ask for and that one of its providers has."""
    if not principal.allowed_models and not principal.allowed_providers:
        return models
    return [
        model
        for model in models
        if principal.may_use_model(model.name) and any(map(principal.may_use_provider, model.providers))
    ]


def _token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _last_name(token: str) -> str:
    """The name after which a page begins: a token stays good when models come and go."""
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:  # not ASCII, not base64, not UTF-8
        raise InvalidRequest.at("page_token", "is not a token of this service") from None
