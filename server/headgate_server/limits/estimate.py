"""What a request will use at most, before anybody has read it. Pure.

Nothing is tokenized: text has no more tokens than bytes, whatever the vendor, and media and output have written
defaults. The encoded size of the request stands for its text; what the encoding adds stands for the few tokens that
vendors put around each message.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from headgate import v1 as pb

from headgate_server.config import Config
from headgate_server.providers.media import media_kind

Request = pb.GenerateRequest | pb.EmbedRequest

TOOL_PROMPT_TOKENS = 600
"""Some vendors write a system prompt of their own around tools, of up to about so many tokens."""


class Estimator:
    """Estimates by the settings and the model cards of one configuration."""

    def __init__(self, config: Config) -> None:
        self._settings = config.limits.estimate
        self._most_output = most_output(config)

    def amounts(self, request: Request) -> dict[str, int]:
        """The most of each unit."""
        input_tokens = self._input_tokens(request)
        output_tokens = self._output_tokens(request) if isinstance(request, pb.GenerateRequest) else 0
        return {
            "requests": 1,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
            "concurrency": 1,
        }

    def _input_tokens(self, request: Request) -> int:
        size, tokens = request.ByteSize(), 0
        if isinstance(request, pb.GenerateRequest) and request.tools:
            tokens += TOOL_PROMPT_TOKENS
        for parts in _parts_of(request):
            for part in parts:
                if not part.HasField("text"):
                    for media in _media(part):
                        size -= len(media.data)
                        tokens += self._media_tokens(media)
        return math.ceil(size / self._settings.bytes_per_token) + tokens

    def _media_tokens(self, media: pb.Media) -> int:
        match media_kind(media):
            case pb.MEDIA_KIND_IMAGE:
                return self._settings.image_tokens
            case pb.MEDIA_KIND_AUDIO:
                return self._settings.audio_tokens
            case pb.MEDIA_KIND_VIDEO:
                return self._settings.video_tokens
            case _:
                return self._settings.document_tokens

    def _output_tokens(self, request: pb.GenerateRequest) -> int:
        config = request.config
        if config.HasField("max_output_tokens"):
            tokens = config.max_output_tokens
        else:
            tokens = self._most_output.get(request.model, self._settings.output_tokens)
        return tokens * max(config.candidate_count, 1)


def most_output(config: Config) -> Mapping[str, int]:
    """The most output of each name that callers may use, where the catalog knows it."""
    most = {
        f"{name}/{model}": card.max_output_tokens
        for name, provider in config.providers.items()
        for model, card in provider.catalog.items()
        if card.max_output_tokens
    }
    for name, alias in config.models.items():
        known = [most.get(f"{target.provider}/{target.model}") for target in alias.targets]
        if tokens := [number for number in known if number]:
            unknown = config.limits.estimate.output_tokens if None in known else 0
            most[name] = max(*tokens, unknown)
    return most


def _parts_of(request: Request) -> Iterable[Iterable[pb.Part]]:
    if isinstance(request, pb.GenerateRequest):
        return [message.parts for message in request.messages]
    return [given.content.parts for given in request.inputs if given.WhichOneof("input") == "content"]


def _media(part: pb.Part) -> Iterator[pb.Media]:
    """Media of the part and of the tool result that it is; not documents whose text is in the size of the request."""
    if part.HasField("tool_result"):
        for inner in part.tool_result.parts:
            yield from _media(inner)
    elif part.HasField("media") and not (part.media.data and part.media.mime_type.startswith("text/")):
        yield part.media
