"""One call as the ledger enters it: its rows are made when it ends, and before that if it takes long."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf.message import Message
from headgate import v1 as pb

from headgate_server.json_codec import dumps
from headgate_server.ledger.columns import ATTEMPTS, OPEN, TOKENS
from headgate_server.ledger.content import Content
from headgate_server.ledger.estimate import account_of
from headgate_server.limits.estimate import Request
from headgate_server.timestamps import sqlite_text

if TYPE_CHECKING:
    from headgate_server.attempt import Attempt
    from headgate_server.call import Call
    from headgate_server.errors import GatewayError

Row = tuple[Any, ...]
"""Texts, integers and NULL. Of any other type SQLite's driver looks up how each value is to be bound, which takes
longer than binding it."""

NULL = math.nan
"""What is not known: SQLite stores NaN as NULL."""

MAX_TEXT = 256
MAX_KEY_TEXT = 512
"""Callers with tokens are named by issuer and subject."""
CONTENT_BYTES_PER_ROW = 1024
"""So much of prompts and answers weighs as much in memory as one row."""
VENDOR_PRICES = "vendor"
TOKEN_PLACES = {pb.Usage.DESCRIPTOR.fields_by_name[name]: place for place, name in enumerate(TOKENS)}
OUTCOMES = {value: name.removeprefix("ATTEMPT_OUTCOME_") for name, value in pb.AttemptOutcome.items()}
OUTCOMES[pb.ATTEMPT_OUTCOME_UNSPECIFIED] = OPEN
SOURCES = {value: name.removeprefix("COST_SOURCE_") for name, value in pb.CostSource.items()}
NO_TOKENS: list[float] = [NULL] * len(TOKENS)
NO_COST: Row = (*[NULL] * 5, "", "", "")
ESTIMATED, COST, CURRENCY = map(ATTEMPTS.index, ("estimated", "cost_nanos", "currency"))
AMOUNTS = slice(ATTEMPTS.index(TOKENS[0]), ESTIMATED)
"""Where an attempt's row has its tokens."""


class Rows(msgspec.Struct, frozen=True, gc=False):
    """What is written of a call at a time, as tuples in the order of ledger/columns.py."""

    call: Row
    attempts: Sequence[Row]
    content: Row | None

    @property
    def weight(self) -> int:
        """Rows, with a long content counted as several."""
        rows = 1 + len(self.attempts)
        return rows + sum(map(len, self.content[2:])) // CONTENT_BYTES_PER_ROW if self.content else rows


Asker = tuple[str, str, str, str]
"""Tenant, key, labels and model: the same in the rows of a call and of its attempts."""


