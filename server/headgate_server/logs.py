"""Structured logs on stderr: one JSON object a line, or coloured text for people."""

from __future__ import annotations

import logging
import sys
from typing import Any

import msgspec
import structlog

_encode = msgspec.json.Encoder(enc_hook=str).encode


def configure(level: str, form: str) -> None:
    """Called once, before the server starts: grpc.aio may deadlock on logging that is reconfigured later."""
    numeric = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if form == "console"
        else [structlog.processors.format_exc_info, _render_json]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(numeric)
    for chatty in ("grpc", "asyncio", "aiohttp", "httpx2"):
        logging.getLogger(chatty).setLevel(max(numeric, logging.WARNING))


def _render_json(_logger: Any, _name: str, event: structlog.typing.EventDict) -> str:
    return _encode(event).decode()
