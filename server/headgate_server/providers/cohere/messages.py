"""Messages and their parts as Cohere wants them; documents, which it takes beside the messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from headgate import v1 as pb

from headgate_server.json_codec import JsonObject, caller_object, caller_raw, loads, merge_patch
from headgate_server.providers.base import Target
from headgate_server.providers.cohere import citations
from headgate_server.providers.cohere.answer import TOOL_PLAN
from headgate_server.providers.losses import Losses, unsupported
from headgate_server.providers.media import media_address, media_kind

JSON = "application/json"

Placed = tuple[pb.Part, str]


class MessageWriter:
    """Writes the messages of one request for one target. `documents` are those that the messages held."""

    def __init__(self, target: Target, losses: Losses) -> None:
        self.documents: list[JsonObject] = []
        self._issuer = target.issuer
        self._losses = losses
        self._cites = False
        self._uncited: list[str] = []

    def turns(self, messages: Sequence[pb.Message]) -> list[JsonObject]:
        """The messages; each tool result is one of its own.

        Raises:
            UnsupportedParameter: a part has no place on this wire.
        """
        turns: list[JsonObject] = []
        for index, message in enumerate(messages):
            path = f"messages[{index}]"
            if message.name:
                self._losses.setting(f"{path}.name", "this provider's messages have no name")
            for turn in self._turns(message, path):
                self.merge(turn, message.provider_metadata, f"{path}.provider_metadata")
                turns.append(turn)
        return turns

    def citation_options(self) -> JsonObject | None:
        """Cohere cites from all documents or from none; https://docs.cohere.com/docs/rag-citations#citation-modes."""
        if self._cites or not self.documents:
            for path in self._uncited:
                self._losses.setting(f"{path}.citations_enabled", "this provider cites from all documents or none")
            return None
        return {"mode": "OFF"}

    def merge(self, written: JsonObject, extras: Mapping[str, str], field: str) -> None:
        """Merges this vendor's extras into its object; those of other vendors are not for it."""
        if self._issuer in extras:
            merge_patch(written, caller_object(extras[self._issuer], f'{field}["{self._issuer}"]'))

    def tell_of_cache_breakpoint(self, holder: pb.Part | pb.Tool, path: str) -> None:
        """This vendor caches by itself."""
        if holder.HasField("cache_breakpoint"):
            self._losses.setting(f"{path}.cache_breakpoint", "this provider caches by itself")

    def _turns(self, message: pb.Message, path: str) -> Iterator[JsonObject]:
        parts = [(part, f"{path}.parts[{number}]") for number, part in enumerate(message.parts)]
        for part, where in parts:
            self.tell_of_cache_breakpoint(part, where)
            self._tell_of_opaque_state(part, where)
        match message.role:
            case pb.ROLE_SYSTEM | pb.ROLE_DEVELOPER:
                yield {"role": "system", "content": _plain([self._said(part, where) for part, where in parts])}
            case pb.ROLE_ASSISTANT:
                yield self._assistant(parts)
            case pb.ROLE_USER | pb.ROLE_TOOL:
                yield from self._user(parts)
            case _:
                raise unsupported(f"{path}.role", "is not a role of this vendor")

    def _user(self, parts: Sequence[Placed]) -> Iterator[JsonObject]:
        """Tool results first, then what else the turn says; of one that held only documents nothing is left."""
        content: list[JsonObject] = []
        for part, path in parts:
            match part.WhichOneof("content"):
                case "tool_result":
                    turn = self._tool_result(part.tool_result, f"{path}.tool_result")
                    self.merge(turn, part.provider_metadata, f"{path}.provider_metadata")
                    yield turn
                case "media" if media_kind(part.media) == pb.MEDIA_KIND_DOCUMENT:
                    self.documents.append(self._document(part, path))
                    self._cites |= part.media.citations_enabled
                    if not part.media.citations_enabled:
                        self._uncited.append(f"{path}.media")
                case "media":
                    content.append(self._image(part, path))
                case "provider_item":
                    content += self._provider_item(part, path)
                case _:
                    content.append(self._said(part, path))
        if content:
            yield {"role": "user", "content": _plain(content)}

    def _assistant(self, parts: Sequence[Placed]) -> JsonObject:
        content: list[JsonObject] = []
        plan: list[str] = []
        calls: list[JsonObject] = []
        cited: list[JsonObject] = []
        for part, path in parts:
            match part.WhichOneof("content"):
                case "reasoning":
                    thought = self._thought(part, path)
                    if thought["type"] == TOOL_PLAN:
                        cited += self._citations(part, path, None)
                        plan.append(part.reasoning.text)
                    elif part.reasoning.text:
                        cited += self._citations(part, path, len(content))
                        content.append(thought)
                case "tool_call":
                    calls += self._tool_call(part, path)
                case "provider_item":
                    content += self._provider_item(part, path)
                case "media" if part.media.transcript:
                    self._losses.state(f"{path}.media", "only the transcript goes back to this provider")
                    content.append(_text(part.media.transcript))
                case _:
                    cited += self._citations(part, path, len(content))
                    content.append(self._said(part, path))
        turn: JsonObject = {
            "role": "assistant",
            "content": _plain(content) if content else None,
            "tool_plan": "".join(plan) or None,
            "tool_calls": calls or None,
            "citations": cited or None,
        }
        return {name: value for name, value in turn.items() if value is not None}

    def _said(self, part: pb.Part, path: str) -> JsonObject:
        """Text, of whoever speaks."""
        match part.WhichOneof("content"):
            case "text":
                block = _text(part.text)
            case "refusal":
                block = _text(part.refusal)
            case _:
                raise unsupported(path, "has no place in such a message of this provider")
        self.merge(block, part.provider_metadata, f"{path}.provider_metadata")
        return block

    def _thought(self, part: pb.Part, path: str) -> JsonObject:
        """Thinking, whose extras may say that it is a tool plan; that of other vendors as if it were its own."""
        if not part.reasoning.text:
            self._losses.state(f"{path}.reasoning", "has no text for this provider to read")
        block: JsonObject = {"type": "thinking", "thinking": part.reasoning.text}
        self.merge(block, part.provider_metadata, f"{path}.provider_metadata")
        return block

    def _tool_call(self, part: pb.Part, path: str) -> list[JsonObject]:
        call = part.tool_call
        match call.kind:
            case pb.TOOL_CALL_KIND_FUNCTION | pb.TOOL_CALL_KIND_UNSPECIFIED:
                pass
            case pb.TOOL_CALL_KIND_PROVIDER_EXECUTED:
                self._losses.state(f"{path}.tool_call", "calls that another vendor executed are not sent here")
                return []
            case _:
                raise unsupported(f"{path}.tool_call.kind", "this provider has no such tool calls")
        function = {"name": call.name, "arguments": call.arguments or "{}"}
        written: JsonObject = {"id": call.id, "type": "function", "function": function}
        self.merge(written, part.provider_metadata, f"{path}.provider_metadata")
        return [written]

    def _tool_result(self, result: pb.ToolResult, path: str) -> JsonObject:
        if result.failed:
            self._losses.state(f"{path}.failed", "the model learns it from the result's text only")
        return {"role": "tool", "tool_call_id": result.call_id, "content": self._result_content(result, path)}

    def _result_content(self, result: pb.ToolResult, path: str) -> str | list[JsonObject]:
        """Structure as a document that the model can cite; else the parts."""
        if _is_object(result.structured_json):
            data = caller_raw(result.structured_json, f"{path}.structured_json")
            return [{"type": "document", "document": {"data": data}}]
        content: list[JsonObject] = []
        for number, part in enumerate(result.parts):
            where = f"{path}.parts[{number}]"
            self.tell_of_cache_breakpoint(part, where)
            if part.HasField("media") and media_kind(part.media) == pb.MEDIA_KIND_DOCUMENT:
                content.append({"type": "document", "document": self._document(part, where)})
            elif part.HasField("provider_item"):
                content += self._provider_item(part, where)
            else:
                content.append(self._said(part, where))
        return _plain(content) or result.structured_json

    def _document(self, part: pb.Part, path: str) -> JsonObject:
        """A document: any JSON object, or text under its title."""
        media = part.media
        if media.WhichOneof("source") != "data":
            raise unsupported(f"{path}.media", "this provider reads documents only if their data is in the request")
        try:
            text = media.data.decode("utf-8")
        except UnicodeDecodeError:
            raise unsupported(f"{path}.media.data", "this provider reads documents of text or JSON only") from None
        described = {"title": media.title or media.filename, "context": media.context}
        data: JsonObject = {name: value for name, value in described.items() if value}
        if media.mime_type.lower() == JSON and not data:
            document: JsonObject = {"data": caller_raw(text, f"{path}.media.data")}
        elif media.mime_type.lower() == JSON:
            document = {"data": data | caller_object(text, f"{path}.media.data")}
        elif media.mime_type.lower().startswith("text/"):
            document = {"data": data | {"text": text}}
        else:
            raise unsupported(f"{path}.media.mime_type", "this provider reads documents of text or JSON only")
        return self._with_extras(document, part, path)

    def _image(self, part: pb.Part, path: str) -> JsonObject:
        media = part.media
        match media_kind(media):
            case pb.MEDIA_KIND_IMAGE:
                pass
            case pb.MEDIA_KIND_UNSPECIFIED:
                raise unsupported(f"{path}.media", "needs a kind or a mime_type")
            case _:
                raise unsupported(f"{path}.media", "this provider reads images and documents only")
        if media.WhichOneof("source") not in ("data", "uri"):
            raise unsupported(f"{path}.media", "this provider reads images only by data or uri")
        if media.title or media.context or media.citations_enabled:
            self._losses.setting(f"{path}.media", "title, context and citations_enabled are of documents only")
        image: JsonObject = {"url": media_address(media)}
        if media.detail:
            image["detail"] = media.detail
        return self._with_extras({"type": "image_url", "image_url": image}, part, path)

    def _with_extras(self, written: JsonObject, part: pb.Part, path: str) -> JsonObject:
        if part.media.provider_json:
            merge_patch(written, caller_object(part.media.provider_json, f"{path}.media.provider_json"))
        self.merge(written, part.provider_metadata, f"{path}.provider_metadata")
        return written

    def _provider_item(self, part: pb.Part, path: str) -> list[JsonObject]:
        if part.issuer == self._issuer:
            return [caller_object(part.provider_item.json, f"{path}.provider_item.json")]
        self._losses.state(f"{path}.provider_item", f"only {part.issuer or 'its issuer'} can read it")
        return []

    def _citations(self, part: pb.Part, path: str, content_index: int | None) -> list[JsonObject]:
        own = [citation for citation in part.citations if part.issuer == self._issuer and citation.provider_json]
        if len(own) < len(part.citations):
            self._losses.state(f"{path}.citations", "only their issuer can read them")
        return citations.write(own, content_index, f"{path}.citations")

    def _tell_of_opaque_state(self, part: pb.Part, path: str) -> None:
        if part.signature:
            self._losses.state(f"{path}.signature", "this wire carries no signatures")
        if part.item_id:
            self._losses.state(f"{path}.item_id", "this wire carries no item ids")


def _text(text: str) -> JsonObject:
    return {"type": "text", "text": text}


def _plain(content: list[JsonObject]) -> str | list[JsonObject]:
    """A plain string where one says it all."""
    match content:
        case [{"type": "text", "text": str(text), **more}] if not more:
            return text
        case _:
            return content


def _is_object(text: str) -> bool:
    try:
        return isinstance(loads(text), dict)
    except ValueError:
        return False
