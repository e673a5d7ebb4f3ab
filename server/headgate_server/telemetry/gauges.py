"""What is read off the running server when Prometheus asks, and costs calls nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from headgate import v1 as pb
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headgate_server.call import CallRegistry
from headgate_server.ledger.ledger import Ledger
from headgate_server.limits.quota import NANOS
from headgate_server.resilience.breaker import Circuit
from headgate_server.telemetry import names
from headgate_server.telemetry.names import Name
from headgate_server.tls import CertificateFiles

if TYPE_CHECKING:
    from headgate_server.limits.policy import LimitPolicy
    from headgate_server.runtime import Runtime

Values = dict[tuple[str, ...], float]
CIRCUITS = {Circuit.CLOSED: 0, Circuit.HALF_OPEN: 1, Circuit.OPEN: 2}


class RunningServer(Collector):
    """Calls in flight, and the targets and providers of the configuration that is served. `now` is monotonic time."""

    def __init__(
        self,
        calls: CallRegistry,
        runtime: Callable[[], Runtime],
        certificates: Sequence[CertificateFiles],
        ledger: Ledger | None,
        now: Callable[[], float],
    ) -> None:
        self._calls = calls
        self._runtime = runtime
        self._certificates = certificates
        self._ledger = ledger
        self._now = now

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry would have to collect to know."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        runtime = self._runtime()
        in_flight = self._calls.by_method()
        yield _family(names.CALLS_IN_FLIGHT, {(method,): in_flight[method] for method in names.METHODS})
        yield _family(names.LIMITER_DEGRADED, {(): 1.0 if runtime.limits.limiter.trouble else 0.0})
        yield from _budgets(runtime.limits)
        yield from self._targets(runtime)
        yield from _providers(runtime)
        if self._certificates:
            yield _family(names.CERTIFICATE_CHANGED, {(): min(files.changed_at for files in self._certificates)})
            yield _counter(names.CERTIFICATE_REFUSALS, {(): max(files.refusals for files in self._certificates)})
        if self._ledger:
            yield from _ledger(self._ledger, self._now())

    def _targets(self, runtime: Runtime) -> Iterator[Metric]:
        circuits: Values = defaultdict(float)
        cooldowns: Values = defaultdict(float)
        in_flight: Counter[tuple[str, ...]] = Counter()
        queued: Counter[tuple[str, ...]] = Counter()
        now = self._now()
        for name, served in runtime.providers.items():
            for model, state in served.states.items():
                labels = (name, runtime.model_label(name, model))
                circuits[labels] = max(circuits[labels], CIRCUITS[state.circuit(now)])
                cooldowns[labels] = max(cooldowns[labels], state.cool_in(now))
                in_flight[labels] += state.in_flight
                queued[labels] += state.places.waiting
        yield _family(names.CIRCUIT, circuits)
        yield _family(names.COOLDOWN, cooldowns)
        yield _family(names.TARGET_IN_FLIGHT, in_flight)
        yield _family(names.TARGET_QUEUE, queued)


def _providers(runtime: Runtime) -> Iterator[Metric]:
    reachable: Values = {}
    success: Values = {}
    used: Values = {}
    limits: Values = {}
    for name, served in runtime.providers.items():
        reachable[(name,)] = 0.0 if served.states.record.unreachable else 1.0
        health = served.states.record.health()
        if health.state != pb.SERVING_STATE_UNSPECIFIED:
            success[(name,)] = health.success_rate
        used[(name,)], limits[(name,)] = map(float, served.endpoint.transport.connections)
    yield _family(names.REACHABLE, reachable)
    yield _family(names.SUCCESS_RATE, success)
    yield _family(names.CONNECTIONS, used)
    yield _family(names.CONNECTIONS_LIMIT, limits)


def _budgets(limits: LimitPolicy) -> Iterator[Metric]:
    """Events begin at zero: alerts see no increase in a series that is born with its first."""
    watch = limits.limiter.watch
    spent: Values = {(budget.name,): 0.0 for budget in limits.budgets}
    spent |= {(name,): nanos / NANOS for name, nanos in watch.spent.copy().items()}
    events: Values = {(budget.name, event): 0.0 for budget in limits.budgets for event in budget.events}
    events |= {key: float(number) for key, number in watch.events.copy().items()}
    yield _family(names.BUDGET_AMOUNT, {(budget.name,): budget.amount / NANOS for budget in limits.budgets})
    yield _counter(names.BUDGET_SPENT, spent)
    yield _counter(names.BUDGET_EVENTS, events)
    yield _family(names.BUDGETS_UNRESTORED, {(): 1.0 if limits.is_history_unread else 0.0})


def _ledger(ledger: Ledger, now: float) -> Iterator[Metric]:
    figures = ledger.figures
    events = {
        "written": figures.written,
        "shipped": ledger.shipped,
        "dropped": figures.dropped,
        "refused": figures.refused,
    }
    yield _counter(names.LEDGER_CALLS, {(event,): count for event, count in events.items()})
    yield _counter(names.LEDGER_FAILURES, {(to,): count for to, count in ledger.failures.items()})
    yield _family(names.LEDGER_QUEUE, {(): ledger.queued})
    yield _family(names.LEDGER_SPOOLED, {(): ledger.waiting})
    yield _family(names.LEDGER_LAG, {(): ledger.lag(now)})
    yield _family(names.LEDGER_DEGRADED, {(): 1.0 if ledger.trouble else 0.0})


def _counter(name: Name, values: Mapping[tuple[str, ...], float]) -> CounterMetricFamily:
    family = CounterMetricFamily(name.name, name.help, labels=name.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _family(name: Name, values: Mapping[tuple[str, ...], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name.name, name.help, labels=name.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
