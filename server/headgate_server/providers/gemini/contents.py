"""Messages and their parts as Gemini's contents: https://ai.google.dev/api/caching#Content"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

import msgspec
from headgate import v1 as pb

from headgate_server.errors import InvalidRequest
from headgate_server.json_codec import JsonObject, caller_object, caller_raw, is_json, loads, merge_patch
from headgate_server.providers.base import Target
from headgate_server.providers.call_ids import is_made
from headgate_server.providers.gemini.answer import CANDIDATE_EXTRAS
from headgate_server.providers.losses import Losses, unsupported

INSTRUCTIONS = (pb.ROLE_SYSTEM, pb.ROLE_DEVELOPER)
FILES_ADDRESS = "https://generativelanguage.googleapis.com/v1beta/"
# Gemini 3 refuses a function call that it should have signed and did not; this stands in for other models' calls.
# https://ai.google.dev/gemini-api/docs/thought-signatures#faqs
UNSIGNED = "skip_thought_signature_validator"
WANTS_SIGNATURES = re.compile(r"(?:.*/)?gemini-(?:[3-9]|\d\d)")


class Turn(NamedTuple):
    """What becomes one content: its role, its parts with their paths, the vendor's extras of its message."""

    role: str
    parts: list[tuple[pb.Part, str]]
    extras: JsonObject

    @property
    def answers_calls(self) -> bool:
        """It consists of tool results."""
        return bool(self.parts) and all(part.HasField("tool_result") for part, _ in self.parts)


