"""Which of many like warnings and errors are worth a line. Pure: time is passed in, as seconds of any clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Kind: TypeAlias = tuple[str, ...]
"""What makes two lines alike, such as component, event and reason."""

WINDOW_SECONDS = 60.0
MAX_KINDS = 1000
OTHERS: Kind = ("others",)


class Repetition:
    """Lets the first `limit` lines of a kind pass in each minute, and counts the others. Kinds beyond 1000 are one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[Kind, int] = {}
        self._ends_at = 0.0

    def passes(self, kind: Kind) -> bool:
        """Whether a line of that kind is to be written."""
        if kind not in self._counts and len(self._counts) >= MAX_KINDS:
            kind = OTHERS
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        return count <= self._limit

    def ended(self, now: float) -> Sequence[tuple[Kind, int]]:
        """How many lines of each kind were held back in the minute that is over; the next one begins."""
        if now < self._ends_at:
            return ()
        self._ends_at = now + WINDOW_SECONDS
        return self.held_back()

    def held_back(self) -> Sequence[tuple[Kind, int]]:
        """How many lines of each kind were held back since that was last asked."""
        counts, self._counts = self._counts, {}
        return [(kind, count - self._limit) for kind, count in counts.items() if count > self._limit]
