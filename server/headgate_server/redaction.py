"""Secrets taken out of text that goes to the log: a vendor may repeat the key that it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "********"
SHORTEST_SECRET = 6

# What keys look like, for those that are shown in part or were never ours.
_KEY_SHAPES = re.compile(
    r"\bhg_[0-9A-Za-z]{12}_[0-9A-Za-z]*"
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*"
    r"|\b(?:sk|pk|rk|gsk|xai|AIza|hf|nvapi|pplx|csk|fw|r8|key)[-_][\w*.-]{8,}|\bAIza[\w-]{20,}"
    r"|(?i:\bbearer\s+)[\w.~+/=-]{8,}",
    re.ASCII,
)


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without these secrets, and without whatever has the shape of a key."""
    for secret in secrets:
        for part in {secret, secret.rpartition(" ")[2]}:
            if len(part) >= SHORTEST_SECRET:
                text = text.replace(part, MASK)
    return _KEY_SHAPES.sub(MASK, text)
