"""How much callers may use: what of it can be configured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from headgate_server.config.budgets import BudgetRule
from headgate_server.config.section import Section
from headgate_server.config.values import (
    Count,
    CountFromZero,
    KeyPrefix,
    RedisUrl,
    Scope,
    ScopeOrRole,
    StoreType,
)

LimitUnit = Literal["requests", "input_tokens", "output_tokens", "total_tokens", "concurrency"]


class Limit(Section):
    """At most so much of a unit in a time; a caller's own limits look like this, too."""

    unit: LimitUnit
    """What is counted: requests, input_tokens, output_tokens, total_tokens, or concurrency: calls in flight."""
    limit: Count
    """How much of it."""
    window: Annotated[float, Field(ge=0.001, allow_inf_nan=False)] | None = None
    """In how many seconds; not for concurrency."""
    algorithm: Literal["sliding_window", "token_bucket"] = "sliding_window"
    """Never more than the limit in any window, or a bucket that wins back the limit each window and holds `burst`."""
    burst: Count | None = None
    """What a token_bucket holds, so what may be used at once; by default the limit."""

    @model_validator(mode="after")
    def _window_and_burst_fit(self) -> Limit:
        if self.unit == "concurrency":
            if self.window is not None or self.algorithm == "token_bucket":
                raise ValueError("concurrency has neither window nor algorithm")
        elif self.window is None:
            raise ValueError("window is required")
        if self.burst is not None and self.algorithm != "token_bucket":
            raise ValueError("burst is only for the algorithm token_bucket")
        return self


class LimitRule(Limit):
    """A limit, and whom it is for."""

    per: tuple[Scope, ...] = ()
    """Each has the limit for itself: key, tenant, model (as callers name it), provider, target (provider/model),
    label:NAME, or a combination; without any, all callers share it."""
    only: dict[ScopeOrRole, Annotated[tuple[str, ...], Field(min_length=1)]] = {}
    """Patterns such as gpt-*, one of which must match, for any of those, or for a role of the caller; others are not
    limited by this rule."""


class LimitStore(Section):
    """Where is counted."""

    type: StoreType = "memory"
    """memory for one server by itself; redis, an extra, where several servers share the limits."""
    url: RedisUrl | None = None
    """Address of Redis 7 or Valkey, such as redis://:${PASSWORD}@redis:6379/0; with url_file, what that file holds."""
    url_file: Path | None = None
    """File that holds the address, relative to the configuration file. Not together with url."""
    key_prefix: KeyPrefix = "{headgate}:"
    """What every key begins with."""
    timeout: Annotated[float, Field(ge=0.001, le=10)] = 0.02
    """How long a call may wait for Redis."""
    on_failure: Literal["open", "closed"] = "open"
    """Without Redis each server counts by itself, and tells Redis later (open), or calls are refused (closed)."""
    lease: Annotated[float, Field(ge=1, le=3600)] = 60.0
    """What a server reserved comes back when it has not been heard of for so long."""

    @model_validator(mode="after")
    def _redis_has_an_address(self) -> LimitStore:
        if self.type == "redis" and self.url is None and self.url_file is None:
            raise ValueError("url is required for redis")
        if self.type == "memory" and (self.url is not None or self.url_file is not None):
            raise ValueError("url is only for redis")
        return self


class LimitEstimate(Section):
    """What a request is taken to use before it is known."""

    bytes_per_token: Annotated[float, Field(ge=0.1, le=16)] = 1.0
    """Bytes of text in a token. No tokenizer makes more tokens than bytes; English text has about 4 to a token."""
    output_tokens: CountFromZero = 4096
    """Output where neither the caller, the model's catalog card nor the provider's adapter sets a limit."""
    image_tokens: CountFromZero = 5000
    """Input of an image."""
    audio_tokens: CountFromZero = 20_000
    """Input of a piece of audio."""
    video_tokens: CountFromZero = 100_000
    """Input of a video."""
    document_tokens: CountFromZero = 50_000
    """Input of a document that is not text."""


class Limits(Section):
    """How much callers may use."""

    rules: tuple[LimitRule, ...] = ()
    """All that apply to a call must have room for it."""
    budgets: tuple[BudgetRule, ...] = ()
    """The same for money."""
    unpriced: Literal["allow", "refuse"] = "allow"
    """Targets whose price is not known, or not in US dollars, where a budget applies: uncounted, or passed over."""
    store: LimitStore = LimitStore()
    """Where is counted."""
    estimate: LimitEstimate = LimitEstimate()
    """What is reserved for a request until it is known what it used."""
