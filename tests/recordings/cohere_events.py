"""A recorded chat stream of Cohere's as the whole answer that it amounts to: an accumulator apart from the adapter."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]


def events(body: bytes) -> list[Json]:
    """The data of a stream's events, without [DONE]."""
    data = [line.removeprefix("data:") for line in body.decode().splitlines() if line.startswith("data:")]
    return [json.loads(text) for text in data if text.strip() != "[DONE]"]


def accumulated(stream: list[Json]) -> Json:
    """The body that the vendor would have answered without streaming."""
    answer: Json = {}
    message: Json = {}
    for event in stream:
        delta = event.get("delta") or {}
        given = delta.get("message") or {}
        match event["type"]:
            case "message-start":
                answer["id"] = event["id"]
                message = {key: value for key, value in given.items() if value}
            case "content-start":
                message.setdefault("content", []).append(dict(given["content"]))
                assert len(message["content"]) == event["index"] + 1
            case "content-delta":
                for name, piece in given["content"].items():
                    message["content"][event["index"]][name] += piece
            case "tool-plan-delta":
                message["tool_plan"] = message.get("tool_plan", "") + given["tool_plan"]
            case "tool-call-start":
                message.setdefault("tool_calls", []).append(given["tool_calls"])
            case "tool-call-delta":
                function = message["tool_calls"][event["index"]]["function"]
                function["arguments"] += given["tool_calls"]["function"]["arguments"]
            case "citation-start":
                message.setdefault("citations", []).append(given["citations"])
            case "message-end":
                answer |= delta
            case kind:
                assert kind in ("content-end", "tool-call-end", "citation-end"), kind
    return {**answer, "message": message}
