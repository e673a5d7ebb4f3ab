"""Messages from text, dicts in OpenAI's shape, answers and protos; media from paths, bytes and addresses."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from headgate import Answer, assistant, audio, file, image, system, user, v1 as pb
from headgate.messages import read_messages

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
PNG_BASE64 = base64.b64encode(PNG).decode()


def test_text_dicts_answers_and_protos_may_be_mixed() -> None:
    """Each becomes one message, in order, and protos are not changed."""
    answered = pb.Message(role=pb.ROLE_ASSISTANT, parts=[pb.Part(text="Hm", signature=b"s", issuer="anthropic")])
    answer = Answer(pb.GenerateResponse(candidates=[pb.Candidate(message=answered)]))
    messages = read_messages([system("Be brief."), "Hi", answer, {"role": "user", "content": "And?"}, user("Well?")])
    assert messages == [
        pb.Message(role=pb.ROLE_SYSTEM, parts=[pb.Part(text="Be brief.")]),
        pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Hi")]),
        answered,
        pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="And?")]),
        pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Well?")]),
    ]
    assert read_messages("Hi") == read_messages(user("Hi")) == read_messages({"role": "user", "content": "Hi"})


def test_a_conversation_of_openais_shape_is_read_in_full() -> None:
    """Roles, names, content parts, tool calls of both kinds, their results and refusals."""
    messages = read_messages(
        [
            {"role": "developer", "content": "Be brief.", "name": "ops"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "https://example.com/cat.png", "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG_BASE64}"}},
                    {"type": "input_audio", "input_audio": {"data": PNG_BASE64, "format": "mp3"}},
                    {"type": "file", "file": {"file_id": "file-1"}},
                    {
                        "type": "file",
                        "file": {"file_data": f"data:application/pdf;base64,{PNG_BASE64}", "filename": "a"},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}},
                    {"id": "2", "type": "custom", "custom": {"name": "run", "input": "ls"}},
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "a cat"},
            {"role": "assistant", "content": "Well.", "refusal": "No."},
        ]
    )
    assert messages == [
        pb.Message(role=pb.ROLE_DEVELOPER, parts=[pb.Part(text="Be brief.")], name="ops"),
        pb.Message(
            role=pb.ROLE_USER,
            parts=[
                pb.Part(text="What is this?"),
                media(pb.MEDIA_KIND_IMAGE, "image/png", uri="https://example.com/cat.png", detail="low"),
                media(pb.MEDIA_KIND_IMAGE, "image/png", data=PNG),
                media(pb.MEDIA_KIND_AUDIO, "audio/mpeg", data=PNG),
                media(pb.MEDIA_KIND_DOCUMENT, "", file=pb.FileRef(issuer="openai", id="file-1")),
                media(pb.MEDIA_KIND_DOCUMENT, "application/pdf", data=PNG, filename="a"),
            ],
        ),
        pb.Message(
            role=pb.ROLE_ASSISTANT,
            parts=[
                pb.Part(
                    tool_call=pb.ToolCall(id="1", name="look", arguments='{"a": 1}', kind=pb.TOOL_CALL_KIND_FUNCTION)
                ),
                pb.Part(tool_call=pb.ToolCall(id="2", name="run", arguments="ls", kind=pb.TOOL_CALL_KIND_FREE_TEXT)),
            ],
        ),
        pb.Message(
            role=pb.ROLE_TOOL,
            parts=[pb.Part(tool_result=pb.ToolResult(call_id="1", parts=[pb.Part(text="a cat")]))],
        ),
        pb.Message(role=pb.ROLE_ASSISTANT, parts=[pb.Part(text="Well."), pb.Part(refusal="No.")]),
    ]


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def sound(data: str, **others: Any) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav", **others}}


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"role": "critic", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user", "content": "x", "colour": "red"}, "messages[0].colour"),
        ({"role": "user", "content": 7}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "hologram"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}, "no address"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]}, "messages[0].content[0].cache"),
        ({"role": "user", "content": [{**IMAGE, "cache_control": {}}]}, "messages[0].content[0].cache_control"),
        ({"role": "user", "content": ["x", {"type": "file", "file": {"id": "f"}}]}, "messages[0].content[1].file.id"),
        ({"role": "user", "content": [sound("*")]}, "messages[0].content[0]: not base64"),
        ({"role": "user", "content": [sound("", rate=8)]}, "messages[0].content[0].input_audio.rate"),
        ({"role": "assistant", "tool_calls": [{**CALL, "extra": {}}]}, "messages[0].tool_calls[0].extra"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[0].audio"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(message: dict[str, Any], place: str) -> None:
    """Nothing of a dict is dropped in silence, and no text of it opens a file."""
    with pytest.raises(ValueError, match=re.escape(place)):
        read_messages([message])


def test_parts_belong_into_messages() -> None:
    """The error says what to do."""
    with pytest.raises(TypeError, match="user"):
        read_messages([image(PNG)])  # type: ignore[list-item]


def test_media_come_from_paths_bytes_addresses_and_vendors(tmp_path: Path) -> None:
    """The media type is given, or seen in the name or in the bytes."""
    path = tmp_path / "cat.png"
    path.write_bytes(PNG)
    assert image(path) == image(str(path)) == media(pb.MEDIA_KIND_IMAGE, "image/png", data=PNG, filename="cat.png")
    assert image(PNG) == media(pb.MEDIA_KIND_IMAGE, "image/png", data=PNG)
    assert image("https://example.com/x", detail="high").media.uri == "https://example.com/x"
    assert image("https://example.com/x.webp?size=2").media.mime_type == "image/webp"
    assert image("data:,hello", mime_type="image/svg+xml").media.data == b"hello"
    assert audio(b"RIFF\0\0\0\0WAVE").media.mime_type == "audio/wav"
    assert file(b"%PDF-1.7", title="Report", citations=True).media == pb.Media(
        kind=pb.MEDIA_KIND_DOCUMENT,
        mime_type="application/pdf",
        data=b"%PDF-1.7",
        title="Report",
        citations_enabled=True,
    )
    assert file(pb.FileRef(issuer="gemini", id="f")).media.file.issuer == "gemini"
    assert assistant("a", image(PNG)).role == pb.ROLE_ASSISTANT


def test_bytes_of_no_known_type_need_one() -> None:
    """A vendor would refuse them later and less clearly."""
    with pytest.raises(ValueError, match="mime_type"):
        image(b"???")
    with pytest.raises(FileNotFoundError):
        image("/no/such/cat.png")


def media(kind: pb.MediaKind.ValueType, mime_type: str, **fields: Any) -> pb.Part:
    return pb.Part(media=pb.Media(kind=kind, mime_type=mime_type, **fields))
