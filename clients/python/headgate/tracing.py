"""OpenTelemetry spans of calls, by opentelemetry-instrumentation-grpc."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc
    from opentelemetry.trace import TracerProvider


def traced(channel: grpc.Channel, provider: bool | TracerProvider) -> grpc.Channel:
    """A channel whose calls have spans; raises ImportError without the extra [otel]."""
    instrumentation = _instrumentation()
    interceptor = instrumentation.client_interceptor(tracer_provider=_given(provider))
    intercepted: grpc.Channel = instrumentation.grpcext.intercept_channel(channel, interceptor)
    return intercepted


def aio_interceptors(provider: bool | TracerProvider) -> list[Any]:
    """The interceptors that give calls of grpc.aio their spans; raises ImportError without the extra [otel]."""
    return list(_instrumentation().aio_client_interceptors(tracer_provider=_given(provider)))


def _given(provider: bool | TracerProvider) -> TracerProvider | None:
    return None if isinstance(provider, bool) else provider


def _instrumentation() -> Any:
    try:
        from opentelemetry.instrumentation import grpc as instrumentation
        from opentelemetry.instrumentation.grpc import grpcext  # noqa: F401  # becomes an attribute
    except ImportError as error:
        raise ImportError("tracing needs the extra headgate[otel]") from error
    return instrumentation
