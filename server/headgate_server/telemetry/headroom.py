"""How much room limits have left, for Prometheus. Time is passed in, as seconds of the monotonic clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headgate_server.telemetry.names import LIMIT_HEADROOM

HEADROOM_SECONDS = 15.0


@dataclass(slots=True)
class Least:
    """The least that was left, since when it is, and when its rule was last asked."""

    left: float
    since: float
    asked: float


class Headroom(Collector):
    """The least of what was left of each rule lately. A rule that nobody asks any more is not shown: its counters have
    room again, and nothing says so."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._of_rules: dict[str, Least] = {}

    def record(self, rule: str, left: float, now: float) -> None:
        """A rule was asked, and has that share left."""
        least = self._of_rules.get(rule)
        if least is None or left <= least.left or now - least.since > HEADROOM_SECONDS:
            self._of_rules[rule] = Least(left, now, now)
        else:
            least.asked = now

    def describe(self) -> Iterator[Metric]:
        """The family without values."""
        yield GaugeMetricFamily(LIMIT_HEADROOM.name, LIMIT_HEADROOM.help, labels=LIMIT_HEADROOM.labels)

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(LIMIT_HEADROOM.name, LIMIT_HEADROOM.help, labels=LIMIT_HEADROOM.labels)
        oldest = self._now() - HEADROOM_SECONDS
        for rule, least in tuple(self._of_rules.items()):  # the copy is safe from other threads
            if least.asked >= oldest:
                family.add_metric((rule,), least.left)
        yield family
