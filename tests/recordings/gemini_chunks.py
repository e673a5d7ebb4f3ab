"""A recorded stream as the whole answer that it amounts to: an accumulator apart from the adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]

STEP = re.compile(r"\.(\w+)|\[(\d+)\]")


def chunks(body: bytes) -> list[Json]:
    """The chunks of a stream, whether it came as events or as one array."""
    text = body.decode()
    if text.startswith("["):
        found: list[Json] = json.loads(text)
        return found
    return [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]


def accumulated(stream: Iterable[Json]) -> Json:
    """The body that the vendor would have answered without streaming."""
    answer: Json = {}
    candidates: dict[int, Json] = {}
    for chunk in stream:
        for key, value in chunk.items():
            if key == "candidates":
                for found in value:
                    index = found.get("index", 0)
                    _add_candidate(candidates.setdefault(index, {"index": index, "content": {"parts": []}}), found)
            elif value:
                answer[key] = value
    if candidates:
        answer["candidates"] = [candidates[index] for index in sorted(candidates)]
    for candidate in candidates.values():
        candidate["content"]["parts"] = [_whole(part) for part in candidate["content"]["parts"]]
    return answer


def _add_candidate(known: Json, found: Json) -> None:
    for key, value in found.items():
        if key == "content":
            for part in value.get("parts", []):
                _add_part(known["content"]["parts"], part)
        elif key == "citationMetadata":
            sources = known.setdefault(key, {"citationSources": []})["citationSources"]
            sources.extend(value["citationSources"])
        elif value:
            known[key] = value


def _add_part(parts: list[Json], part: Json) -> None:
    """Text grows while nothing else comes between; a streamed call takes what belongs to it."""
    if part == {"text": ""}:
        return
    last = parts[-1] if parts else {}
    call = part.get("functionCall", {})
    if part.keys() == last.keys() and part.keys() <= {"text", "thought"}:
        last["text"] += part["text"]
    elif "functionCall" in part and "pieces" in last and last["open"]:
        last["pieces"] += call.get("partialArgs", [])
        last["open"] = call.get("willContinue", False)
    elif call.get("willContinue"):
        parts.append({**part, "pieces": call.get("partialArgs", []), "open": True})
    else:
        parts.append(json.loads(json.dumps(part)))


def _whole(part: Json) -> Json:
    """The part with the arguments that its pieces make."""
    if "pieces" not in part:
        return part
    arguments: Json = {}
    for piece in part["pieces"]:
        steps = [int(index) if index else name for name, index in STEP.findall(piece["jsonPath"])]
        arguments = _with(arguments, steps, piece)
    rest = {key: value for key, value in part.items() if key not in ("pieces", "open")}
    return {**rest, "functionCall": {"name": part["functionCall"]["name"], "args": arguments}}


def _with(value: Any, steps: list[int | str], piece: Json) -> Any:
    if not steps:
        return (value or "") + piece["stringValue"] if "stringValue" in piece else piece["numberValue"]
    step, *rest = steps
    if isinstance(step, int):
        items = list(value or [])
        items += [None] * (step + 1 - len(items))
        items[step] = _with(items[step], rest, piece)
        return items
    return {**(value or {}), step: _with((value or {}).get(step), rest, piece)}
