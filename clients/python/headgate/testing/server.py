"""The scripted server: sync gRPC in threads of its own, so that sync and async callers can use it."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as rpc
from google.rpc.status_pb2 import Status
from headgate import v1 as pb
from headgate.errors import DETAILS, DOMAIN, CallFailed
from headgate.testing.script import ANY_MODEL, Model, Reply, Script

MAX_CALLS = 256  # a thread each, and one for each client's health check
NEVER = 1e9  # seconds: what a sync context says without a deadline is larger
OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.http2.min_ping_interval_without_data_ms", 0),  # clients ping each 30 s; gRPC allows one in five minutes
)
SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse{status: SERVING}


@dataclass(slots=True)
class RecordedCall:
    """A call as it came: `timeout` is what the deadline left when it came, in seconds; None without a deadline."""

    method: str
    request: Any
    metadata: Mapping[str, str]
    timeout: float | None
    outcome: str = ""
    """How it ended: OK, an error's code, or CANCELLED when the caller left or its deadline passed; empty before."""
    _ended: threading.Event = field(default_factory=threading.Event, repr=False)

    def conclude(self, outcome: str) -> None:
        """Sets the outcome of a call that has none yet."""
        self.outcome = self.outcome or outcome

    def wait(self, seconds: float = 5.0) -> str:
        """The outcome, once the call has ended; empty if it has not ended in time."""
        self._ended.wait(seconds)
        return self.outcome


