"""A recorded chunk stream as the whole answer that it amounts to: an accumulator apart from the adapter."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]

GROWING = ("content", "reasoning_content", "reasoning", "refusal")
OPENING = ("id", "model", "created")
DETAIL_TEXTS = ("text", "summary", "data")


def chunks(body: bytes) -> list[Json]:
    """The data of a stream's events, [DONE] and comments left out."""
    found = []
    for line in body.decode().splitlines():
        name, _, data = line.partition(":")
        if name == "data" and data.strip() not in ("", "[DONE]"):
            found.append(json.loads(data))
    return found


def accumulated(stream: Iterable[Json]) -> Json:
    """The body that the vendor would have answered without streaming."""
    answer: Json = {}
    choices: dict[int, Json] = {}
    for chunk in stream:
        for key, value in chunk.items():
            if key == "choices":
                for choice in value or []:
                    index = choice.get("index", 0)
                    _add_choice(choices.setdefault(index, {"index": index, "message": {}}), choice)
            elif key in OPENING:
                answer[key] = answer.get(key) or value
            elif value is not None and value != "":
                _add_extra(answer, key, value)
    answer["choices"] = [choices[index] for index in sorted(choices)]
    return answer


def _add_choice(known: Json, choice: Json) -> None:
    for key, value in choice.items():
        if key == "delta":
            _add_delta(known["message"], value or {})
        elif key == "logprobs":
            tokens = known.setdefault("logprobs", {"content": [], "refusal": []})
            for kind in tokens:
                tokens[kind] += (value or {}).get(kind) or []
        elif key not in ("index", "message") and value is not None:
            _add_extra(known, key, value)


def _add_delta(message: Json, delta: Json) -> None:
    for key, value in delta.items():
        if value is None:
            continue
        if key == "content" and isinstance(value, list):
            before = message.get("content") or []
            message["content"] = [*(before if isinstance(before, list) else [text_item(before)]), *value]
        elif key == "content" and isinstance(message.get("content"), list):
            message["content"].append(text_item(value))
        elif key in GROWING:
            message[key] = message.get(key, "") + value
        elif key == "tool_calls":
            for call in value:
                _add_call(message.setdefault("tool_calls", []), call)
        elif key == "function_call":
            legacy = message.setdefault("function_call", {"name": "", "arguments": ""})
            for name, piece in value.items():
                legacy[name] += piece or ""
        elif key == "audio":
            _add_audio(message.setdefault("audio", {"data": "", "transcript": ""}), value)
        elif key == "reasoning_details":
            for detail in value:
                _add_detail(message.setdefault("reasoning_details", []), detail)
        elif key in ("annotations", "images"):
            message.setdefault(key, []).extend(value)
        else:
            _add_extra(message, key, value)


def text_item(text: str) -> Json:
    """Mistral's content item of a text."""
    return {"type": "text", "text": text}


def _add_call(calls: list[Json], piece: Json) -> None:
    is_new = piece.get("id") and piece["id"] not in [call.get("id") for call in calls]
    if is_new or not calls:
        calls.append({"id": piece.get("id"), "type": piece.get("type"), "function": {"name": "", "arguments": ""}})
        call = calls[-1]
    else:
        numbered = [call for call in calls if call.get("index") == piece.get("index")]
        call = numbered[-1] if numbered else calls[-1]
    function = piece.get("function") or {}
    call["index"] = piece.get("index", call.get("index"))
    call["function"]["name"] = call["function"]["name"] or function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""


def _add_audio(audio: Json, piece: Json) -> None:
    for key, value in piece.items():
        if key == "data":
            audio["data"] = b64encode(b64decode(audio["data"]) + b64decode(value)).decode()
        elif key == "transcript":
            audio["transcript"] += value
        else:
            audio[key] = value


def _add_detail(details: list[Json], piece: Json) -> None:
    same = [d for d in details if (d.get("index"), d["type"]) == (piece.get("index"), piece["type"])]
    if not same:
        details.append(dict(piece))
        return
    for key, value in piece.items():
        if key in DETAIL_TEXTS:
            same[-1][key] = same[-1].get(key, "") + value
        elif value:
            same[-1][key] = value


def _add_extra(known: Json, key: str, value: Any) -> None:
    if isinstance(value, dict) and isinstance(known.get(key), dict):
        known[key] = {**known[key], **value}
    else:
        known[key] = value
