"""What calls are recorded by, against prometheus-client's own instruments."""

from __future__ import annotations

import math

import prometheus_client
from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from headgate_server.telemetry.instruments import Counter, Histogram
from headgate_server.telemetry.names import Name

BUCKETS = (0.001, 0.25, 1.0, 16.0)
LABELS = ("method", "code")
TEXTS = st.sampled_from(["a", "b", 'quoted "c"\n'])
VALUES = st.one_of(st.sampled_from(BUCKETS), st.floats(0, 100), st.just(math.inf))


def exposed(registry: CollectorRegistry) -> list[str]:
    """Its lines without the moments at which series began, which ours do not tell."""
    text: str = generate_latest(registry).decode()  # type: ignore[no-untyped-call]  # it has no annotations
    return sorted(line for line in text.splitlines() if "_created" not in line)


@given(st.lists(st.tuples(TEXTS, TEXTS, VALUES)))
def test_histograms_say_what_prometheus_clients_say(observed: list[tuple[str, str, float]]) -> None:
    """Bucket by bucket, for any labels and values, at the very bounds too."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram(Name("h", "Help.", LABELS, BUCKETS))
    ours.register(histogram)
    expected = prometheus_client.Histogram("h", "Help.", LABELS, buckets=BUCKETS, registry=theirs)
    for method, code, value in observed:
        histogram.observe((method, code), value)
        expected.labels(method, code).observe(value)
    assert exposed(ours) == exposed(theirs)


@given(st.lists(st.tuples(TEXTS, TEXTS, st.floats(0, 100))))
def test_counters_say_what_prometheus_clients_say(counted: list[tuple[str, str, float]]) -> None:
    """One that nothing was added to as well."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counter = Counter(Name("c", "Help.", LABELS))
    ours.register(counter)
    expected = prometheus_client.Counter("c", "Help.", LABELS, registry=theirs)
    counter.add(("a", "zero"), 0.0)
    expected.labels("a", "zero")
    for method, code, amount in counted:
        counter.add((method, code), amount)
        expected.labels(method, code).inc(amount)
    assert exposed(ours) == exposed(theirs)


def test_a_histogram_without_labels_is_there_before_its_first_value() -> None:
    """Alerts see no increase in a series that is born with it."""
    registry = CollectorRegistry()
    registry.register(Histogram(Name("h", "Help.", (), BUCKETS)))
    assert registry.get_sample_value("h_count") == 0


def test_a_bucket_leads_to_the_last_trace_that_fell_into_it() -> None:
    """The others lead nowhere."""
    registry = CollectorRegistry()
    histogram = Histogram(Name("h", "Help.", (), BUCKETS))
    registry.register(histogram)
    histogram.observe((), 0.5, {"trace_id": "first"})
    histogram.observe((), 0.6, {"trace_id": "last"})
    histogram.observe((), 0.7)
    (family,) = registry.collect()
    exemplars = {sample.labels["le"]: sample.exemplar for sample in family.samples if sample.name == "h_bucket"}
    found = exemplars.pop("1.0")
    assert found is not None
    assert (found.labels, found.value) == ({"trace_id": "last"}, 0.6)
    assert set(exemplars.values()) == {None}
