"""Structured logs on stderr: one JSON object a line, or coloured text for people."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO
from weakref import ReferenceType, ref

import msgspec
import structlog
from structlog.typing import EventDict, Processor

from headgate_server.printing import json_safe, printable
from headgate_server.telemetry.masking import is_plain, mask_fields, mask_keys, mask_texts
from headgate_server.telemetry.repetition import Kind, Repetition
from headgate_server.timestamps import rfc3339

if TYPE_CHECKING:
    from headgate_server.call import Call
    from headgate_server.config import Telemetry

CHATTY = (
    "grpc",
    "asyncio",
    "aiohttp",
    "httpx2",
    "alembic",
    "sqlalchemy",
    "aiosqlite",
    "psycopg",
    "opentelemetry",
    "urllib3",
)
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "exception": 40, "critical": 50}
KIND = ("component", "event", "provider", "reason")
HELD_BACK = "lines_held_back"
NEVER_HELD_BACK = ("budgets", "security")
"""The component whose every line counts: who attacks with many hides one among them."""
OF_MANY_LINES = ("exception", "stack")

_encode = msgspec.json.Encoder(enc_hook=str).encode
_call: ContextVar[ReferenceType[Call]] = ContextVar("call")
"""Weak, because contexts outlive their call: a pooled connection keeps the one that it was opened in."""
_repetition: Repetition | None = None


class Lines:
    """Where lines are written, by any thread: each at once, or those of a block together."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self._held: list[str] | None = None
        self._lock = threading.RLock()  # a finalizer may log in the midst of a line

    def info(self, line: str) -> None:
        """Writes a line, of whatever level."""
        with self._lock:
            if self._held is None:
                self._write(f"{line}\n")
            else:
                self._held.append(f"{line}\n")

    debug = warning = error = critical = exception = info

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written within is written at its end, all at once: that takes a fraction of the time."""
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
        finally:
            with self._lock:
                held, self._held = self._held, None
                if held:
                    self._write("".join(held))

    def _write(self, text: str) -> None:
        self.file.write(text)
        self.file.flush()


_lines = Lines(sys.stderr)
together = _lines.together
_processors: list[Processor] = structlog.get_config()["processors"]
_least = logging.INFO


def bind(call: Call) -> None:
    """From here on the lines of this task, and of those that it starts, tell which call they belong to."""
    _call.set(ref(call))


def configure(telemetry: Telemetry) -> None:
    """Called once, before the server starts: grpc.aio may deadlock on logging that is reconfigured later.

    Our own lines go straight to stderr; what libraries log takes the way through the logging module to the same form.
    """
    global _repetition, _processors, _least
    _repetition = Repetition(telemetry.log_repeats) if telemetry.log_repeats else None
    least = LEVELS[telemetry.log_level]
    levels = {component: LEVELS[level] for component, level in telemetry.log_levels.items()}
    shared: list[Processor] = [
        add_call,
        structlog.processors.add_log_level,
        _add_timestamp,
        structlog.processors.format_exc_info,
    ]
    _lines.file = sys.stderr
    renderers = _for_people() if telemetry.log_format == "console" else [_render_json]
    _least = min(least, *levels.values()) if levels else least
    _processors = [*([_by_component(levels, least)] if levels else []), _hold_back, *shared, *renderers]
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.make_filtering_bound_logger(_least),
        logger_factory=lambda *_: _lines,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    handler.addFilter(_without_metadata)
    handler.addFilter(_is_not_held_back)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(least)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(least, logging.WARNING))


def tells_calls() -> bool:
    """Whether lines of level info are written at all."""
    return _least <= logging.INFO


def tell_call(line: EventDict) -> None:
    """Writes the line of a call that has ended. There is one for each, and on the way to its processors a logger of
    structlog's takes half as long again as they do."""
    try:
        for processor in _processors:
            line = processor(None, "info", line)  # type: ignore[assignment]  # the last makes a text of it
    except structlog.DropEvent:
        return
    _lines.info(line)  # type: ignore[arg-type]


def add_call(_logger: Any, _name: str, event: EventDict) -> EventDict:
    """Which call the line belongs to, where it is written within one."""
    of = _call.get(None)
    if of and (call := of()):
        event.update(of_call(call))
    return event


