"""Messages in the shape of OpenAI's Chat Completions become messages of the contract.

Source: https://platform.openai.com/docs/api-reference/chat/create. Nothing is dropped: an unknown role, key or type of
content is a ValueError that names its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from headgate import v1 as pb
from headgate.content import decoded_base64, file, image, remote

ROLES = {
    "system": pb.ROLE_SYSTEM,
    "developer": pb.ROLE_DEVELOPER,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}
KEYS = {"role", "content", "name"}
ASSISTANT_KEYS = KEYS | {"tool_calls", "refusal", "audio", "function_call", "annotations"}
TOOL_KEYS = KEYS | {"tool_call_id"}
FIELDS: Mapping[str, set[str]] = {
    "text": set(),
    "refusal": set(),
    "image_url": {"url", "detail"},
    "input_audio": {"data", "format"},
    "file": {"file_id", "file_data", "filename"},
}
"""What stands in a content of each type, under the type's own name."""


def read_message(message: Mapping[str, Any], place: str) -> pb.Message:
    """One message.

    Raises:
        ValueError: something in it is unknown, or of another type than OpenAI's.
    """
    role = ROLES.get(message.get("role", ""))
    if role is None:
        raise ValueError(f"{place}.role: {message.get('role')!r} is none of {', '.join(ROLES)}")
    known = ASSISTANT_KEYS if role == pb.ROLE_ASSISTANT else TOOL_KEYS if role == pb.ROLE_TOOL else KEYS
    _refuse_others(message, known, place)
    parts = list(_content(message.get("content"), f"{place}.content"))
    if role == pb.ROLE_TOOL:
        result = pb.ToolResult(call_id=_text(message, "tool_call_id", place), parts=parts)
        result.name = message.get("name") or ""
        return pb.Message(role=role, parts=[pb.Part(tool_result=result)])
    if role == pb.ROLE_ASSISTANT:
        parts += _assistant_parts(message, place)
    return pb.Message(role=role, parts=parts, name=message.get("name") or "")


def _content(content: object, place: str) -> Iterator[pb.Part]:
    match content:
        case None:
            return
        case str():
            yield pb.Part(text=content)
        case list() | tuple():
            for index, item in enumerate(content):
                yield _part(item, f"{place}[{index}]")
        case _:
            raise ValueError(f"{place}: must be text or a list, not {type(content).__name__}")


def _part(item: Any, place: str) -> pb.Part:
    match item:
        case pb.Part():
            return item
        case str():
            return pb.Part(text=item)
        case {"type": str(kind)} if kind in FIELDS:
            _refuse_others(item, {"type", kind}, place)
            if isinstance(item.get(kind), Mapping):
                _refuse_others(item[kind], FIELDS[kind], f"{place}.{kind}")
            try:
                if part := _part_of_dict(item):
                    return part
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
    unknown = item.get("type") if isinstance(item, Mapping) else type(item).__name__
    raise ValueError(f"{place}: cannot read content of type {unknown!r}")


def _part_of_dict(item: Any) -> pb.Part | None:
    match item:
        case {"text": str(text)}:
            return pb.Part(text=text)
        case {"refusal": str(text)}:
            return pb.Part(refusal=text)
        case {"image_url": {"url": str(address)}}:
            return image(remote(address), detail=item["image_url"].get("detail") or "")
        case {"image_url": str(address)}:
            return image(remote(address))
        case {"input_audio": {"data": str(data), "format": str(form)}}:
            media = pb.Media(kind=pb.MEDIA_KIND_AUDIO, mime_type=f"audio/{'mpeg' if form == 'mp3' else form}")
            media.data = decoded_base64(data)
            return pb.Part(media=media)
        case {"file": {"file_id": str(identifier)}}:
            return file(pb.FileRef(issuer="openai", id=identifier), filename=item["file"].get("filename") or "")
        case {"file": {"file_data": str(data)}}:
            source = data if data[:5].lower() == "data:" else decoded_base64(data)
            return file(source, filename=item["file"].get("filename") or "")
    return None


def _assistant_parts(message: Mapping[str, Any], place: str) -> Iterator[pb.Part]:
    for key in ("audio", "function_call", "annotations"):
        if message.get(key):
            raise ValueError(f"{place}.{key}: cannot be sent back; send the answer's own message")
    if message.get("refusal"):
        yield pb.Part(refusal=_text(message, "refusal", place))
    for index, call in enumerate(message.get("tool_calls") or ()):
        yield pb.Part(tool_call=_tool_call(call, f"{place}.tool_calls[{index}]"))


def _tool_call(call: Any, place: str) -> pb.ToolCall:
    match call:
        case pb.ToolCall():
            return call
        case {"id": str(identifier), "function": {"name": str(name), "arguments": arguments} as function}:
            _refuse_others(call, {"id", "type", "function"}, place)
            _refuse_others(function, {"name", "arguments"}, f"{place}.function")
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            return pb.ToolCall(id=identifier, name=name, arguments=text, kind=pb.TOOL_CALL_KIND_FUNCTION)
        case {"id": str(identifier), "custom": {"name": str(name), "input": str(text)} as custom}:
            _refuse_others(call, {"id", "type", "custom"}, place)
            _refuse_others(custom, {"name", "input"}, f"{place}.custom")
            return pb.ToolCall(id=identifier, name=name, arguments=text, kind=pb.TOOL_CALL_KIND_FREE_TEXT)
    raise ValueError(f"{place}: must have an id and a function with name and arguments")


def _text(message: Mapping[str, Any], key: str, place: str) -> str:
    value = message.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{place}.{key}: must be text, not {type(value).__name__}")
    return value


def _refuse_others(values: Mapping[str, Any], known: set[str], place: str) -> None:
    if unknown := sorted(key for key, value in values.items() if key not in known and value is not None):
        raise ValueError(f"{place}.{unknown[0]}: is not known here; there are {', '.join(sorted(known))}")
