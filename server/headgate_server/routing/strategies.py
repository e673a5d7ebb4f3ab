"""The strategies: in which order the targets of an alias are tried. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from headgate_server.providers.base import Target
    from headgate_server.routing.routes import Candidate

Order = Sequence["Candidate"]


class Knowledge(Protocol):
    """What strategies ask about targets as of now. `chance` is uniform in [0, 1)."""

    def in_flight(self, target: Target) -> int:
        """Attempts in flight."""
        ...

    def load(self, target: Target) -> float:
        """Seconds that one more call of this kind would wait; 0 where nothing is known."""
        ...

    def price(self, target: Target) -> float:
        """What this call would cost there, for comparison alone; infinity where unknown."""
        ...

    def chance(self) -> float: ...


def priority(candidates: Order, known: Knowledge) -> Order:
    """As configured."""
    return candidates


def weighted(candidates: Order, known: Knowledge) -> Order:
    """By chance, each place in proportion to weight among those left.

    Efraimidis and Spirakis, https://doi.org/10.1016/j.ipl.2005.11.003
    """
    return sorted(candidates, key=lambda candidate: _score(known.chance(), candidate.weight))


def least_busy(candidates: Order, known: Knowledge) -> Order:
    """Fewest attempts in flight for its weight first; among equals, by chance."""
    return sorted(
        candidates, key=lambda c: (known.in_flight(c.target) / c.weight if c.weight else math.inf, known.chance())
    )


def latency(candidates: Order, known: Knowledge) -> Order:
    """The quicker of two drawn by chance first, then the others, quickest first.

    Two choices spread the load: always taking the quickest would bury it.
    """
    drawn = sorted(candidates, key=lambda candidate: _score(known.chance(), candidate.weight))
    loads = {candidate.target: known.load(candidate.target) for candidate in drawn}
    shared = [candidate for candidate in drawn if candidate.weight] or drawn
    first = min(shared[:2], key=lambda candidate: loads[candidate.target])
    rest = sorted((c for c in drawn if c is not first), key=lambda c: (not c.weight, loads[c.target]))
    return [first, *rest]


def cost(candidates: Order, known: Knowledge) -> Order:
    """Cheapest for this call first; those of unknown price last, as configured."""
    return sorted(candidates, key=lambda candidate: (not candidate.weight, known.price(candidate.target)))


STRATEGIES: Mapping[str, Callable[[Order, Knowledge], Order]] = {
    "priority": priority,
    "weighted": weighted,
    "least-busy": least_busy,
    "latency": latency,
    "cost": cost,
}


@dataclass(frozen=True, slots=True)
class Affinity:
    """Puts calls of the same key to the same target, in shares by weight.

    Weighted rendezvous hashing: a target that is added takes its share from all others, and no key moves between
    those. https://datatracker.ietf.org/doc/html/draft-ietf-bess-weighted-hrw
    """

    alias: str
    key: str

    def order(self, candidates: Order) -> Order:
        """Highest score first: the rest is where the key goes when the first is out of service."""
        return sorted(candidates, key=lambda candidate: _score(self._point(candidate), candidate.weight))

    def _point(self, candidate: Candidate) -> float:
        """Where the key and this candidate meet in (0, 1)."""
        name = f"{self.alias}\0{self.key}\0{candidate.target.provider}\0{candidate.target.model}"
        digest = blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
        return (int.from_bytes(digest, "big") + 0.5) / 2**64


def _score(point: float, weight: float) -> float:
    """Least wins, with a chance in proportion to weight: a draw from an exponential distribution of that rate."""
    return -math.log1p(-point) / weight if weight else math.inf
