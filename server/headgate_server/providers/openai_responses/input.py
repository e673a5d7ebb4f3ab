"""Messages and their parts as the Responses API's input items."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import msgspec
from headgate import v1 as pb

from headgate_server.errors import InvalidRequest
from headgate_server.json_codec import JsonObject, caller_object, caller_raw, merge_patch
from headgate_server.providers.base import Target
from headgate_server.providers.call_ids import fitting_call_id
from headgate_server.providers.losses import Losses, unsupported
from headgate_server.providers.media import media_address, media_kind
from headgate_server.providers.openai.messages import AUDIO_FORMATS
from headgate_server.providers.openai_responses.answer import FILE_ANNOTATIONS

CALL_IDS = r"(?s).{1,64}"
CONTENT_PREFIXES = ("input_", "output_")
BREAKPOINT = {"prompt_cache_breakpoint": {"mode": "explicit"}}

Item = JsonObject | msgspec.Raw


class _Numbered(NamedTuple):
    """A part with its path."""

    part: pb.Part
    path: str


class ItemWriter:
    """Writes the input items of one request for one target."""

    def __init__(self, target: Target, losses: Losses) -> None:
        self._issuer = target.issuer
        self._quirks = target.host.quirks
        self._losses = losses
        self._free_text_calls: set[str] = set()

    def items(self, messages: Sequence[pb.Message]) -> list[Item]:
        """All items, in order; a message becomes as many as its parts need.

        Raises:
            UnsupportedParameter: a part has no place on this wire.
        """
        return [item for number, message in enumerate(messages) for item in self._items(message, f"messages[{number}]")]

    def merge(self, item: JsonObject, extras: Mapping[str, str], field: str) -> None:
        """Merges this vendor's extras into its object; those of other vendors are not for it."""
        if self._issuer in extras:
            merge_patch(item, caller_object(extras[self._issuer], f'{field}["{self._issuer}"]'))

    def _items(self, message: pb.Message, path: str) -> list[Item]:
        parts = [_Numbered(part, f"{path}.parts[{number}]") for number, part in enumerate(message.parts)]
        match message.role:
            case pb.ROLE_SYSTEM:
                items = self._given("system", parts)
            case pb.ROLE_DEVELOPER:
                items = self._given("developer" if self._quirks.developer_role else "system", parts)
            case pb.ROLE_USER:
                items = self._given("user", parts)
            case pb.ROLE_TOOL:
                items = self._given("tool", parts)
            case pb.ROLE_ASSISTANT:
                items = [item for group in _vendor_items(parts, self._issuer) for item in self._produced(group)]
            case _:
                raise unsupported(f"{path}.role", "is not a role of this vendor")
        if message.name:
            self._losses.state(f"{path}.name", "this wire names no speakers")
        if message.provider_metadata:
            self._merge_into_messages(items, message.provider_metadata, f"{path}.provider_metadata")
        for part, part_path in parts:
            self._tell_of_foreign_state(part, part_path)
        return items

    def _merge_into_messages(self, items: list[Item], extras: Mapping[str, str], field: str) -> None:
        for item in items:
            if isinstance(item, dict) and "role" in item:
                self.merge(item, extras, field)

    def _given(self, role: str, parts: list[_Numbered]) -> list[Item]:
        """What is said to the model: tool results and vendor items stand alone, all else between them is one item."""
        items: list[Item] = []
        content: list[Item] = []
        for part, path in parts:
            if part.HasField("tool_result"):
                alone: list[Item] = [self._tool_result(part, path)]
            elif _is_item(part):
                alone = list(self._provider_item(part, path))
            elif role == "tool":
                raise unsupported(path, "a tool message holds tool results only")
            else:
                content += self._content(part, path)
                continue
            if content:
                items.append({"role": role, "content": _plain(content)})
                content = []
            items += alone
        if content or not parts:
            items.append({"role": role, "content": _plain(content)})
        return items

    def _tool_result(self, part: pb.Part, path: str) -> JsonObject:
        result = part.tool_result
        if result.failed:
            self._losses.state(f"{path}.tool_result.failed", "the model learns it from the result's text only")
        content: list[Item] = []
        for number, piece in enumerate(result.parts):
            content += self._content(piece, f"{path}.tool_result.parts[{number}]")
        if not result.parts:
            content = [{"type": "input_text", "text": result.structured_json}]
        if part.HasField("cache_breakpoint") and content and isinstance(content[-1], dict):
            content[-1] |= self._breakpoint(part.cache_breakpoint, f"{path}.cache_breakpoint")
        is_free_text = result.call_id in self._free_text_calls
        item: JsonObject = {
            "type": "custom_tool_call_output" if is_free_text else "function_call_output",
            **self._own_id(part),
            "call_id": fitting_call_id(result.call_id, CALL_IDS),
            "output": _plain(content),
        }
        self.merge(item, part.provider_metadata, f"{path}.provider_metadata")
        return item

    def _content(self, part: pb.Part, path: str) -> Iterator[Item]:
        item: JsonObject
        match part.WhichOneof("content"):
            case "text":
                item = {"type": "input_text", "text": part.text}
            case "refusal":
                item = {"type": "input_text", "text": part.refusal}
            case "media":
                item = self._media(part.media, f"{path}.media")
            case "provider_item":
                yield from self._provider_item(part, path)
                return
            case _:
                raise unsupported(path, "has no place in such a message")
        if part.HasField("cache_breakpoint"):
            item |= self._breakpoint(part.cache_breakpoint, f"{path}.cache_breakpoint")
        self.merge(item, part.provider_metadata, f"{path}.provider_metadata")
        yield item

    def _breakpoint(self, breakpoint: pb.CacheBreakpoint, field: str) -> JsonObject:
        """https://platform.openai.com/docs/guides/prompt-caching"""
        if not self._quirks.prompt_cache_breakpoint:
            self._losses.setting(field, "this provider caches by itself, or not at all")
            return {}
        if breakpoint.HasField("ttl"):
            self._losses.setting(f"{field}.ttl", "this provider takes one time for all breakpoints of a request")
        return dict(BREAKPOINT)

    def _media(self, media: pb.Media, path: str) -> JsonObject:
        if media.title or media.context or media.citations_enabled:
            self._losses.setting(path, "title, context and citations_enabled have no field at this provider")
        source = media.WhichOneof("source")
        if source == "file" and media.file.issuer != self._issuer:
            raise unsupported(f"{path}.file", f"is stored at {media.file.issuer}")
        match media_kind(media):
            case pb.MEDIA_KIND_IMAGE:
                place = {"file_id": media.file.id} if source == "file" else {"image_url": media_address(media)}
                return {"type": "input_image", **place, "detail": media.detail or "auto"}
            case pb.MEDIA_KIND_AUDIO if source == "data":
                form = AUDIO_FORMATS.get(media.mime_type.lower(), media.mime_type.rpartition("/")[2])
                return {
                    "type": "input_audio",
                    "input_audio": {"data": b64encode(media.data).decode(), "format": form},
                }
            case pb.MEDIA_KIND_DOCUMENT | pb.MEDIA_KIND_UNSPECIFIED:
                return {"type": "input_file", **_file(media)}
            case _:
                raise unsupported(path, "this provider does not take such media")

    def _produced(self, group: list[_Numbered]) -> Iterator[Item]:
        """The item of what the model had produced."""
        part, path = group[0]
        match part.WhichOneof("content"):
            case "text" | "refusal":
                yield from self._spoken(group)
            case "reasoning":
                yield from self._thought(group)
            case "tool_call":
                yield from self._tool_call(part, path)
            case "provider_item" if _is_item(part):
                yield from self._provider_item(part, path)
            case "provider_item":
                yield from self._spoken(group)
            case "media" if self._own_id(part) and part.media.WhichOneof("source") == "data":
                item: JsonObject = {
                    "type": "image_generation_call",
                    **self._own_id(part),
                    "status": "completed",
                    "result": b64encode(part.media.data).decode(),
                }
                self.merge(item, part.provider_metadata, f"{path}.provider_metadata")
                yield item
            case "media" if part.media.transcript:
                self._losses.state(f"{path}.media", "only the transcript goes back to this provider")
                yield {"type": "message", "role": "assistant", "content": part.media.transcript}
            case _:
                raise unsupported(path, "has no place in an assistant message of this provider")

    def _spoken(self, group: list[_Numbered]) -> Iterator[Item]:
        own_id = self._own_id(group[0].part)
        extras: JsonObject = {}
        content: list[Item] = []
        for part, path in group:
            self.merge(extras, part.provider_metadata, f"{path}.provider_metadata")
            of_content = extras.pop("content", {})
            if part.HasField("provider_item"):
                content += self._provider_item(part, path)
            elif own_id or part.text or part.refusal:
                content.append(merge_patch(self._said(part, path, issued=bool(own_id)), of_content))
            if part.HasField("cache_breakpoint"):
                self._losses.setting(f"{path}.cache_breakpoint", "this provider marks only what is said to the model")
        if own_id:
            status = "incomplete" if group[-1].part.incomplete else "completed"
            yield {
                "type": "message",
                **own_id,
                "role": "assistant",
                "status": status,
                "content": content,
                **extras,
            }
        elif content:
            # llama.cpp tells a message of the model from other items by its type alone.
            yield {"type": "message", "role": "assistant", "content": _plain(content), **extras}

    def _said(self, part: pb.Part, path: str, *, issued: bool) -> JsonObject:
        if part.HasField("refusal") and self._quirks.refusals:
            return {"type": "refusal", "refusal": part.refusal}
        item: JsonObject = {"type": "output_text", "text": part.text or part.refusal}
        if issued:
            item["annotations"] = [
                _annotation(citation, f"{path}.citations[{number}].provider_json")
                for number, citation in enumerate(part.citations)
            ]
            item["logprobs"] = []
        return item

    def _thought(self, group: list[_Numbered]) -> Iterator[JsonObject]:
        """The reasoning item that several parts are; the last of them bears the signature.

        What is not the vendor's own, or broke off, goes back as text where the host's models read such.
        """
        last = group[-1].part
        is_whole = last.issuer == self._issuer and not any(part.incomplete for part, _ in group)
        if is_whole and (last.signature or last.item_id):
            yield self._reasoning_item(group)
            return
        text = "".join(part.reasoning.text for part, _ in group)
        if text and self._quirks.reasoning_echo:
            content = [{"type": "reasoning_text", "text": text}]
            yield {"type": "reasoning", "summary": [], "content": content}
        elif text:
            for _, place in group:
                self._losses.state(f"{place}.reasoning", "this provider takes only its own unbroken reasoning back")

    def _reasoning_item(self, group: list[_Numbered]) -> JsonObject:
        last = group[-1].part
        item: JsonObject = {"type": "reasoning", **self._own_id(last), "summary": []}
        for part, path in group:
            self.merge(item, part.provider_metadata, f"{path}.provider_metadata")
            match part.reasoning.kind:
                case pb.REASONING_KIND_SUMMARY:
                    item["summary"].append({"type": "summary_text", "text": part.reasoning.text})
                case pb.REASONING_KIND_OPAQUE:
                    pass
                case _:
                    thought = {"type": "reasoning_text", "text": part.reasoning.text}
                    item.setdefault("content", []).append(thought)
        if last.signature:
            item["encrypted_content"] = _text_of_signature(last, f"{path}.signature")
        return item

    def _tool_call(self, part: pb.Part, path: str) -> Iterator[JsonObject]:
        call = part.tool_call
        item: JsonObject
        match call.kind:
            case pb.TOOL_CALL_KIND_FUNCTION | pb.TOOL_CALL_KIND_UNSPECIFIED:
                item = {"type": "function_call", **self._own_id(part), "call_id": fitting_call_id(call.id, CALL_IDS)}
                item |= {"name": call.name, "arguments": call.arguments}
                if part.item_id and part.issuer == self._issuer:
                    item["status"] = "incomplete" if part.incomplete else "completed"
            case pb.TOOL_CALL_KIND_FREE_TEXT:
                self._free_text_calls.add(call.id)
                item = {"type": "custom_tool_call", **self._own_id(part), "call_id": fitting_call_id(call.id, CALL_IDS)}
                item |= {"name": call.name, "input": call.arguments}
            case pb.TOOL_CALL_KIND_PROVIDER_EXECUTED:
                self._losses.state(f"{path}.tool_call", "calls that a vendor executed are not sent back here")
                return
            case _:
                raise unsupported(f"{path}.tool_call.kind", "this provider has no such tool calls")
        if call.provider_json and part.issuer == self._issuer:
            merge_patch(item, caller_object(call.provider_json, f"{path}.tool_call.provider_json"))
        self.merge(item, part.provider_metadata, f"{path}.provider_metadata")
        yield item

    def _provider_item(self, part: pb.Part, path: str) -> Iterator[Item]:
        """A vendor's own item, byte for byte."""
        if part.issuer == self._issuer:
            yield caller_raw(part.provider_item.json, f"{path}.provider_item.json")
        else:
            self._losses.state(f"{path}.provider_item", f"only {part.issuer or 'its issuer'} can read it")

    def _own_id(self, part: pb.Part) -> JsonObject:
        return {"id": part.item_id} if part.item_id and part.issuer == self._issuer else {}

    def _tell_of_foreign_state(self, part: pb.Part, path: str) -> None:
        if part.issuer == self._issuer:
            if part.signature and part.incomplete:
                self._losses.state(f"{path}.signature", "generation stopped inside this part")
        elif part.signature:
            self._losses.state(f"{path}.signature", f"only {part.issuer or 'its issuer'} can read it")
        elif part.item_id:
            self._losses.state(f"{path}.item_id", f"only {part.issuer or 'its issuer'} knows it")
        if any(citation.opaque for citation in part.citations):
            self._losses.state(f"{path}.citations", "this wire carries no state of citations")


