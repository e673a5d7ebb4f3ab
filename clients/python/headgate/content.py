"""Messages and their parts, made from what Python programs hold: text, paths, bytes, addresses."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit

from headgate import v1 as pb

Source: TypeAlias = str | Path | bytes | pb.FileRef
"""Where media come from: a path, the bytes, an address (`https:`, `gs:`, `s3:`, `data:`), or a file at a vendor."""

_ADDRESS = re.compile(r"(https?|gs|s3)://|data:", re.IGNORECASE)
_DATA_ADDRESS = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),(.*)", re.IGNORECASE | re.DOTALL)
_SIGNATURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"RIFF....WAVE", re.DOTALL), "audio/wav"),
    (re.compile(rb"ID3|\xff[\xfb\xf3\xf2]"), "audio/mpeg"),
    (re.compile(rb"OggS"), "audio/ogg"),
    (re.compile(rb"fLaC"), "audio/flac"),
    (re.compile(rb"....ftyp", re.DOTALL), "video/mp4"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "video/webm"),
    (re.compile(rb"%PDF-"), "application/pdf"),
)
_KINDS = {"image": pb.MEDIA_KIND_IMAGE, "audio": pb.MEDIA_KIND_AUDIO, "video": pb.MEDIA_KIND_VIDEO}


def user(*content: str | pb.Part) -> pb.Message:
    """A turn of the user, of text and media."""
    return _turn(pb.ROLE_USER, content)


def system(text: str) -> pb.Message:
    """Instructions of the operator."""
    return pb.Message(role=pb.ROLE_SYSTEM, parts=[pb.Part(text=text)])


def assistant(*content: str | pb.Part) -> pb.Message:
    """A turn of the model. Real answers go back as `answer.message`, with everything they hold."""
    return _turn(pb.ROLE_ASSISTANT, content)


def part(content: str | pb.Part) -> pb.Part:
    """A part, or text as a part."""
    return pb.Part(text=content) if isinstance(content, str) else content


def image(source: Source, *, mime_type: str = "", detail: str = "") -> pb.Part:
    """An image; `detail` is the resolution at which it is read: low, high, auto, or what the vendor offers.

    Raises:
        OSError: the path cannot be read.
        ValueError: the type is neither given nor to be seen from the name or the bytes.
    """
    media = _media(source, mime_type, pb.MEDIA_KIND_IMAGE)
    media.detail = detail
    return pb.Part(media=media)


def audio(source: Source, *, mime_type: str = "") -> pb.Part:
    """Sound; raises as `image` does."""
    return pb.Part(media=_media(source, mime_type, pb.MEDIA_KIND_AUDIO))


def video(source: Source, *, mime_type: str = "") -> pb.Part:
    """Moving pictures; raises as `image` does."""
    return pb.Part(media=_media(source, mime_type, pb.MEDIA_KIND_VIDEO))


def file(
    source: Source, *, mime_type: str = "", filename: str = "", title: str = "", citations: bool = False
) -> pb.Part:
    """A file of any kind, mostly a document; with `citations` the model may cite from it. Raises as `image` does."""
    media = _media(source, mime_type, None)
    media.filename = filename or media.filename
    media.title = title
    media.citations_enabled = citations
    return pb.Part(media=media)


def media_type(data: bytes) -> str:
    """The media type that the first bytes show; empty when they show none."""
    return next((name for signature, name in _SIGNATURES if signature.match(data)), "")


def remote(address: str) -> str:
    """An address as it is; what a remote caller sends must not name a local file.

    Raises:
        ValueError: it may be a path.
    """
    if not _ADDRESS.match(address):
        raise ValueError(f"{address[:40]!r} is no address; headgate.image() reads paths")
    return address


def decoded_base64(text: str) -> bytes:
    """The bytes of base64 text.

    Raises:
        ValueError: it is none.
    """
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error


def _turn(role: pb.Role.ValueType, content: tuple[str | pb.Part, ...]) -> pb.Message:
    message = pb.Message(role=role)
    for each in content:
        if isinstance(each, str):
            message.parts.add(text=each)  # in place, where appending would copy
        else:
            message.parts.append(each)
    return message


def _media(source: Source, mime_type: str, kind: pb.MediaKind.ValueType | None) -> pb.Media:
    media = pb.Media(mime_type=mime_type)
    match source:
        case pb.FileRef():
            media.file.CopyFrom(source)
        case bytes():
            media.data = source
        case str() if _ADDRESS.match(source):
            _set_address(media, source)
        case _:
            path = Path(source)
            media.data = path.read_bytes()
            media.filename = path.name
            media.mime_type = mime_type or mimetypes.guess_type(path.name)[0] or ""
    media.mime_type = media.mime_type or media_type(media.data)
    if media.HasField("data") and not media.mime_type:
        raise ValueError(f"the media type of {_named(source)} cannot be seen: give mime_type, such as image/png")
    media.kind = kind or _KINDS.get(media.mime_type.partition("/")[0], pb.MEDIA_KIND_DOCUMENT)
    return media


def _set_address(media: pb.Media, address: str) -> None:
    if address[:5].lower() != "data:":
        media.uri = address
        media.mime_type = media.mime_type or mimetypes.guess_type(urlsplit(address).path)[0] or ""
        return
    found = _DATA_ADDRESS.fullmatch(address)
    if not found:
        raise ValueError("a data: address needs a comma before its data")
    mime_type, parameters, data = found.groups()
    is_base64 = ";base64" in parameters.lower()
    media.data = decoded_base64(data) if is_base64 else unquote_to_bytes(data)
    media.mime_type = media.mime_type or mime_type


def _named(source: Source) -> str:
    return f"{len(source)} bytes" if isinstance(source, bytes) else str(source)[:100]
