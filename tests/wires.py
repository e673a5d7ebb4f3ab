"""Every wire that we speak, with a model to address and its vendor's own description of a request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from headgate import v1 as pb
from jsonschema import Draft202012Validator

from headgate_server.providers import load_adapter
from headgate_server.providers.base import Adapter, HttpCall, Target
from headgate_server.providers.hosts import HOSTS
from tests.recordings.test_anthropic_requests import schema
from tests.recordings.test_gemini_requests import request_schema
from tests.recordings.test_openai_requests import chat_schema
from tests.recordings.test_openai_responses_requests import responses_schema

Json = dict[str, Any]


@dataclass(frozen=True)
class Wire:
    """An adapter, and the host that is asked with it."""

    name: str
    host: str
    model: str

    @property
    def adapter(self) -> Adapter:
        return load_adapter(self.name)

    @property
    def family(self) -> str:
        """The wire whose translation this one shares."""
        return {"vertex": "gemini"}.get(self.name, self.name.removeprefix("azure-"))

    @property
    def target(self) -> Target:
        host = HOSTS[self.host]
        return Target(provider=self.host, model=self.model, host=host, issuer=host.issuer or host.name)

    def encode(self, request: pb.GenerateRequest) -> HttpCall:
        """The vendor's request."""
        return self.adapter.encode(request, self.target, stream=False)

    def description(self) -> tuple[Draft202012Validator, frozenset[str] | None] | None:
        """The vendor's schema and the members that it knows; None where nobody published one."""
        match self.name:
            case "openai" | "azure-openai":
                return chat_schema()
            case "openai-responses" | "azure-openai-responses":
                return lenient_responses_schema()
            case "anthropic":
                return schema("MessageRequest")
            case "gemini" | "vertex":
                return request_schema(), None  # forbids unknown members by itself
            case _:
                return None

    def wrong(self, body: Json) -> Iterator[str]:
        """What the vendor's own description says against a request."""
        if found := self.description():
            validator, known = found
            if known is not None:
                yield from sorted(body.keys() - known)
            for error in validator.iter_errors(self._as_described(body)):
                yield f"{error.json_path}: {error.message[:300]}"

    def _as_described(self, body: Json) -> Json:
        """The request without what the vendor takes though its description does not say so, each written here."""
        match self.family:
            case "openai":
                return _chat_as_described(body)
            case "openai-responses":
                return _responses_as_described(body)
            case "anthropic":
                return _messages_as_described(body)
            case "gemini":
                return _contents_as_described(body)
            case _:
                return body


def _chat_as_described(body: Json) -> Json:
    # Instructions are described as text alone; hosts of this wire read images there too.
    for message in body["messages"]:
        if message["role"] in ("system", "developer") and isinstance(message["content"], list):
            message["content"] = [item for item in message["content"] if item["type"] == "text"] or ""
    return body


def _responses_as_described(body: Json) -> Json:
    # It does not list audio, nor OpenAI's newer breakpoints.
    described: Json = without(body, "prompt_cache_breakpoint")
    # `strict` is optional in fact.
    if "tools" in described:
        described["tools"] = [{"strict": None, **tool} for tool in described["tools"]]
    for item in described.get("input", []):
        # Reasoning is known by its encrypted content too.
        if item.get("type") == "reasoning":
            item.setdefault("id", "rs_0")
        place = "output" if "output" in item else "content"
        if not isinstance(item.get(place), list):
            continue
        if item.get("role") == "assistant" and "id" not in item:
            # What the model said may come without an id, as output_text too.
            item[place] = "".join(piece.get("text", "") for piece in item[place])
        else:
            item[place] = [piece for piece in item[place] if piece["type"] != "input_audio"]
    return described


def _contents_as_described(body: Json) -> Json:
    # These are newer than the description, and so are results with media by address.
    described: Json = without(body, "mediaResolution", "thinkingLevel")
    for content in described.get("contents", []):
        for response in (part["functionResponse"] for part in content["parts"] if "functionResponse" in part):
            response["parts"] = [part for part in response.get("parts", []) if "inlineData" in part]
    return described


def _messages_as_described(body: Json) -> Json:
    # Stored files are a beta of the vendor's.
    stored = {"type": "url", "url": "https://example.com"}

    def described(value: Any) -> Any:
        match value:
            case {"type": "file", "file_id": _}:
                return stored
            case dict():
                return {key: described(item) for key, item in value.items()}
            case list():
                return [described(item) for item in value]
            case _:
                return value

    return cast(Json, described(body))


WIRES = {
    wire.name: wire
    for wire in (
        Wire("openai", "openai", "gpt-5-mini"),
        Wire("openai-responses", "openai", "gpt-5-mini"),
        Wire("azure-openai", "azure", "our-deployment"),
        Wire("azure-openai-responses", "azure", "our-deployment"),
        Wire("anthropic", "anthropic", "claude-opus-4-6"),
        Wire("gemini", "gemini", "gemini-3-pro-preview"),
        Wire("vertex", "vertex", "gemini-3-pro-preview"),
        Wire("cohere", "cohere", "command-a-reasoning-08-2025"),
    )
}


@cache
def lenient_responses_schema() -> tuple[Draft202012Validator, frozenset[str]]:
    """OpenAI's description, whose alternatives overlap: an item of input_text is two of them."""
    validator, known = responses_schema()
    return Draft202012Validator(json.loads(json.dumps(validator.schema).replace("oneOf", "anyOf"))), known


def without(value: Any, *names: str) -> Any:
    """The JSON value without members of these names, at any depth."""
    match value:
        case dict():
            return {key: without(item, *names) for key, item in value.items() if key not in names}
        case list():
            return [without(item, *names) for item in value]
        case _:
            return value


def strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value, the names of members too."""
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from strings(item)
        case dict():
            for key, item in value.items():
                yield key
                yield from strings(item)
