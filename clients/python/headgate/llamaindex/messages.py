"""LlamaIndex's messages <-> the contract's."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Any

from headgate import v1 as pb
from headgate.content import audio, file, image, remote, video
from headgate.frameworks import call_arguments, keep, kept
from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)

ROLES = {
    MessageRole.SYSTEM: pb.ROLE_SYSTEM,
    MessageRole.DEVELOPER: pb.ROLE_DEVELOPER,
    MessageRole.USER: pb.ROLE_USER,
    MessageRole.ASSISTANT: pb.ROLE_ASSISTANT,
    MessageRole.CHATBOT: pb.ROLE_ASSISTANT,
    MessageRole.MODEL: pb.ROLE_ASSISTANT,
    MessageRole.TOOL: pb.ROLE_TOOL,
    MessageRole.FUNCTION: pb.ROLE_TOOL,
}


def to_headgate(messages: Iterable[ChatMessage]) -> list[pb.Message]:
    """The contract's messages; raises ValueError for content that has no place there."""
    return [_message(message) for message in messages]


def to_llamaindex(message: pb.Message) -> ChatMessage:
    """The answer, with what LlamaIndex cannot say kept beside it."""
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=list(_blocks(message)), additional_kwargs=dict(keep(message)))


def _blocks(message: pb.Message) -> Iterator[Any]:
    for part in message.parts:
        match part.WhichOneof("content"):
            case "text":
                yield TextBlock(text=part.text)
            case "refusal":
                yield TextBlock(text=part.refusal)
            case "reasoning":
                yield ThinkingBlock(content=part.reasoning.text)
            case "tool_call" if part.tool_call.kind != pb.TOOL_CALL_KIND_PROVIDER_EXECUTED:
                call = part.tool_call
                arguments = call_arguments(call)
                said: Any = call.arguments if arguments is None else arguments
                yield ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=said)
            case "media" if part.media.kind == pb.MEDIA_KIND_IMAGE and part.media.data:
                yield ImageBlock(image=base64.b64encode(part.media.data), image_mimetype=part.media.mime_type)


def _message(message: ChatMessage) -> pb.Message:
    original = kept(message.additional_kwargs)
    if original and to_llamaindex(original).blocks == message.blocks:
        return original
    role = ROLES[message.role]
    parts: list[pb.Part] = []
    for block in message.blocks:
        if isinstance(block, CachePoint):
            _set_cache_breakpoint(parts, block.cache_control.ttl)
        else:
            parts += _parts(block)
    if role != pb.ROLE_TOOL:
        return pb.Message(role=role, parts=parts, name=message.additional_kwargs.get("name") or "")
    result = pb.ToolResult(call_id=message.additional_kwargs.get("tool_call_id") or "", parts=parts)
    result.name = message.additional_kwargs.get("name") or ""
    return pb.Message(role=role, parts=[pb.Part(tool_result=result)])


def _set_cache_breakpoint(parts: list[pb.Part], ttl: str) -> None:
    """Caches up to the last part so far; `ttl` is LlamaIndex's, such as 5m or 1h."""
    if not parts:
        raise ValueError("a cache point needs content before it")
    seconds = {"s": 1, "m": 60, "h": 3600}.get(ttl[-1:])
    if seconds is None or not ttl[:-1].isdecimal():
        raise ValueError(f"a cache point's ttl is like 5m or 1h, not {ttl!r}")
    parts[-1].cache_breakpoint.ttl.seconds = int(ttl[:-1]) * seconds


def _parts(block: Any) -> Iterator[pb.Part]:
    match block:
        case TextBlock():
            yield pb.Part(text=block.text)
        case ImageBlock():
            source = _source(block.url, block, "resolve_image")
            yield image(source, mime_type=block.image_mimetype or "", detail=block.detail or "")
        case AudioBlock():
            yield audio(_source(block.url, block, "resolve_audio"), mime_type=f"audio/{block.format or 'wav'}")
        case VideoBlock():
            yield video(_source(block.url, block, "resolve_video"), mime_type=block.video_mimetype or "")
        case DocumentBlock():
            source = _source(block.url, block, "resolve_document")
            yield file(source, mime_type=block.document_mimetype or "", title=block.title or "")
        case ToolCallBlock():
            arguments = block.tool_kwargs
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            kind = pb.TOOL_CALL_KIND_FUNCTION
            yield pb.Part(
                tool_call=pb.ToolCall(id=block.tool_call_id or "", name=block.tool_name, arguments=text, kind=kind)
            )
        case ThinkingBlock():
            return  # without its signature no vendor takes it back
        case _:
            raise ValueError(f"cannot send content of type {block.block_type!r}")


def _source(url: Any, block: Any, resolve: str) -> str | bytes:
    """The address, which only the vendor fetches, or the bytes."""
    if url:
        return remote(str(url))
    data: bytes = getattr(block, resolve)().read()
    return data
