"""Ids of tool calls to which their vendor gave none: made here, and known again when they come back."""

from __future__ import annotations

import re
from hashlib import blake2b
from uuid import uuid4

MADE = re.compile(r"call_[0-9a-f]{24}")


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{uuid4().hex[:24]}"


def is_made(call_id: str) -> bool:
    """Whether the gateway made this id, so that no vendor knows it."""
    return MADE.fullmatch(call_id) is not None


def fitting_call_id(call_id: str, pattern: str) -> str:
    """The id itself where it matches the host's pattern; else a hash, alike for the call and its result."""
    if not pattern or re.fullmatch(pattern, call_id):
        return call_id
    return blake2b(call_id.encode(), digest_size=5).hexdigest()[:9]
