"""Cohere's citations <-> ours. https://docs.cohere.com/docs/rag-citations

Theirs has a span and its sources, ours a span and one source: one of theirs becomes as many as it has sources. Both
count code points within the block that cites.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, caller_object, text_of
from headgate_server.providers.reading import count, extras, label, mapping, objects

CITATION_FIELDS = frozenset(("start", "end", "sources"))
OF_THE_PLAN = "PLAN"
# The id that Cohere gives to a document of the request that has none.
NUMBERED_DOCUMENT = re.compile(r"doc:(\d{1,9})", re.ASCII)
SOURCE = "source"

T = TypeVar("T")


def read(found: JsonObject) -> list[pb.Citation]:
    """One citation of an answer, once for each of its sources."""
    span = extras(found, CITATION_FIELDS)
    return [_read(found, span, source) for source in objects(found.get("sources")) or [{}]]


def place(found: JsonObject, blocks: Mapping[int, T], plan: T | None) -> T | None:
    """What the citation is in: the tool plan, the content block that it names, else the last one so far."""
    if found.get("type") == OF_THE_PLAN:
        return plan
    index = count(found.get("content_index"))
    if index is None:
        index = max(blocks, default=0)
    return blocks.get(index)


def write(citations: Sequence[pb.Citation], content_index: int | None, field: str) -> list[JsonObject]:
    """The citations of one block of the history, the sources of a span together again.

    Raises:
        InvalidRequest: their extras are no JSON object.
    """
    written: list[JsonObject] = []
    for number, citation in enumerate(citations):
        found = caller_object(citation.provider_json, f"{field}[{number}].provider_json")
        source = found.pop(SOURCE, None)
        for name in ("start", "end"):
            if citation.HasField(f"{name}_offset"):  # type: ignore[arg-type]  # start_offset, end_offset
                found[name] = getattr(citation, f"{name}_offset")
        if "content_index" in found:
            found["content_index"] = content_index
        if not written or {**written[-1], "sources": None} != {**found, "sources": None}:
            written.append(found | {"sources": []})
        if source is not None:
            written[-1]["sources"].append(source)
    return written


def _read(found: JsonObject, span: JsonObject, source: JsonObject) -> pb.Citation:
    document = mapping(source.get("document")) or mapping(source.get("tool_output"))
    said = (label(document.get(name)) for name in ("text", "snippet", "content"))
    numbered = NUMBERED_DOCUMENT.fullmatch(label(source.get("id"))) if "document" in source else None
    return pb.Citation(
        start_offset=count(found.get("start")),
        end_offset=count(found.get("end")),
        cited_text=next(filter(None, said), ""),
        uri=label(document.get("url")),
        title=label(document.get("title")),
        document_index=int(numbered[1]) if numbered else None,
        provider_json=text_of(span | ({SOURCE: source} if source else {})),
    )
