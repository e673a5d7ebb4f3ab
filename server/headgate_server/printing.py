"""Text from elsewhere, fit for a terminal or a log."""

from __future__ import annotations

import re

# C0 and C1 controls with DEL, what turns the direction of writing around, and halves of characters.
DELETE = "\x7f"
_UNSAFE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def printable(text: str) -> str:
    """The text with characters written out that a terminal would obey or nobody could encode; not tab and line feed."""
    return _UNSAFE.sub(_written_out, text)


def json_safe(text: str) -> str:
    """A JSON document in which the same characters are escapes, so that it says the same."""
    if text.isascii() and DELETE not in text:  # all other controls are escapes already
        return text
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
