"""LangChain's messages <-> the contract's."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from headgate import v1 as pb
from headgate.content import audio, decoded_base64, file, image, remote, video
from headgate.frameworks import call_arguments, keep, kept
from headgate.openai_messages import ROLES
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata

_MEDIA = {"image": image, "audio": audio, "video": video, "file": file, "text-plain": file}


def to_headgate(messages: Iterable[BaseMessage]) -> list[pb.Message]:
    """The contract's messages.

    Raises:
        ValueError: a message, or content of it, has no place there.
    """
    return [_message(message) for message in messages]


def to_langchain(candidate: pb.Candidate, response: pb.GenerateResponse | None) -> AIMessage:
    """The answer of a candidate; with the response that it stands in, its usage and model, too."""
    calls, invalid = tool_calls(candidate.message)
    return AIMessage(
        content=content(candidate.message),
        tool_calls=calls,
        invalid_tool_calls=invalid,
        additional_kwargs=dict(keep(candidate.message)),
        response_metadata=metadata(candidate, response),
        usage_metadata=usage(response.usage) if response and response.HasField("usage") else None,
        id=(response.id or None) if response else None,
    )


def content(message: pb.Message) -> Any:
    """The text alone, where there is no more than text and calls; otherwise LangChain's standard blocks."""
    parts = [part for part in message.parts if part.WhichOneof("content") not in ("tool_call", "provider_item", None)]
    if all(part.HasField("text") and not part.citations for part in parts):
        return "".join(part.text for part in parts)
    return [block for part in parts for block in _blocks(part)]


def tool_calls(message: pb.Message) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """The calls that the caller answers; those with arguments that are no JSON object are invalid."""
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for part in message.parts:
        call = part.tool_call
        if not part.HasField("tool_call") or call.kind == pb.TOOL_CALL_KIND_PROVIDER_EXECUTED:
            continue
        arguments = _arguments(call)
        if arguments is not None:
            calls.append(ToolCall(name=call.name, args=arguments, id=call.id, type="tool_call"))
        else:
            broken = "the arguments are no JSON object"
            invalid.append(
                InvalidToolCall(type="invalid_tool_call", name=call.name, args=call.arguments, id=call.id, error=broken)
            )
    return calls, invalid


def metadata(candidate: pb.Candidate, response: pb.GenerateResponse | None) -> dict[str, Any]:
    """How the candidate ended, and where the answer came from."""
    reason = pb.FinishReason.Name(candidate.finish.reason).removeprefix("FINISH_REASON_").lower()
    found: dict[str, Any] = {"finish_reason": reason, "model_provider": "headgate"}
    if response:
        found |= {"model_name": response.model, "provider": response.provider}
        if response.HasField("cost"):
            found["cost"] = {"total_nanos": response.cost.total_nanos, "currency_code": response.cost.currency_code}
        if response.warnings:
            found["warnings"] = [f"{warning.code}: {warning.message}" for warning in response.warnings]
    return found


def usage(counted: pb.Usage) -> UsageMetadata:
    """Tokens in LangChain's words, whose parts are parts of the wholes as here."""
    found = UsageMetadata(
        input_tokens=counted.input_tokens,
        output_tokens=counted.output_tokens,
        total_tokens=counted.total_tokens or counted.input_tokens + counted.output_tokens,
    )
    inputs = {"cache_read": "cache_read_tokens", "cache_creation": "cache_write_tokens", "audio": "audio_input_tokens"}
    outputs = {"reasoning": "reasoning_tokens", "audio": "audio_output_tokens"}
    if details := _details(counted, inputs):
        found["input_token_details"] = details  # type: ignore[typeddict-item]  # names are LangChain's
    if details := _details(counted, outputs):
        found["output_token_details"] = details  # type: ignore[typeddict-item]  # names are LangChain's
    return found


def _details(counted: Any, names: Mapping[str, str]) -> dict[str, int]:
    return {ours: getattr(counted, field) for ours, field in names.items() if counted.HasField(field)}


def _message(message: BaseMessage) -> pb.Message:
    match message:
        case SystemMessage():
            return pb.Message(role=pb.ROLE_SYSTEM, parts=_parts(message), name=message.name or "")
        case HumanMessage():
            return pb.Message(role=pb.ROLE_USER, parts=_parts(message), name=message.name or "")
        case AIMessage():
            return _answer(message)
        case ToolMessage():
            failed = message.status == "error"
            result = pb.ToolResult(call_id=message.tool_call_id, name=message.name or "", failed=failed)
            result.parts.extend(_parts(message))
            return pb.Message(role=pb.ROLE_TOOL, parts=[pb.Part(tool_result=result)])
        case ChatMessage() if message.role in ROLES:
            return pb.Message(role=ROLES[message.role], parts=_parts(message), name=message.name or "")
    raise ValueError(f"{type(message).__name__} has no place in a conversation")


