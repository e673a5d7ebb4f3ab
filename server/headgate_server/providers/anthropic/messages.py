"""Messages and their parts as Anthropic wants them."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence

from google.protobuf.duration_pb2 import Duration
from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, caller_object, caller_raw, loads, merge_patch
from headgate_server.providers.anthropic import citations
from headgate_server.providers.base import Target
from headgate_server.providers.call_ids import fitting_call_id
from headgate_server.providers.losses import Losses, unsupported
from headgate_server.providers.media import media_kind

INSTRUCTIONS = (pb.ROLE_SYSTEM, pb.ROLE_DEVELOPER)
USER_TURNS = (pb.ROLE_USER, pb.ROLE_TOOL)
# Models before Claude Opus 4.8; https://platform.claude.com/docs/en/build-with-claude/mid-conversation-system-messages.
WITHOUT_SYSTEM_TURNS = re.compile(r"claude-(3-.*|(opus|sonnet|haiku)-4(-[015-7])?([-@]\d{8})?)")
TTLS = {300: "5m", 3600: "1h"}
UNREADABLE_ARGUMENTS = "INVALID_JSON"
PLAIN_TEXT = "text/plain"
TEXT_FORMATS = ("json", "xml", "yaml")


class MessageWriter:
    """Writes the messages of one request for one target."""

    def __init__(self, target: Target, losses: Losses) -> None:
        self._issuer = target.issuer
        self._quirks = target.host.quirks
        self._has_system_turns = not WITHOUT_SYSTEM_TURNS.fullmatch(target.model)
        self._losses = losses

    def conversation(self, messages: Sequence[pb.Message]) -> tuple[str | list[JsonObject], list[JsonObject]]:
        """The leading instructions, which this vendor takes apart, and the turns after them.

        Raises:
            UnsupportedParameter: a part has no place on this wire.
        """
        leading = 0
        while leading < len(messages) and messages[leading].role in INSTRUCTIONS:
            leading += 1
        return self._system(messages[:leading]), self._turns(messages, leading)

    def merge(self, block: JsonObject, extras: Mapping[str, str], field: str) -> None:
        """Merges this vendor's extras into its object; those of other vendors are not for it."""
        if self._issuer in extras:
            merge_patch(block, caller_object(extras[self._issuer], f'{field}["{self._issuer}"]'))

    def cache_control(self, breakpoint: pb.CacheBreakpoint, field: str) -> JsonObject:
        """The member that marks an object as the end of a cached prefix; empty where the host has none."""
        if not self._quirks.cache_control:
            self._losses.setting(field, "this provider caches by itself, or not at all")
            return {}
        control = {"type": "ephemeral"}
        if breakpoint.HasField("ttl"):
            control["ttl"] = self._ttl(breakpoint.ttl, f"{field}.ttl")
        return {"cache_control": control}

    def _ttl(self, ttl: Duration, field: str) -> str:
        if ttl.seconds not in TTLS or ttl.nanos:
            self._losses.setting(field, "this provider caches for 5 minutes or an hour: the nearest below was sent")
        return TTLS[3600 if ttl.seconds >= 3600 else 300]

    def _system(self, messages: Sequence[pb.Message]) -> str | list[JsonObject]:
        blocks: list[JsonObject] = []
        for index, message in enumerate(messages):
            path = f"messages[{index}]"
            self._tell_of_name(message, path)
            if self._issuer in message.provider_metadata:
                self._losses.state(f"{path}.provider_metadata", "leading instructions are no message of this provider")
            blocks += self._blocks(message, path)
        return _plain(blocks)

    def _turns(self, messages: Sequence[pb.Message], first: int) -> list[JsonObject]:
        turns: list[JsonObject] = []
        extras: list[tuple[JsonObject, int]] = []
        results: JsonObject | None = None
        for index in range(first, len(messages)):
            message, path = messages[index], f"messages[{index}]"
            self._tell_of_name(message, path)
            blocks = self._blocks(message, path)
            if message.role != pb.ROLE_TOOL:
                results = None
            if results:
                # The results of parallel calls belong in one turn.
                results["content"] += blocks
            elif blocks or message.provider_metadata:
                turns.append({"role": self._role(messages, index, path), "content": blocks})
                results = turns[-1] if message.role == pb.ROLE_TOOL else None
            else:
                continue
            extras.append((turns[-1], index))
        for turn in turns:
            turn["content"] = _plain(turn["content"])
        for turn, index in extras:
            self.merge(turn, messages[index].provider_metadata, f"messages[{index}].provider_metadata")
        return turns

    def _role(self, messages: Sequence[pb.Message], index: int, path: str) -> str:
        match messages[index].role:
            case pb.ROLE_ASSISTANT:
                return "assistant"
            case pb.ROLE_USER | pb.ROLE_TOOL:
                return "user"
            case pb.ROLE_SYSTEM | pb.ROLE_DEVELOPER if self._takes_system_turn(messages, index):
                return "system"
            case pb.ROLE_SYSTEM | pb.ROLE_DEVELOPER:
                self._losses.setting(f"{path}.role", "later instructions cannot stand here: sent as a user turn")
                return "user"
            case _:
                raise unsupported(f"{path}.role", "is not a role of this vendor")

    def _takes_system_turn(self, messages: Sequence[pb.Message], index: int) -> bool:
        """Later instructions stand between what the user says and what the assistant answers."""
        is_last = index + 1 == len(messages)
        return (
            self._has_system_turns
            and messages[index - 1].role in USER_TURNS
            and (is_last or messages[index + 1].role == pb.ROLE_ASSISTANT)
        )

    def _blocks(self, message: pb.Message, path: str) -> list[JsonObject]:
        """The content blocks of a message. Tool results come first, as this vendor demands."""
        parts = [(part, f"{path}.parts[{number}]") for number, part in enumerate(message.parts)]
        parts.sort(key=lambda found: not found[0].HasField("tool_result"))
        return list(self._written(parts, message.role))

    def _written(self, parts: Iterable[tuple[pb.Part, str]], role: pb.Role.ValueType) -> Iterator[JsonObject]:
        for part, path in parts:
            block = self._block(part, path, role)
            if part.HasField("cache_breakpoint"):
                self._mark(block, part.cache_breakpoint, f"{path}.cache_breakpoint")
            self._tell_of_opaque_state(part, path)
            if block is None:
                continue
            self.merge(block, part.provider_metadata, f"{path}.provider_metadata")
            yield block

    def _block(self, part: pb.Part, path: str, role: pb.Role.ValueType) -> JsonObject | None:
        is_assistant = role == pb.ROLE_ASSISTANT
        match part.WhichOneof("content"):
            case "text":
                return self._text(part, path)
            case "refusal":
                return _text_block(part.refusal)
            case "provider_item":
                return self._provider_item(part, path)
            case "reasoning" if is_assistant:
                return self._thought(part, path)
            case "tool_call" if is_assistant:
                return self._tool_use(part.tool_call, f"{path}.tool_call")
            case "tool_result" if role in USER_TURNS:
                return self._tool_result(part.tool_result, f"{path}.tool_result")
            case "media" if role in USER_TURNS:
                return self._media(part.media, f"{path}.media")
            case "media" if is_assistant and part.media.transcript:
                self._losses.state(f"{path}.media", "only the transcript goes back to this provider")
                return _text_block(part.media.transcript)
            case _:
                raise unsupported(path, "has no place in such a message of this provider")

    def _text(self, part: pb.Part, path: str) -> JsonObject | None:
        """The text; an empty one, which this vendor refuses, is left out."""
        block = _text_block(part.text)
        if block is not None and part.citations:
            cited = self._citations(part, path)
            block |= {"citations": cited} if cited else {}
        return block

    def _citations(self, part: pb.Part, path: str) -> list[JsonObject]:
        cited: list[JsonObject] = []
        for number, citation in enumerate(part.citations):
            where = f"{path}.citations[{number}]"
            if part.issuer == self._issuer and citation.provider_json:
                cited.append(citations.write(citation, where))
            else:
                self._losses.state(where, "only its issuer can read it")
        return cited

    def _provider_item(self, part: pb.Part, path: str) -> JsonObject | None:
        if part.issuer == self._issuer:
            return caller_object(part.provider_item.json, f"{path}.provider_item.json")
        self._losses.state(f"{path}.provider_item", f"only {part.issuer or 'its issuer'} can read it")
        return None

    def _thought(self, part: pb.Part, path: str) -> JsonObject | None:
        """Thinking under its own signature; without one, as what the host takes for it."""
        thinking = part.reasoning.text
        if part.signature and part.issuer == self._issuer and not part.incomplete:
            signature = part.signature.decode("utf-8", "replace")
            if part.reasoning.kind == pb.REASONING_KIND_OPAQUE:
                return {"type": "redacted_thinking", "data": signature}
            return {"type": "thinking", "thinking": thinking, "signature": signature}
        if part.signature:
            self._losses.state(f"{path}.signature", f"only {part.issuer} can read it, and only with the whole part")
        if not thinking:
            return None
        if self._quirks.reasoning_echo:
            return {"type": "thinking", "thinking": thinking}
        self._losses.state(f"{path}.reasoning", "without this provider's signature it goes back as text")
        return _text_block(f"<thinking>\n{thinking}\n</thinking>")

    def _tool_use(self, call: pb.ToolCall, path: str) -> JsonObject | None:
        match call.kind:
            case pb.TOOL_CALL_KIND_FUNCTION | pb.TOOL_CALL_KIND_UNSPECIFIED:
                pass
            case pb.TOOL_CALL_KIND_PROVIDER_EXECUTED:
                self._losses.state(path, "calls that another vendor executed are not sent here")
                return None
            case _:
                raise unsupported(f"{path}.kind", "this provider has no such tool calls")
        return {
            "type": "tool_use",
            "id": self._call_id(call.id),
            "name": call.name,
            "input": self._input(call.arguments or "{}", f"{path}.arguments"),
        }

    def _input(self, arguments: str, path: str) -> object:
        try:
            is_object = isinstance(loads(arguments), dict)
        except ValueError:
            is_object = False
        if is_object:
            return caller_raw(arguments, path)
        # https://platform.claude.com/docs/en/agents-and-tools/tool-use/fine-grained-tool-streaming
        self._losses.state(path, f"is not a JSON object: sent as the member {UNREADABLE_ARGUMENTS} of one")
        return {UNREADABLE_ARGUMENTS: arguments}

    def _tool_result(self, result: pb.ToolResult, path: str) -> JsonObject:
        parts = [(part, f"{path}.parts[{number}]") for number, part in enumerate(result.parts)]
        content = _plain(list(self._written(parts, pb.ROLE_TOOL))) or result.structured_json
        block: JsonObject = {"type": "tool_result", "tool_use_id": self._call_id(result.call_id)}
        if content:
            block["content"] = content
        if result.failed:
            block["is_error"] = True
        return block

    def _media(self, media: pb.Media, path: str) -> JsonObject:
        match media_kind(media):
            case pb.MEDIA_KIND_IMAGE:
                block = {"type": "image", "source": self._source(media, path)}
                if media.title or media.context or media.citations_enabled:
                    self._losses.setting(path, "title, context and citations_enabled are of documents only")
            case pb.MEDIA_KIND_DOCUMENT:
                block = self._document(media, path)
            case pb.MEDIA_KIND_UNSPECIFIED:
                raise unsupported(path, "needs a kind or a mime_type")
            case _:
                raise unsupported(path, "this provider reads images and documents only")
        if media.detail:
            self._losses.setting(f"{path}.detail", "this provider chooses the resolution itself")
        if media.provider_json:
            merge_patch(block, caller_object(media.provider_json, f"{path}.provider_json"))
        return block

    def _document(self, media: pb.Media, path: str) -> JsonObject:
        source = self._text_source(media, path) if _is_text(media) else self._source(media, path)
        block: JsonObject = {"type": "document", "source": source}
        if title := media.title or media.filename:
            block["title"] = title
        if media.context:
            block["context"] = media.context
        if media.citations_enabled:
            block["citations"] = {"enabled": True}
        return block

    def _source(self, media: pb.Media, path: str) -> JsonObject:
        match media.WhichOneof("source"):
            case "data":
                data = b64encode(media.data).decode()
                return {"type": "base64", "media_type": media.mime_type, "data": data}
            case "uri":
                return {"type": "url", "url": media.uri}
            case "file" if media.file.issuer == self._issuer:
                return {"type": "file", "file_id": media.file.id}
            case "file":
                raise unsupported(f"{path}.file", f"is stored at {media.file.issuer}")
            case _:
                raise unsupported(path, "has neither data nor uri nor file")

    def _text_source(self, media: pb.Media, path: str) -> JsonObject:
        try:
            text = media.data.decode("utf-8")
        except UnicodeDecodeError:
            raise unsupported(f"{path}.data", "is not UTF-8, as this provider wants its text documents") from None
        if media.mime_type.lower() != PLAIN_TEXT:
            self._losses.setting(f"{path}.mime_type", f"this provider knows only {PLAIN_TEXT}, which was sent")
        return {"type": "text", "media_type": PLAIN_TEXT, "data": text}

    def _mark(self, block: JsonObject | None, breakpoint: pb.CacheBreakpoint, field: str) -> None:
        if block is None or block.get("type") in ("thinking", "redacted_thinking"):
            self._losses.setting(field, "this provider cannot end a cached prefix here")
        else:
            block |= self.cache_control(breakpoint, field)

    def _tell_of_opaque_state(self, part: pb.Part, path: str) -> None:
        if part.signature and not part.HasField("reasoning"):
            self._losses.state(f"{path}.signature", "this wire carries signatures of thinking only")
        if part.item_id:
            self._losses.state(f"{path}.item_id", "this wire carries no item ids")

    def _tell_of_name(self, message: pb.Message, path: str) -> None:
        if message.name:
            self._losses.setting(f"{path}.name", "this provider's messages have no name")

    def _call_id(self, call_id: str) -> str:
        return fitting_call_id(call_id, self._quirks.call_ids)


def _text_block(text: str) -> JsonObject | None:
    return {"type": "text", "text": text} if text else None


def _plain(blocks: list[JsonObject]) -> str | list[JsonObject]:
    """A plain string where one says it all."""
    match blocks:
        case [{"type": "text", "text": str(text), **more}] if not more:
            return text
        case _:
            return blocks


def _is_text(media: pb.Media) -> bool:
    kind = media.mime_type.lower()
    return media.WhichOneof("source") == "data" and (kind.startswith("text/") or kind.endswith(TEXT_FORMATS))
