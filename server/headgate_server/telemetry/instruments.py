"""Counters and histograms that calls are recorded by.

prometheus-client serves them; its own take four times as long to record, which is a lock and a search for each value,
and a call records a dozen. These are changed on the event loop alone, and read from any thread.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, Exemplar, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from headgate_server.telemetry.names import Name

Labels = tuple[str, ...]
INFINITY = "+Inf"


class Counter(Collector):
    """Sums, one for each set of label values."""

    def __init__(self, name: Name) -> None:
        self._name = name
        self._sums: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1.0) -> None:
        """Adds to the sum of these labels, which may be 0 so that there is one."""
        self._sums[labels] = self._sums.get(labels, 0.0) + amount

    def describe(self) -> Iterator[Metric]:
        """The family without values."""
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for labels, total in self._sums.copy().items():  # this may be another thread
            family.add_metric(labels, total)
        yield family

    def _family(self) -> CounterMetricFamily:
        return CounterMetricFamily(self._name.name, self._name.help, labels=self._name.labels)


class Histogram(Collector):
    """Values counted by bucket, for each set of label values."""

    def __init__(self, name: Name) -> None:
        self._name = name
        self._bounds = name.buckets
        self._shown_bounds = (*map(floatToGoString, name.buckets), INFINITY)
        self._series: dict[Labels, Series] = {}
        if not name.labels:
            self._series[()] = Series(len(self._shown_bounds))

    def observe(self, labels: Labels, value: float, exemplar: dict[str, str] | None = None) -> None:
        """Counts the value; `exemplar` are labels that lead to what it is of."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = Series(len(self._shown_bounds))
        bucket = bisect_left(self._bounds, value)
        series.counts[bucket] += 1
        series.sum += value
        if exemplar:
            series.exemplars[bucket] = Exemplar(exemplar, value, time.time())

    def describe(self) -> Iterator[Metric]:
        """The family without values."""
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for labels, series in self._series.copy().items():
            family.add_metric(labels, tuple(self._buckets(series)), series.sum)
        yield family

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name.name, self._name.help, labels=self._name.labels)

    def _buckets(self, series: Series) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
        for bucket, (bound, count) in enumerate(zip(self._shown_bounds, accumulate(series.counts), strict=True)):
            exemplar = series.exemplars.get(bucket)
            yield (bound, count, exemplar) if exemplar else (bound, count)


class Series:
    """What was counted for one set of label values: the values in each bucket alone, and the last exemplar of each."""

    __slots__ = ("counts", "exemplars", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}