def _answer(message: AIMessage) -> pb.Message:
    """The message as it once came, if nobody changed it since; otherwise as LangChain has it."""
    original = kept(message.additional_kwargs)
    if original and _same(original, message):
        return original
    parts = list(_parts(message))
    for call in message.tool_calls:
        arguments = json.dumps(call["args"], ensure_ascii=False)
        said = pb.ToolCall(id=call["id"] or "", name=call["name"], arguments=arguments, kind=pb.TOOL_CALL_KIND_FUNCTION)
        parts.append(pb.Part(tool_call=said))
    return pb.Message(role=pb.ROLE_ASSISTANT, parts=parts, name=message.name or "")


def _same(original: pb.Message, message: AIMessage) -> bool:
    calls, _ = tool_calls(original)
    ours = [(call["id"], call["name"], call["args"]) for call in calls]
    theirs = [(call["id"], call["name"], call["args"]) for call in message.tool_calls]
    return ours == theirs and "".join(part.text for part in original.parts) == message.text


def _parts(message: BaseMessage) -> Iterator[pb.Part]:
    for block in message.content_blocks:
        kind = block["type"]
        if isinstance(message, AIMessage) and _is_call(block):
            continue  # stands in message.tool_calls
        if kind == "reasoning":
            continue  # without its signature no vendor takes it back
        yield _part(block)


def _is_call(block: Mapping[str, Any]) -> bool:
    inner = block.get("value")
    kind = inner.get("type") if isinstance(inner, Mapping) else block["type"]
    return kind in ("tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use")


def _part(block: Mapping[str, Any]) -> pb.Part:
    match block:
        case {"type": "text", "text": str(text)}:
            return pb.Part(text=text)
        case {"type": "refusal", "refusal": str(text)}:
            return pb.Part(refusal=text)
        case {"type": "image" | "audio" | "video" | "file" | "text-plain" as kind}:
            return _media(_MEDIA[kind], block)
    inner = block.get("value")
    kind = inner.get("type") if isinstance(inner, Mapping) else block.get("type")
    raise ValueError(f"cannot send content of type {kind!r}")


def _media(make: Any, block: Mapping[str, Any]) -> pb.Part:
    extras = block.get("extras") or {}
    mime_type = block.get("mime_type") or ""
    names = {"filename": extras.get("filename") or extras.get("name") or ""} if make is file else {}
    if "base64" in block:
        part: pb.Part = make(decoded_base64(block["base64"]), mime_type=mime_type, **names)
    elif "url" in block:
        part = make(remote(block["url"]), mime_type=mime_type, **names)
    elif "text" in block:
        part = file(block["text"].encode(), mime_type="text/plain", title=block.get("title") or "")
    elif "file_id" in block:
        part = make(pb.FileRef(issuer=extras.get("issuer") or "openai", id=block["file_id"]), mime_type=mime_type)
    else:
        raise ValueError(f"content of type {block['type']!r} has neither base64, url nor file_id")
    part.media.detail = extras.get("detail") or ""
    return part


def _blocks(part: pb.Part) -> Iterator[dict[str, Any]]:
    match part.WhichOneof("content"):
        case "text":
            notes = [_citation(citation) for citation in part.citations]
            yield {"type": "text", "text": part.text, **({"annotations": notes} if notes else {})}
        case "reasoning":
            yield {"type": "reasoning", "reasoning": part.reasoning.text}
        case "refusal":
            yield {"type": "refusal", "refusal": part.refusal}
        case "media":
            yield _media_block(part.media)


def _citation(citation: pb.Citation) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "citation"}
    found |= {"url": citation.uri} if citation.uri else {}
    found |= {"title": citation.title} if citation.title else {}
    found |= {"cited_text": citation.cited_text} if citation.cited_text else {}
    found |= {"start_index": citation.start_offset} if citation.HasField("start_offset") else {}
    found |= {"end_index": citation.end_offset} if citation.HasField("end_offset") else {}
    return found


def _media_block(media: pb.Media) -> dict[str, Any]:
    kind = pb.MediaKind.Name(media.kind).removeprefix("MEDIA_KIND_").lower()
    block: dict[str, Any] = {"type": kind if kind in ("image", "audio", "video") else "file"}
    block |= {"mime_type": media.mime_type} if media.mime_type else {}
    if media.HasField("data"):
        return {**block, "base64": base64.b64encode(media.data).decode()}
    if media.HasField("file"):
        return {**block, "file_id": media.file.id, "extras": {"issuer": media.file.issuer}}
    return {**block, "url": media.uri}


def _arguments(call: pb.ToolCall) -> dict[str, Any] | None:
    """The arguments as LangChain has them: free text under the name that it gives to a single one."""
    if call.kind == pb.TOOL_CALL_KIND_FREE_TEXT:
        return {"__arg1": call.arguments}
    return call_arguments(call)
