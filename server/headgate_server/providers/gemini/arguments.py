"""A function call whose arguments come as values by path, which Vertex AI sends where it was asked to stream them.

https://docs.cloud.google.com/vertex-ai/generative-ai/docs/multimodal/function-calling#streaming-fc
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from headgate_server.errors import ProviderProtocolError
from headgate_server.json_codec import JsonObject
from headgate_server.providers.reading import mapping, objects, text

STEP = re.compile(r"\.([^.\[\]]+)|\[(\d{1,9})\]|\['([^']*)'\]|\[\"([^\"]*)\"\]")
VALUES = ("numberValue", "boolValue")


def is_streamed(call: JsonObject) -> bool:
    """More of this call follows, or it is a piece of one."""
    return bool(call.get("willContinue") or call.get("partialArgs"))


class Arguments:
    """The arguments so far."""

    def __init__(self, call: JsonObject) -> None:
        self.value: JsonObject = dict(mapping(call.get("args")))

    def add(self, call: JsonObject) -> None:
        """Adds one piece: strings grow, everything else comes whole.

        Raises:
            ProviderProtocolError: a path leads nowhere.
        """
        for piece in objects(call.get("partialArgs")):
            steps = _steps(text(piece.get("jsonPath")))
            if "stringValue" in piece:
                _set(self.value, steps, text(piece["stringValue"]), grows=True)
            else:
                known = next((piece[name] for name in VALUES if name in piece), None)
                _set(self.value, steps, known, grows=False)


def _steps(path: str) -> list[str | int]:
    """`$.a[0].b` as its steps."""
    steps: list[str | int] = []
    position = 1
    while position < len(path) and (step := STEP.match(path, position)):
        key, index, *quoted = step.groups()
        steps.append(int(index) if index is not None else next(k for k in (key, *quoted) if k is not None))
        position = step.end()
    if not path.startswith("$") or position != len(path) or not steps:
        raise _unreadable()
    return steps


def _set(holder: Any, steps: list[str | int], value: Any, *, grows: bool) -> None:
    for step, following in pairwise(steps):
        _make_room(holder, step, [] if isinstance(following, int) else {})
        holder = holder[step]
    _make_room(holder, steps[-1], "" if grows else None)
    if not grows:
        holder[steps[-1]] = value
    elif isinstance(holder[steps[-1]], str):
        holder[steps[-1]] += value
    else:
        raise _unreadable()


def _make_room(holder: Any, step: str | int, empty: Any) -> None:
    """Lets the holder have a value at the step; an array only grows by one."""
    match holder, step:
        case dict(), str():
            holder.setdefault(step, empty)
        case list(), int() if step <= len(holder):
            if step == len(holder):
                holder.append(empty)
        case _:
            raise _unreadable()


def _unreadable() -> ProviderProtocolError:
    return ProviderProtocolError("the provider sent tool arguments at an impossible path")