class Entry:
    """What the ledger knows of one call.

    `time` is in seconds since the epoch, and each attempt's comes from it, so that rows written twice are the same.
    `begun` is told of each attempt when it is made.
    """

    def __init__(
        self,
        entry_id: str,
        now: float,
        call: Call,
        request: Request,
        content: Content | None,
        begun: Callable[[Entry], None],
    ) -> None:
        self.id = entry_id
        self.time = now - (time.monotonic() - call.started)
        self.attempts: list[Attempt] = []
        self.content = content
        self._begun = begun
        self._call = call
        self._request = request

    def began(self, attempt: Attempt) -> None:
        """An attempt is made."""
        self.attempts.append(attempt)
        self._begun(self)

    def replied(self, message: Message) -> None:
        """A message goes to the caller: a whole answer, or an event of one."""
        if self.content:
            self.content.replied(message)

    @property
    def in_flight(self) -> bool:
        """Whether the call goes on."""
        return not self._call.ended_at

    def rows_so_far(self) -> Rows:
        """What is known of a call in flight."""
        return self._rows(OPEN, "", NULL)

    def rows(self, error: GatewayError | None) -> Rows:
        """All of it, once the call has ended with that error or with its answer."""
        latency = _micros(self._call.duration)
        content = self.content.row(self.id, sqlite_text(self.time)) if self.content else None
        if error is None:
            return self._rows("OK", "", latency, content)
        return self._rows(error.code.name, error.reason, latency, content)

    def _rows(self, outcome: str, reason: str, latency: float, content: Row | None = None) -> Rows:
        principal = self._call.principal
        asker = (
            _clean(principal.tenant),
            _clean(principal.key_id, MAX_KEY_TEXT),
            _labels(self._call),
            _clean(self._request.model),
        )
        attempts = [self._attempt(attempt, asker) for attempt in self.attempts]
        return Rows(self._row(outcome, reason, latency, attempts, asker), attempts, content)

    def _row(self, outcome: str, reason: str, latency: float, attempts: Sequence[Row], asker: Asker) -> Row:
        call = self._call
        answering = self._answering
        tenant, key_id, labels, model = asker
        return (
            self.id,
            sqlite_text(self.time),
            call.name,
            call.request_id,
            tenant,
            key_id,
            _clean(self._request.end_user_id),
            labels,
            model,
            call.routed_to,
            call.arm,
            answering.target.provider if answering else "",
            _clean(answering.target.model) if answering else "",
            len(attempts),
            outcome,
            reason,
            latency,
            self._first_token(answering) if answering else NULL,
            *_sums(attempts),
        )

    @property
    def _answering(self) -> Attempt | None:
        """The attempt whose answer the caller got, or the last one if none answered."""
        record = self._call.answering
        return self.attempts[record.number - 1] if record and len(self.attempts) >= record.number else None

    def _first_token(self, answering: Attempt) -> float:
        """Since the call began; NULL where nothing was streamed."""
        if answering.first_token is None:
            return NULL
        return _micros(answering.started - self._call.started) + _micros(answering.first_token)

    def _attempt(self, attempt: Attempt, asker: Asker) -> Row:
        record = attempt.record
        usage, cost = account_of(attempt, self._request)
        return (
            self.id,
            record.number,
            sqlite_text(self.time + (attempt.started - self._call.started)),
            *asker,
            attempt.target.provider,
            _clean(attempt.target.model),
            attempt.cause,
            OUTCOMES[record.outcome],
            record.error_reason,
            record.http_status or NULL,
            record.provider_request_id,
            int(bool(attempt.caller_key)),
            _micros_or_null(attempt.latency),
            _micros_or_null(attempt.first_token),
            *_tokens(usage),
            int(usage.estimated),
            *(_cost(cost) if cost else NO_COST),
        )


def _tokens(usage: pb.Usage) -> Sequence[float]:
    counts = NO_TOKENS.copy()
    for field, value in usage.ListFields():  # a field's own attributes are slow to read
        if field in TOKEN_PLACES:
            counts[TOKEN_PLACES[field]] = value
    return counts


def _cost(cost: pb.Cost) -> Row:
    stated = cost.source == pb.COST_SOURCE_PROVIDER
    return (
        cost.total_nanos,
        cost.input_nanos,
        cost.cache_read_nanos,
        cost.cache_write_nanos,
        cost.output_nanos,
        cost.currency_code,
        SOURCES[cost.source],
        VENDOR_PRICES if stated else cost.price_version,
    )


def _sums(attempts: Sequence[Row]) -> Row:
    """Tokens, whether they are estimated, cost and currency of all attempts together."""
    if len(attempts) == 1:
        (row,) = attempts
        return (*row[AMOUNTS], row[ESTIMATED], row[COST], row[CURRENCY])
    tokens = [_sum([row[place] for row in attempts]) for place in range(AMOUNTS.start, AMOUNTS.stop)]
    estimated = int(any(row[ESTIMATED] for row in attempts))
    currencies = {row[CURRENCY] for row in attempts if row[COST] is not NULL}
    if len(currencies) != 1:
        return (*tokens, estimated, NULL, "")
    return (*tokens, estimated, _sum([row[COST] for row in attempts]), currencies.pop())


def _sum(counts: Sequence[float]) -> float:
    known = [count for count in counts if count is not NULL]
    return sum(known) if known else NULL


def _labels(call: Call) -> str:
    """As JSON, in which PostgreSQL takes no NUL."""
    if not call.labels:
        return "{}"
    text = dumps(call.labels).decode()
    return text.replace("\\u0000", "\\ufffd") if "\\u0000" in text else text


def _clean(text: str, limit: int = MAX_TEXT) -> str:
    """What callers and their tokens say, as it fits into any database."""
    if len(text) <= limit and "\0" not in text:
        return text
    return text[:limit].replace("\0", "\ufffd")


def _micros(seconds: float) -> int:
    return int(seconds * 1e6)


def _micros_or_null(seconds: float | None) -> float:
    return NULL if seconds is None else _micros(seconds)
