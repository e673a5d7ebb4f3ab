"""Anthropic's citations <-> ours. https://platform.claude.com/docs/en/build-with-claude/citations

Their character, page and block numbers count within the source, ours within the text that cites: they stay extras.
"""

from __future__ import annotations

from typing import NamedTuple

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, caller_object, text_of
from headgate_server.providers.reading import count, extras, label, text


class Names(NamedTuple):
    """What a kind of citation calls the title and the address of its source."""

    title: str
    uri: str


NAMES = {
    "web_search_result_location": Names("title", "url"),
    "search_result_location": Names("title", "source"),
}
NAMES_OF_DOCUMENTS = Names("document_title", "")


def read(found: JsonObject) -> pb.Citation:
    """A citation of an answer."""
    names = NAMES.get(label(found.get("type")), NAMES_OF_DOCUMENTS)
    modelled = frozenset(("cited_text", "document_index", "encrypted_index", *names))
    return pb.Citation(
        cited_text=text(found.get("cited_text")),
        uri=label(found.get(names.uri)),
        title=label(found.get(names.title)),
        document_index=count(found.get("document_index")),
        opaque=text(found.get("encrypted_index")).encode(),
        provider_json=text_of(extras(found, modelled)),
    )


def write(citation: pb.Citation, path: str) -> JsonObject:
    """A citation of the history, as it was read.

    Raises:
        InvalidRequest: its extras are no JSON object.
    """
    written = caller_object(citation.provider_json, f"{path}.provider_json")
    names = NAMES.get(label(written.get("type")), NAMES_OF_DOCUMENTS)
    written["cited_text"] = citation.cited_text
    written[names.title] = citation.title or None
    if names.uri:
        written[names.uri] = citation.uri
    if citation.HasField("document_index"):
        written["document_index"] = citation.document_index
    if citation.opaque:
        written["encrypted_index"] = citation.opaque.decode("utf-8", "replace")
    return written
