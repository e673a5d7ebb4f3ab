"""What is measured: names, units, budgets. Smaller is better everywhere but in calls per second."""

from __future__ import annotations

from dataclasses import dataclass

Figures = dict[str, float]
"""One column of the table: figure's name -> value."""

UNARY_FLOOR, EVENT_FLOOR = 143.0, 18.0
"""CPU-µs of the floor's unary call, and of a message that it streams, on the machine for which budgets were set."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `budget` is what the full mode may cost, `bare_budget` where bare has its own."""

    name: str
    label: str
    unit: str
    budget: float | None = None
    bare_budget: float | None = None


SECTIONS: dict[str, tuple[Figure, ...]] = {
    "CPU of the server process": (
        Figure("cpu_unary", "unary, 500/s", "µs", 650, 450),
        Figure("cpu_unary_saturated", "unary, saturated by 32 callers", "µs"),
        Figure("cpu_burst", "stream of 64 chunks in one burst, 300/s", "µs"),
        Figure("cpu_paced", "stream of 64 chunks paced at 5 ms, 100/s", "µs", 3500),
        Figure("cpu_embed", "embed, 100 x 1536 as base64, 50/s", "µs"),
    ),
    "Rate": (Figure("rate_saturated", "unary, saturated by 32 callers", "/s"),),
    "Time added to the vendor's own": (
        Figure("added_p50", "unary, 500/s, p50", "µs", 1000),
        Figure("added_p99", "unary, 500/s, p99", "µs", 5000),
        Figure("added_first_p50", "first text, paced streams, 100/s, p50", "µs", 1000),
        Figure("added_first_p99", "first text, paced streams, 100/s, p99", "µs"),
    ),
    "Cancel until the vendor sees it, at 300/s": (
        Figure("cancel_p50", "amid the stream, p50", "ms", 100),
        Figure("cancel_p99", "amid the stream, p99", "ms", 100),
        Figure("cancel_waiting_p50", "before the vendor's headers, p50", "ms", 100),
        Figure("cancel_waiting_p99", "before the vendor's headers, p99", "ms", 100),
    ),
    "Resident memory": (
        Figure("memory_idle", "idle", "MB", 90),
        Figure("memory_loaded", "under load", "MB", 120),
        Figure("memory_streams", "after 10,000 streams", "MB", 120),
        Figure("memory_stream", "of one stream in flight, 1,000 of them", "kB"),
    ),
    "Start": (Figure("start", "from exec until it listens", "s", 1),),
}
