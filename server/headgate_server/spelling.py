"""Suggestions for a mistyped name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or nothing when no known word is close."""
    matches = get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
