"""The terms of counting: a limit, what is taken from it, and how it then stands. Times are integer microseconds.

What a call makes several of are structs: named tuples take much longer to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal, NamedTuple

import msgspec

Unit = Literal["requests", "input_tokens", "output_tokens", "total_tokens", "concurrency", "cost"]
Algorithm = Literal["token_bucket", "sliding_window", "concurrency", "calendar"]

SLOTS = 60
MICROS = 1_000_000
NEVER = -1
NANOS = 10**9
MOST = 2**53 - 1
"""The largest whole number that Lua can count with: nine million dollars in nanos, and a time that never comes."""


class Threshold(NamedTuple):
    """A share of a budget, in figures and in nanos, of which it is told when it is spent."""

    share: str
    nanos: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What a limit of money is for people: its name, whose it is, and its period, such as month and 2026-11."""

    name: str
    subject: str
    kind: str
    period: str
    soft: tuple[Threshold, ...] = ()


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `amount` of a unit in `window`; a token bucket holds `burst`, a concurrency limit knows no window.

    `scale` and `gain` are what the algorithm counts with. A token bucket counts in parts, `scale` of them to a unit,
    and wins back `gain` of them each microsecond, so that all of it is whole numbers. A sliding window is cut into
    `scale` slots of `gain` microseconds. A calendar's period ends at the moment `gain`, MOST for never.
    """

    unit: str
    algorithm: Algorithm
    amount: int
    window: int
    capacity: int
    scale: int
    gain: int
    budget: Budget | None = None


def limit(unit: str, algorithm: Algorithm, amount: int, window: float = 0, burst: int | None = None) -> Limit:
    """The limit of this algorithm; `window` is in seconds, `burst` by default `amount`."""
    micros = round(window * MICROS)
    match algorithm:
        case "token_bucket":
            common = gcd(amount, micros)
            return Limit(unit, algorithm, amount, micros, burst or amount, micros // common, amount // common)
        case "sliding_window":
            return Limit(unit, algorithm, amount, micros, amount, SLOTS, -(-micros // SLOTS))
        case "concurrency":
            return Limit(unit, algorithm, amount, 0, amount, 1, 0)
        case "calendar":
            raise ValueError("a calendar has no window: take calendar_limit")


def calendar_limit(amount: int, ends: int | None, *, hard: bool = True, budget: Budget | None = None) -> Limit:
    """The limit of a period that ends at that moment, in microseconds since the epoch; None for never.

    What is not `hard` is only counted.
    """
    return Limit("cost", "calendar", amount, 0, amount if hard else MOST, 1, MOST if ends is None else ends, budget)


class Scoped(msgspec.Struct, frozen=True):
    """A limit as it applies to one caller: the key of its counter, and who that is, such as `tenant:acme`.

    `rule` is the same for all callers: by it metrics tell limits apart.
    """

    key: str
    limit: Limit
    subject: str = ""
    rule: str = ""


class Take(msgspec.Struct, gc=False):
    """So much that is asked of a counter, and what comes of it.

    Once it was asked, `used` of the counter's capacity is in use, what was granted included, and `reset` is the time
    until all of it is there again. `wait` is the time until what was asked for fits: 0 if it does, NEVER if it is more
    than the capacity. `truth` is how much was really used: 0 until that is known, to be settled.
    """

    counter: Scoped
    amount: int
    truth: int = 0
    used: int = 0
    reset: int = 0
    wait: int = 0

    @property
    def key(self) -> str:
        """The counter's."""
        return self.counter.key

    @property
    def limit(self) -> Limit:
        """The counter's."""
        return self.counter.limit


def dollars(nanos: int) -> str:
    """Nanos of US dollars as dollars, exactly, with two decimals at least."""
    whole, rest = divmod(nanos, NANOS)
    return f"{whole}.{f'{rest:09}'.rstrip('0'):0<2}"
