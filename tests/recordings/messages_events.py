"""A recorded Messages stream as the whole message that it amounts to: an accumulator apart from the adapter."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

Json = dict[str, Any]

STOP = re.compile(rb'"message_stop"\s*}\s*')


def events(body: bytes) -> list[Json]:
    """The data of a stream's events."""
    lines = body.decode().splitlines()
    return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


def answers(body: bytes) -> list[bytes]:
    """The streams in a recorded body: some sources keep those of a whole conversation in one file."""
    ends = [0, *(stop.end() for stop in STOP.finditer(body))]
    return [body[start:end] for start, end in pairwise(ends)]


def accumulated(stream: list[Json]) -> Json:
    """The body that the vendor would have answered without streaming."""
    message: Json = {}
    inputs: dict[int, str] = {}
    for event in stream:
        match event["type"]:
            case "message_start":
                message = json.loads(json.dumps(event["message"]))
            case "content_block_start":
                message["content"].append(dict(event["content_block"]))
                assert len(message["content"]) == event["index"] + 1
            case "content_block_delta":
                _grow(message["content"][event["index"]], event["delta"], inputs, event["index"])
            case "message_delta":
                message |= {key: value for key, value in event["delta"].items() if value is not None}
                message["usage"] |= {key: value for key, value in event["usage"].items() if value is not None}
                message |= {key: value for key, value in event.items() if key not in ("type", "delta", "usage")}
    for index, written in inputs.items():
        message["content"][index]["input"] = _input(written)
    return message


def _input(written: str) -> Any:
    """The tool input; of one that was cut short, what llama.cpp answers when it does not stream."""
    try:
        return json.loads(written or "{}")
    except ValueError:
        return {}


def as_written(stream: list[Json], message: Json) -> bytes:
    """The message with every tool input in the model's own letters, as a vendor would have sent it whole."""
    inputs: dict[int, str] = {}
    for event in stream:
        if event["type"] == "content_block_delta" and event["delta"]["type"] == "input_json_delta":
            inputs[event["index"]] = inputs.get(event["index"], "") + event["delta"]["partial_json"]
    body = json.dumps(message)
    for index, written in inputs.items():
        block = message["content"][index]
        if written and block["type"] == "tool_use":
            before = json.dumps(block)
            body = body.replace(before, before.replace(json.dumps(block["input"]), written))
    return body.encode()


def _grow(block: Json, delta: Json, inputs: dict[int, str], index: int) -> None:
    match delta["type"]:
        case "text_delta":
            block["text"] += delta["text"]
        case "thinking_delta":
            block["thinking"] += delta["thinking"]
        case "signature_delta":
            block["signature"] = delta["signature"]
        case "citations_delta":
            block["citations"] = [*(block.get("citations") or []), delta["citation"]]
        case "input_json_delta":
            inputs[index] = inputs.get(index, "") + delta["partial_json"]
        case kind:
            raise AssertionError(f"a delta of type {kind}")
