"""What the status page shows of the last minute and of the last errors. Bounded; time is passed in, in seconds."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from headgate_server.errors import CallCancelled, GatewayError

if TYPE_CHECKING:
    from headgate_server.call import Call

WINDOW_SECONDS = 60
MOST_ERRORS = 50
MOST_MODELS = 200
MAX_TEXT = 160
NANOS = 1e9


@dataclass(slots=True)
class ModelTotals:
    """What one model has done since the start. Cost is in nanos of its currency."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nanos: int = 0
    currency: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed call: no word of a vendor's, of a prompt or of an answer."""

    time: float
    method: str
    code: str
    reason: str
    model: str
    provider: str
    request_id: str


class Recent:
    """Calls and failures second by second, totals by model, and the last failures. A caller who leaves is none."""

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque(maxlen=WINDOW_SECONDS + 1)
        self._failures: deque[Failure] = deque(maxlen=MOST_ERRORS)
        self._models: dict[tuple[str, str], ModelTotals] = {}

    def record(self, call: Call, error: GatewayError | None, now: float) -> None:
        """A call has ended; `now` is monotonic time."""
        second = self._second(int(now))
        second[1] += 1
        if error is not None and not isinstance(error, CallCancelled):
            second[2] += 1
            self._failures.append(_failure(call, error))
        for attempt in call.attempts:
            totals = self._totals(attempt.provider, call.runtime.model_label(attempt.provider, attempt.model))
            totals.calls += 1
            totals.input_tokens += attempt.usage.input_tokens
            totals.output_tokens += attempt.usage.output_tokens
        if call.cost is not None and (answering := call.answering):
            totals = self._totals(answering.provider, call.runtime.model_label(answering.provider, answering.model))
            totals.cost_nanos += call.cost.total_nanos
            totals.currency = call.cost.currency_code

    def shown(self, now: float) -> dict[str, Any]:
        """All of it, as JSON has it."""
        since = int(now) - WINDOW_SECONDS
        seconds = {entry[0]: entry for entry in self._seconds if since <= entry[0] < int(now)}
        empty = [0, 0, 0]
        timeline = [seconds.get(moment, empty) for moment in range(since, int(now))]
        return {
            "calls_per_second": [entry[1] for entry in timeline],
            "errors_per_second": [entry[2] for entry in timeline],
            "failures": [asdict(failure) for failure in reversed(self._failures)],
            "models": [
                {"provider": provider, "model": model, **asdict(totals)}
                for (provider, model), totals in sorted(
                    self._models.items(), key=lambda entry: (-entry[1].cost_nanos, -entry[1].calls)
                )
            ],
        }

    def _second(self, second: int) -> list[int]:
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
        return self._seconds[-1]

    def _totals(self, provider: str, model: str) -> ModelTotals:
        totals = self._models.get((provider, model))
        if totals is None:
            if len(self._models) >= MOST_MODELS:
                provider, model = "other", "other"
            totals = self._models.setdefault((provider, model), ModelTotals())
        return totals


def _failure(call: Call, error: GatewayError) -> Failure:
    model = getattr(call.request, "model", "")
    return Failure(
        time=time.time(),
        method=call.name,
        code=error.code.name,
        reason=error.reason,
        model=str(model)[:MAX_TEXT],
        provider=error.facts.get("provider", ""),
        request_id=call.request_id,
    )
