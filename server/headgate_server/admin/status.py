"""What the status page and /debug show: plain values, made when somebody asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from headgate import v1 as pb

import headgate_server
from headgate_server.call import CallRegistry
from headgate_server.config import Config
from headgate_server.ledger.ledger import Ledger
from headgate_server.telemetry.recent import Recent

if TYPE_CHECKING:
    from headgate_server.runtime import Runtime, ServedProvider

MOST_TARGETS = 20
MOST_TASKS = 1000


def status(
    runtime: Runtime,
    calls: CallRegistry,
    recent: Recent,
    ledger: Ledger | None,
    state: pb.ServingState.ValueType,
    started: float,
) -> dict[str, Any]:
    """The whole page. `started` is wall-clock time in seconds since the epoch."""
    return {
        "version": headgate_server.__version__,
        "time": time.time(),
        "started": started,
        "state": _word(pb.ServingState.Name(state), "SERVING_STATE_"),
        "ledger": _ledger(ledger) if ledger else None,
        "calls_in_flight": calls.by_method(),
        "providers": [_provider(name, served) for name, served in runtime.providers.items()],
        "aliases": {name: len(alias.targets) for name, alias in runtime.config.models.items()},
        **recent.shown(time.monotonic()),
    }


def targets(runtime: Runtime) -> dict[str, Any]:
    """Every target that is remembered, with its circuit, queue and averages."""
    return {name: list(_targets(served)) for name, served in runtime.providers.items()}


def pools(runtime: Runtime) -> dict[str, Any]:
    """Connections to every provider, of at most `limit` (0 for no limit), and calls that wait for a place there."""
    return {name: _pool(served) for name, served in runtime.providers.items()}


def tasks() -> dict[str, Any]:
    """The tasks of the event loop: how many, and where each one stands."""
    running = asyncio.all_tasks()
    return {"count": len(running), "tasks": [_task(task) for task in list(running)[:MOST_TASKS]]}


def configuration(config: Config) -> dict[str, Any]:
    """The configuration that is served, secrets masked."""
    return config.model_dump(mode="json")


def _ledger(ledger: Ledger) -> dict[str, Any]:
    """`trouble` is why it is not as it should be; rows in memory and calls on disk have still a way to go."""
    return {"trouble": ledger.trouble, "rows_in_memory": ledger.queued, "calls_on_disk": ledger.waiting}


def _provider(name: str, served: ServedProvider) -> dict[str, Any]:
    health = served.states.health(time.monotonic())
    used, limit = served.endpoint.transport.connections
    return {
        "name": name,
        "adapter": served.endpoint.host.adapter,
        "state": _word(pb.ServingState.Name(health.state), "SERVING_STATE_"),
        "circuit": _word(pb.CircuitState.Name(health.circuit), "CIRCUIT_STATE_"),
        "detail": health.detail,
        "success_rate": health.success_rate if health.total_calls else None,
        "total_calls": health.total_calls,
        "in_flight": health.in_flight,
        "average_ms": _milliseconds(health, "average_latency"),
        "first_token_ms": _milliseconds(health, "first_token_latency"),
        "last_success": health.last_success_time.ToMicroseconds() / 1e6
        if health.HasField("last_success_time")
        else None,
        "connections": {"used": used, "limit": limit},
        "targets": list(_targets(served))[:MOST_TARGETS],
    }


def _pool(served: ServedProvider) -> dict[str, int]:
    used, limit = served.endpoint.transport.connections
    return {"used": used, "limit": limit, "queued": sum(state.places.waiting for _, state in served.states.items())}


def _targets(served: ServedProvider) -> Iterator[Mapping[str, Any]]:
    now = time.monotonic()
    for model, state in served.states.items():
        yield {
            "model": model,
            "circuit": state.circuit(now).value,
            "in_flight": state.in_flight,
            "queued": state.places.waiting,
            "cools_for": round(state.cool_in(now), 3),
            "latency_ms": {kind: round(average.value(now) * 1000, 1) for kind, average in state.latency.items()},
        }


def _task(task: asyncio.Task[Any]) -> dict[str, str]:
    frames = task.get_stack(limit=1)
    code = frames[-1].f_code if frames else None
    where = f"{code.co_qualname} ({code.co_filename.rpartition('/')[2]}:{frames[-1].f_lineno})" if code else "done"
    return {"name": task.get_name(), "at": where}


def _milliseconds(health: pb.ProviderHealth, field: str) -> float | None:
    if not health.HasField(field):  # type: ignore[arg-type]  # a closed list of names
        return None
    return float(round(getattr(health, field).ToMicroseconds() / 1000, 1))


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", "-")
