"""Structured logs on stderr: one JSON object a line, or coloured text for people."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import msgspec
import structlog

from headgate_server.printing import json_safe, printable

CHATTY = ("grpc", "asyncio", "aiohttp", "httpx2", "alembic", "sqlalchemy", "aiosqlite", "psycopg")
OF_MANY_LINES = ("exception", "stack")

_encode = msgspec.json.Encoder(enc_hook=str).encode


def configure(level: str, form: str) -> None:
    """Called once, before the server starts: grpc.aio may deadlock on logging that is reconfigured later.

    Our own lines go straight to stderr; what libraries log takes the way through the logging module to the same form.
    """
    least = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers: list[structlog.typing.Processor] = (
        [
            structlog.processors.format_exc_info,  # rich would show local variables, in which keys and prompts stand
            _without_controls,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
        if form == "console"
        else [structlog.processors.format_exc_info, _render_json]
    )
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
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
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(least)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(least, logging.WARNING))


def _without_metadata(record: logging.LogRecord) -> bool:
    """gRPC logs metadata that is not UTF-8 word for word, a caller's credentials among them."""
    if record.name.startswith("grpc") and "nvalid encoding" in record.getMessage():
        record.msg, record.args, record.exc_info = "metadata that is not UTF-8 was received", (), None
        record.exc_text = None
    return True


def _render_json(_logger: Any, _name: str, event: structlog.typing.EventDict) -> str:
    try:
        line = _encode(event).decode()
    except UnicodeEncodeError:  # halves of characters, which a vendor can send as JSON escapes
        line = json.dumps(event, default=str)
    return json_safe(line)


def _without_controls(_logger: Any, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
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
