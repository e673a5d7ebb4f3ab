"""W3C Trace Context: the headers by which one trace goes through several services. Pure.

https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
from collections.abc import Mapping

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
MAX_TRACESTATE = 512

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_TRACESTATE = re.compile(r"[ -~]+", re.ASCII)


def traceparent(trace_id: int, span_id: int, flags: int) -> str:
    """The header that names this span as the parent."""
    return f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"


def passed_on(metadata: Mapping[str, str | bytes]) -> tuple[str, dict[str, str]]:
    """The trace that a caller's headers belong to, and those headers word for word; empty where they are not sound."""
    parent = metadata.get(TRACEPARENT)
    match = _TRACEPARENT.fullmatch(parent) if isinstance(parent, str) else None
    if match is None:
        return "", {}
    headers = {TRACEPARENT: match[0]}
    state = metadata.get(TRACESTATE)
    if isinstance(state, str) and len(state) <= MAX_TRACESTATE and _TRACESTATE.fullmatch(state):
        headers[TRACESTATE] = state
    return match[1], headers
