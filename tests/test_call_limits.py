"""How its limits stand after a call that reserved more than once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from headgate import v1 as pb

from headgate_server.config.limits import LimitRule
from headgate_server.errors import RateLimited
from headgate_server.limits.call import CallLimits
from headgate_server.limits.limiter import LocalLimiter
from headgate_server.limits.rules import Rules
from headgate_server.principal import Principal
from headgate_server.providers.base import Target

ESTIMATE = {"requests": 1, "input_tokens": 60, "output_tokens": 40, "total_tokens": 100, "concurrency": 1}
RULE = "total_tokens in 60 s per tenant"


class Reserving:
    """A call that may use 100 tokens, under a limit of so many a minute."""

    def __init__(self, limit: int) -> None:
        rule = {"unit": "total_tokens", "limit": limit, "window": 60, "per": ["tenant"]}
        self.attempts: list[pb.Attempt] = []
        self.limits = CallLimits(
            LocalLimiter(),
            Rules([LimitRule.model_validate(rule)]),
            Principal(tenant="acme"),
            pb.GenerateRequest(model="m"),
            ESTIMATE,
            self.attempts,
        )

    async def attempt(self, target: Any, used: int) -> None:
        """An attempt whose vendor says what it used."""
        sent: list[Any] = []
        one = self.limits.attempt(target, "m", 1, sent)
        try:
            if waiting := self.limits.enter_attempt(one):
                await waiting
            record = pb.Attempt(provider=target.provider, model=target.model, usage=pb.Usage(total_tokens=used))
            record.usage.input_tokens, record.usage.output_tokens = used - 1, 1
            sent.append(SimpleNamespace(record=record, target=target, uncounted_bytes=0))
            self.attempts.append(record)
        finally:
            one.over = True

    def left(self) -> tuple[Any, Any]:
        """Tokens that the caller is told are left, and what metrics are told."""
        return dict(self.limits.trailer())["x-ratelimit-remaining-tokens"], list(self.limits.decisions())


@pytest.fixture
def targets() -> list[Target]:
    """Two of them."""
    named: list[Any] = [SimpleNamespace(provider=name, model="m", issuer="openai") for name in ("a", "b")]
    return named


async def test_what_came_back_of_each_reservation_is_left(targets: list[Target]) -> None:
    """The first used 30 of its 100, so the second took 30 more, and 50 were used of them."""
    call = Reserving(limit=300)
    assert call.limits.enter() is None
    await call.attempt(targets[0], used=30)
    await call.attempt(targets[1], used=50)
    call.limits.settle()
    assert call.left() == (b"220", [(RULE, True, pytest.approx(220 / 300))])


async def test_a_refusal_is_the_last_word_and_what_came_back_is_left(targets: list[Target]) -> None:
    """No room for the second attempt while the first reservation is held, of which 70 come back."""
    call = Reserving(limit=110)
    assert call.limits.enter() is None
    await call.attempt(targets[0], used=30)
    with pytest.raises(RateLimited):
        await call.attempt(targets[1], used=50)
    call.limits.settle()
    assert call.left() == (b"80", [(RULE, False, pytest.approx(80 / 110))])