class ScriptedServer(pb.InferenceServiceServicer):
    """A real gRPC server of `headgate.v1` at `address` that answers by a script and keeps all `calls`.

    ListModels names the models of the script, Health is SERVING, and clients' health checks are answered. `observe` is
    told of each call as it comes and when it has ended, on the server's threads.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        port: int = 0,
        observe: Callable[[RecordedCall], None] = lambda call: None,
    ) -> None:
        self.calls: list[RecordedCall] = []
        self._replies: dict[str, list[Reply] | Model] = {}
        self._observe = observe
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(MAX_CALLS), options=OPTIONS)
        pb.add_InferenceServiceServicer_to_server(self, self._server)
        self._watched = threading.Event()
        self._server.add_generic_rpc_handlers((_health_checks(self._watched),))
        self.address: str = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        for model, replies in (script or {}).items():
            self._replies[model] = replies if callable(replies) else list(replies)
        self._server.start()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the server and cancels what is in flight."""
        idle = all(call.outcome for call in self.calls)
        self._watched.set()
        self._server.stop(1 if idle else None).wait()

    def script(self, model: str, *replies: Reply, answer: Model | None = None) -> None:
        """Replaces what is left of a model's replies, or has a function answer from now on."""
        with self._lock:
            self._replies[model] = answer or list(replies)

    def Generate(self, request: pb.GenerateRequest, context: grpc.ServicerContext) -> pb.GenerateResponse:
        call, reply = self._begin("Generate", request, context)
        self._wait(call, reply.delay)
        if reply.error:
            self._abort(call, reply, context)
        self._hang(call, reply)
        call.conclude("OK")
        return reply.unary()

    def StreamGenerate(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamGenerateResponse]:
        call, reply = self._begin("StreamGenerate", request, context)
        self._wait(call, reply.delay)
        for number, event in enumerate(reply.stream()):
            if reply.hang and event.HasField("generation_end"):
                break
            self._wait(call, reply.pause if number else 0)
            yield event
        self._hang(call, reply)
        if reply.error:
            self._abort(call, reply, context)
        call.conclude("OK")

    def Embed(self, request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedResponse:
        call, reply = self._begin("Embed", request, context)
        self._wait(call, reply.delay)
        if reply.error:
            self._abort(call, reply, context)
        self._hang(call, reply)
        call.conclude("OK")
        dimensions = request.dimensions or reply.dimensions
        return pb.EmbedResponse(
            data=b"".join(_row(each.text, dimensions) for each in request.inputs),
            dimensions=dimensions,
            rows=len(request.inputs),
            element_type=pb.ELEMENT_TYPE_FLOAT32,
            usage=pb.Usage(input_tokens=len(request.inputs), total_tokens=len(request.inputs)),
            model="scripted",
            provider="scripted",
        )

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        call = self._record("ListModels", request, context)
        call.conclude("OK")
        names = sorted(set(self._replies) - {ANY_MODEL})
        first = int(request.page_token or 0)
        size = request.page_size or len(names)
        more = str(first + size) if first + size < len(names) else ""
        page = [pb.Model(name=name, providers=["scripted"]) for name in names[first : first + size]]
        return pb.ListModelsResponse(models=page, next_page_token=more)

    def Health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthResponse:
        call = self._record("Health", request, context)
        call.conclude("OK")
        return pb.HealthResponse(state=pb.SERVING_STATE_SERVING, version="scripted")

    def _begin(
        self, method: str, request: pb.GenerateRequest | pb.EmbedRequest, context: grpc.ServicerContext
    ) -> tuple[RecordedCall, Reply]:
        call = self._record(method, request, context)
        with self._lock:
            replies = self._replies.get(request.model) or self._replies.get(ANY_MODEL)
            if isinstance(replies, list):
                reply: Reply | None = replies.pop(0) if len(replies) > 1 else replies[0]
            else:
                reply = replies(request) if replies else None
        if reply is None:
            call.conclude("NOT_FOUND")
            context.abort(grpc.StatusCode.NOT_FOUND, f"the script has no model {request.model!r}")
        return call, reply

    def _record(self, method: str, request: Message, context: grpc.ServicerContext) -> RecordedCall:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        left = context.time_remaining()
        call = RecordedCall(method, request, metadata, left if left is not None and left < NEVER else None)

        def ended() -> None:
            call.conclude("CANCELLED")
            call._ended.set()
            self._observe(call)

        with self._lock:
            self.calls.append(call)
        self._observe(call)
        if not context.add_callback(ended):
            ended()
        return call

    def _wait(self, call: RecordedCall, seconds: float) -> None:
        if seconds:
            call._ended.wait(seconds)

    def _hang(self, call: RecordedCall, reply: Reply) -> None:
        if reply.hang:
            call._ended.wait()

    def _abort(self, call: RecordedCall, reply: Reply, context: grpc.ServicerContext) -> NoReturn:
        assert reply.error is not None
        call.conclude(reply.error.code.name)
        request_id = reply.error.request_id or call.metadata.get("x-request-id", "")
        trailer: list[tuple[str, str | bytes]] = [(DETAILS, _status(reply.error, request_id).SerializeToString())]
        if reply.pushback_ms is not None:
            trailer.append(("grpc-retry-pushback-ms", str(reply.pushback_ms)))
        context.set_trailing_metadata(tuple(trailer))
        context.abort(reply.error.code, reply.error.message)


def _status(error: CallFailed, request_id: str) -> Status:
    """The google.rpc details of an error, as Headgate sends them; none for an error without a reason."""
    details: list[Message] = []
    if error.reason:
        details.append(rpc.ErrorInfo(domain=DOMAIN, reason=error.reason, metadata=error.details))
    if error.violations:
        named = [rpc.BadRequest.FieldViolation(field=v.field, description=v.description) for v in error.violations]
        details.append(rpc.BadRequest(field_violations=named))
    if error.limits:
        full = [rpc.QuotaFailure.Violation(subject=v.subject, description=v.description) for v in error.limits]
        details.append(rpc.QuotaFailure(violations=full))
    if error.resource:
        details.append(rpc.ResourceInfo(resource_type=error.resource.type, resource_name=error.resource.name))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        details.append(rpc.RetryInfo(retry_delay=delay))
    if error.reason and request_id:
        details.append(rpc.RequestInfo(request_id=request_id))
    status = Status(code=error.code.value[0], message=error.message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _row(text: str, dimensions: int) -> bytes:
    try:
        number = float(text)
    except ValueError:
        number = float(len(text))
    return array("f", [number]).tobytes() * dimensions


def _health_checks(stopping: threading.Event) -> grpc.GenericRpcHandler:
    """grpc.health.v1 without its package: always SERVING, until the caller leaves or the server stops."""

    def watch(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield SERVING
        while context.is_active() and not stopping.wait(0.05):
            pass

    return grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health",
        {
            "Check": grpc.unary_unary_rpc_method_handler(lambda request, context: SERVING),
            "Watch": grpc.unary_stream_rpc_method_handler(watch),
        },
    )
