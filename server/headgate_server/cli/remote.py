"""What the command asks of a running server."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from headgate import v1 as pb
from headgate.errors import ServerUnreachable, failure

from headgate_server.cli.connection import Connection, Metadata
from headgate_server.cli.exits import FAILED, OK, UNREACHABLE, USAGE, Failed
from headgate_server.cli.terminal import AnswerPrinter, enum_name, table
from headgate_server.printing import printable

QUESTION_SECONDS = 10.0

_METADATA_NAME = re.compile(r"[0-9a-z_.-]+")


def generate_request(model: str, prompt: str, data: str) -> pb.GenerateRequest:
    """The request that the command line describes.

    Raises:
        Failed: there is nothing to send, no model is named, or `data` is not a GenerateRequest.
    """
    request = pb.GenerateRequest()
    if data:
        try:
            json_format.Parse(_text_of(data), request)
        except (json_format.ParseError, OSError, UnicodeDecodeError) as error:
            raise Failed(USAGE, f"error: --data: {error}") from error
    if prompt:
        request.messages.append(pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text=prompt)]))
    if model:
        request.model = model
    if not request.model:
        raise Failed(USAGE, "error: name a model with --model; `headgate models` lists them")
    if not data and not prompt:
        raise Failed(USAGE, "error: give a prompt, or a request with --data")
    return request


def metadata(headers: Sequence[str]) -> Metadata:
    """Request metadata from `NAME:VALUE` texts.

    Raises:
        Failed: one of them is not of that form.
    """
    pairs: list[tuple[str, str | bytes]] = []
    for header in headers:
        name, colon, value = (part.strip() for part in header.partition(":"))
        valid = colon and _METADATA_NAME.fullmatch(name.lower()) and value.isascii() and value.isprintable()
        if not valid or name.lower().endswith("-bin"):
            raise Failed(USAGE, f"error: --header: {header} is not NAME:VALUE")
        pairs.append((name.lower(), value))
    return tuple(pairs)


def call(
    connection: Connection,
    request: pb.GenerateRequest,
    metadata: Metadata,
    deadline: float,
    *,
    unary: bool,
    as_json: bool,
) -> int:
    """Generates, and prints the answer as it comes."""
    printer = AnswerPrinter(sys.stdout)
    metadata += connection.metadata
    with _connected(connection, as_json) as stub:
        if unary:
            made = stub.Generate.future(request, metadata=metadata, timeout=deadline)
            with _interruptible(made):
                answer = made.result()
            _print_json(answer) if as_json else printer.answer(answer)
            return OK
        stream = stub.StreamGenerate(request, metadata=metadata, timeout=deadline)
        try:
            with _interruptible(stream):
                for event in stream:
                    _print_json(event) if as_json else printer.event(event)
        finally:
            printer.end_line()
    return OK


@contextmanager
def _interruptible(made: grpc.RpcContext) -> Iterator[None]:
    """Control-C cancels the call, and is raised when that is done: raised at once, in whatever frame runs, it can be
    lost in one of gRPC's callbacks. The second is raised at once all the same, should nobody read what is printed."""
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            signal.default_int_handler(number, frame)
        interrupted = True
        made.cancel()

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as behind nohup
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except (grpc.RpcError, grpc.FutureCancelledError):
        if not interrupted:
            raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted:
        raise KeyboardInterrupt


def models(connection: Connection, *, as_json: bool) -> int:
    """Prints every model, from as many pages as there are."""
    everything = pb.ListModelsResponse()
    with _connected(connection, as_json) as stub:
        page = pb.ListModelsResponse(next_page_token="")
        while True:
            request = pb.ListModelsRequest(page_token=page.next_page_token)
            page = stub.ListModels(request, timeout=QUESTION_SECONDS, metadata=connection.metadata)
            everything.models.extend(page.models)
            if not page.next_page_token:
                break
    if as_json:
        _print_json(everything)
    else:
        rows = [(model.name, ", ".join(model.providers), ", ".join(model.capabilities)) for model in everything.models]
        print(table(("MODEL", "PROVIDERS", "CAPABILITIES"), rows))
    return OK


def health(connection: Connection, *, as_json: bool) -> int:
    """Prints how server and providers do; fails unless the server serves."""
    with _connected(connection, as_json) as stub:
        answer = stub.Health(pb.HealthRequest(), timeout=QUESTION_SECONDS, metadata=connection.metadata)
    if as_json:
        _print_json(answer)
    else:
        _print_health(answer)
    return OK if answer.state in (pb.SERVING_STATE_SERVING, pb.SERVING_STATE_DEGRADED) else FAILED


def _print_health(answer: pb.HealthResponse) -> None:
    state = enum_name(pb.ServingState.Name(answer.state), "SERVING_STATE_")
    since = answer.start_time.ToJsonString()
    print(f"{state}: version {printable(answer.version)}, since {since}, {answer.active_calls} calls in flight")
    rows = [
        (
            provider.provider,
            enum_name(pb.ServingState.Name(provider.state), "SERVING_STATE_"),
            str(provider.total_calls),
            f"{provider.success_rate:.1%}" if provider.total_calls else "-",
            f"{provider.first_token_latency.ToMilliseconds()} ms" if provider.HasField("first_token_latency") else "-",
            provider.detail,
        )
        for provider in answer.providers
    ]
    print(table(("PROVIDER", "STATE", "ATTEMPTS", "ANSWERED", "FIRST TOKEN", "DETAIL"), rows))


@contextmanager
def _connected(connection: Connection, as_json: bool) -> Iterator[pb.InferenceServiceStub]:
    with connection.channel() as channel:
        try:
            yield pb.InferenceServiceStub(channel)
        except grpc.RpcError as error:
            _fail(error, connection.address, as_json)


def _fail(error: grpc.RpcError, address: str, as_json: bool) -> NoReturn:
    """What stopped a call, in words or as JSON."""
    failed = failure(error)
    if isinstance(failed, ServerUnreachable):
        raise Failed(
            UNREACHABLE, _shown({"code": failed.code.name, "message": f"{address}: {failed.message}"}, as_json)
        )
    told = {
        "reason": failed.reason,
        "metadata": failed.details,
        "violations": [{"field": one.field, "description": one.description} for one in failed.violations],
        "retry_after_seconds": failed.retry_after,
        "request_id": failed.request_id,
    }
    known = {key: value for key, value in told.items() if value not in ("", None, [], {})}
    raise Failed(FAILED, _shown({"code": failed.code.name, "message": failed.message, **known}, as_json))


def _shown(error: Mapping[str, Any], as_json: bool) -> str:
    if as_json:
        return json.dumps({"error": error})
    lines = [f"error: {' '.join(error[key] for key in ('code', 'reason') if key in error)}: {error['message']}"]
    lines += [f"  {violation['field']}: {violation['description']}" for violation in error.get("violations", [])]
    lines += [f"  retry after: {error['retry_after_seconds']} s"] if "retry_after_seconds" in error else []
    lines += [f"  request id: {error['request_id']}"] if "request_id" in error else []
    return printable("\n".join(lines))


def _print_json(message: Message) -> None:
    print(json_format.MessageToJson(message, indent=None), flush=True)


def _text_of(data: str) -> str:
    if data == "@":
        return sys.stdin.read()
    return Path(data[1:]).read_text("utf-8") if data.startswith("@") else data
