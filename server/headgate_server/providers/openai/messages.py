"""Messages and their parts as Chat Completions wants them."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, caller_object, merge_patch
from headgate_server.providers.base import Target
from headgate_server.providers.call_ids import fitting_call_id
from headgate_server.providers.losses import Losses, unsupported
from headgate_server.providers.media import media_address, media_kind

AUDIO_FORMATS = {
    "audio/aac": "aac",
    "audio/aiff": "aiff",
    "audio/flac": "flac",
    "audio/l16": "pcm16",
    "audio/m4a": "m4a",
    "audio/mp3": "mp3",
    "audio/mp4": "m4a",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/opus": "opus",
    "audio/pcm": "pcm16",
    "audio/wav": "wav",
    "audio/wave": "wav",
    "audio/webm": "webm",
    "audio/x-flac": "flac",
    "audio/x-wav": "wav",
}
ONE_HOUR = 3600
PLAIN_TEXT = {"type", "text"}
# The same issuer may have said it on its other wire; https://platform.openai.com/docs/api-reference/responses.
RESPONSES_MEMBERS = {"phase", "namespace"}
RESPONSES_ITEM = re.compile(
    r"_(call|output|list_tools|approval_request|approval_response)$|^(compaction|item_reference)$"
)


class MessageWriter:
    """Writes the messages of one request for one target."""

    def __init__(self, target: Target, losses: Losses) -> None:
        self._issuer = target.issuer
        self._quirks = target.host.quirks
        self._losses = losses

    def messages(self, messages: Sequence[pb.Message]) -> list[JsonObject]:
        """All messages; one of ours becomes several where it holds several tool results.

        Raises:
            UnsupportedParameter: a part has no place on this wire.
        """
        written: list[JsonObject] = []
        for index, message in enumerate(messages):
            path = f"messages[{index}]"
            match message.role:
                case pb.ROLE_SYSTEM:
                    turns = [self._spoken("system", message, path)]
                case pb.ROLE_DEVELOPER:
                    role = "developer" if self._quirks.developer_role else "system"
                    turns = [self._spoken(role, message, path)]
                case pb.ROLE_ASSISTANT:
                    turns = [self._assistant(message, path)]
                case pb.ROLE_USER | pb.ROLE_TOOL:
                    turns = self._user(message, path)
                case _:
                    raise unsupported(f"{path}.role", "is not a role of this vendor")
            if message.provider_metadata and turns:
                self.merge(turns[-1], message.provider_metadata, f"{path}.provider_metadata")
            written += turns
        return written

    def merge(self, item: JsonObject, extras: Mapping[str, str], field: str) -> None:
        """Merges this vendor's extras into its object; those of other vendors are not for it."""
        if self._issuer in extras:
            own = caller_object(extras[self._issuer], f'{field}["{self._issuer}"]')
            merge_patch(item, {name: extra for name, extra in own.items() if name not in RESPONSES_MEMBERS})

    def cache_control(self, breakpoint: pb.CacheBreakpoint, field: str) -> JsonObject:
        """The member that marks an object as the end of a cached prefix; empty where the host has none."""
        if not self._quirks.cache_control:
            self._losses.setting(field, "this provider caches by itself, or not at all")
            return {}
        control = {"type": "ephemeral"}
        if breakpoint.HasField("ttl"):
            control["ttl"] = "1h" if breakpoint.ttl.seconds >= ONE_HOUR else "5m"
        return {"cache_control": control}

    def _spoken(self, role: str, message: pb.Message, path: str) -> JsonObject:
        parts = [(part, f"{path}.parts[{number}]") for number, part in enumerate(message.parts)]
        turn: JsonObject = {"role": role, "content": self._content(parts)}
        if message.name:
            turn["name"] = message.name
        return turn

    def _user(self, message: pb.Message, path: str) -> list[JsonObject]:
        """Tool results first, each a message of its own, then what the user says."""
        turns: list[JsonObject] = []
        spoken: list[tuple[pb.Part, str]] = []
        for number, part in enumerate(message.parts):
            part_path = f"{path}.parts[{number}]"
            if part.HasField("tool_result"):
                turns.append(self._tool_result(part, part_path))
            else:
                spoken.append((part, part_path))
        if message.role == pb.ROLE_TOOL:
            for part, part_path in spoken:
                self._refuse_in_tool_message(part, part_path)
        elif spoken or not turns:
            turn: JsonObject = {"role": "user", "content": self._content(spoken)}
            if message.name:
                turn["name"] = message.name
            turns.append(turn)
        return turns

    def _refuse_in_tool_message(self, part: pb.Part, path: str) -> None:
        if not part.HasField("provider_item") or self._knows(part):
            raise unsupported(path, "a tool message holds tool results only")
        self._leave_out(part, path)

    def _tool_result(self, part: pb.Part, path: str) -> JsonObject:
        result = part.tool_result
        if result.failed:
            self._losses.state(f"{path}.tool_result.failed", "the model learns it from the result's text only")
        content: str | list[JsonObject]
        if result.parts:
            parts = [(item, f"{path}.tool_result.parts[{n}]") for n, item in enumerate(result.parts)]
            content = self._content(parts, media=self._quirks.tool_media)
        else:
            content = result.structured_json
        if part.HasField("cache_breakpoint"):
            marker = self.cache_control(part.cache_breakpoint, f"{path}.cache_breakpoint")
            if marker:
                content = [{"type": "text", "text": content}] if isinstance(content, str) else content
                content[-1].update(marker)
        turn: JsonObject = {
            "role": "tool",
            "tool_call_id": self._call_id(result.call_id),
            "content": content,
        }
        if part.provider_metadata:
            self.merge(turn, part.provider_metadata, f"{path}.provider_metadata")
        return turn

    def _assistant(self, message: pb.Message, path: str) -> JsonObject:
        spoken: list[JsonObject] = []
        thoughts: list[str] = []
        refusals: list[str] = []
        calls: list[JsonObject] = []
        images: list[JsonObject] = []
        turn: JsonObject = {"role": "assistant"}
        for number, part in enumerate(message.parts):
            part_path = f"{path}.parts[{number}]"
            match part.WhichOneof("content"):
                case "text" | "provider_item":
                    spoken += self._item(part, part_path)
                case "reasoning":
                    self._thought(part, part_path, spoken, thoughts)
                case "refusal" if self._quirks.refusals:
                    refusals.append(part.refusal)
                case "refusal":
                    spoken.append({"type": "text", "text": part.refusal})
                case "tool_call":
                    calls += self._tool_call(part, part_path)
                case "media" if self._issued_audio(part):
                    turn["audio"] = {"id": part.item_id}
                case "media" if part.media.transcript:
                    self._losses.state(f"{part_path}.media", "only the transcript goes back to this provider")
                    spoken.append({"type": "text", "text": part.media.transcript})
                case "media" if self._quirks.image_history and media_kind(part.media) == pb.MEDIA_KIND_IMAGE:
                    images += self._item(part, part_path)
                case _:
                    raise unsupported(part_path, "has no place in an assistant message of this provider")
            self._warn_of_opaque_state(part, part_path)
        if thoughts:
            turn[self._quirks.reasoning_echo] = "".join(thoughts)
        if refusals:
            turn["refusal"] = "".join(refusals)
        if images:
            turn["images"] = images
        if calls:
            turn["tool_calls"] = calls
        if spoken:
            turn["content"] = _plain(spoken)
        else:
            turn["content"] = None if len(turn) > 1 else ""
        if message.name:
            turn["name"] = message.name
        return turn

    def _thought(self, part: pb.Part, path: str, spoken: list[JsonObject], thoughts: list[str]) -> None:
        text = part.reasoning.text
        match self._quirks.reasoning_echo:
            case "":
                if text:
                    self._losses.state(f"{path}.reasoning", "this provider takes no reasoning back")
            case "thinking":
                item: JsonObject = {"type": "thinking", "thinking": [{"type": "text", "text": text}]}
                if part.provider_metadata:
                    self.merge(item, part.provider_metadata, f"{path}.provider_metadata")
                spoken.append(item)
            case _:
                thoughts.append(text)

    def _tool_call(self, part: pb.Part, path: str) -> Iterator[JsonObject]:
        call = part.tool_call
        item: JsonObject = {"id": self._call_id(call.id)}
        match call.kind:
            case pb.TOOL_CALL_KIND_FUNCTION | pb.TOOL_CALL_KIND_UNSPECIFIED:
                item["type"] = "function"
                item["function"] = {"name": call.name, "arguments": call.arguments or "{}"}
            case pb.TOOL_CALL_KIND_FREE_TEXT if self._quirks.free_text_tools:
                item["type"] = "custom"
                item["custom"] = {"name": call.name, "input": call.arguments}
            case pb.TOOL_CALL_KIND_PROVIDER_EXECUTED:
                self._losses.state(f"{path}.tool_call", "calls that a vendor executed are not sent back here")
                return
            case _:
                raise unsupported(f"{path}.tool_call.kind", "this provider has no such tool calls")
        if call.provider_json and part.issuer == self._issuer:
            extras = caller_object(call.provider_json, f"{path}.tool_call.provider_json")
            merge_patch(item, {name: extra for name, extra in extras.items() if name not in RESPONSES_MEMBERS})
        if part.provider_metadata:
            self.merge(item, part.provider_metadata, f"{path}.provider_metadata")
        if part.HasField("cache_breakpoint"):
            item |= self.cache_control(part.cache_breakpoint, f"{path}.cache_breakpoint")
        yield item

    def _content(self, parts: list[tuple[pb.Part, str]], *, media: bool = True) -> str | list[JsonObject]:
        items: list[JsonObject] = []
        for part, path in parts:
            if not media and part.HasField("media"):
                raise unsupported(f"{path}.media", "this provider takes only text in tool results")
            items += self._item(part, path)
            self._warn_of_opaque_state(part, path)
        return _plain(items)

    def _item(self, part: pb.Part, path: str) -> Iterator[JsonObject]:
        item: JsonObject
        match part.WhichOneof("content"):
            case "text":
                item = {"type": "text", "text": part.text}
            case "refusal":
                item = {"type": "text", "text": part.refusal}
            case "media":
                item = self._media(part.media, f"{path}.media")
            case "provider_item" if self._knows(part):
                item = caller_object(part.provider_item.json, f"{path}.provider_item.json")
            case "provider_item":
                self._leave_out(part, path)
                return
            case _:
                raise unsupported(path, "has no place in such a message")
        if part.HasField("cache_breakpoint"):
            item |= self.cache_control(part.cache_breakpoint, f"{path}.cache_breakpoint")
        if part.provider_metadata:
            self.merge(item, part.provider_metadata, f"{path}.provider_metadata")
        yield item

    def _knows(self, part: pb.Part) -> bool:
        """Whether it is this vendor's own item, and of this wire."""
        return part.issuer == self._issuer and not RESPONSES_ITEM.search(part.provider_item.type)

    def _leave_out(self, part: pb.Part, path: str) -> None:
        own = part.issuer == self._issuer
        what = "is an item of the Responses wire" if own else f"only {part.issuer or 'its issuer'} can read it"
        self._losses.state(f"{path}.provider_item", what)

    def _media(self, media: pb.Media, path: str) -> JsonObject:
        kind = media_kind(media)
        source = media.WhichOneof("source")
        if source == "file":
            return self._stored_file(media, path)
        match kind:
            case pb.MEDIA_KIND_IMAGE:
                image: JsonObject = {"url": media_address(media)}
                if media.detail:
                    image["detail"] = media.detail
                item: JsonObject = {"type": "image_url", "image_url": image}
            case pb.MEDIA_KIND_AUDIO if source == "data":
                form = AUDIO_FORMATS.get(media.mime_type.lower(), media.mime_type.rpartition("/")[2])
                audio: JsonObject = {"data": b64encode(media.data).decode(), "format": form}
                item = {"type": "input_audio", "input_audio": audio}
            case pb.MEDIA_KIND_AUDIO if self._quirks.audio_url:
                item = {"type": "audio_url", "audio_url": {"url": media.uri}}
            case pb.MEDIA_KIND_VIDEO if self._quirks.video_url:
                item = {"type": "video_url", "video_url": {"url": media_address(media)}}
            case pb.MEDIA_KIND_DOCUMENT if source == "data" or self._quirks.document_url == "file":
                file: JsonObject = {"file_data": media_address(media)}
                if media.filename:
                    file["filename"] = media.filename
                item = {"type": "file", "file": file}
            case pb.MEDIA_KIND_DOCUMENT if self._quirks.document_url == "document_url":
                item = {"type": "document_url", "document_url": media.uri}
            case _:
                raise unsupported(path, "this provider does not take such media")
        if media.title or media.context or media.citations_enabled:
            self._losses.setting(path, "title, context and citations_enabled have no field at this provider")
        return item

    def _stored_file(self, media: pb.Media, path: str) -> JsonObject:
        if media.file.issuer != self._issuer:
            raise unsupported(f"{path}.file", f"is stored at {media.file.issuer}")
        if media_kind(media) not in (pb.MEDIA_KIND_DOCUMENT, pb.MEDIA_KIND_UNSPECIFIED):
            raise unsupported(f"{path}.file", "this provider reads only documents by file id")
        return {"type": "file", "file": {"file_id": media.file.id}}

    def _issued_audio(self, part: pb.Part) -> bool:
        return bool(part.item_id) and part.issuer == self._issuer

    def _warn_of_opaque_state(self, part: pb.Part, path: str) -> None:
        if part.signature:
            self._losses.state(f"{path}.signature", "this wire carries no signatures")
        elif part.item_id and not (part.HasField("media") and self._issued_audio(part)):
            self._losses.state(f"{path}.item_id", "this wire carries no item ids")
        if any(citation.opaque for citation in part.citations):
            self._losses.state(f"{path}.citations", "this wire carries no state of citations")

    def _call_id(self, call_id: str) -> str:
        return fitting_call_id(call_id, self._quirks.call_ids)


def _plain(items: list[JsonObject]) -> str | list[JsonObject]:
    """A plain string where one says it all: every host takes that."""
    if not items:
        return ""
    if len(items) == 1 and items[0].keys() == PLAIN_TEXT and items[0]["type"] == "text":
        text: str = items[0]["text"]
        return text
    return items
