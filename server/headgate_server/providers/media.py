"""What a media part is, as far as it says so."""

from __future__ import annotations

from base64 import b64encode

from headgate import v1 as pb

MEDIA_KINDS = {
    "image": pb.MEDIA_KIND_IMAGE,
    "audio": pb.MEDIA_KIND_AUDIO,
    "video": pb.MEDIA_KIND_VIDEO,
}


def media_kind(media: pb.Media) -> pb.MediaKind.ValueType:
    """The kind stated, or the one that the media type implies; UNSPECIFIED without either."""
    if media.kind != pb.MEDIA_KIND_UNSPECIFIED:
        return media.kind
    if not media.mime_type:
        return pb.MEDIA_KIND_UNSPECIFIED
    return MEDIA_KINDS.get(media.mime_type.partition("/")[0].lower(), pb.MEDIA_KIND_DOCUMENT)


def media_address(media: pb.Media) -> str:
    """The address given, or the bytes as a data URL."""
    if media.WhichOneof("source") == "uri":
        return media.uri
    return f"data:{media.mime_type or 'application/octet-stream'};base64,{b64encode(media.data).decode()}"
