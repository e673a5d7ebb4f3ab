"""Which call fails, and how: the script that a configuration gives the mock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from itertools import chain, repeat

from headgate_server.config import MockFailure
from headgate_server.transports.mock.wire import Answer, error_answer, event

ERROR_TYPES = {401: "invalid_request_error", 403: "invalid_request_error", 429: "rate_limit_error"}


class Break(Enum):
    """What comes in place of the rest of a body."""

    STALL = "nothing, for ever"
    RESET = "the connection breaks"


class Script:
    """The failures of a configuration, gone through call by call."""

    def __init__(self, failures: Iterable[MockFailure]) -> None:
        failures = tuple(failures)
        self._calls = 0
        self._recurring = [failure for failure in failures if failure.every]
        self._pending = chain.from_iterable(repeat(one, one.times) for one in failures if not one.every)

    def next(self) -> MockFailure | None:
        """What goes wrong with the next call. One with `every` takes its calls; the others share what is left."""
        self._calls += 1
        for failure in self._recurring:
            if failure.every and self._calls % failure.every == 0:
                return failure
        return next(self._pending, None)


def spoil(answer: Answer, failure: MockFailure) -> tuple[Answer, Break | None]:
    """The part of an answer that the failure lets through, and how the body breaks after it."""
    streams = answer.content_type == "text/event-stream"
    before_the_end = len(answer.chunks) - 1
    match failure:
        case MockFailure(status=int(status)):
            return error_answer(status, _error(status)), None
        case MockFailure(stall="body"):
            return replace(answer, chunks=[]), Break.STALL
        case MockFailure(stall_after=int(count)):
            return replace(answer, chunks=answer.chunks[: min(count, before_the_end)]), Break.STALL
        case MockFailure(reset_after=int(count)):
            return replace(answer, chunks=answer.chunks[: min(count, before_the_end)]), Break.RESET
        case MockFailure(error_event=int(count)) if streams:
            sent = answer.chunks[: min(count, before_the_end)]
            return replace(answer, chunks=[*sent, event({"error": _error(500)})]), None
        case MockFailure(error_event=int()):
            return replace(error_answer(500, _error(500)), status=200), None
        case MockFailure(garbage=True):
            return replace(answer, chunks=[b"data: <html>\n\n" if streams else b"<html>"]), None
        case MockFailure(no_terminator=True) if streams:
            return replace(answer, chunks=answer.chunks[: answer.content_chunks]), None
        case MockFailure(no_terminator=True):
            body = answer.chunks[0]
            return replace(answer, chunks=[body[: len(body) // 2]]), None
        case _:
            return answer, None


def _error(status: int) -> dict[str, str | None]:
    kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"message": "scripted failure of the mock", "type": kind, "param": None, "code": None}
