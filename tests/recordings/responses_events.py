"""A recorded Responses stream as the whole answer that it amounts to: an accumulator apart from the adapter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]

LAST = ("response.completed", "response.incomplete")
TEXTS = {
    "response.output_text.delta": ("content", "content_index", "text"),
    "response.refusal.delta": ("content", "content_index", "refusal"),
    "response.reasoning_text.delta": ("content", "content_index", "text"),
    "response.reasoning_summary_text.delta": ("summary", "summary_index", "text"),
}
ARGUMENTS = {
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
}


def accumulated(events: Iterable[Json]) -> Json:
    """The body that the vendor would have answered without streaming: what was said, in the order of the output.

    The vendor encrypts reasoning anew for its last event; the answer has what came with the item.
    """
    said: dict[Any, dict[tuple[str, int, str], str]] = {}
    items: dict[Any, Json] = {}
    answer: Json = {}
    for event in events:
        kind = event["type"]
        place = event.get("output_index", event.get("item_id") or event.get("item", {}).get("id"))
        if kind in TEXTS:
            member, index, name = TEXTS[kind]
            _add(said.setdefault(place, {}), (member, event.get(index, 0), name), event["delta"])
        elif kind in ARGUMENTS:
            _add(said.setdefault(place, {}), (ARGUMENTS[kind], -1, ""), event["delta"])
        elif kind == "response.output_item.done":
            items[place] = _with(event["item"], said.pop(place, {}))
        elif kind in LAST:
            answer = event["response"]
    assert not said, "deltas of an item that was never done"
    return {**answer, "output": list(items.values())}


def _add(said: dict[tuple[str, int, str], str], place: tuple[str, int, str], piece: str) -> None:
    said[place] = said.get(place, "") + piece


def _with(item: Json, said: dict[tuple[str, int, str], str]) -> Json:
    """The done item with what the deltas said in the place of what it says itself."""
    for (member, index, name), text in said.items():
        if index < 0:
            item[member] = text
        else:
            item[member][index][name] = text
    return item