def _text_of_signature(part: pb.Part, path: str) -> str:
    try:
        return part.signature.decode()
    except UnicodeDecodeError:
        raise InvalidRequest.at(path, "is not what this provider issued") from None


def _vendor_items(parts: list[_Numbered], issuer: str) -> Iterator[list[_Numbered]]:
    """The parts by the vendor item that they form: those of one id, and signed reasoning up to its signature."""
    if not parts:
        return
    group = [parts[0]]
    for (before, _), numbered in pairwise(parts):
        kind, kind_before = _item_kind(numbered.part), _item_kind(before)
        same_id = _issued_id(before, issuer) == _issued_id(numbered.part, issuer)
        if kind == kind_before != "alone" and same_id and not before.signature:
            group.append(numbered)
        else:
            yield group
            group = [numbered]
    yield group


def _issued_id(part: pb.Part, issuer: str) -> str:
    return part.item_id if part.issuer == issuer else ""


def _item_kind(part: pb.Part) -> Literal["message", "reasoning", "alone"]:
    match part.WhichOneof("content"):
        case "text" | "refusal":
            return "message"
        case "provider_item" if not _is_item(part):
            return "message"
        case "reasoning":
            return "reasoning"
        case _:
            return "alone"


def _is_item(part: pb.Part) -> bool:
    """Whether the part is a vendor item of its own; the other vendor objects are content of a message."""
    return part.HasField("provider_item") and not part.provider_item.type.startswith(CONTENT_PREFIXES)


def _plain(content: list[Item]) -> str | list[Item]:
    """A plain string where one says it all: every host takes that."""
    match content:
        case []:
            return ""
        case [{"type": "input_text" | "output_text", "text": str(text), **more}] if not more:
            return text
        case _:
            return content


def _file(media: pb.Media) -> JsonObject:
    match media.WhichOneof("source"):
        case "file":
            file: JsonObject = {"file_id": media.file.id}
        case "uri" if not media.uri.startswith("data:"):
            file = {"file_url": media.uri}
        case _:
            file = {"file_data": media_address(media)}
    if media.filename:
        file["filename"] = media.filename
    if media.detail:
        file["detail"] = media.detail
    return file


def _annotation(citation: pb.Citation, path: str) -> JsonObject:
    annotation: JsonObject = {"type": "url_citation"}
    if citation.HasField("start_offset"):
        annotation |= {"start_index": citation.start_offset, "end_index": citation.end_offset}
    if citation.provider_json:
        annotation |= caller_object(citation.provider_json, path)
    if citation.title:
        annotation["filename" if annotation["type"] in FILE_ANNOTATIONS else "title"] = citation.title
    if citation.uri:
        annotation["url"] = citation.uri
    return annotation