class ContentWriter:
    """Writes the messages of one request for one target."""

    def __init__(self, target: Target, losses: Losses) -> None:
        self._issuer = target.issuer
        self._losses = losses
        self._wants_signatures = WANTS_SIGNATURES.match(target.model) is not None
        self._calls: dict[str, tuple[int, str]] = {}

    def system_instruction(self, messages: Sequence[pb.Message]) -> JsonObject | None:
        """The leading instructions as one content without role; None where there are none."""
        turns = [
            self._turn(message, f"messages[{index}]", "system")
            for index, message in enumerate(takewhile(lambda message: message.role in INSTRUCTIONS, messages))
        ]
        if not turns:
            return None
        content: JsonObject = {"parts": [item for turn in turns for item in self._parts(turn)]}
        for turn in turns:
            merge_patch(content, turn.extras)
        return content

    def contents(self, messages: Sequence[pb.Message]) -> list[JsonObject]:
        """The conversation after the leading instructions.

        Raises:
            UnsupportedParameter: a part has no place on this wire.
        """
        return [
            merge_patch({"role": turn.role, "parts": parts}, turn.extras)
            for turn in self._turns(messages)
            if (parts := self._parts(turn))
        ]

    def parts(self, parts: Sequence[pb.Part], path: str) -> list[JsonObject]:
        """Parts outside of a conversation; `path` is that of their holder."""
        return self._parts(Turn("user", [(part, f"{path}.parts[{n}]") for n, part in enumerate(parts)], {}))

    def merge(self, item: JsonObject, extras: Mapping[str, str], field: str) -> None:
        """Merges this vendor's extras into its object; those of other vendors are not for it."""
        merge_patch(item, self._own(extras, field))

    def cache_breakpoint(self, holder: pb.Part | pb.Tool, path: str) -> None:
        """Caching is by itself, or by a cache that provider_options name."""
        if holder.HasField("cache_breakpoint"):
            self._losses.setting(f"{path}.cache_breakpoint", "this provider caches by itself, or by cachedContent")

    def _own(self, extras: Mapping[str, str], field: str) -> JsonObject:
        return caller_object(extras[self._issuer], f'{field}["{self._issuer}"]') if self._issuer in extras else {}

    def _turns(self, messages: Sequence[pb.Message]) -> list[Turn]:
        """One turn a message; messages of tool results that follow each other are one, as the vendor demands."""
        turns: list[Turn] = []
        leading = True
        for index, message in enumerate(messages):
            path = f"messages[{index}]"
            leading = leading and message.role in INSTRUCTIONS
            if leading:
                continue
            turn = self._turn(message, path, self._role(message, path))
            if turns and turn.answers_calls and turns[-1].answers_calls and not turn.extras:
                turns[-1].parts.extend(turn.parts)
            else:
                turns.append(turn)
        return turns

    def _turn(self, message: pb.Message, path: str, role: str) -> Turn:
        if message.name:
            self._losses.setting(f"{path}.name", "this provider has no names of speakers")
        parts = [(part, f"{path}.parts[{number}]") for number, part in enumerate(message.parts)]
        extras = self._own(message.provider_metadata, f"{path}.provider_metadata")
        # Those of an answer's candidate are no members of a content.
        return Turn(role, parts, {name: extra for name, extra in extras.items() if name not in CANDIDATE_EXTRAS})

    def _role(self, message: pb.Message, path: str) -> str:
        match message.role:
            case pb.ROLE_USER | pb.ROLE_TOOL:
                return "user"
            case pb.ROLE_ASSISTANT:
                return "model"
            case pb.ROLE_SYSTEM | pb.ROLE_DEVELOPER:
                self._losses.setting(f"{path}.role", "instructions after the first turn are sent as the user's")
                return "user"
            case _:
                raise unsupported(f"{path}.role", "is not a role of this vendor")

    def _parts(self, turn: Turn) -> list[JsonObject]:
        if turn.answers_calls:
            turn.parts.sort(key=lambda found: self._place(found[0].tool_result.call_id))
        written = [item for part, path in turn.parts if (item := self._part(part, path)) is not None]
        if self._wants_signatures and turn.role == "model":
            first = next((item for item in written if "functionCall" in item), {})
            if first:
                first.setdefault("thoughtSignature", UNSIGNED)
        return written

    def _place(self, call_id: str) -> int:
        """Results of calls without ids are told apart by their order; all others keep theirs."""
        return self._calls.get(call_id, (0, ""))[0] if is_made(call_id) else 0

    def _part(self, part: pb.Part, path: str) -> JsonObject | None:
        item = self._content(part, path)
        if item is None:
            return None
        if signature := self._signature(part, path):
            item["thoughtSignature"] = signature
        if part.provider_metadata:
            self.merge(item, part.provider_metadata, f"{path}.provider_metadata")
        self.cache_breakpoint(part, path)
        return item

    def _content(self, part: pb.Part, path: str) -> JsonObject | None:
        match part.WhichOneof("content"):
            case "text":
                return {"text": part.text}
            case "refusal":
                return {"text": part.refusal}
            case "reasoning":
                return self._thought(part, path)
            case "tool_call":
                return self._tool_call(part, path)
            case "tool_result":
                return {"functionResponse": self._tool_result(part.tool_result, f"{path}.tool_result")}
            case "media":
                return self._media(part, path)
            case "provider_item" if part.issuer == self._issuer:
                return caller_object(part.provider_item.json, f"{path}.provider_item.json")
            case "provider_item":
                self._losses.state(f"{path}.provider_item", f"only {part.issuer or 'its issuer'} can read it")
                return None
            case _:
                raise unsupported(path, "is a kind of part that this gateway does not know")

    def _signature(self, part: pb.Part, path: str) -> str:
        """The signature, if it is this vendor's and its part is whole."""
        if part.item_id:
            self._losses.state(f"{path}.item_id", "this wire carries no item ids")
        if any(citation.opaque for citation in part.citations):
            self._losses.state(f"{path}.citations", "this wire carries no state of citations")
        if not part.signature:
            return ""
        if part.issuer != self._issuer:
            self._losses.state(f"{path}.signature", f"only {part.issuer or 'its issuer'} can read it")
            return ""
        if part.incomplete:
            self._losses.state(f"{path}.signature", "the part was cut short")
            return ""
        try:
            return part.signature.decode()
        except UnicodeDecodeError:
            raise InvalidRequest.at(f"{path}.signature", "is not what this provider issued") from None

    def _thought(self, part: pb.Part, path: str) -> JsonObject | None:
        thought: JsonObject = {"thought": True}
        if part.reasoning.kind != pb.REASONING_KIND_OPAQUE:
            return {"text": part.reasoning.text, **thought}
        if part.issuer == self._issuer and not part.incomplete:
            return thought
        self._losses.state(f"{path}.reasoning", f"only {part.issuer or 'its issuer'} can read it")
        return None

    def _tool_call(self, part: pb.Part, path: str) -> JsonObject | None:
        call = part.tool_call
        match call.kind:
            case pb.TOOL_CALL_KIND_FUNCTION | pb.TOOL_CALL_KIND_UNSPECIFIED:
                arguments = caller_raw(call.arguments or "{}", f"{path}.tool_call.arguments")
                written: JsonObject = {"name": call.name, "args": arguments}
            case pb.TOOL_CALL_KIND_PROVIDER_EXECUTED:
                self._losses.state(f"{path}.tool_call", "calls that another vendor executed are not sent")
                return None
            case _:
                raise unsupported(f"{path}.tool_call.kind", "this provider has no such tool calls")
        self._calls[call.id] = (len(self._calls), call.name)
        if call.id and not is_made(call.id):
            written["id"] = call.id
        if call.provider_json and part.issuer == self._issuer:
            merge_patch(written, caller_object(call.provider_json, f"{path}.tool_call.provider_json"))
        return {"functionCall": written}

    def _tool_result(self, result: pb.ToolResult, path: str) -> JsonObject:
        _, called = self._calls.get(result.call_id, (0, ""))
        name = result.name or called
        if not name:
            raise unsupported(f"{path}.name", "this provider matches results by the tool's name")
        written: JsonObject = {"name": name, "response": _response(result, path)}
        if result.call_id and not is_made(result.call_id):
            written["id"] = result.call_id
        media = [
            self._media(part, f"{path}.parts[{number}]")
            for number, part in enumerate(result.parts)
            if part.HasField("media")
        ]
        for number, part in enumerate(result.parts):
            if part.HasField("provider_item"):
                self._losses.state(f"{path}.parts[{number}].provider_item", "a tool result has no place for it")
        if media:
            written["parts"] = media
        return written

    def _media(self, part: pb.Part, path: str) -> JsonObject:
        media = part.media
        path = f"{path}.media"
        written: JsonObject
        match media.WhichOneof("source"):
            case "data":
                written = {"mimeType": media.mime_type, "data": b64encode(media.data).decode()}
                item = {"inlineData": written}
            case "uri":
                written = {"fileUri": media.uri}
                item = {"fileData": written}
            case "file" if media.file.issuer == self._issuer:
                is_name = media.file.id.startswith("files/")
                written = {"fileUri": FILES_ADDRESS + media.file.id if is_name else media.file.id}
                item = {"fileData": written}
            case "file":
                raise unsupported(f"{path}.file", f"is stored at {media.file.issuer}")
            case _:
                raise unsupported(path, "has no bytes and no address")
        if media.mime_type:
            written["mimeType"] = media.mime_type
        if media.provider_json and part.issuer == self._issuer:
            merge_patch(written, caller_object(media.provider_json, f"{path}.provider_json"))
        if media.detail not in ("", "auto"):
            item["mediaResolution"] = {"level": f"MEDIA_RESOLUTION_{media.detail.upper()}"}
        if media.title or media.context or media.citations_enabled:
            self._losses.setting(path, "title, context and citations_enabled have no field at this provider")
        return item


def _response(result: pb.ToolResult, path: str) -> JsonObject | msgspec.Raw:
    """The object that the vendor wants: the caller's own, or one around what it gave. `error` says that it failed."""
    member = "error" if result.failed else "output"
    if result.structured_json:
        if not is_json(result.structured_json):
            raise InvalidRequest.at(f"{path}.structured_json", "is not JSON")
        structure = msgspec.Raw(result.structured_json.encode())
        is_object = isinstance(loads(result.structured_json), dict)
        return structure if is_object and not result.failed else {member: structure}
    texts: list[str] = []
    for number, part in enumerate(result.parts):
        match part.WhichOneof("content"):
            case "text":
                texts.append(part.text)
            case "media" | "provider_item":
                pass
            case _:
                raise unsupported(f"{path}.parts[{number}]", "this provider takes text and media in tool results")
    if not texts and not result.failed:
        return {}
    return {member: texts[0] if len(texts) == 1 else texts}
