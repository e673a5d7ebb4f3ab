"""The tables of the ledger. The migrations make them; a change here needs one.

`headgate_calls` has what callers asked for and were told, `headgate_attempts` what vendors were asked for and what it
cost: whoever sums up money or tokens reads attempts, whose rows tell by themselves whom to charge.

Token classes are subsets, as in the contract: `input_tokens` and `output_tokens` count everything. NULL is unknown,
never 0. `estimated` says that a vendor did not count, or not all. Costs are integers of 1e-9 of `currency`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Integer, MetaData, SmallInteger, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

from headgate_server.ledger.columns import TOKENS
from headgate_server.sql.types import Moment

metadata = MetaData()


def _text(*names: str) -> Iterator[Column[Any]]:
    return (Column(name, Text, nullable=False) for name in names)


def _numbers(*names: str) -> Iterator[Column[Any]]:
    return (Column(name, BigInteger) for name in names)


def _labels() -> Column[Any]:
    return Column("labels", JSON().with_variant(JSONB, "postgresql"), nullable=False)


def _estimated() -> Column[Any]:
    return Column("estimated", Boolean, nullable=False)


calls = Table(
    "headgate_calls",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True),
    Column("time", Moment, nullable=False, index=True),
    *_text("method", "request_id", "tenant", "key_id", "end_user_id"),
    _labels(),
    *_text("model", "routed_to", "arm", "provider", "provider_model"),
    Column("attempts", Integer, nullable=False),
    *_text("outcome", "reason"),
    *_numbers("latency_micros", "first_token_micros", *TOKENS),
    _estimated(),
    *_numbers("cost_nanos"),
    *_text("currency"),
)
"""One row a call. `model` is what was asked for, `provider` and `provider_model` who answered, or failed last.

`outcome` is OK or the gRPC code; OPEN while the call is in flight, LOST if its server ended without a word. Tokens and
cost are the sums of its attempts, the cost only where they have one currency.
"""

attempts = Table(
    "headgate_attempts",
    metadata,
    Column("call_id", Uuid(as_uuid=False), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("time", Moment, nullable=False, index=True),
    *_text("tenant", "key_id"),
    _labels(),
    *_text("model", "provider", "provider_model", "cause", "outcome", "reason"),
    Column("http_status", SmallInteger),
    *_text("provider_request_id"),
    Column("caller_key", Boolean, nullable=False),
    *_numbers("latency_micros", "first_token_micros", *TOKENS),
    _estimated(),
    *_numbers("cost_nanos", "input_nanos", "cache_read_nanos", "cache_write_nanos", "output_nanos"),
    *_text("currency", "cost_source", "price_version"),
)
"""One row an upstream attempt. `number` counts those of one call from 1, `time` is when it began.

`cause` is first, retry, fallback or hedge. `outcome` is OK, FAILED, TIMED_OUT, CANCELLED or SUPERSEDED, in vain beside
another one's answer; OPEN while it is in flight, LOST if its server ended without a word. `caller_key` says that the
vendor charged the caller's own account. `cost_source` is PROVIDER where the vendor stated the cost, ESTIMATE where it
is tokens times prices, and empty where no price is known; `price_version` tells which prices.
"""

contents = Table(
    "headgate_contents",
    metadata,
    Column("call_id", Uuid(as_uuid=False), primary_key=True),
    Column("time", Moment, nullable=False, index=True),
    *_text("prompt", "answer"),
)
"""What was said in a call, redacted and cut, where the configuration wants it kept: JSON in OpenTelemetry's shape."""
