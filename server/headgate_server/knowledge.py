"""What routing strategies may ask about the targets of one call."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping

from headgate import v1 as pb

from headgate_server.catalog import Catalog
from headgate_server.providers.base import Target
from headgate_server.resilience.target import TargetStates

BYTES_A_TOKEN = 4
USUAL_OUTPUT_TOKENS = 500
"""For comparing prices only: how much output a call without a limit is taken to have."""


class CallKnowledge:
    """Knows the targets' traffic and prices, for a call of this kind."""

    __slots__ = ("_catalog", "_kind", "_request", "_states")

    def __init__(
        self,
        states: Mapping[str, TargetStates],
        catalog: Catalog,
        request: pb.GenerateRequest | pb.EmbedRequest,
        kind: str,
    ) -> None:
        self._states = states
        self._catalog = catalog
        self._request = request
        self._kind = kind

    def in_flight(self, target: Target) -> int:
        """Attempts in flight."""
        return self._states[target.provider].of(target.model).in_flight

    def load(self, target: Target) -> float:
        """Seconds that one more call of this kind would wait; 0 where nothing is known."""
        state = self._states[target.provider].of(target.model)
        return state.latency[self._kind].load(state.in_flight, time.monotonic())

    def price(self, target: Target) -> float:
        """Nanos that this call would cost there by a rough count of its tokens; infinity where unknown."""
        prices = self._catalog.prices(target)
        if prices is None:
            return math.inf
        output_tokens = 0
        if isinstance(self._request, pb.GenerateRequest):
            output_tokens = self._request.config.max_output_tokens or USUAL_OUTPUT_TOKENS
        usage = pb.Usage(input_tokens=self._request.ByteSize() // BYTES_A_TOKEN, output_tokens=output_tokens)
        cost = prices.cost(usage)
        return math.inf if cost is None else cost.total_nanos

    def chance(self) -> float:
        """Uniform in [0, 1)."""
        return random.random()
