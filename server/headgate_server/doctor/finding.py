"""What an examination finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice` says what to do about it, where something is to be done."""

    check: str
    subject: str
    state: State
    detail: str
    advice: str = ""


def skew(subject: str, ahead: float) -> Finding:
    """What it means that this clock is so many seconds ahead of that of `subject`."""
    if abs(ahead) < TOLERATED_SECONDS:
        return Finding("clock", subject, State.OK, f"agrees within {TOLERATED_SECONDS:g} s")
    side = "ahead of" if ahead > 0 else "behind"
    detail = f"this machine is {abs(ahead):.0f} s {side} it"
    advice = "let NTP set the clock: tokens and certificates are judged by it, and keys expire by it"
    return Finding("clock", subject, State.WARNING, detail, advice)


TOLERATED_SECONDS = 5.0