def of_call(call: Call) -> dict[str, str]:
    """What every line of a call tells: which one it is, and whose."""
    told = {"request_id": call.request_id}
    if call.trace_id:
        told["trace_id"] = call.trace_id
    if call.principal.tenant:
        told["tenant"] = call.principal.tenant
    return told


def _add_timestamp(_logger: Any, _name: str, event: EventDict) -> EventDict:
    """When it is written, unless the line itself tells of an earlier moment."""
    if "timestamp" not in event:
        event["timestamp"] = rfc3339(time.time())
    return event


def report_held_back() -> None:
    """Says now how many lines were held back, whether or not their minute is over."""
    if _repetition:
        _report(_repetition.held_back())


def _report(held_back: Sequence[tuple[Kind, int]]) -> None:
    for (component, *kind), lines in held_back:
        named = {name: value for name, value in zip(("of", *KIND[2:], "raised"), kind, strict=False) if value}
        structlog.get_logger(component=component).warning(HELD_BACK, **named, lines=lines)


def _by_component(levels: dict[Any, int], least: int) -> Processor:
    def drop_below(_logger: Any, name: str, event: EventDict) -> EventDict:
        if LEVELS[name] < levels.get(event.get("component"), least):
            raise structlog.DropEvent
        return event

    return drop_below


def _hold_back(_logger: Any, name: str, event: EventDict) -> EventDict:
    """Drops the many like it of a warning or an error."""
    if _repetition is None:
        return event
    _report(_repetition.ended(time.monotonic()))
    if event.get("component") in NEVER_HELD_BACK:
        return event
    if LEVELS[name] >= logging.WARNING and event["event"] != HELD_BACK:
        kind: Kind = (*[str(event.get(field, "")) for field in KIND], _raised(event))
        if not _repetition.passes(kind):
            raise structlog.DropEvent
    return event


def _raised(event: EventDict) -> str:
    """The type of the exception that a line tells of: two bugs are not one."""
    raised = event.get("exc_info")
    if raised is True:
        raised = sys.exception()
    return type(raised).__name__ if isinstance(raised, BaseException) else ""


def _is_not_held_back(record: logging.LogRecord) -> bool:
    """The same for what libraries log, by the text without its arguments."""
    if _repetition is None or record.levelno < logging.WARNING:
        return True
    return _repetition.passes((record.name, str(record.msg)))


def _without_metadata(record: logging.LogRecord) -> bool:
    """gRPC logs metadata that is not UTF-8 word for word, a caller's credentials among them."""
    if record.name.startswith("grpc") and "nvalid encoding" in record.getMessage():
        record.msg, record.args, record.exc_info = "metadata that is not UTF-8 was received", (), None
        record.exc_text = None
    return True


def _mask_fields(_logger: Any, _name: str, event: EventDict) -> EventDict:
    return mask_fields(event)  # type: ignore[arg-type]  # structlog's chains hold nothing but dicts


def _for_people() -> list[Processor]:
    """Tracebacks are plain: rich would show local variables, in which keys and prompts stand."""
    plain = structlog.dev.plain_traceback
    console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
    return [_mask_fields, _mask_texts, _without_controls, console]


def _mask_texts(_logger: Any, _name: str, event: EventDict) -> EventDict:
    return {name: mask_texts(value) for name, value in event.items()}


def _render_json(_logger: Any, _name: str, event: EventDict) -> str:
    if is_plain(event):  # type: ignore[arg-type]  # structlog's chains hold nothing but dicts
        return json_safe(_json(event))
    # Texts first: before an escape such as \n, a key does not look like one. Then names, and what is no text.
    return json_safe(mask_keys(_json(mask_texts(mask_fields(event)))))  # type: ignore[arg-type]


def _json(event: Any) -> str:
    try:
        return _encode(event).decode()
    except UnicodeEncodeError:  # halves of characters, which a vendor can send as JSON escapes
        return json.dumps(event, default=str)


def _without_controls(_logger: Any, _name: str, event: EventDict) -> EventDict:
    """For the console, which would obey them, and where a line feed would forge a line. JSON has escapes for them."""
    return {name: printable(value) if name in OF_MANY_LINES else _cleaned(value) for name, value in event.items()}


def _cleaned(value: Any) -> Any:
    match value:
        case str():
            return printable(value).replace("\n", "\\n")
        case dict():
            return {_cleaned(name): _cleaned(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_cleaned(inner) for inner in value]
        case _:
            return value
