"""The sources of an answer: Google gives spans in UTF-8 bytes, the contract wants code points of a part.

https://ai.google.dev/gemini-api/docs/google-search#understanding_the_grounding_response
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, text_of
from headgate_server.providers.reading import count, extras, label, mapping, objects

SOURCE_FIELDS = frozenset(("uri", "sourceUri", "title", "text"))
CITATION_FIELDS = frozenset(("uri", "title", "startIndex", "endIndex"))


class Span(NamedTuple):
    """Code points `start` to `end` of the text part of that number."""

    part: int
    start: int
    end: int


def citations(texts: Sequence[str], found: Mapping[str, object]) -> Iterator[tuple[int, pb.Citation]]:
    """The sources in the extras of a candidate, each with the number of the text part that it belongs to."""
    if not texts:
        return
    said = _Said(texts)
    yield from _grounding(said, mapping(found.get("groundingMetadata")))
    yield from _recitation(said, mapping(found.get("citationMetadata")))


class _Said:
    """All text of an answer. Spans count from its start: `partIndex` is 0 whatever part they are in."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._bytes = "".join(texts).encode()

    def span(self, start: int, end: int, quoted: str = "") -> Span | None:
        """Where the bytes are; where the quoted text is, if they are something else; None if that is nowhere."""
        quote = quoted.encode()
        if not 0 <= start < end <= len(self._bytes) or (quote and self._bytes[start:end] != quote):
            start = self._bytes.find(quote) if quote else -1
            end = start + len(quote)
        if start < 0:
            return None
        first = len(self._bytes[:start].decode(errors="ignore"))
        length = len(self._bytes[start:end].decode(errors="ignore"))
        for part, words in enumerate(self._texts):
            if first < len(words):
                return Span(part, first, min(first + length, len(words)))
            first -= len(words)
        return None


def _grounding(said: _Said, grounding: JsonObject) -> Iterator[tuple[int, pb.Citation]]:
    """One citation for each span and each of its sources, then the sources of the whole answer."""
    chunks = objects(grounding.get("groundingChunks"))
    cited: set[int] = set()
    for support in objects(grounding.get("groundingSupports")):
        segment = mapping(support.get("segment"))
        start, end = count(segment.get("startIndex")) or 0, count(segment.get("endIndex")) or 0
        span = said.span(start, end, label(segment.get("text")))
        indices = support.get("groundingChunkIndices")
        for index in indices if isinstance(indices, list) else ():
            if isinstance(index, int) and 0 <= index < len(chunks):
                cited.add(index)
                yield _placed(span, _source(chunks[index]))
    for index, chunk in enumerate(chunks):
        if index not in cited:
            yield _placed(None, _source(chunk))


def _source(chunk: JsonObject) -> pb.Citation:
    """A chunk is an object with one member, named for where it is from: web, retrievedContext, maps, image."""
    source = next((mapping(value) for value in chunk.values() if isinstance(value, dict)), {})
    more = extras(source, SOURCE_FIELDS)
    return pb.Citation(
        cited_text=label(source.get("text")),
        uri=label(source.get("uri")) or label(source.get("sourceUri")),
        title=label(source.get("title")),
        provider_json=text_of(more) if more else "",
    )


def _recitation(said: _Said, metadata: JsonObject) -> Iterator[tuple[int, pb.Citation]]:
    """What the answer recites; Vertex AI repeats sources and sends empty ones."""
    known: set[tuple[int, bytes]] = set()
    for found in objects(metadata.get("citations")) + objects(metadata.get("citationSources")):
        more = extras(found, CITATION_FIELDS)
        citation = pb.Citation(
            uri=label(found.get("uri")),
            title=label(found.get("title")),
            provider_json=text_of(more) if more else "",
        )
        span = said.span(count(found.get("startIndex")) or 0, count(found.get("endIndex")) or 0)
        part, citation = _placed(span, citation)
        written = citation.SerializeToString()
        if written and (part, written) not in known:
            known.add((part, written))
            yield part, citation


def _placed(span: Span | None, citation: pb.Citation) -> tuple[int, pb.Citation]:
    if span is None:
        return 0, citation
    citation.start_offset, citation.end_offset = span.start, span.end
    return span.part, citation
