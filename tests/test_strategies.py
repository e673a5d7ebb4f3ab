"""The laws of the routing strategies: shares by weight, and keys that stay where they are."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings, strategies as st

from headgate_server.providers.base import Target
from headgate_server.providers.hosts import HOSTS
from headgate_server.routing import STRATEGIES, Candidate
from headgate_server.routing.strategies import Affinity


def candidates(weights: Sequence[float]) -> list[Candidate]:
    """One candidate for each weight."""
    return [Candidate(Target(f"p{n}", "m", HOSTS["openai"], "openai"), weight) for n, weight in enumerate(weights)]


@given(weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=6), more=st.floats(0.1, 10))
@settings(deadline=None, max_examples=50)
def test_a_target_that_is_added_moves_keys_to_itself_alone(weights: list[float], more: float) -> None:
    """Whoever had a target keeps it, or goes to the new one."""
    before, after = candidates(weights), candidates([*weights, more])
    for number in range(100):
        affinity = Affinity("alias", f"key-{number}")
        first, then = affinity.order(before)[0].target, affinity.order(after)[0].target
        assert then in (first, after[-1].target)


class Unknowing:
    """Knows nothing of targets, and takes its chances from a seed."""

    def __init__(self) -> None:
        self._source = random.Random(7)

    def chance(self) -> float:
        return self._source.random()

    def in_flight(self, target: Target) -> int:
        return 0

    def load(self, target: Target) -> float:
        return 0.0

    def price(self, target: Target) -> float:
        return 0.0


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (1, 2, 7), (5, 0)])
def test_shares_follow_the_weights_for_keys_and_for_chance(weights: tuple[float, ...]) -> None:
    """Within five standard deviations of what the weights say; weight 0 gets nothing while others are there."""
    count, chosen, known = 4000, candidates(weights), Unknowing()
    by_key = Counter(Affinity("alias", f"user {n}").order(chosen)[0].target.provider for n in range(count))
    by_chance = Counter(STRATEGIES["weighted"](chosen, known)[0].target.provider for _ in range(count))
    for found in (by_key, by_chance):
        for candidate in chosen:
            share = candidate.weight / sum(weights)
            deviation = 5 * math.sqrt(count * share * (1 - share))
            assert abs(found[candidate.target.provider] - count * share) <= deviation


@pytest.mark.parametrize("strategy", ["weighted", "least-busy", "latency", "cost"])
def test_a_target_without_weight_is_for_when_the_others_fail(strategy: str) -> None:
    """Last, whichever strategy orders them."""
    order = STRATEGIES[strategy](candidates((0, 1, 2)), Unknowing())
    assert order[-1].weight == 0
